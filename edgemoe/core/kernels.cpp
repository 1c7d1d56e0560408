// Dot products for expert weights in file layout.
//
// The K-quants are read 64 bytes at a time and multiplied with VNNI. Activations are quantised by ggml (Q8_K), then laid out
// once per vector in the order in which the nibbles of a row come apart, so that the loop over rows does not shuffle. Integer
// sums are exact, and floats are added in the order of ggml's AVX2 kernels: the results are the same to the last bit, which
// matters, for a last bit can tip the quantisation of the next activation. Types with blocks of 32 weights are read two blocks at a
// time. VNNI wants weights unsigned: signed ones are raised, and what that adds is taken off beforehand.

#include "kernels.h"

#include "engine.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#if (defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)))
#    define EM_AVX512 1
#    include <immintrin.h>
#    define EM_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,bmi2,f16c,fma")))
#endif

namespace {

// File format numbers.
constexpr int TYPE_Q4_0 = 2, TYPE_Q5_0 = 6, TYPE_Q8_0 = 8, TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14,
              TYPE_Q8_K = 15, TYPE_IQ2_XXS = 16, TYPE_IQ2_XS = 17, TYPE_IQ3_XXS = 18, TYPE_IQ1_S = 19, TYPE_IQ4_NL = 20, TYPE_IQ3_S = 21,
              TYPE_IQ2_S = 22, TYPE_IQ4_XS = 23, TYPE_IQ1_M = 29, TYPE_MXFP4 = 39;

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

struct alignas(64) prepared_raised { // the same for weights that are raised
    int8_t  q[256];
    int32_t start[64]; // what raising adds to each four products, negative; in the order of q
    float   d;
    char    pad[60];
};
static_assert(sizeof(prepared_raised) == 576, "a multiple of a cache line");

// Blocks of 256 activations by ggml, their parts of 32 in an order; `rest` does what else belongs to a block.
template <class Prepared, class Rest>
void quantise(const em_kernel & k, const float * x, int64_t n, void * activation, const int (&order)[8], Rest rest) {
    Prepared * out = static_cast<Prepared *>(activation);
    q8_k       block;
    for (int64_t b = 0; b < n / 256; ++b) {
        k.dot_traits->from_float(x + b * 256, &block, 256);
        for (int part = 0; part < 8; ++part) {
            memcpy(out[b].q + part * 32, block.q + order[part] * 32, 32);
        }
        out[b].d = block.d;
        rest(out[b], block);
    }
}

// 64 bytes of nibbles hold sub-blocks 0 and 2 in their low halves, 1 and 3 in their high halves. 64 bytes of two or three bits hold
// four times 32 weights of the first half of a block, and of the second.
constexpr int NATURAL[8] = {0, 1, 2, 3, 4, 5, 6, 7}, NIBBLES[8] = {0, 2, 1, 3, 4, 6, 5, 7}, HALVES[8] = {0, 4, 1, 5, 2, 6, 3, 7};

void prepare_nibbles(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared>(k, x, n, activation, NIBBLES, [](prepared & out, const q8_k & block) {
        for (int i = 0; i < 8; ++i) {
            out.sums[i] = int16_t(block.sums[2 * i] + block.sums[2 * i + 1]);
        }
    });
}

template <const int (&ORDER)[8]>
void prepare_sums(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared>(k, x, n, activation, ORDER, [](prepared & out, const q8_k & block) { memcpy(out.sums, block.sums, sizeof(out.sums)); });
}

inline int32_t sum_of_four(const int8_t * q) { return q[0] + q[1] + q[2] + q[3]; }

template <int RAISED, const int (&ORDER)[8]>
void prepare_raised(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared_raised>(k, x, n, activation, ORDER, [](prepared_raised & out, const q8_k &) {
        for (int i = 0; i < 64; ++i) {
            out.start[i] = -RAISED * sum_of_four(out.q + 4 * i);
        }
    });
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

EM_TARGET inline float half_at(const uint8_t * at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return half_to_float(half);
}

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
        sum = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w) * y->d), _mm256_cvtepi32_ps(fold(t)), sum);
        const __m128i minima = _mm_cvtepu8_epi16(_mm_srli_si128(packed, 8));
        __m128i       m      = _mm_madd_epi16(minima, _mm_load_si128(reinterpret_cast<const __m128i *>(y->sums)));
        if (FIVE) {
            m = _mm_hadd_epi32(m, m);
            m = _mm_hadd_epi32(m, m);
        }
        min = _mm_fmadd_ps(_mm_set1_ps(-y->d * half_at(w + 2)), _mm_cvtepi32_ps(m), min);
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
        const float     d      = half_at(w + 208) * y->d;
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

// Two-bit weights with a scale for 16 of them each: bits 2 * k of 64 bytes times 64 activations, for k = 0 to 3, scaled and added.
// `more` gives what else belongs to the weights.
template <class Activation, class More>
EM_TARGET inline __m512i dot_two_bits(const uint8_t * q, const Activation & y, __m128i scales, const int32_t * start, More more) {
    const __m512i bits = _mm512_loadu_si512(q), three = _mm512_set1_epi8(3);
    // pairs of 16 bits for two values of k: 0 and 2 with 1 and 3, 4 and 6 with 5 and 7; then the same of the second half
    const __m128i mixed = _mm_shuffle_epi8(scales, _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const __m512i pairs = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(mixed));
    const __m512i lane  = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 4, 5, 5, 5, 5);
    auto          sums  = [&](int k) EM_TARGET {
        const __m512i w = more(_mm512_and_si512(_mm512_srli_epi16(bits, unsigned(2 * k)), three), k);
        return _mm512_dpbusd_epi32(start ? _mm512_load_si512(start + 16 * k) : _mm512_setzero_si512(), w, _mm512_load_si512(y.q + 64 * k));
    };
    const __m512i total = _mm512_dpwssd_epi32(_mm512_setzero_si512(), pair(sums(0), sums(1)), _mm512_permutexvar_epi32(lane, pairs));
    return _mm512_dpwssd_epi32(total, pair(sums(2), sums(3)), _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(2)), pairs));
}

EM_TARGET void dot_q2(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *  w = static_cast<const uint8_t *>(row);
    const prepared * y = static_cast<const prepared *>(activation);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n / 256; ++b, w += 84, ++y) {
        prefetch(w + AHEAD);
        prefetch(w + AHEAD + 64);
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w)), low = _mm_set1_epi8(0x0f);
        const __m256i minima = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), low));
        const __m256i much   = _mm256_madd_epi16(minima, _mm256_load_si256(reinterpret_cast<const __m256i *>(y->sums)));
        const __m512i t      = dot_two_bits(w + 16, *y, _mm_and_si128(packed, low), nullptr, [&](__m512i v, int) EM_TARGET { return v; });
        sum = _mm256_fmadd_ps(_mm256_set1_ps(-y->d * half_at(w + 82)), _mm256_cvtepi32_ps(much), sum);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(y->d * half_at(w + 80)), _mm256_cvtepi32_ps(fold(t)), sum);
    }
    *out = add_lanes(sum);
}

// 16 six-bit scales, 32 too large.
EM_TARGET inline __m128i unpack_scales_q3(const uint8_t * packed) {
    constexpr uint64_t low4 = 0x0f0f0f0f0f0f0f0f, low2 = 0x03030303;
    uint64_t a;
    uint32_t c;
    memcpy(&a, packed, 8);
    memcpy(&c, packed + 8, 4);
    const uint64_t first = (c & low2) | (c >> 2 & low2) << 32, second = (c >> 4 & low2) | (c >> 6 & low2) << 32;
    const __m128i  all   = _mm_set_epi64x(int64_t((a >> 4 & low4) | second << 4), int64_t((a & low4) | first << 4));
    return _mm_sub_epi8(all, _mm_set1_epi8(32));
}

EM_TARGET void dot_q3(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *         w = static_cast<const uint8_t *>(row);
    const prepared_raised * y = static_cast<const prepared_raised *>(activation);
    // the third bits of the first half are bits 0 to 3 of the bytes they share, of the second bits 4 to 7
    const __m512i half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1), third = _mm512_set1_epi8(4);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n / 256; ++b, w += 110, ++y) {
        prefetch(w + AHEAD);
        prefetch(w + AHEAD + 64);
        const __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w)));
        auto          more = [&](__m512i v, int k) EM_TARGET {
            const __m512i at = _mm512_srlv_epi16(high, _mm512_add_epi16(half, _mm512_set1_epi16(short(k))));
            return _mm512_or_si512(v, _mm512_and_si512(_mm512_slli_epi16(at, 2), third));
        };
        const __m512i t = dot_two_bits(w + 32, *y, unpack_scales_q3(w + 96), y->start, more);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(y->d * half_at(w + 108)), _mm256_cvtepi32_ps(fold(t)), sum);
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
            p.start[h * 8 + i] = -RAISED * sum_of_four(block.q + 4 * i);
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

struct mxfp4 {
    static constexpr int  BYTES = 17, RAISED = 12;
    static constexpr bool TWO_SUMS = true, FAR_AHEAD = true; // even blocks in one sum, odd ones in another
    static float scale(const uint8_t * w) { return exponent_to_float(w[0]); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        return _mm512_shuffle_epi8(table, nibbles(w + 1, next + 1));
    }
};

// The values of IQ4_NL and IQ4_XS, raised by 128.
EM_TARGET inline __m512i iq4_values(__m512i nibbles) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, char(129), char(141), char(153), char(166),
                                                                    char(181), char(197), char(217), char(241))), nibbles);
}

struct iq4_nl {
    static constexpr int  BYTES = 18, RAISED = 128;
    static constexpr bool TWO_SUMS = true, FAR_AHEAD = true;
    static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) { return iq4_values(nibbles(w + 2, next + 2)); }
};

struct q4_0 {
    static constexpr int  BYTES = 18, RAISED = 8;
    static constexpr bool TWO_SUMS = false, FAR_AHEAD = true;
    static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) { return nibbles(w + 2, next + 2); }
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
        *out = add_lanes(_mm256_add_ps(_mm512_castps512_ps256(two), _mm512_extractf32x8_ps(two, 1)));
        return;
    }
    if (n % PAIR) {
        const __m256i last = _mm512_castsi512_si256(products<W>(w, w, *y));
        one = _mm256_fmadd_ps(_mm256_set1_ps(y->d[0] * W::scale(w)), _mm256_cvtepi32_ps(last), one);
    }
    *out = add_lanes(one);
}

EM_TARGET void dot_iq4_xs(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *         w = static_cast<const uint8_t *>(row);
    const prepared_raised * y = static_cast<const prepared_raised *>(activation);
    const __m512i two = _mm512_set1_epi32(2);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < n / 256; ++b, w += 136, ++y) {
        prefetch(w + AHEAD);
        prefetch(w + AHEAD + 64);
        uint16_t high;
        uint32_t low;
        memcpy(&high, w + 2, 2);
        memcpy(&low, w + 4, 4);
        const uint64_t packed = _pdep_u64(low, 0x0f0f0f0f0f0f0f0f) | _pdep_u64(high, 0x3030303030303030); // six bits a byte, 32 too large
        const __m256i  of_32  = _mm256_cvtepi8_epi32(_mm_sub_epi8(_mm_cvtsi64_si128(int64_t(packed)), _mm_set1_epi8(32)));
        const __m512i  scales = _mm512_castsi256_si512(of_32);
        __m512i        lane   = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), total = _mm512_setzero_si512();
        for (int i = 0; i < 4; ++i, lane = _mm512_add_epi32(lane, two)) {
            const __m512i values = iq4_values(nibbles(w + 8 + 32 * i, w + 24 + 32 * i));
            const __m512i t = _mm512_dpbusd_epi32(_mm512_load_si512(y->start + 16 * i), values, _mm512_load_si512(y->q + 64 * i));
            total = _mm512_add_epi32(total, _mm512_mullo_epi32(t, _mm512_permutexvar_epi32(lane, scales)));
        }
        sum = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w) * y->d), _mm256_cvtepi32_ps(fold(total)), sum);
    }
    *out = add_lanes(sum);
}

template <class W>
void use_pairs(em_kernel & k, int64_t n) {
    if (W::TWO_SUMS && n % PAIR) {
        return; // a product and a sum in ggml's last block, which its compiler rounds once or twice as it is built
    }
    k.block_bytes  = sizeof(prepared_pair);
    k.block_values = PAIR;
    k.prepare      = prepare_pairs<W::RAISED>;
    k.dot          = dot_pairs<W>;
}

bool processor_ok() {
    static const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
                           __builtin_cpu_supports("f16c");
    return ok;
}

#endif // EM_AVX512

} // namespace

size_t em_kernel::activation_bytes(int64_t n) const {
    return block_bytes ? size_t((n + block_values - 1) / block_values) * block_bytes : em_align(G.ggml_row_size(traits->vec_dot_type, n), 64);
}

bool em_kernel_own(int type, int64_t n) { return em_kernel_for(type, n, true).block_bytes > 0; }

bool em_kernel_many(int type) {
    constexpr int TYPES[] = {TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_XS, TYPE_IQ2_XXS, TYPE_IQ2_XS, TYPE_IQ2_S,
                             TYPE_IQ3_XXS, TYPE_IQ3_S, TYPE_IQ1_S, TYPE_IQ1_M};
    return std::find(std::begin(TYPES), std::end(TYPES), type) != std::end(TYPES);
}

em_kernel em_kernel_for(int type, int64_t n, bool own_kernels) {
    em_kernel k{};
    k.traits     = G.ggml_get_type_traits_cpu(type);
    k.dot_traits = G.ggml_get_type_traits_cpu(k.traits->vec_dot_type);
    k.prepare    = generic_prepare;
    k.dot        = k.traits->vec_dot && (k.dot_traits->from_float || k.traits->vec_dot_type == TYPE_F32) ? generic_dot : nullptr;
#ifdef EM_AVX512
    auto use = [&](size_t bytes, auto prepare, auto dot) {
        k.block_bytes  = bytes;
        k.block_values = 256;
        k.prepare      = prepare;
        k.dot          = dot;
    };
    if (!own_kernels || !processor_ok() || (k.traits->vec_dot_type != TYPE_Q8_0 && k.traits->vec_dot_type != TYPE_Q8_K)) {
        return k;
    }
    switch (type) {
    case TYPE_Q4_0: use_pairs<q4_0>(k, n); break;
    case TYPE_Q5_0: use_pairs<q5_0>(k, n); break;
    case TYPE_Q8_0: use_pairs<q8_0_weights>(k, n); break;
    case TYPE_IQ4_NL: use_pairs<iq4_nl>(k, n); break;
    case TYPE_MXFP4: use_pairs<mxfp4>(k, n); break;
    case TYPE_Q2_K: use(sizeof(prepared), prepare_sums<HALVES>, dot_q2); break;
    case TYPE_Q3_K: use(sizeof(prepared_raised), prepare_raised<4, HALVES>, dot_q3); break;
    case TYPE_Q4_K: use(sizeof(prepared), prepare_nibbles, dot_nibbles<144, false>); break;
    case TYPE_Q5_K: use(sizeof(prepared), prepare_nibbles, dot_nibbles<176, true>); break;
    case TYPE_Q6_K: use(sizeof(prepared), prepare_sums<NATURAL>, dot_q6); break;
    case TYPE_IQ4_XS: use(sizeof(prepared_raised), prepare_raised<128, NATURAL>, dot_iq4_xs); break;
    default: break;
    }
#endif
    return k;
}
