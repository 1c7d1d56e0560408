#pragma once

// Dot products of weight rows with prepared activation vectors.
//
// Where this processor and the weight type allow it, kernels of our own for the file layout, faster than ggml's and equal to
// its AVX2 kernels to the last bit; else ggml's vec_dot.

#include "ggml/abi.h"

// Rows of weights.
struct em_weight_rows {
    const char * data;
    size_t       stride;
    int64_t      count, width; // rows, weights of a row

    const uint8_t * at(int64_t row) const { return reinterpret_cast<const uint8_t *>(data) + size_t(row) * stride; }
};

// Prepared activations of some tokens, and where their products with rows go: out[token][row].
struct em_activations {
    const void * const * prepared;
    float * const *      out;
    int64_t              count;
};

struct em_kernel {
    void (*dots)(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens);
    void (*dot)(const em_kernel & k, int64_t n, const void * row, const void * activation, float * out);
    void (*prepare)(const em_kernel & k, const float * x, int64_t n, void * activation);
    const ggml_type_traits_cpu * traits;      // of the weight type
    const ggml_type_traits_cpu * dot_traits;  // of the type its vec_dot wants activations in
    size_t                       block_bytes; // of prepared activations, own kernels only; 0: ggml's
    int64_t                      block_values; // of the vector in such a block

    size_t activation_bytes(int64_t n) const;
};

// Rows [from, to) times the tokens from `first` on, each by `dot`.
void em_one_by_one(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens, int64_t from, int64_t to, int64_t first);
// The best kernel for rows of n weights of a type; its `dot` is null when ggml has none.
em_kernel em_kernel_for(int type, int64_t n, bool own_kernels);
// Does this build and processor have a kernel of our own for them?
bool em_kernel_own(int type, int64_t n);
// Has ggml kernels of its own for many rows of the type, which round otherwise than its dot products? (tiled/tiled.cpp)
bool em_kernel_many(int type);
