#pragma once

// Dot products of one weight row with one prepared activation vector.
//
// Where this processor and the weight type allow it, kernels of our own for the file layout, faster than ggml's and equal to
// its AVX2 kernels to the last bit; else ggml's vec_dot.

#include "ggml_abi.h"

struct em_kernel {
    void (*dot)(const em_kernel & k, int64_t n, const void * row, const void * activation, float * out);
    void (*prepare)(const em_kernel & k, const float * x, int64_t n, void * activation);
    const ggml_type_traits_cpu * traits;      // of the weight type
    const ggml_type_traits_cpu * dot_traits;  // of the type its vec_dot wants activations in
    size_t                       block_bytes; // of prepared activations, own kernels only; 0: ggml's
    int64_t                      block_values; // of the vector in such a block

    size_t activation_bytes(int64_t n) const;
};

// The best kernel for rows of n weights of a type, null members when ggml has none.
em_kernel em_kernel_for(int type, int64_t n, bool own_kernels);
// Does this build and processor have a kernel of our own for them?
bool em_kernel_own(int type, int64_t n);
// Has ggml kernels of its own for many rows of the type, which round otherwise than its dot products? (tiled/tiled.cpp)
bool em_kernel_many(int type);
