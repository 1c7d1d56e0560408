// Types with blocks of 32 weights. With one activation, two blocks of a row are computed at a time. With several activations, one block
// of two rows each is computed at a time.

#include "avx512.h"
#include "q8.h"

#ifdef EM_AVX512

namespace {

using namespace em_avx512;
using namespace em_q8;

// Bytes to touch ahead of their use, into the second cache, for Q8_0, which is read fastest of all types. This distance is better
// on AMD and hardly worse on Intel (docs/log.md).
constexpr int NOT_SO_FAR = 2048;

inline void prefetch_near(const void * at) { __builtin_prefetch(at, 0, 2); }

struct alignas(64) prepared_pair { // two blocks of 32 activations
    int8_t  q[64];
    int32_t start[16]; // minus the sum that raising adds to each lane's four products
    float   d[2];
    char    pad[56];
};
static_assert(sizeof(prepared_pair) == 192, "three cache lines");

constexpr int64_t PAIR = 64; // values of two blocks

// For weights that are raised by RAISED.
template <int RAISED> EM_TARGET void prepare_pairs(const em_kernel & k, const float * x, int64_t n, void * activation) {
    prepared_pair * out = static_cast<prepared_pair *>(activation);
    for (int64_t b = 0; b < n / 32; ++b) {
        prepared_pair & p = out[b / 2];
        const int       h = int(b % 2);
        em_q8::q8_0     block;
        k.dot_traits->from_float(x + b * 32, &block, 32);
        memcpy(p.q + h * 32, block.q, 32);
        for (int i = 0; i < 8; ++i) {
            p.start[h * 8 + i] = -RAISED * sum_of_four(block.q + 4 * i);
        }
        p.d[h] = half_to_float(block.d);
    }
}

// Half a power of two, as in ggml.
inline float exponent_to_float(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23;
    float          f;
    memcpy(&f, &bits, 4);
    return f;
}

struct mxfp4 {
    static constexpr int     BYTES = 17, RAISED = 12;
    static constexpr bool    TWO_SUMS = true, FAR_AHEAD = true; // one sum for even blocks, one for odd blocks
    static float             scale(const uint8_t * w) { return exponent_to_float(w[0]); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        return _mm512_shuffle_epi8(table, nibbles(w + 1, next + 1));
    }
};

struct iq4_nl {
    static constexpr int     BYTES = 18, RAISED = 128;
    static constexpr bool    TWO_SUMS = true, FAR_AHEAD = true;
    static float             scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) { return iq4_values(nibbles(w + 2, next + 2)); }
};

struct q4_0 {
    static constexpr int     BYTES = 18, RAISED = 8;
    static constexpr bool    TWO_SUMS = false, FAR_AHEAD = true;
    static float             scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) { return nibbles(w + 2, next + 2); }
};

struct q5_0 {
    static constexpr int     BYTES = 22, RAISED = 16;
    static constexpr bool    TWO_SUMS = false, FAR_AHEAD = true;
    static float             scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        uint32_t fifth[2];
        memcpy(&fifth[0], w + 2, 4);
        memcpy(&fifth[1], next + 2, 4);
        const __m512i low = nibbles(w + 6, next + 6);
        return _mm512_mask_add_epi8(low, uint64_t(fifth[0]) | uint64_t(fifth[1]) << 32, low, _mm512_set1_epi8(16));
    }
};

struct q8_0_weights {
    static constexpr int     BYTES = 34, RAISED = 128;
    static constexpr bool    TWO_SUMS = false, FAR_AHEAD = false;
    static float             scale(const uint8_t * w) { return half_at(w); }
    EM_TARGET static __m512i values(const uint8_t * w, const uint8_t * next) {
        const __m512i both =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 2))),
                               _mm256_loadu_si256(reinterpret_cast<const __m256i *>(next + 2)), 1);
        return _mm512_xor_si512(both, _mm512_set1_epi8(char(0x80)));
    }
};

template <class W> EM_TARGET inline __m512i products(const uint8_t * w, const uint8_t * next, const prepared_pair & y) {
    return _mm512_dpbusd_epi32(_mm512_load_si512(y.start), W::values(w, next), _mm512_load_si512(y.q));
}

template <class W> EM_TARGET void dot_pairs(const em_kernel &, int64_t n, const void * row, const void * activation, float * out) {
    const uint8_t *       w   = static_cast<const uint8_t *>(row);
    const prepared_pair * y   = static_cast<const prepared_pair *>(activation);
    __m512                two = _mm512_setzero_ps();
    __m256                one = _mm256_setzero_ps();
    for (int64_t p = 0; p < n / PAIR; ++p, w += 2 * W::BYTES, ++y) {
        W::FAR_AHEAD ? prefetch(w + AHEAD) : prefetch_near(w + NOT_SO_FAR);
        const float  first = y->d[0] * W::scale(w), second = y->d[1] * W::scale(w + W::BYTES);
        const __m512 sums = _mm512_cvtepi32_ps(products<W>(w, w + W::BYTES, *y));
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
        one                = _mm256_fmadd_ps(_mm256_set1_ps(y->d[0] * W::scale(w)), _mm256_cvtepi32_ps(last), one);
    }
    *out = add_lanes(one);
}

EM_TARGET inline __m512 halves(float low, float high) { return _mm512_insertf32x8(_mm512_set1_ps(low), _mm256_set1_ps(high), 1); }

// Four rows times TOKENS activations: two rows side by side in a register, and two such registers.
constexpr int TILE_ROWS = 4;

template <class W, int TOKENS>
EM_TARGET void tile(int64_t n, const uint8_t * rows, size_t stride, const void * const * activations, float * const * out,
                    int64_t first) {
    constexpr int TWO                        = TILE_ROWS / 2;
    constexpr int ODD                        = W::TWO_SUMS ? 1 : 0;
    __m512        sums[ODD + 1][TWO][TOKENS] = {};
    auto          add                        = [&](int64_t p, int half) EM_TARGET __attribute__((always_inline)) {
        __m512i weights[TWO];
        __m512  scales[TWO];
        EM_UNROLL
        for (int i = 0; i < TWO; ++i) {
            const uint8_t * w = rows + size_t(2 * i) * stride + size_t(2 * p + half) * W::BYTES;
            weights[i]        = W::values(w, w + stride);
            scales[i]         = halves(W::scale(w), W::scale(w + stride));
        }
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared_pair & y = static_cast<const prepared_pair *>(activations[t])[p];
            const __m512i         q = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i *>(y.q + half * 32)));
            const __m512i start = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i *>(y.start + half * 8)));
            EM_UNROLL
            for (int i = 0; i < TWO; ++i) {
                __m512 & sum = sums[half & ODD][i][t];
                sum          = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(y.d[half]), scales[i]),
                                               _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, weights[i], q)), sum);
            }
        }
    };
    for (int64_t p = 0; p < n / PAIR; ++p) {
        constexpr int STEP = TILE_ROWS * 2 * W::BYTES; // in the order of memory, not in the order of use
        EM_UNROLL
        for (int at = 0; at < STEP; at += 64) {
            prefetch(rows + AHEAD + p * STEP + at);
        }
        add(p, 0);
        add(p, 1);
    }
    if (n % PAIR) {
        add(n / PAIR, 0);
    }
    EM_UNROLL
    for (int t = 0; t < TOKENS; ++t) {
        EM_UNROLL
        for (int i = 0; i < TWO; ++i) {
            const __m512 all          = ODD ? _mm512_add_ps(sums[0][i][t], sums[ODD][i][t]) : sums[0][i][t];
            out[t][first + 2 * i]     = add_lanes(_mm512_castps512_ps256(all));
            out[t][first + 2 * i + 1] = add_lanes(_mm512_extractf32x8_ps(all, 1));
        }
    }
}

template <class W> void dots_pairs(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens) {
    constexpr int MOST  = W::TWO_SUMS ? 4 : 8;
    constexpr int LEAST = W::TWO_SUMS || !W::FAR_AHEAD ? 2 : 1; // for a single token, these types are read faster row by row
    const int64_t whole = rows.count / TILE_ROWS * TILE_ROWS;
    for (int64_t r = 0; r < whole; r += TILE_ROWS) {
        by_tokens<MOST>(tokens.count, [&](auto n, int64_t t) {
            constexpr int N = decltype(n)::value;
            if constexpr (N >= LEAST) {
                tile<W, N>(rows.width, rows.at(r), rows.stride, tokens.prepared + t, tokens.out + t, r);
            } else {
                em_one_by_one(k, rows, tokens, r, r + TILE_ROWS, t);
            }
        });
    }
    em_one_by_one(k, rows, tokens, whole, rows.count, 0);
}

template <class W> void use(em_kernel & k, int64_t n) {
    if (W::TWO_SUMS && n % PAIR) {
        // ggml's last block is a product and a sum in C: ggml's compiler decides if they are rounded once or twice.
        return;
    }
    k.block_bytes  = sizeof(prepared_pair);
    k.block_values = PAIR;
    k.prepare      = prepare_pairs<W::RAISED>;
    k.dot          = dot_pairs<W>;
    k.dots         = dots_pairs<W>;
}

} // namespace

void em_avx512::use_pairs(em_kernel & k, int type, int64_t n) {
    switch (type) {
    case TYPE_Q4_0: use<q4_0>(k, n); break;
    case TYPE_Q5_0: use<q5_0>(k, n); break;
    case TYPE_Q8_0: use<q8_0_weights>(k, n); break;
    case TYPE_IQ4_NL: use<iq4_nl>(k, n); break;
    case TYPE_MXFP4: use<mxfp4>(k, n); break;
    default: break;
    }
}

#endif
