// K-quants and IQ4_XS: blocks of 256 weights with scales within.
//
// Rows are read 64 bytes at a time. Activations are quantised by ggml (Q8_K), then laid out once per vector. Their order is the
// order in which the nibbles of a row come apart, so the loop over rows does not shuffle. Work on the weights of a block is done
// once for up to four tokens.

#include "avx512_blocks.h"

#ifdef EM_AVX512

namespace {

using namespace em_avx512;
using namespace em_q8;

// Orders of the 8 parts of 32 weights in a block. NIBBLES: the low nibbles of 64 bytes are parts 0 and 2, the high nibbles parts 1
// and 3. HALVES: bits 2 * k and 2 * k + 1 of 64 bytes are part k of the first half and part k of the second half.
constexpr int NIBBLES[8] = {0, 2, 1, 3, 4, 6, 5, 7}, HALVES[8] = {0, 4, 1, 5, 2, 6, 3, 7};

// 8 six-bit scales in the low half, 8 six-bit minima in the high half, a byte each.
EM_TARGET inline __m128i unpack_scales(const uint8_t * packed) {
    constexpr uint64_t low6 = 0x3f3f3f3f3f3f3f3f, low2 = 0x0303030303030303;
    uint64_t           a;
    uint32_t           c;
    memcpy(&a, packed, 8);
    memcpy(&c, packed + 8, 4);
    const uint64_t high = uint64_t(c & 0x0f0f0f0f) | uint64_t((c >> 4) & 0x0f0f0f0f) << 32;
    return _mm_unpacklo_epi32(_mm_cvtsi64_si128(int64_t(a & low6)), _mm_cvtsi64_si128(int64_t(high | ((a >> 6) & low2) << 4)));
}

// Q4_K and Q5_K: the fifth bits lie in another place.
template <int BLOCK_BYTES, bool FIVE> struct nibbles_k {
    static constexpr int   BYTES  = BLOCK_BYTES;
    static constexpr float FACTOR = 1;
    using activation              = prepared;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m512i low4 = _mm512_set1_epi8(0x0f), zero = _mm512_setzero_si512();
        const __m128i packed = unpack_scales(w + 4), minima = _mm_cvtepu8_epi16(_mm_srli_si128(packed, 8));
        const __m512i scales = _mm512_castsi128_si512(_mm_cvtepu8_epi16(packed));
        // number of the pair of scales for each int32 lane: the first 8 lanes belong to two sub-blocks, the last 8 to the next two
        const __m512i scales01 =
            _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), scales);
        const __m512i scales23 =
            _mm512_permutexvar_epi32(_mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3), scales);
        const uint8_t * q  = w + 16 + (FIVE ? 32 : 0);
        const __m512i   q0 = _mm512_loadu_si512(q), q1 = _mm512_loadu_si512(q + 64);
        __m512i         a = _mm512_and_si512(q0, low4), c = _mm512_and_si512(_mm512_srli_epi16(q0, 4), low4);
        __m512i         e = _mm512_and_si512(q1, low4), g = _mm512_and_si512(_mm512_srli_epi16(q1, 4), low4);
        if (FIVE) {
            const __m512i qh  = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 16)));
            const __m512i bit = _mm512_set1_epi8(0x10);
            // The fifth bit of sub-block j is bit j of each byte. The upper half of a register belongs to the sub-block j + 2.
            const __m512i up    = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
            auto          fifth = [&](int j) EM_TARGET {
                const __m512i at = _mm512_srlv_epi16(qh, _mm512_add_epi16(up, _mm512_set1_epi16(short(j))));
                return _mm512_and_si512(_mm512_slli_epi16(at, 4), bit);
            };
            a = _mm512_or_si512(a, fifth(0));
            c = _mm512_or_si512(c, fifth(1));
            e = _mm512_or_si512(e, fifth(4));
            g = _mm512_or_si512(g, fifth(5));
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const activation & y  = *ys[t];
            const __m512i      da = _mm512_dpbusd_epi32(zero, a, _mm512_load_si512(y.q));
            const __m512i      dc = _mm512_dpbusd_epi32(zero, c, _mm512_load_si512(y.q + 64));
            const __m512i      de = _mm512_dpbusd_epi32(zero, e, _mm512_load_si512(y.q + 128));
            const __m512i      dg = _mm512_dpbusd_epi32(zero, g, _mm512_load_si512(y.q + 192));
            // sums of four products, at most 31 * 128 * 4, fit 16 bits: two of them share a lane and are scaled at once
            const __m512i all = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(zero, pair(da, dc), scales01), pair(de, dg), scales23);
            to.sum[t]         = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w) * y.d), _mm256_cvtepi32_ps(fold(all)), to.sum[t]);
            __m128i m         = _mm_madd_epi16(minima, _mm_load_si128(reinterpret_cast<const __m128i *>(y.sums)));
            if (FIVE) {
                m = _mm_hadd_epi32(m, m);
                m = _mm_hadd_epi32(m, m);
            }
            to.min[t] = _mm_fmadd_ps(_mm_set1_ps(-y.d * half_at(w + 2)), _mm_cvtepi32_ps(m), to.min[t]);
        }
    }
    EM_TARGET static inline float rest(__m128 min) { // Q5_K uses its first lane only
        if (!FIVE) {
            min = _mm_add_ps(min, _mm_movehl_ps(min, min));
            min = _mm_add_ss(min, _mm_movehdup_ps(min));
        }
        return _mm_cvtss_f32(min);
    }
};

struct q6_k : without_minima {
    static constexpr int BYTES = 210;
    using activation           = prepared;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m512i low4 = _mm512_set1_epi8(0x0f), high2 = _mm512_set1_epi8(0x30), zero = _mm512_setzero_si512();
        // the two high bits of q lie at bit 0, 2, 4, 6 of the byte they share: shift left by 4, 2 or right by 0, 2 to bit 4
        const __m512i up_lo  = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
        const __m512i dn_hi  = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w + 192));
        // bytes 0-3 with 4-7, 8-11 with 12-15, as pairs of 16 bits
        const __m128i mixed  = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
        const __m512i pairs  = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(mixed));
        const __m256i scales = _mm256_cvtepi8_epi16(packed);
        // In each four lanes, the low halves hold a scale of the first 64 weights, the high halves a scale of the next 64.
        const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        __m512i       lo[2], hi[2], of[2];
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m512i ql = _mm512_loadu_si512(w + h * 64);
            const __m512i qh = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 128 + h * 32)));
            lo[h]            = _mm512_or_si512(_mm512_and_si512(ql, low4), _mm512_and_si512(_mm512_sllv_epi16(qh, up_lo), high2));
            hi[h]            = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(ql, 4), low4),
                                               _mm512_and_si512(_mm512_srlv_epi16(qh, dn_hi), high2));
            of[h]            = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(4 * h)), pairs);
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const activation & y     = *ys[t];
            __m512i            total = zero;
            EM_UNROLL
            for (int h = 0; h < 2; ++h) {
                const __m512i dl = _mm512_dpbusd_epi32(zero, lo[h], _mm512_load_si512(y.q + h * 128));
                const __m512i dh = _mm512_dpbusd_epi32(zero, hi[h], _mm512_load_si512(y.q + h * 128 + 64));
                total            = _mm512_dpwssd_epi32(total, pair(dl, dh), of[h]); // at most 63 * 128 * 4: 16 bits
            }
            // every weight is stored 32 too large
            const __m256i much =
                _mm256_slli_epi32(_mm256_madd_epi16(_mm256_load_si256(reinterpret_cast<const __m256i *>(y.sums)), scales), 5);
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w + 208) * y.d),
                                        _mm256_cvtepi32_ps(_mm256_sub_epi32(fold(total), much)), to.sum[t]);
        }
    }
};

// Weights of two bits and further bits, with a scale for each 16 weights. Bits 2 * k and 2 * k + 1 of 64 bytes are 64 weights,
// for k from 0 to 3.
struct two_bits {
    __m512i weights[4], scales[2];

    // `more` gives the further bits of the weights
    template <class More> EM_TARGET inline two_bits(const uint8_t * q, __m128i each, More more) {
        const __m512i bits = _mm512_loadu_si512(q), three = _mm512_set1_epi8(3);
        // two scales for each lane, of parts k and k + 1: 0 and 2, 1 and 3, 4 and 6, 5 and 7; then the same for the second half
        const __m128i mixed = _mm_shuffle_epi8(each, _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
        const __m512i pairs = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(mixed));
        const __m512i lane  = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 4, 5, 5, 5, 5);
        EM_UNROLL
        for (int k = 0; k < 4; ++k) {
            weights[k] = more(_mm512_and_si512(_mm512_srli_epi16(bits, unsigned(2 * k)), three), k);
        }
        scales[0] = _mm512_permutexvar_epi32(lane, pairs);
        scales[1] = _mm512_permutexvar_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(2)), pairs);
    }
    EM_TARGET inline __m512i times(const int8_t * q, const int32_t * start) const {
        auto sums = [&](int k) EM_TARGET {
            return _mm512_dpbusd_epi32(start ? _mm512_load_si512(start + 16 * k) : _mm512_setzero_si512(), weights[k],
                                       _mm512_load_si512(q + 64 * k));
        };
        return _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(_mm512_setzero_si512(), pair(sums(0), sums(1)), scales[0]),
                                   pair(sums(2), sums(3)), scales[1]);
    }
};

struct q2_k : without_minima {
    static constexpr int BYTES = 84;
    using activation           = prepared;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m128i  packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(w)), low = _mm_set1_epi8(0x0f);
        const __m256i  minima = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), low));
        const two_bits weights(w + 16, _mm_and_si128(packed, low), [&](__m512i v, int) EM_TARGET { return v; });
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const activation & y    = *ys[t];
            const __m256i      much = _mm256_madd_epi16(minima, _mm256_load_si256(reinterpret_cast<const __m256i *>(y.sums)));
            to.sum[t]               = _mm256_fmadd_ps(_mm256_set1_ps(-y.d * half_at(w + 82)), _mm256_cvtepi32_ps(much), to.sum[t]);
            to.sum[t]               = _mm256_fmadd_ps(_mm256_set1_ps(y.d * half_at(w + 80)),
                                                      _mm256_cvtepi32_ps(fold(weights.times(y.q, nullptr))), to.sum[t]);
        }
    }
};

// 16 six-bit scales, 32 too large.
EM_TARGET inline __m128i unpack_scales_q3(const uint8_t * packed) {
    constexpr uint64_t low4 = 0x0f0f0f0f0f0f0f0f, low2 = 0x03030303;
    uint64_t           a;
    uint32_t           c;
    memcpy(&a, packed, 8);
    memcpy(&c, packed + 8, 4);
    const uint64_t first = (c & low2) | (c >> 2 & low2) << 32, second = (c >> 4 & low2) | (c >> 6 & low2) << 32;
    const __m128i  all = _mm_set_epi64x(int64_t((a >> 4 & low4) | second << 4), int64_t((a & low4) | first << 4));
    return _mm_sub_epi8(all, _mm_set1_epi8(32));
}

struct q3_k : without_minima {
    static constexpr int BYTES = 110;
    using activation           = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        // The third bits of the first half are bits 0 to 3 of the shared bytes; those of the second half are bits 4 to 7.
        const __m512i  half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1), third = _mm512_set1_epi8(4);
        const __m512i  high = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w)));
        const two_bits weights(w + 32, unpack_scales_q3(w + 96), [&](__m512i v, int k) EM_TARGET {
            const __m512i at = _mm512_srlv_epi16(high, _mm512_add_epi16(half, _mm512_set1_epi16(short(k))));
            return _mm512_or_si512(v, _mm512_and_si512(_mm512_slli_epi16(at, 2), third));
        });
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const activation & y = *ys[t];
            to.sum[t]            = _mm256_fmadd_ps(_mm256_set1_ps(y.d * half_at(w + 108)),
                                                   _mm256_cvtepi32_ps(fold(weights.times(y.q, y.start))), to.sum[t]);
        }
    }
};

struct iq4_xs : without_minima {
    static constexpr int BYTES = 136;
    using activation           = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        uint16_t high;
        uint32_t low;
        memcpy(&high, w + 2, 2);
        memcpy(&low, w + 4, 4);
        const uint64_t packed =
            _pdep_u64(low, 0x0f0f0f0f0f0f0f0f) | _pdep_u64(high, 0x3030303030303030); // six bits in each byte, 32 too large
        const __m256i of_32 = _mm256_cvtepi8_epi32(_mm_sub_epi8(_mm_cvtsi64_si128(int64_t(packed)), _mm_set1_epi8(32)));
        __m512i       lane  = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), weights[4], scales[4];
        EM_UNROLL
        for (int i = 0; i < 4; ++i, lane = _mm512_add_epi32(lane, _mm512_set1_epi32(2))) {
            weights[i] = iq4_values(nibbles(w + 8 + 32 * i, w + 24 + 32 * i));
            scales[i]  = _mm512_permutexvar_epi32(lane, _mm512_castsi256_si512(of_32));
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const activation & y     = *ys[t];
            __m512i            total = _mm512_setzero_si512();
            EM_UNROLL
            for (int i = 0; i < 4; ++i) {
                const __m512i products =
                    _mm512_dpbusd_epi32(_mm512_load_si512(y.start + 16 * i), weights[i], _mm512_load_si512(y.q + 64 * i));
                total = _mm512_add_epi32(total, _mm512_mullo_epi32(products, scales[i]));
            }
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w) * y.d), _mm256_cvtepi32_ps(fold(total)), to.sum[t]);
        }
    }
};

} // namespace

void em_avx512::use_k(em_kernel & k, int type) {
    switch (type) {
    case TYPE_Q2_K: use<q2_k>(k, prepare_sums<HALVES>); break;
    case TYPE_Q3_K: use<q3_k>(k, prepare_raised<4, HALVES>); break;
    case TYPE_Q4_K: use<nibbles_k<144, false>>(k, prepare_pair_sums<NIBBLES>); break;
    case TYPE_Q5_K: use<nibbles_k<176, true>>(k, prepare_pair_sums<NIBBLES>); break;
    case TYPE_Q6_K: use<q6_k>(k, prepare_sums<NATURAL>); break;
    case TYPE_IQ4_XS: use<iq4_xs>(k, prepare_raised<128, NATURAL>); break;
    default: break;
    }
}

#endif
