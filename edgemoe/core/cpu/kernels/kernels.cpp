// Dot products for expert weights in file layout: which kernel for which type.
//
// Activations are quantised by ggml. Integer sums are exact, and floats are added in the order of ggml's AVX2 kernels: the results
// are the same to the last bit, which matters, for a last bit can tip the quantisation of the next activation. VNNI wants weights
// unsigned: signed ones are raised, and what that adds is taken off beforehand.

#include "avx512.h"
#include "ggml/probes.h"
#include "memory/region.h"

#include <array>

namespace {

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

void generic_dots(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens) {
    em_one_by_one(k, rows, tokens, 0, rows.count, 0);
}

#ifdef EM_AVX512

bool processor_ok() {
    static const bool ok = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
                           __builtin_cpu_supports("f16c");
    return ok;
}

#endif

} // namespace

size_t em_kernel::activation_bytes(int64_t n) const {
    return block_bytes ? size_t((n + block_values - 1) / block_values) * block_bytes : em_align(G.ggml_row_size(traits->vec_dot_type, n), 64);
}

bool em_kernel_own(int type, int64_t n) { return em_kernel_for(type, n, true).block_bytes > 0; }

bool em_kernel_many(int type) {
    static const auto many = [] {
        std::array<bool, TYPE_MXFP4 + 1> found{};
        for (int type : {TYPE_Q4_0, TYPE_Q5_0, TYPE_Q8_0, TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ2_XXS, TYPE_IQ2_XS,
                         TYPE_IQ3_XXS, TYPE_IQ1_S, TYPE_IQ4_NL, TYPE_IQ3_S, TYPE_IQ2_S, TYPE_IQ4_XS, TYPE_IQ1_M, TYPE_MXFP4}) {
            found[size_t(type)] = em_probe_many(type);
        }
        return found;
    }();
    return size_t(type) < many.size() && many[size_t(type)];
}

em_kernel em_kernel_for(int type, int64_t n, bool own_kernels) {
    em_kernel k{};
    k.traits     = G.ggml_get_type_traits_cpu(type);
    k.dot_traits = G.ggml_get_type_traits_cpu(k.traits->vec_dot_type);
    k.prepare    = generic_prepare;
    k.dots       = generic_dots;
    k.dot        = k.traits->vec_dot && (k.dot_traits->from_float || k.traits->vec_dot_type == TYPE_F32) ? generic_dot : nullptr;
#ifdef EM_AVX512
    if (!own_kernels || !processor_ok() || (k.traits->vec_dot_type != TYPE_Q8_0 && k.traits->vec_dot_type != TYPE_Q8_K)) {
        return k;
    }
    em_kernel_k(k, type);
    em_kernel_pairs(k, type, n);
#endif
    return k;
}
