#pragma once

// Functions for rows of blocks of 256 weights times activations, with AVX-512.
//
// A weight type is a class: BYTES of a block, FACTOR of a row's sum, `activation`, `add` for a block and `rest` for its minima.

#include "avx512.h"
#include "q8.h"

#ifdef EM_AVX512

namespace {

using namespace em_avx512;
using namespace em_q8;

struct alignas(64) prepared_raised { // `prepared` for raised weights: a constant has made these weights positive
    int8_t  q[256];
    int32_t start[64]; // minus the sum that raising adds to each four products; in the order of q
    float   d;
    char    pad[60];
};
static_assert(sizeof(prepared_raised) == 576, "a multiple of a cache line");

template <int RAISED, const int (&ORDER)[8]>
void prepare_raised(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared_raised>(k, x, n, activation, ORDER, [](prepared_raised & out, const q8_k &) {
        for (int i = 0; i < 64; ++i) {
            out.start[i] = -RAISED * sum_of_four(out.q + 4 * i);
        }
    });
}

EM_TARGET static inline __m512i pair(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

// Sums of a row of K-quants times TOKENS activations.
template <int TOKENS> struct row_sums {
    __m256 sum[TOKENS];
    __m128 min[TOKENS];
};

struct without_minima {
    static constexpr float FACTOR = 1; // multiplies the sum of a row
    static float           rest(__m128) { return 0; }
};

template <class W, int TOKENS>
EM_TARGET void row_times(const em_kernel & k, int64_t n, const uint8_t * w, const void * const * activations, float * const * out,
                         int64_t row) {
    constexpr int                  LINES = W::BYTES > 192 ? 3 : 2; // cache lines of a block, roughly
    row_sums<TOKENS>               sums  = {};
    const typename W::activation * y[TOKENS];
    for (int t = 0; t < TOKENS; ++t) {
        y[t] = static_cast<const typename W::activation *>(activations[t]);
    }
    for (int64_t b = 0; b < n / 256; ++b, w += W::BYTES) {
        EM_UNROLL
        for (int i = 0; i < LINES; ++i) {
            prefetch(w + AHEAD + 64 * i);
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
        out[t][row]     = (W::FACTOR == 1 ? sum : W::FACTOR * sum) + W::rest(sums.min[t]);
    }
}

template <class W> void dot_k(const em_kernel & k, int64_t n, const void * row, const void * activation, float * out) {
    row_times<W, 1>(k, n, static_cast<const uint8_t *>(row), &activation, &out, 0);
}

template <class W> void dots_k(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens) {
    for (int64_t r = 0; r < rows.count; ++r) {
        by_tokens<4>(tokens.count, [&](auto n, int64_t t) {
            row_times<W, decltype(n)::value>(k, rows.width, rows.at(r), tokens.prepared + t, tokens.out + t, r);
        });
    }
}

template <class W> void use(em_kernel & k, void (*prepare)(const em_kernel &, const float *, int64_t, void *)) {
    k.block_bytes  = sizeof(typename W::activation);
    k.block_values = 256;
    k.prepare      = prepare;
    k.dot          = dot_k<W>;
    k.dots         = dots_k<W>;
}

} // namespace

#endif
