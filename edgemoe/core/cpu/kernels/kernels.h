#pragma once

// Dot products of weight rows with prepared activation vectors.
//
// If a family of kernels runs on this processor and knows the weight type, its kernels read the file layout. The kernels are
// faster than ggml's, with results equal to the last bit. Otherwise ggml's vec_dot computes.

#include "ggml/abi.h"

#include <string>

// Families of kernels of our own, one file or two each.
enum class em_family { none, avx2, avxvnni, avx512, neon };

// Rows of weights.
struct em_weight_rows {
    const char * data;
    size_t       stride;
    int64_t      count, width; // rows, weights of a row

    const uint8_t * at(int64_t row) const { return reinterpret_cast<const uint8_t *>(data) + size_t(row) * stride; }
};

// Prepared activations of some tokens, and the places of their products with rows: out[token][row].
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
    const ggml_type_traits_cpu * dot_traits;  // of the activations' type in the weight type's vec_dot
    const void *                 table;       // table of weights, for types that name groups of weights by number
    size_t                       block_bytes; // bytes of a block of prepared activations; 0: ggml's layout
    int64_t                      block_values; // number of activations in such a block

    size_t activation_bytes(int64_t n) const;
};

// Choose the family: auto, off, avx2, avxvnni, avx512 or neon. Returns one sentence with the reason if it cannot; empty if it is
// done.
std::string em_kernels_choose(const std::string & name);
// The family in use: the best family of this processor, unless another one was chosen.
em_family    em_kernels_family();
const char * em_family_name(em_family family);
bool         em_family_runs(em_family family); // true: the family runs on this processor and is part of this build

// Computes rows [from, to) times the tokens from `first` on, each product by `dot`.
void em_one_by_one(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens, int64_t from, int64_t to,
                   int64_t first);
// The best kernel for rows of n weights of a type; its `dot` is null when ggml has none.
em_kernel em_kernel_for(int type, int64_t n, bool own_kernels);
// Whether the family in use has a kernel for rows of n weights of this type.
bool em_kernel_own(int type, int64_t n);
// Whether ggml has kernels of its own for many rows of this type. Such kernels round otherwise than ggml's dot products.
bool em_kernel_many(int type);

// Each function sets the kernel of its family if the family has one for the type.
void em_kernel_avx2(em_kernel & k, int type, int64_t n);
void em_kernel_avxvnni(em_kernel & k, int type, int64_t n);
void em_kernel_avx512(em_kernel & k, int type, int64_t n);
void em_kernel_neon(em_kernel & k, int type, int64_t n);
