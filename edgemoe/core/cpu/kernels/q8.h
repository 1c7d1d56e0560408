#pragma once

// Activations as ggml quantises them, laid out for kernels that read blocks of 256 weights.

#include "kernels.h"

#include <cstring>

namespace em_q8 {

struct q8_k { // ggml's block_q8_K
    float   d;
    int8_t  q[256];
    int16_t sums[16];
};

struct q8_0 { // ggml's block_q8_0
    uint16_t d;
    int8_t   q[32];
};

struct alignas(64) prepared { // one block of 256 activations
    int8_t  q[256];
    int16_t sums[16]; // sums of 16 values each; for Q4_K and Q5_K sums of 32 values each, in the first 8 places
    float   d;
    char    pad[28];
};
static_assert(sizeof(prepared) == 320, "a multiple of a cache line");

// Quantises blocks of 256 by ggml, and puts their parts of 32 into `order`. `rest` fills the other fields of a block.
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

inline constexpr int NATURAL[8] = {0, 1, 2, 3, 4, 5, 6, 7};

template <const int (&ORDER)[8]> void prepare_sums(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared>(k, x, n, activation, ORDER,
                       [](prepared & out, const q8_k & block) { memcpy(out.sums, block.sums, sizeof(out.sums)); });
}

template <const int (&ORDER)[8]> void prepare_pair_sums(const em_kernel & k, const float * x, int64_t n, void * activation) {
    quantise<prepared>(k, x, n, activation, ORDER, [](prepared & out, const q8_k & block) {
        for (int i = 0; i < 8; ++i) {
            out.sums[i] = int16_t(block.sums[2 * i] + block.sums[2 * i + 1]);
        }
    });
}

} // namespace em_q8
