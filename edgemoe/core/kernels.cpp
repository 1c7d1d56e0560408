// Dot products for expert weights in file layout.
//
// The K-quants are read 64 bytes at a time and multiplied with VNNI. Activations are quantised by ggml (Q8_K), then laid out
// once per vector in the order in which the nibbles of a row come apart, so that the loop over rows does not shuffle. Integer
// sums are exact, and floats are added in the order of ggml's AVX2 kernels: the results are the same to the last bit, which
// matters, for a last bit can tip the quantisation of the next activation. MXFP4, Q5_0 and Q8_0 are read two blocks at a time,
// with the values raised for VNNI, which wants them unsigned, and what that adds taken off beforehand.

#include "kernels.h"

#include "engine.h"

#include <algorithm>
#include <cstring>

#if (defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)))
#    define EM_AVX512 1
#    include <immintrin.h>
#    define EM_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")))
#endif

namespace {

constexpr int TYPE_Q5_0 = 6, TYPE_Q8_0 = 8, TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14, TYPE_Q8_K = 15, TYPE_MXFP4 = 39; // file format numbers

void generic_prepare(const em_kernel & k, const float * x, int64_t n, void * activation) {
    if (k.traits->vec_dot_type == TYPE_F32) {
        memcpy(activation, x, size_t(n) * 4);
    } else {
        k.dot_traits->from_float(x, activation, n);
    }
}

void generic_dot(const em_kernel & k, int64_t n, const void * row, const void * activation, float * out) {
    k.traits->vec_dot(int(n), out, 0, row, 0, activation, 0, 1);
}

#ifdef EM_AVX512

struct q8_k { // ggml's block_q8_K
    float   d;
    int8_t  q[256];
    int16_t sums[16];
};

struct alignas(64) prepared { // one block of 256 activations
    int8_t  q[256];
    int16_t sums[16]; // of 16 values each for Q6_K; of 32 each in the first 8 places for Q4_K and Q5_K
    float   d;
    char    pad[28];
};
static_assert(sizeof(prepared) == 320, "a multiple of a cache line");

void quantise(const em_kernel & k, const float * x, int64_t n, prepared * out, const int * order, bool pairs) {
    q8_k block;
    for (int64_t b = 0; b < n / 256; ++b) {
        k.dot_traits->from_float(x + b * 256, &block, 256);
        for (int part = 0; part < 8; ++part) {
            memcpy(out[b].q + part * 32, block.q + order[part] * 32, 32);
        }
        for (int i = 0; i < 16; ++i) {
            out[b].sums[i] = block.sums[i];
        }
        for (int i = 0; pairs && i < 8; ++i) {
            out[b].sums[i] = int16_t(block.sums[2 * i] + block.sums[2 * i + 1]);
        }
        out[b].d = block.d;
    }
}

// 64 bytes of nibbles hold sub-blocks 0 and 2 in their low halves, 1 and 3 in their high halves.
void prepare_nibbles(const em_kernel & k, const float * x, int64_t n, void * activation) {
    static const int order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    quantise(k, x, n, static_cast<prepared *>(activation), order, true);
}

void prepare_q6(const em_kernel & k, const float * x, int64_t n, void * activation) {
    static const int order[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    quantise(k, x, n, static_cast<prepared *>(activation), order, false);
}

// 8 six-bit scales in the low half, 8 six-bit minima in the high half, a byte each.
EM_TARGET inline __m128i unpack_scales(const uint8_t * packed) {
    constexpr uint64_t low6 = 0x3f3f3f3f3f3f3f3f, low2 = 0x0303030303030303;
    uint64_t a;
    uint32_t c;
    memcpy(&a, packed, 8);
    memcpy(&c, packed + 8, 4);
    const uint64_t high = uint64_t(c & 0x0f0f0f0f) | uint64_t((c >> 4) & 0x0f0f0f0f) << 32;
    return _mm_unpacklo_epi32(_mm_cvtsi64_si128(int64_t(a & low6)), _mm_cvtsi64_si128(int64_t(high | ((a >> 6) & low2) << 4)));
}

inline float half_to_float(uint16_t h) EM_TARGET;
inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }

EM_TARGET inline __m256i fold(__m512i t) { return _mm256_add_epi32(_mm512_castsi512_si256(t), _mm512_extracti64x4_epi64(t, 1)); }

EM_TARGET inline float add_lanes(__m256 x) {
    __m128 r = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}

EM_TARGET inline __m512i pair(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

// Bytes to fetch ahead of their use: the hardware stops at every 4 KiB page, and mapped files have such pages.
constexpr int AHEAD = 8192;

inline void prefetch(const void * at) { __builtin_prefetch(at, 0, 3); }

// Q8_0 is read fastest of all: less far, and to the second cache, is better on AMD and hardly worse on Intel (docs/log.md).
constexpr int NOT_SO_FAR = 2048;

inline void prefetch_near(const void * at) { __builtin_prefetch(at, 0, 2); }

// Q4_K and Q5_K: the fifth bits lie apart.
template <int BLOCK_BYTES, bool FIVE>
EM_TARGET void dot_nibbles(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *  w = static_cast<const uint8_t *>(row);
    const prepared * y = static_cast<const prepared *>(activation);
    const __m512i low4 = _mm512_set1_epi8(0x0f);
    // which pair of scales an int32 lane takes: the first 8 lanes belong to two sub-blocks, the last 8 to the next two
    const __m512i lane01 = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i lane23 = _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    __m256 sum = _mm256_setzero_ps();
    __m128 min = _mm_setzero_ps(); // Q5_K uses its first lane only
    for (int64_t b = 0; b < n / 256; ++b, w += BLOCK_BYTES, ++y) {
        uint16_t halves[2];
        memcpy(halves, w, 4);
        const __m128i packed = unpack_scales(w + 4);
        const __m512i scales = _mm512_castsi128_si512(_mm_cvtepu8_epi16(packed));
        prefetch(w + AHEAD);
        prefetch(w + AHEAD + 64);
        const uint8_t * q      = w + 16 + (FIVE ? 32 : 0);
        const __m512i   q0     = _mm512_loadu_si512(q);
        const __m512i   q1     = _mm512_loadu_si512(q + 64);
        __m512i a = _mm512_and_si512(q0, low4), c = _mm512_and_si512(_mm512_srli_epi16(q0, 4), low4);
        __m512i e = _mm512_and_si512(q1, low4), g = _mm512_and_si512(_mm512_srli_epi16(q1, 4), low4);
        if (FIVE) {
            const __m512i qh = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 16)));
            const __m512i bit = _mm512_set1_epi8(0x10);
            // bit of sub-block j is bit j of each byte; the upper half of a register is two sub-blocks on
            const __m512i up = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
            auto fifth = [&](int j) EM_TARGET {
                const __m512i at = _mm512_srlv_epi16(qh, _mm512_add_epi16(up, _mm512_set1_epi16(short(j))));
                return _mm512_and_si512(_mm512_slli_epi16(at, 4), bit);
            };
            a = _mm512_or_si512(a, fifth(0));
            c = _mm512_or_si512(c, fifth(1));
            e = _mm512_or_si512(e, fifth(4));
            g = _mm512_or_si512(g, fifth(5));
        }
        const __m512i zero = _mm512_setzero_si512();
        const __m512i da = _mm512_dpbusd_epi32(zero, a, _mm512_load_si512(y->q));
        const __m512i dc = _mm512_dpbusd_epi32(zero, c, _mm512_load_si512(y->q + 64));
        const __m512i de = _mm512_dpbusd_epi32(zero, e, _mm512_load_si512(y->q + 128));
        const __m512i dg = _mm512_dpbusd_epi32(zero, g, _mm512_load_si512(y->q + 192));
        // sums of four products, at most 31 * 128 * 4, fit 16 bits: two of them share a lane and are scaled at once
        __m512i t = _mm512_dpwssd_epi32(zero, pair(da, dc), _mm512_permutexvar_epi32(lane01, scales));
        t         = _mm512_dpwssd_epi32(t, pair(de, dg), _mm512_permutexvar_epi32(lane23, scales));
        sum = _mm256_fmadd_ps(_mm256_set1_ps(half_to_float(halves[0]) * y->d), _mm256_cvtepi32_ps(fold(t)), sum);
        const __m128i minima = _mm_cvtepu8_epi16(_mm_srli_si128(packed, 8));
        __m128i       m      = _mm_madd_epi16(minima, _mm_load_si128(reinterpret_cast<const __m128i *>(y->sums)));
        if (FIVE) {
            m = _mm_hadd_epi32(m, m);
            m = _mm_hadd_epi32(m, m);
        }
        min = _mm_fmadd_ps(_mm_set1_ps(-y->d * half_to_float(halves[1])), _mm_cvtepi32_ps(m), min);
    }
    if (!FIVE) {
        min = _mm_add_ps(min, _mm_movehl_ps(min, min));
        min = _mm_add_ss(min, _mm_movehdup_ps(min));
    }
    *out = add_lanes(sum) + _mm_cvtss_f32(min);
}

EM_TARGET void dot_q6(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *  w = static_cast<const uint8_t *>(row);
    const prepared * y = static_cast<const prepared *>(activation);
    const __m512i low4  = _mm512_set1_epi8(0x0f);
    const __m512i high2 = _mm512_set1_epi8(0x30);
    // the two high bits of q lie at bit 0, 2, 4, 6 of the byte they share: shift left by 4, 2 or right by 0, 2 to bit 4
    const __m512i up_lo = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i dn_hi = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    // four lanes take one scale of the first 64 weights and, in their high half, the one of the next 64
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i four   = _mm512_set1_epi32(4);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n / 256; ++b, w += 210, ++y) {
        uint16_t half;
        memcpy(&half, w + 208, 2);
        const float     d      = half_to_float(half) * y->d;
        const __m128i   packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w + 192));
        // bytes 0-3 with 4-7, 8-11 with 12-15, as pairs of 16 bits
        const __m128i   mixed  = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
        const __m512i   scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(mixed));
        const __m512i   zero   = _mm512_setzero_si512();
        __m512i         lane   = spread;
        __m512i         total  = zero;
        prefetch(w + AHEAD);
        prefetch(w + AHEAD + 64);
        prefetch(w + AHEAD + 128);
        for (int h = 0; h < 2; ++h) {
            const __m512i ql = _mm512_loadu_si512(w + h * 64);
            const __m512i qh =
                _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 128 + h * 32)));
            const __m512i lo = _mm512_or_si512(_mm512_and_si512(ql, low4),
                                               _mm512_and_si512(_mm512_sllv_epi16(qh, up_lo), high2));
            const __m512i hi = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(ql, 4), low4),
                                               _mm512_and_si512(_mm512_srlv_epi16(qh, dn_hi), high2));
            const __m512i dl = _mm512_dpbusd_epi32(zero, lo, _mm512_load_si512(y->q + h * 128));
            const __m512i dh = _mm512_dpbusd_epi32(zero, hi, _mm512_load_si512(y->q + h * 128 + 64));
            // at most 63 * 128 * 4: 16 bits
            total = _mm512_dpwssd_epi32(total, pair(dl, dh), _mm512_permutexvar_epi32(lane, scales));
            lane  = _mm512_add_epi32(lane, four);
        }
        // every weight is stored 32 too large
        const __m256i too_much = _mm256_slli_epi32(
            _mm256_madd_epi16(_mm256_load_si256(reinterpret_cast<const __m256i *>(y->sums)), _mm256_cvtepi8_epi16(packed)), 5);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(_mm256_sub_epi32(fold(total), too_much)), sum);
    }
    *out = add_lanes(sum);
}

struct q8_0 { // ggml's block_q8_0
    uint16_t d;
    int8_t   q[32];
};

struct alignas(64) prepared_pair { // two blocks of 32 activations
    int8_t  q[64];
    int32_t start[16]; // what raising the weights adds to each lane's four products, negative
    float   d[2];
    char    pad[56];
};
static_assert(sizeof(prepared_pair) == 192, "three cache lines");

constexpr int64_t PAIR = 64; // values

// For weights that are raised by so much.
template <int RAISED>
EM_TARGET void prepare_pairs(const em_kernel & k, const float * x, int64_t n, void * activation) {
    prepared_pair * out = static_cast<prepared_pair *>(activation);
    for (int64_t b = 0; b < n / 32; ++b) {
        prepared_pair & p = out[b / 2];
        const int       h = int(b % 2);
        q8_0            block;
        k.dot_traits->from_float(x + b * 32, &block, 32);
        memcpy(p.q + h * 32, block.q, 32);
        for (int i = 0; i < 8; ++i) {
            p.start[h * 8 + i] = -RAISED * (block.q[4 * i] + block.q[4 * i + 1] + block.q[4 * i + 2] + block.q[4 * i + 3]);
        }
        p.d[h] = half_to_float(block.d);
    }
}

// Two blocks' nibbles as bytes: of each block the low ones come before the high ones.
EM_TARGET inline __m512i nibbles(const uint8_t * first, const uint8_t * second) {
    const __m512i both  = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(first)))),
                                             _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(second))), 1);
    const __m512i shift = _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(0x0f));
}

// A power of two, halved; as ggml has it.
inline float exponent_to_float(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
    float          f;
    memcpy(&f, &bits, 4);
    return f;
}

inline float half_at(const uint8_t * at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return half_to_float(half);
}

struct mxfp4 {
    static constexpr int  BYTES = 17, RAISED = 12;
    static constexpr bool TWO_SUMS = true, FAR_AHEAD = true; // even blocks in one sum, odd ones in another
    static float scale(const uint8_t * w) { return exponent_to_float(w[0]); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        return _mm512_shuffle_epi8(table, nibbles(w + 1, next + 1));
    }
};

struct q5_0 {
    static constexpr int  BYTES = 22, RAISED = 16;
    static constexpr bool TWO_SUMS = false, FAR_AHEAD = true;
    static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        uint32_t fifth[2];
        memcpy(&fifth[0], w + 2, 4);
        memcpy(&fifth[1], next + 2, 4);
        const __m512i low = nibbles(w + 6, next + 6);
        return _mm512_mask_add_epi8(low, uint64_t(fifth[0]) | uint64_t(fifth[1]) << 32, low, _mm512_set1_epi8(16));
    }
};

struct q8_0_weights {
    static constexpr int  BYTES = 34, RAISED = 128;
    static constexpr bool TWO_SUMS = false, FAR_AHEAD = false;
    static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 2))),
                                                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(next + 2)), 1);
        return _mm512_xor_si512(both, _mm512_set1_epi8(char(0x80)));
    }
};

template <class W>
EM_TARGET inline __m512i products(const uint8_t * w, const uint8_t * next, const prepared_pair & y) {
    return _mm512_dpbusd_epi32(_mm512_load_si512(y.start), W::values(w, next), _mm512_load_si512(y.q));
}

template <class W>
EM_TARGET void dot_pairs(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *       w = static_cast<const uint8_t *>(row);
    const prepared_pair * y = static_cast<const prepared_pair *>(activation);
    __m512                two = _mm512_setzero_ps();
    __m256                one = _mm256_setzero_ps();
    for (int64_t p = 0; p < n / PAIR; ++p, w += 2 * W::BYTES, ++y) {
        W::FAR_AHEAD ? prefetch(w + AHEAD) : prefetch_near(w + NOT_SO_FAR);
        const float  first = y->d[0] * W::scale(w), second = y->d[1] * W::scale(w + W::BYTES);
        const __m512 sums  = _mm512_cvtepi32_ps(products<W>(w, w + W::BYTES, *y));
        if (W::TWO_SUMS) {
            two = _mm512_fmadd_ps(_mm512_mask_mov_ps(_mm512_set1_ps(first), 0xff00, _mm512_set1_ps(second)), sums, two);
        } else {
            one = _mm256_fmadd_ps(_mm256_set1_ps(first), _mm512_castps512_ps256(sums), one);
            one = _mm256_fmadd_ps(_mm256_set1_ps(second), _mm512_extractf32x8_ps(sums, 1), one);
        }
    }
    if (W::TWO_SUMS) {
        float total = add_lanes(_mm256_add_ps(_mm512_castps512_ps256(two), _mm512_extractf32x8_ps(two, 1)));
        if (n % PAIR) { // ggml adds the last block's sum, not its lanes
            total += y->d[0] * W::scale(w) * float(_mm512_mask_reduce_add_epi32(0x00ff, products<W>(w, w, *y)));
        }
        *out = total;
        return;
    }
    if (n % PAIR) {
        const __m256i last = _mm512_castsi512_si256(products<W>(w, w, *y));
        one = _mm256_fmadd_ps(_mm256_set1_ps(y->d[0] * W::scale(w)), _mm256_cvtepi32_ps(last), one);
    }
    *out = add_lanes(one);
}

template <class W>
void use_pairs(em_kernel & k) {
    k.prepare = prepare_pairs<W::RAISED>;
    k.dot     = dot_pairs<W>;
}

bool processor_ok() {
    static const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
    return ok;
}

#endif // EM_AVX512

} // namespace

size_t em_kernel::activation_bytes(int64_t n) const {
    return block_bytes ? size_t((n + block_values - 1) / block_values) * block_bytes : em_align(G.ggml_row_size(traits->vec_dot_type, n), 64);
}

bool em_kernel_own(int type) {
#ifdef EM_AVX512
    constexpr int OWN[] = {TYPE_Q5_0, TYPE_Q8_0, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_MXFP4};
    return processor_ok() && std::find(std::begin(OWN), std::end(OWN), type) != std::end(OWN);
#else
    return false;
#endif
}

em_kernel em_kernel_for(int type, bool own_kernels) {
    em_kernel k{};
    k.traits     = G.ggml_get_type_traits_cpu(type);
    k.dot_traits = G.ggml_get_type_traits_cpu(k.traits->vec_dot_type);
    k.prepare    = generic_prepare;
    k.dot        = k.traits->vec_dot && (k.dot_traits->from_float || k.traits->vec_dot_type == TYPE_F32) ? generic_dot : nullptr;
#ifdef EM_AVX512
    if (own_kernels && em_kernel_own(type) && k.traits->vec_dot_type == TYPE_Q8_0) {
        k.block_bytes  = sizeof(prepared_pair);
        k.block_values = PAIR;
        type == TYPE_MXFP4 ? use_pairs<mxfp4>(k) : type == TYPE_Q5_0 ? use_pairs<q5_0>(k) : use_pairs<q8_0_weights>(k);
    } else if (own_kernels && em_kernel_own(type) && k.traits->vec_dot_type == TYPE_Q8_K) {
        k.block_bytes = sizeof(prepared);
        k.block_values = 256;
        k.prepare     = type == TYPE_Q6_K ? prepare_q6 : prepare_nibbles;
        k.dot         = type == TYPE_Q6_K   ? dot_q6
                        : type == TYPE_Q5_K ? dot_nibbles<176, true>
                                            : dot_nibbles<144, false>;
    }
#endif
    return k;
}
