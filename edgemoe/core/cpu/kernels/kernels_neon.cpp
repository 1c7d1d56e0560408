// Kernels for ARM's NEON with dot products: Apple's processors, and others of the last years.
//
// ggml's own kernels for ARM add the products of a block before they become a float. So here the products are added lane by lane,
// scaled, and brought together once a block. Compilers differ in how they round a product and a sum in C. So a kernel is used
// only if its results equal ggml's for rows of random numbers.

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#    include "grids.h"
#    include "q8.h"

#    include <arm_neon.h>

#    include <cmath>
#    include <cstring>
#    include <vector>

#    if defined(__clang__)
#        define EM_TARGET __attribute__((target("dotprod")))
#        define EM_UNROLL _Pragma("clang loop unroll(full)")
#    else
#        define EM_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#        define EM_UNROLL _Pragma("GCC unroll 16")
#    endif

namespace {

using namespace em_q8;

constexpr int AHEAD = 4096; // bytes to touch ahead of their use; not measured on an ARM processor

inline float half_to_float(uint16_t bits) {
    __fp16 half;
    memcpy(&half, &bits, 2);
    return half;
}

inline float half_at(const uint8_t * at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return half_to_float(bits);
}

// 32 weights as bytes.
struct weights_32 {
    int8x16_t low, high;
};

EM_TARGET inline weights_32 from_bytes(uint8x16_t low, uint8x16_t high) {
    return {vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)};
}

EM_TARGET inline weights_32 nibbles(const uint8_t * at) {
    const uint8x16_t both = vld1q_u8(at);
    return from_bytes(vandq_u8(both, vdupq_n_u8(0x0f)), vshrq_n_u8(both, 4));
}

EM_TARGET inline weights_32 look_up(int8x16_t table, weights_32 numbers) {
    return {vqtbl1q_s8(table, vreinterpretq_u8_s8(numbers.low)), vqtbl1q_s8(table, vreinterpretq_u8_s8(numbers.high))};
}

EM_TARGET inline weights_32 less(weights_32 w, int8_t by) {
    return {vsubq_s8(w.low, vdupq_n_s8(by)), vsubq_s8(w.high, vdupq_n_s8(by))};
}

constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t FP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

EM_TARGET inline int32x4_t products(weights_32 w, const int8_t * y) {
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, vld1q_s8(y)), w.high, vld1q_s8(y + 16));
}

// --- blocks of 256 weights ---

// Integer sums of a block for each token.
template <int TOKENS> struct totals {
    int32x4_t of[TOKENS];

    EM_TARGET inline void add(weights_32 w, int scale, const prepared * const (&ys)[TOKENS], int at) {
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            of[t] = vmlaq_n_s32(of[t], products(w, ys[t]->q + at), scale);
        }
    }
    // Each scale belongs to 16 weights.
    EM_TARGET inline void add(weights_32 w, int first, int second, const prepared * const (&ys)[TOKENS], int at) {
        const int32x4_t zero = vdupq_n_s32(0);
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            of[t] = vmlaq_n_s32(of[t], vdotq_s32(zero, w.low, vld1q_s8(ys[t]->q + at)), first);
            of[t] = vmlaq_n_s32(of[t], vdotq_s32(zero, w.high, vld1q_s8(ys[t]->q + at + 16)), second);
        }
    }
    EM_TARGET inline float value(int t) const { return float(vaddvq_s32(of[t])); }
};

struct natural_sums {
    static constexpr float FACTOR = 1;
    static void            prepare(const em_kernel & k, const float * x, int64_t n, void * activation) {
        prepare_sums<NATURAL>(k, x, n, activation);
    }
};

template <int TOKENS>
EM_TARGET inline void add_scaled(float d, const totals<TOKENS> & total, const prepared * const (&ys)[TOKENS],
                                 float (&sum)[TOKENS]) {
    EM_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
        sum[t] = std::fma(d * ys[t]->d, total.value(t), sum[t]);
    }
}

// 8 six-bit scales, then 8 six-bit minima, a byte each.
inline void unpack_scales(const uint8_t * packed, uint8_t (&out)[16]) {
    constexpr uint32_t low6 = 0x3f3f3f3f, low4 = 0x0f0f0f0f, low2 = 0x03030303;
    uint32_t           a[3];
    memcpy(a, packed, 12);
    const uint32_t all[4] = {a[0] & low6, (a[2] & low4) | (a[0] >> 6 & low2) << 4, a[1] & low6,
                             (a[2] >> 4 & low4) | (a[1] >> 6 & low2) << 4};
    memcpy(out, all, 16);
}

// Q4_K and Q5_K: the fifth bits lie in another place. In the sums of Q5_K the compiler rounds one of two products.
template <int BLOCK_BYTES, bool FIVE, bool MINIMA_FUSED> struct nibbles_k {
    static constexpr int   BYTES    = BLOCK_BYTES;
    static constexpr float FACTOR   = 1;
    static constexpr int   HALVES[] = {0, 2};
    static void            prepare(const em_kernel & k, const float * x, int64_t n, void * activation) {
        prepare_pair_sums<NATURAL>(k, x, n, activation);
    }

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        uint8_t scales[16];
        unpack_scales(w + 4, scales);
        const int16x8_t minima   = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(scales + 8)));
        const uint8_t * q        = w + 16 + (FIVE ? 32 : 0);
        uint8x16_t      fifth[2] = {vdupq_n_u8(0), vdupq_n_u8(0)};
        if (FIVE) {
            fifth[0] = vld1q_u8(w + 16), fifth[1] = vld1q_u8(w + 32);
        }
        totals<TOKENS> total = {};
        EM_UNROLL
        for (int j = 0; j < 4; ++j) {
            uint8x16_t parts[4];
            for (int h = 0; h < 2; ++h) {
                const uint8x16_t both = vld1q_u8(q + 32 * j + 16 * h);
                parts[h] = vandq_u8(both, vdupq_n_u8(0x0f)), parts[2 + h] = vshrq_n_u8(both, 4);
                if (FIVE) {
                    const uint8x16_t bit = vdupq_n_u8(0x10);
                    parts[h]             = vorrq_u8(parts[h], vandq_u8(vshlq_u8(fifth[h], vdupq_n_s8(int8_t(4 - 2 * j))), bit));
                    parts[2 + h]         = vorrq_u8(parts[2 + h], vandq_u8(vshlq_u8(fifth[h], vdupq_n_s8(int8_t(3 - 2 * j))), bit));
                }
            }
            total.add(from_bytes(parts[0], parts[1]), scales[2 * j], ys, 64 * j);
            total.add(from_bytes(parts[2], parts[3]), scales[2 * j + 1], ys, 64 * j + 32);
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y    = *ys[t];
            const int16x8_t  sums = vld1q_s16(y.sums);
            const float much = float(vaddvq_s32(vmlal_high_s16(vmull_s16(vget_low_s16(sums), vget_low_s16(minima)), sums, minima)));
            const float d = y.d * half_at(w), least = y.d * half_at(w + 2);
            if (!FIVE) {
                sum[t] = std::fma(d, total.value(t), std::fma(-least, much, sum[t]));
            } else if (MINIMA_FUSED) {
                sum[t] += std::fma(-least, much, d * total.value(t));
            } else {
                sum[t] += std::fma(d, total.value(t), -(least * much));
            }
        }
    }
};

// The sum of 16 products of 16 bits.
EM_TARGET inline int32_t sum_of_sixteen(int16x8_t a0, int16x8_t a1, const int16_t * b) {
    const int16x8_t b0 = vld1q_s16(b), b1 = vld1q_s16(b + 8);
    int32x4_t       sum = vmlal_high_s16(vmull_s16(vget_low_s16(a0), vget_low_s16(b0)), a0, b0);
    return vaddvq_s32(vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a1), vget_low_s16(b1)), a1, b1));
}

struct q6_k : natural_sums {
    static constexpr int BYTES = 210, HALVES[] = {208};

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const int8_t * scales = reinterpret_cast<const int8_t *>(w) + 192;
        totals<TOKENS> total  = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            EM_UNROLL
            for (int k = 0; k < 4; ++k) {
                uint8x16_t parts[2];
                for (int i = 0; i < 2; ++i) {
                    const uint8x16_t low = vld1q_u8(w + 64 * h + 32 * (k % 2) + 16 * i), high = vld1q_u8(w + 128 + 32 * h + 16 * i);
                    parts[i] = vorrq_u8(k < 2 ? vandq_u8(low, vdupq_n_u8(0x0f)) : vshrq_n_u8(low, 4),
                                        vandq_u8(vshlq_u8(high, vdupq_n_s8(int8_t(4 - 2 * k))), vdupq_n_u8(0x30)));
                }
                const int s = 8 * h + 2 * k;
                total.add(from_bytes(parts[0], parts[1]), scales[s], scales[s + 1], ys, 128 * h + 32 * k);
            }
        }
        const int8x16_t all = vld1q_s8(scales);
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y = *ys[t];
            const int32_t    much =
                sum_of_sixteen(vmovl_s8(vget_low_s8(all)), vmovl_high_s8(all), y.sums); // every weight is stored 32 too large
            sum[t] = std::fma(half_at(w + 208) * y.d, float(vaddvq_s32(total.of[t]) - 32 * much), sum[t]);
        }
    }
};

struct q2_k : natural_sums {
    static constexpr int BYTES = 84, HALVES[] = {80, 82};

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const uint8x16_t packed = vld1q_u8(w), minima = vshrq_n_u8(packed, 4);
        totals<TOKENS>   total = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            const uint8x16_t b0 = vld1q_u8(w + 16 + 32 * h), b1 = vld1q_u8(w + 32 + 32 * h), three = vdupq_n_u8(3);
            EM_UNROLL
            for (int k = 0; k < 4; ++k) {
                const int8x16_t down = vdupq_n_s8(int8_t(-2 * k));
                const int       s    = 8 * h + 2 * k;
                total.add(from_bytes(vandq_u8(vshlq_u8(b0, down), three), vandq_u8(vshlq_u8(b1, down), three)), w[s] & 0x0f,
                          w[s + 1] & 0x0f, ys, 128 * h + 32 * k);
            }
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared & y    = *ys[t];
            const int32_t    much = sum_of_sixteen(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(minima))),
                                                   vreinterpretq_s16_u16(vmovl_high_u8(minima)), y.sums);
            sum[t] = std::fma(y.d * half_at(w + 80), total.value(t), std::fma(-y.d * half_at(w + 82), float(much), sum[t]));
        }
    }
};

struct q3_k : natural_sums {
    static constexpr int BYTES = 110, HALVES[] = {108};

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        constexpr uint32_t low4 = 0x0f0f0f0f, low2 = 0x03030303;
        uint32_t           a[3];
        memcpy(a, w + 96, 12);
        const uint32_t packed[4] = {(a[0] & low4) | (a[2] & low2) << 4, (a[1] & low4) | (a[2] >> 2 & low2) << 4,
                                    (a[0] >> 4 & low4) | (a[2] >> 4 & low2) << 4, (a[1] >> 4 & low4) | (a[2] >> 6 & low2) << 4};
        uint8_t        scales[16]; // 32 too large
        memcpy(scales, packed, 16);
        const uint8x16_t third[2] = {vld1q_u8(w), vld1q_u8(w + 16)};
        totals<TOKENS>   total    = {};
        EM_UNROLL
        for (int h = 0; h < 2; ++h) {
            EM_UNROLL
            for (int k = 0; k < 4; ++k) {
                const int  bit = 4 * h + k;
                uint8x16_t parts[2];
                for (int i = 0; i < 2; ++i) {
                    const uint8x16_t low =
                        vandq_u8(vshlq_u8(vld1q_u8(w + 32 + 32 * h + 16 * i), vdupq_n_s8(int8_t(-2 * k))), vdupq_n_u8(3));
                    parts[i] = vorrq_u8(low, vandq_u8(vshlq_u8(third[i], vdupq_n_s8(int8_t(2 - bit))), vdupq_n_u8(4)));
                }
                total.add(less(from_bytes(parts[0], parts[1]), 4), scales[2 * bit] - 32, scales[2 * bit + 1] - 32, ys, 32 * bit);
            }
        }
        add_scaled(half_at(w + 108), total, ys, sum);
    }
};

struct iq4_xs : natural_sums {
    static constexpr int BYTES = 136, HALVES[] = {0};

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel &, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        uint16_t high;
        memcpy(&high, w + 2, 2);
        const int8x16_t table = vld1q_s8(IQ4_VALUES);
        totals<TOKENS>  total = {};
        EM_UNROLL
        for (int j = 0; j < 8; ++j) {
            const int scale = (w[4 + j / 2] >> j % 2 * 4 & 0x0f) | (high >> 2 * j & 3) << 4;
            total.add(look_up(table, nibbles(w + 8 + 16 * j)), scale - 32, ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, sum);
    }
};

// --- types that name groups of weights by number ---

EM_TARGET inline int8x16_t two_eights(const int8_t * first, const int8_t * second) {
    return vcombine_s8(vld1_s8(first), vld1_s8(second));
}

EM_TARGET inline int8x16_t four_fours(const int8_t * table, int a, int b, int c, int d) {
    int32_t each[4];
    memcpy(each, table + 4 * a, 4), memcpy(each + 1, table + 4 * b, 4), memcpy(each + 2, table + 4 * c, 4),
        memcpy(each + 3, table + 4 * d, 4);
    return vreinterpretq_s8_s32(vld1q_s32(each));
}

EM_TARGET inline int8x16_t seven_bit_signs(uint32_t bits, int first) {
    const int8_t * signs = reinterpret_cast<const int8_t *>(EM_EVEN_SIGNS.of.data());
    return two_eights(signs + 8 * (bits >> first & 127), signs + 8 * (bits >> (first + 7) & 127));
}

// Signs of 16 weights by two bytes.
EM_TARGET inline int8x16_t sixteen_signs(const uint8_t * at) {
    constexpr uint8_t BITS[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t  bit = vld1q_u8(BITS), each = vcombine_u8(vdup_n_u8(at[0]), vdup_n_u8(at[1]));
    return vreinterpretq_s8_u8(vorrq_u8(vceqq_u8(vandq_u8(each, bit), bit), vdupq_n_u8(1)));
}

inline const int8_t * table_of(const em_kernel & k) { return static_cast<const em_grid *>(k.table)->weight; }

struct iq2_xxs : natural_sums {
    static constexpr int   BYTES = 66, HALVES[] = {0};
    static constexpr float FACTOR = 0.25f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const int8_t * table = table_of(k);
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q = w + 2 + 8 * j;
            uint32_t        bits;
            memcpy(&bits, q + 4, 4);
            total.add({vmulq_s8(two_eights(table + 8 * q[0], table + 8 * q[1]), seven_bit_signs(bits, 0)),
                       vmulq_s8(two_eights(table + 8 * q[2], table + 8 * q[3]), seven_bit_signs(bits, 14))},
                      int(2 * (bits >> 28) + 1), ys, 32 * j);
        }
        add_scaled(half_at(w) * 0.5f, total, ys, sum);
    }
};

struct iq3_xxs : natural_sums {
    static constexpr int   BYTES = 98, HALVES[] = {0};
    static constexpr float FACTOR = 0.5f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const int8_t * table = table_of(k);
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t * q = w + 2 + 8 * j;
            uint32_t        bits;
            memcpy(&bits, w + 66 + 4 * j, 4);
            total.add({vmulq_s8(four_fours(table, q[0], q[1], q[2], q[3]), seven_bit_signs(bits, 0)),
                       vmulq_s8(four_fours(table, q[4], q[5], q[6], q[7]), seven_bit_signs(bits, 14))},
                      int(2 * (bits >> 28) + 1), ys, 32 * j);
        }
        add_scaled(half_at(w) * 0.5f, total, ys, sum);
    }
};

struct iq2_s : natural_sums {
    static constexpr int   BYTES = 82, HALVES[] = {0};
    static constexpr float FACTOR = 0.125f;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const int8_t * table = table_of(k);
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t *q = w + 2 + 4 * j, *signs = w + 34 + 4 * j;
            const int      high = w[66 + j], scale = w[74 + j];
            auto           entry = [&](int i) { return table + 8 * (q[i] | (high << (8 - 2 * i) & 0x300)); };
            total.add({vmulq_s8(two_eights(entry(0), entry(1)), sixteen_signs(signs)),
                       vmulq_s8(two_eights(entry(2), entry(3)), sixteen_signs(signs + 2))},
                      2 * (scale & 0x0f) + 1, 2 * (scale >> 4) + 1, ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, sum);
    }
};

struct iq3_s : natural_sums {
    static constexpr int BYTES = 110, HALVES[] = {0};

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const prepared * const (&ys)[TOKENS],
                                     float (&sum)[TOKENS]) {
        const int8_t * table = table_of(k);
        totals<TOKENS> total = {};
        for (int j = 0; j < 8; ++j) {
            const uint8_t *q = w + 2 + 8 * j, *signs = w + 74 + 4 * j;
            const int      high = w[66 + j], scale = w[106 + j / 2] >> j % 2 * 4 & 0x0f;
            auto           number = [&](int i) { return q[i] | (high << (8 - i) & 0x100); };
            total.add({vmulq_s8(four_fours(table, number(0), number(1), number(2), number(3)), sixteen_signs(signs)),
                       vmulq_s8(four_fours(table, number(4), number(5), number(6), number(7)), sixteen_signs(signs + 2))},
                      2 * scale + 1, ys, 32 * j);
        }
        add_scaled(half_at(w), total, ys, sum);
    }
};

template <class W> struct blocks_of_256 {
    // VALUES: weights of a block. The width of a row must be a multiple of ROW.
    static constexpr int64_t VALUES = 256, ROW = 256;
    using weight = W;
    using block  = prepared;
    static void prepare(const em_kernel & k, const float * x, int64_t n, void * activation) { W::prepare(k, x, n, activation); }

    template <int TOKENS>
    EM_TARGET static void row(const em_kernel & k, int64_t n, const uint8_t * w, const void * const * activations,
                              float * const * out, int64_t r) {
        const prepared * y[TOKENS];
        float            sum[TOKENS] = {};
        for (int t = 0; t < TOKENS; ++t) {
            y[t] = static_cast<const prepared *>(activations[t]);
        }
        for (int64_t b = 0; b < n / 256; ++b, w += W::BYTES) {
            __builtin_prefetch(w + AHEAD, 0, 3);
            __builtin_prefetch(w + AHEAD + 64, 0, 3);
            W::add(k, w, y, sum);
            for (int t = 0; t < TOKENS; ++t) {
                ++y[t];
            }
        }
        for (int t = 0; t < TOKENS; ++t) {
            out[t][r] = W::FACTOR * sum[t];
        }
    }
};

// --- blocks of 32 weights ---

struct alignas(16) prepared_pair { // two blocks of 32 activations
    int8_t q[64];
    float  d[2];
    char   pad[8];
};

EM_TARGET void prepare_pairs(const em_kernel & k, const float * x, int64_t n, void * activation) {
    prepared_pair * out = static_cast<prepared_pair *>(activation);
    for (int64_t b = 0; b < n / 32; ++b) {
        em_q8::q8_0 block;
        k.dot_traits->from_float(x + b * 32, &block, 32);
        memcpy(out[b / 2].q + b % 2 * 32, block.q, 32);
        out[b / 2].d[b % 2] = half_to_float(block.d);
    }
}

// Half a power of two, as in ggml.
inline float exponent_to_float(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
    float          f;
    memcpy(&f, &bits, 4);
    return f;
}

struct q4_0 {
    static constexpr int        BYTES = 18, HALVES[] = {0};
    static float                scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static weights_32 values(const uint8_t * w) { return less(nibbles(w + 2), 8); }
};

struct q5_0 {
    static constexpr int        BYTES = 22, HALVES[] = {0};
    static float                scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static weights_32 values(const uint8_t * w) {
        const weights_32 low = nibbles(w + 6);
        // sixteen_signs gives -1 where a bit is set, and 1 elsewhere. Only -1 contains 0x10.
        auto fifth = [&](const uint8_t * at) EM_TARGET { return vandq_s8(sixteen_signs(at), vdupq_n_s8(0x10)); };
        return less({vorrq_s8(low.low, fifth(w + 2)), vorrq_s8(low.high, fifth(w + 4))}, 16);
    }
};

struct q8_0_weights {
    static constexpr int        BYTES = 34, HALVES[] = {0};
    static float                scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static weights_32 values(const uint8_t * w) { return from_bytes(vld1q_u8(w + 2), vld1q_u8(w + 18)); }
};

struct iq4_nl {
    static constexpr int        BYTES = 18, HALVES[] = {0};
    static float                scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static weights_32 values(const uint8_t * w) { return look_up(vld1q_s8(IQ4_VALUES), nibbles(w + 2)); }
};

struct mxfp4 {
    static constexpr int        BYTES = 17, HALVES[] = {-1};
    static float                scale(const uint8_t * w) { return exponent_to_float(w[0]); }
    EM_TARGET static weights_32 values(const uint8_t * w) { return look_up(vld1q_s8(FP4_VALUES), nibbles(w + 1)); }
};

// Sums of lanes, one for even blocks and one for odd blocks. Some compilers round a product before its addition, others do not.
template <class W, bool FUSED> struct lanes_of_32 {
    static constexpr int64_t VALUES = 64, ROW = 64;
    using weight = W;
    using block  = prepared_pair;
    static void prepare(const em_kernel & k, const float * x, int64_t n, void * activation) { prepare_pairs(k, x, n, activation); }

    template <int TOKENS>
    EM_TARGET static void row(const em_kernel &, int64_t n, const uint8_t * w, const void * const * activations,
                              float * const * out, int64_t r) {
        float32x4_t sums[2][TOKENS] = {};
        for (int64_t b = 0; b < n / 32; ++b, w += W::BYTES) {
            __builtin_prefetch(w + AHEAD, 0, 3);
            const weights_32 values = W::values(w);
            const float      scale  = W::scale(w);
            EM_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                const prepared_pair & y    = static_cast<const prepared_pair *>(activations[t])[b / 2];
                const float32x4_t     each = vcvtq_f32_s32(products(values, y.q + b % 2 * 32));
                float32x4_t &         sum  = sums[b % 2][t];
                sum = FUSED ? vfmaq_n_f32(sum, each, scale * y.d[b % 2]) : vaddq_f32(sum, vmulq_n_f32(each, scale * y.d[b % 2]));
            }
        }
        for (int t = 0; t < TOKENS; ++t) {
            out[t][r] = vaddvq_f32(sums[0][t]) + vaddvq_f32(sums[1][t]);
        }
    }
};

// One sum of whole blocks, two at a time. The compiler rounds one of the two products.
template <class W, bool FIRST_FUSED> struct pairs_of_32 {
    static constexpr int64_t VALUES = 64, ROW = 64;
    using weight = W;
    using block  = prepared_pair;
    static void prepare(const em_kernel & k, const float * x, int64_t n, void * activation) { prepare_pairs(k, x, n, activation); }

    template <int TOKENS>
    EM_TARGET static void row(const em_kernel &, int64_t n, const uint8_t * w, const void * const * activations,
                              float * const * out, int64_t r) {
        float sum[TOKENS] = {};
        for (int64_t p = 0; p < n / 64; ++p, w += 2 * W::BYTES) {
            __builtin_prefetch(w + AHEAD, 0, 3);
            const weights_32 even = W::values(w), odd = W::values(w + W::BYTES);
            const float      d0 = W::scale(w), d1 = W::scale(w + W::BYTES);
            EM_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                const prepared_pair & y = static_cast<const prepared_pair *>(activations[t])[p];
                const float           a = d0 * y.d[0], b = d1 * y.d[1];
                const float first = float(vaddvq_s32(products(even, y.q))), second = float(vaddvq_s32(products(odd, y.q + 32)));
                sum[t] += FIRST_FUSED ? std::fma(a, first, b * second) : std::fma(b, second, a * first);
            }
        }
        for (int t = 0; t < TOKENS; ++t) {
            out[t][r] = sum[t];
        }
    }
};

// --- the parts of a kernel ---

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

template <class Blocks> em_kernel made_of(em_kernel k, int type) {
    k.table        = em_grid_of(type);
    k.block_bytes  = sizeof(typename Blocks::block);
    k.block_values = Blocks::VALUES;
    k.prepare      = Blocks::prepare;
    k.dot          = dot<Blocks>;
    k.dots         = dots<Blocks>;
    return k;
}

// Whether a kernel's results equal ggml's, for rows of random bytes and scales near one.
template <class Blocks> bool agrees(const em_kernel & k) {
    using W                = typename Blocks::weight;
    constexpr int64_t    N = 2048, ROWS = 16, BLOCK = Blocks::VALUES == 256 ? 256 : 32;
    uint32_t             state = 1;
    auto                 next  = [&] { return state = state * 1664525u + 1013904223u, state >> 16; };
    std::vector<uint8_t> row(size_t(N / BLOCK * W::BYTES));
    std::vector<float>   x(N);
    std::vector<char>    ours(size_t(N / Blocks::VALUES) * k.block_bytes + 64), theirs(size_t(N) * 2);
    for (int r = 0; r < ROWS; ++r) {
        for (uint8_t & byte : row) {
            byte = uint8_t(next());
        }
        for (int64_t b = 0; b < N / BLOCK; ++b) {
            for (const int half : W::HALVES) {
                const uint16_t bits = uint16_t(0x3800 + next() % 0x0400);
                half < 0 ? void(row[size_t(b * W::BYTES)] = uint8_t(124 + next() % 6))
                         : void(memcpy(&row[size_t(b * W::BYTES + half)], &bits, 2));
            }
        }
        for (float & value : x) {
            value = float(int(next()) - 32768) / 16384;
        }
        char * prepared = ours.data() + (64 - reinterpret_cast<uintptr_t>(ours.data()) % 64) % 64;
        k.prepare(k, x.data(), N, prepared);
        k.dot_traits->from_float(x.data(), theirs.data(), N);
        float got = 0, want = 0;
        k.dot(k, N, row.data(), prepared, &got);
        k.traits->vec_dot(int(N), &want, 0, row.data(), 0, theirs.data(), 0, 1);
        if (got != want) {
            return false;
        }
    }
    return true;
}

// Uses the first kernel with results equal to ggml's, or none.
template <class Blocks, class... Others> void use(em_kernel & k, int type, int64_t n) {
    const em_kernel   made = made_of<Blocks>(k, type);
    static const bool good = agrees<Blocks>(made);
    if (good && n % Blocks::ROW == 0) {
        k = made;
    } else if constexpr (sizeof...(Others) > 0) {
        use<Others...>(k, type, n);
    }
}

} // namespace

void em_kernel_neon(em_kernel & k, int type, int64_t n) {
    switch (type) {
    case TYPE_Q4_0: use<lanes_of_32<q4_0, true>, lanes_of_32<q4_0, false>>(k, type, n); break;
    case TYPE_Q5_0: use<lanes_of_32<q5_0, true>, lanes_of_32<q5_0, false>>(k, type, n); break;
    case TYPE_Q8_0: use<lanes_of_32<q8_0_weights, true>, lanes_of_32<q8_0_weights, false>>(k, type, n); break;
    case TYPE_IQ4_NL: use<pairs_of_32<iq4_nl, true>, pairs_of_32<iq4_nl, false>>(k, type, n); break;
    case TYPE_MXFP4: use<pairs_of_32<mxfp4, true>, pairs_of_32<mxfp4, false>>(k, type, n); break;
    case TYPE_Q2_K: use<blocks_of_256<q2_k>>(k, type, n); break;
    case TYPE_Q3_K: use<blocks_of_256<q3_k>>(k, type, n); break;
    case TYPE_Q4_K: use<blocks_of_256<nibbles_k<144, false, false>>>(k, type, n); break;
    case TYPE_Q5_K: use<blocks_of_256<nibbles_k<176, true, false>>, blocks_of_256<nibbles_k<176, true, true>>>(k, type, n); break;
    case TYPE_Q6_K: use<blocks_of_256<q6_k>>(k, type, n); break;
    case TYPE_IQ4_XS: use<blocks_of_256<iq4_xs>>(k, type, n); break;
    case TYPE_IQ2_XXS: use<blocks_of_256<iq2_xxs>>(k, type, n); break;
    case TYPE_IQ2_S: use<blocks_of_256<iq2_s>>(k, type, n); break;
    case TYPE_IQ3_XXS: use<blocks_of_256<iq3_xxs>>(k, type, n); break;
    case TYPE_IQ3_S: use<blocks_of_256<iq3_s>>(k, type, n); break;
    default: break;
    }
}

#endif
