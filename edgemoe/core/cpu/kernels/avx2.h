// Kernels of 256-bit registers, for processors without AVX-512. Two files make a family each of this: kernels_avx2.cpp, and
// kernels_avxvnni.cpp with instructions that add what they multiply. They define EM_TARGET and EM_FAMILY before.
//
// Products of bytes are added two and two in 16 bits, which holds for weights up to 128: signed weights are multiplied without their
// signs, and activations take these on. A row is read once for up to four tokens, and its sums stay in ggml's order.

#include "grids.h"
#include "q8.h"

#include <immintrin.h>

#include <cstring>
#include <type_traits>

#if defined(__clang__)
#    define EM_UNROLL _Pragma("clang loop unroll(full)")
#else
#    define EM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

using namespace em_q8;

// Bytes to fetch ahead of their use, as in avx512.h.
constexpr int AHEAD = 8192;

EM_TARGET inline __m256i load(const void * at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }
EM_TARGET inline __m128i load_half(const void * at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }

EM_TARGET inline float half_at(const uint8_t * at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return _cvtsh_ss(half);
}

EM_TARGET inline float add_lanes(__m256 x) {
    __m128 r = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}

EM_TARGET inline __m256i low_bits(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8(char(mask))); }

// 16 bytes of nibbles: the low ones, then the high ones.
EM_TARGET inline __m256i nibbles(const uint8_t * at) {
    const __m128i both = load_half(at);
    return low_bits(_mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1), 0x0f);
}

EM_TARGET inline __m256i look_up(__m128i table, __m256i numbers) { return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), numbers); }

EM_TARGET inline __m256i iq4_values(__m256i nibbles) {
    return look_up(_mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), nibbles);
}

// 32 weights as bytes. Unsigned ones are what they are; signed ones are their sizes, and something that has their signs.
struct plain {
    __m256i weights;
    EM_TARGET inline __m256i times(__m256i y) const { return _mm256_maddubs_epi16(weights, y); }
};

struct with_signs {
    __m256i sizes, signs;
    EM_TARGET inline __m256i times(__m256i y) const { return _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(y, signs)); }
};

EM_TARGET inline with_signs with_own_signs(__m256i weights) { return {_mm256_abs_epi8(weights), weights}; }

// A factor for pairs of products, from two places of 16 bits in memory that hold the same.
EM_TARGET inline __m256i factor(const int32_t * twice) { return _mm256_set1_epi32(*twice); }

inline int32_t twice(int value) { return int32_t(uint32_t(uint16_t(value)) * 0x10001u); }

// --- blocks of 256 weights ---

template <int TOKENS> struct row_sums {
    __m256 sum[TOKENS];
    __m128 min[TOKENS];
};

// Integer sums of a block for each token.
template <int TOKENS> struct totals {
    __m256i of[TOKENS];

    template <class Weights>
    EM_TARGET inline void add(const Weights & weights, __m256i scale, const prepared * const (&ys)[TOKENS], int at) {
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            of[t] = multiply_add(of[t], weights.times(_mm256_load_si256(reinterpret_cast<const __m256i *>(ys[t]->q + at))), scale);
        }
    }
};

struct natural_sums {
    static constexpr float FACTOR = 1;
    EM_TARGET static float rest(__m128) { return 0; }
    static void prepare(const em_kernel & k, const float * x, int64_t n, void * activation) { prepare_sums<NATURAL>(k, x, n, activation); }
};

// 8 six-bit scales, then 8 six-bit minima, a byte each.
EM_TARGET inline __m128i unpack_scales(const uint8_t * packed) {
    constexpr uint64_t low6 = 0x3f3f3f3f3f3f3f3f, low2 = 0x0303030303030303;
    uint64_t a;
    uint32_t c;
    memcpy(&a, packed, 8);
    memcpy(&c, packed + 8, 4);
    const uint64_t high = uint64_t(c & 0x0f0f0f0f) | uint64_t((c >> 4) & 0x0f0f0f0f) << 32;
    return _mm_unpacklo_epi32(_mm_cvtsi64_si128(int64_t(a & low6)), _mm_cvtsi64_si128(int64_t(high | ((a >> 6) & low2) << 4)));
}

// Q4_K and Q5_K: the fifth bits lie apart.
template <int BLOCK_BYTES, bool FIVE> struct nibbles_k {
    static constexpr int   BYTES  = BLOCK_BYTES;
    static constexpr float FACTOR = 1;
    static void prepare(const em_kernel & k, const float * x, int64_t n, void * activation) { prepare_pair_sums<NATURAL>(k, x, n, activation); }

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        const __m128i packed = unpack_scales(w + 4), minima = _mm_cvtepu8_epi16(_mm_srli_si128(packed, 8));
        alignas(32) int32_t scales[8];
        const __m256i from = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
        _mm256_store_si256(reinterpret_cast<__m256i *>(scales), _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), from));
        const __m256i    fifth = FIVE ? load(w + 16) : _mm256_setzero_si256();
        const uint8_t *  q     = w + 16 + (FIVE ? 32 : 0);
        totals<TOKENS>   total = {};
        EM_UNROLL
        for (int j = 0; j < 4; ++j) {
            const __m256i both = load(q + 32 * j);
            plain a{low_bits(both, 0x0f)}, c{low_bits(_mm256_srli_epi16(both, 4), 0x0f)};
            if (FIVE) {
                a.weights = _mm256_or_si256(a.weights, low_bits(2 * j <= 4 ? _mm256_slli_epi16(fifth, 4 - 2 * j) : _mm256_srli_epi16(fifth, 2 * j - 4), 0x10));
                c.weights = _mm256_or_si256(c.weights, low_bits(2 * j + 1 <= 4 ? _mm256_slli_epi16(fifth, 3 - 2 * j) : _mm256_srli_epi16(fifth, 2 * j - 3), 0x10));
            }
            total.add(a, factor(scales + 2 * j), ys, 64 * j);
            total.add(c, factor(scales + 2 * j + 1), ys, 64 * j + 32);
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y = *ys[t];
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w) * y.d), _mm256_cvtepi32_ps(total.of[t]), to.sum[t]);
            __m128i m = _mm_madd_epi16(minima, _mm_load_si128(reinterpret_cast<const __m128i *>(y.sums)));
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

// 16 scales of 16 weights each: two of them for every 32.
struct scales_16 {
    __m256i half[2];

    EM_TARGET inline explicit scales_16(__m128i bytes) {
        const __m256i all = _mm256_cvtepi8_epi16(bytes);
        half[0] = _mm256_permute2x128_si256(all, all, 0x00);
        half[1] = _mm256_permute2x128_si256(all, all, 0x11);
    }
    EM_TARGET inline __m256i of(int part) const { // of 8
        const char a = char(part % 4 * 4);
        const __m256i places = _mm256_set_m128i(_mm_set1_epi16(short((a + 3) << 8 | (a + 2))), _mm_set1_epi16(short((a + 1) << 8 | a)));
        return _mm256_shuffle_epi8(half[part / 4], places);
    }
};

struct q6_k : natural_sums {
    static constexpr int BYTES = 210;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        const __m128i   packed = load_half(w + 192);
        const scales_16 scales(packed);
        totals<TOKENS>  total = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m256i l0 = load(w + 64 * h), l1 = load(w + 64 * h + 32), high = load(w + 128 + 32 * h);
            total.add(plain{_mm256_or_si256(low_bits(l0, 0x0f), low_bits(_mm256_slli_epi16(high, 4), 0x30))}, scales.of(4 * h), ys, 128 * h);
            total.add(plain{_mm256_or_si256(low_bits(l1, 0x0f), low_bits(_mm256_slli_epi16(high, 2), 0x30))}, scales.of(4 * h + 1), ys, 128 * h + 32);
            total.add(plain{_mm256_or_si256(low_bits(_mm256_srli_epi16(l0, 4), 0x0f), low_bits(high, 0x30))}, scales.of(4 * h + 2), ys, 128 * h + 64);
            total.add(plain{_mm256_or_si256(low_bits(_mm256_srli_epi16(l1, 4), 0x0f), low_bits(_mm256_srli_epi16(high, 2), 0x30))}, scales.of(4 * h + 3), ys,
                      128 * h + 96);
        }
        const __m256i all = _mm256_cvtepi8_epi16(packed);
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y = *ys[t];
            // every weight is stored 32 too large
            const __m256i much = _mm256_slli_epi32(_mm256_madd_epi16(load(y.sums), all), 5);
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(half_at(w + 208) * y.d), _mm256_cvtepi32_ps(_mm256_sub_epi32(total.of[t], much)), to.sum[t]);
        }
    }
};

struct q2_k : natural_sums {
    static constexpr int BYTES = 84;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        const __m128i   packed = load_half(w), low = _mm_set1_epi8(0x0f);
        const __m256i   minima = _mm256_cvtepi8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), low));
        const scales_16 scales(_mm_and_si128(packed, low));
        totals<TOKENS>  total = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m256i bits = load(w + 16 + 32 * h);
            EM_UNROLL
            for (int k = 0; k < 4; ++k) {
                total.add(plain{low_bits(_mm256_srli_epi16(bits, 2 * k), 3)}, scales.of(4 * h + k), ys, 128 * h + 32 * k);
            }
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y    = *ys[t];
            const __m256i    much = _mm256_madd_epi16(minima, load(y.sums));
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(-y.d * half_at(w + 82)), _mm256_cvtepi32_ps(much), to.sum[t]);
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(y.d * half_at(w + 80)), _mm256_cvtepi32_ps(total.of[t]), to.sum[t]);
        }
    }
};

// A block's sums without minima.
template <int TOKENS>
EM_TARGET inline void add_scaled(float d, const totals<TOKENS> & total, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
    EM_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
        to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * ys[t]->d), _mm256_cvtepi32_ps(total.of[t]), to.sum[t]);
    }
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

struct q3_k : natural_sums {
    static constexpr int BYTES = 110;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        const __m256i   third = load(w), four = _mm256_set1_epi8(4);
        const scales_16 scales(unpack_scales_q3(w + 96));
        totals<TOKENS>  total = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            const __m256i bits = load(w + 32 + 32 * h);
            EM_UNROLL
            for (int k = 0; k < 4; ++k) {
                const int     bit  = 4 * h + k;
                const __m256i high = low_bits(bit <= 2 ? _mm256_slli_epi16(third, 2 - bit) : _mm256_srli_epi16(third, bit - 2), 4);
                const __m256i low  = low_bits(_mm256_srli_epi16(bits, 2 * k), 3);
                total.add(with_own_signs(_mm256_sub_epi8(_mm256_or_si256(low, high), four)), scales.of(bit), ys, 128 * h + 32 * k);
            }
        }
        add_scaled(half_at(w + 108), total, ys, to);
    }
};

struct iq4_xs : natural_sums {
    static constexpr int BYTES = 136;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        uint16_t high;
        memcpy(&high, w + 2, 2);
        totals<TOKENS> total = {};
        EM_UNROLL
        for (int j = 0; j < 8; ++j) {
            const int scale = (w[4 + j / 2] >> j % 2 * 4 & 0x0f) | (high >> 2 * j & 3) << 4;
            total.add(with_own_signs(iq4_values(nibbles(w + 8 + 16 * j))), _mm256_set1_epi16(short(scale - 32)), ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, to);
    }
};

// --- types that name groups of weights by number ---

// Four times 7 bits.
EM_TARGET inline __m256i signs_of_28_bits(uint32_t bits) {
    return _mm256_set_epi64x(int64_t(EM_EVEN_SIGNS.of[bits >> 21 & 127]), int64_t(EM_EVEN_SIGNS.of[bits >> 14 & 127]), int64_t(EM_EVEN_SIGNS.of[bits >> 7 & 127]),
                             int64_t(EM_EVEN_SIGNS.of[bits & 127]));
}

EM_TARGET inline __m256i signs_of_32_bits(const uint8_t * at) {
    int32_t bits;
    memcpy(&bits, at, 4);
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303), bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i each = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte), bit);
    return _mm256_or_si256(_mm256_cmpeq_epi8(each, bit), _mm256_set1_epi8(1));
}

// The table of a kernel, in entries of 8 weights or 4.
template <class Entry> inline const Entry * table_of(const em_kernel & k) {
    return reinterpret_cast<const Entry *>(static_cast<const em_grid *>(k.table)->weight);
}

template <class Number> EM_TARGET inline __m256i four_entries(const em_kernel & k, Number number) {
    const int64_t * table = table_of<int64_t>(k);
    return _mm256_set_epi64x(table[number(3)], table[number(2)], table[number(1)], table[number(0)]);
}

template <class Number> EM_TARGET inline __m256i eight_entries(const em_kernel & k, Number number) {
    const int32_t * table = table_of<int32_t>(k);
    return _mm256_set_epi32(table[number(7)], table[number(6)], table[number(5)], table[number(4)], table[number(3)], table[number(2)], table[number(1)],
                            table[number(0)]);
}

struct iq2_xxs : natural_sums {
    static constexpr int   BYTES  = 66;
    static constexpr float FACTOR = 0.125f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q = w + 2 + 8 * j;
            uint32_t bits;
            memcpy(&bits, q + 4, 4);
            const __m256i sizes = four_entries(k, [&](int i) { return q[i]; });
            total.add(with_signs{sizes, signs_of_28_bits(bits)}, _mm256_set1_epi16(short(2 * (bits >> 28) + 1)), ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, to);
    }
};

struct iq3_xxs : natural_sums {
    static constexpr int   BYTES  = 98;
    static constexpr float FACTOR = 0.25f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q = w + 2 + 8 * j;
            uint32_t bits;
            memcpy(&bits, w + 66 + 4 * j, 4);
            const __m256i sizes = eight_entries(k, [&](int i) { return q[i]; });
            total.add(with_signs{sizes, signs_of_28_bits(bits)}, _mm256_set1_epi16(short(2 * (bits >> 28) + 1)), ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, to);
    }
};

struct iq2_s : natural_sums {
    static constexpr int   BYTES  = 82;
    static constexpr float FACTOR = 0.125f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q     = w + 2 + 4 * j;
            const unsigned  high  = w[66 + j], scale = w[74 + j];
            const __m256i   sizes = four_entries(k, [&](int i) { return q[i] | (high << (8 - 2 * i) & 0x300); });
            const __m256i   scales =
                _mm256_set_m128i(_mm_set1_epi16(short(2 * (scale >> 4) + 1)), _mm_set1_epi16(short(2 * (scale & 0x0f) + 1)));
            total.add(with_signs{sizes, signs_of_32_bits(w + 34 + 4 * j)}, scales, ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, to);
    }
};

struct iq3_s : natural_sums {
    static constexpr int BYTES = 110;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS], row_sums<TOKENS> & to) {
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q     = w + 2 + 8 * j;
            const unsigned  high  = w[66 + j], scale = w[106 + j / 2] >> j % 2 * 4 & 0x0f;
            const __m256i   sizes = eight_entries(k, [&](int i) { return q[i] | (high << (8 - i) & 0x100); });
            total.add(with_signs{sizes, signs_of_32_bits(w + 74 + 4 * j)}, _mm256_set1_epi16(short(2 * scale + 1)), ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, to);
    }
};

template <class W, int TOKENS>
EM_TARGET void row_times(const em_kernel & k, int64_t n, const uint8_t * w, const void * const * activations, float * const * out, int64_t row) {
    constexpr int      LINES = W::BYTES > 192 ? 3 : 2; // of the cache, about
    row_sums<TOKENS>   sums  = {};
    const prepared *   y[TOKENS];
    for (int t = 0; t < TOKENS; ++t) {
        y[t] = static_cast<const prepared *>(activations[t]);
    }
    for (int64_t b = 0; b < n / 256; ++b, w += W::BYTES) {
        EM_UNROLL
        for (int i = 0; i < LINES; ++i) {
            __builtin_prefetch(w + AHEAD + 64 * i, 0, 3);
        }
        W::add(k, w, y, sums);
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            ++y[t];
        }
    }
    EM_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
        const float sum = add_lanes(sums.sum[t]);
        out[t][row] = (W::FACTOR == 1 ? sum : W::FACTOR * sum) + W::rest(sums.min[t]);
    }
}

// --- blocks of 32 weights ---

struct alignas(32) prepared_pair { // two blocks of 32 activations
    int8_t q[64];
    float  d[2];
    char   pad[24];
};
static_assert(sizeof(prepared_pair) == 96, "whole registers");

constexpr int64_t PAIR = 64; // values

EM_TARGET void prepare_pairs(const em_kernel & k, const float * x, int64_t n, void * activation) {
    prepared_pair * out = static_cast<prepared_pair *>(activation);
    for (int64_t b = 0; b < n / 32; ++b) {
        em_q8::q8_0 block;
        k.dot_traits->from_float(x + b * 32, &block, 32);
        memcpy(out[b / 2].q + b % 2 * 32, block.q, 32);
        out[b / 2].d[b % 2] = _cvtsh_ss(block.d);
    }
}

// A power of two, halved; as ggml has it.
inline float exponent_to_float(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
    float          f;
    memcpy(&f, &bits, 4);
    return f;
}

struct mxfp4 {
    static constexpr int  BYTES = 17;
    static constexpr bool TWO_SUMS = true; // even blocks in one sum, odd ones in another
    static float scale(const uint8_t * w) { return exponent_to_float(w[0]); }
    EM_TARGET static __m256i values(const uint8_t * w) { return look_up(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), nibbles(w + 1)); }
};

struct iq4_nl {
    static constexpr int  BYTES = 18;
    static constexpr bool TWO_SUMS = true;
    EM_TARGET static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m256i values(const uint8_t * w) { return iq4_values(nibbles(w + 2)); }
};

struct q4_0 {
    static constexpr int  BYTES = 18;
    static constexpr bool TWO_SUMS = false;
    EM_TARGET static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m256i values(const uint8_t * w) { return _mm256_sub_epi8(nibbles(w + 2), _mm256_set1_epi8(8)); }
};

struct q5_0 {
    static constexpr int  BYTES = 22;
    static constexpr bool TWO_SUMS = false;
    EM_TARGET static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m256i values(const uint8_t * w) { // a fifth bit that is missing takes 16 off
        int32_t bits;
        memcpy(&bits, w + 2, 4);
        const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303), bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
        const __m256i missing = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte), bit), _mm256_setzero_si256());
        return _mm256_or_si256(nibbles(w + 6), low_bits(missing, 0xf0));
    }
};

struct q8_0_weights {
    static constexpr int  BYTES = 34;
    static constexpr bool TWO_SUMS = false;
    EM_TARGET static float scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m256i values(const uint8_t * w) { return load(w + 2); }
};

template <class W, int TOKENS>
EM_TARGET void pairs_times(const em_kernel &, int64_t n, const uint8_t * w, const void * const * activations, float * const * out, int64_t row) {
    constexpr int ODD = W::TWO_SUMS ? 1 : 0;
    __m256        sums[ODD + 1][TOKENS] = {};
    auto add = [&](int64_t p, int half) EM_TARGET __attribute__((always_inline)) {
        const __m256i values = W::values(w), sizes = _mm256_abs_epi8(values);
        const __m256  scale  = _mm256_set1_ps(W::scale(w));
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared_pair & y        = static_cast<const prepared_pair *>(activations[t])[p];
            const __m256i         products = sum_of_four(sizes, _mm256_sign_epi8(_mm256_load_si256(reinterpret_cast<const __m256i *>(y.q + half * 32)), values));
            __m256 & sum = sums[half & ODD][t];
            sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_broadcast_ss(&y.d[half]), scale), _mm256_cvtepi32_ps(products), sum);
        }
        w += W::BYTES;
    };
    for (int64_t p = 0; p < n / PAIR; ++p) {
        __builtin_prefetch(w + AHEAD, 0, 3);
        add(p, 0);
        add(p, 1);
    }
    if (n % PAIR) {
        add(n / PAIR, 0);
    }
    EM_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
        out[t][row] = add_lanes(ODD ? _mm256_add_ps(sums[0][t], sums[ODD][t]) : sums[0][t]);
    }
}

// --- what a kernel is made of ---

template <class W> struct blocks_of_256 {
    template <int TOKENS> EM_TARGET static void row(const em_kernel & k, int64_t n, const uint8_t * w, const void * const * a, float * const * out, int64_t r) {
        row_times<W, TOKENS>(k, n, w, a, out, r);
    }
};

template <class W> struct blocks_of_32 {
    template <int TOKENS> EM_TARGET static void row(const em_kernel & k, int64_t n, const uint8_t * w, const void * const * a, float * const * out, int64_t r) {
        pairs_times<W, TOKENS>(k, n, w, a, out, r);
    }
};

template <class Blocks> void dot(const em_kernel & k, int64_t n, const void * row, const void * activation, float * out) {
    Blocks::template row<1>(k, n, static_cast<const uint8_t *>(row), &activation, &out, 0);
}

template <class Blocks> void dots(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens) {
    for (int64_t r = 0; r < rows.count; ++r) {
        int64_t t = 0;
        for (; t + 4 <= tokens.count; t += 4) {
            Blocks::template row<4>(k, rows.width, rows.at(r), tokens.prepared + t, tokens.out + t, r);
        }
        if (tokens.count - t >= 2) {
            Blocks::template row<2>(k, rows.width, rows.at(r), tokens.prepared + t, tokens.out + t, r);
            t += 2;
        }
        if (t < tokens.count) {
            Blocks::template row<1>(k, rows.width, rows.at(r), tokens.prepared + t, tokens.out + t, r);
        }
    }
}

template <class W> void use_256(em_kernel & k) {
    k.block_bytes  = sizeof(prepared);
    k.block_values = 256;
    k.prepare      = W::prepare;
    k.dot          = dot<blocks_of_256<W>>;
    k.dots         = dots<blocks_of_256<W>>;
}

template <class W> void use_grid(em_kernel & k, int type) {
    k.table = em_grid_of(type);
    use_256<W>(k);
}

template <class W> void use_32(em_kernel & k, int64_t n) {
    if (W::TWO_SUMS && n % PAIR) {
        return; // a product and a sum in ggml's last block, which its compiler rounds once or twice as it is built
    }
    k.block_bytes  = sizeof(prepared_pair);
    k.block_values = PAIR;
    k.prepare      = prepare_pairs;
    k.dot          = dot<blocks_of_32<W>>;
    k.dots         = dots<blocks_of_32<W>>;
}

} // namespace

void EM_FAMILY(em_kernel & k, int type, int64_t n) {
    switch (type) {
    case TYPE_Q4_0: use_32<q4_0>(k, n); break;
    case TYPE_Q5_0: use_32<q5_0>(k, n); break;
    case TYPE_Q8_0: use_32<q8_0_weights>(k, n); break;
    case TYPE_IQ4_NL: use_32<iq4_nl>(k, n); break;
    case TYPE_MXFP4: use_32<mxfp4>(k, n); break;
    case TYPE_Q2_K: use_256<q2_k>(k); break;
    case TYPE_Q3_K: use_256<q3_k>(k); break;
    case TYPE_Q4_K: use_256<nibbles_k<144, false>>(k); break;
    case TYPE_Q5_K: use_256<nibbles_k<176, true>>(k); break;
    case TYPE_Q6_K: use_256<q6_k>(k); break;
    case TYPE_IQ4_XS: use_256<iq4_xs>(k); break;
    case TYPE_IQ2_XXS: use_grid<iq2_xxs>(k, type); break;
    case TYPE_IQ2_S: use_grid<iq2_s>(k, type); break;
    case TYPE_IQ3_XXS: use_grid<iq3_xxs>(k, type); break;
    case TYPE_IQ3_S: use_grid<iq3_s>(k, type); break;
    default: break;
    }
}
