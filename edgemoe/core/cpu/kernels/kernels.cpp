// Dot products for expert weights in file layout: the choice of a kernel for each type.
//
// Activations are quantised by ggml. Integer sums are exact, and floats are added in the order of ggml's kernels for the same
// architecture. So the results are the same to the last bit. This matters: a last bit can tip the quantisation of the next
// activation.

#include "kernels.h"

#include "ggml/probes.h"
#include "memory/region.h"
#include "processor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <iterator>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#    define EM_X86_KERNELS 1
#elif defined(__aarch64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
#    define EM_ARM_KERNELS 1
#    include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#    define EM_ARM_KERNELS 1
#    include <sys/sysctl.h>
#endif

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

#if defined(EM_ARM_KERNELS)

bool has_neon() { // true: NEON with dot products
#    if defined(__linux__)
    constexpr unsigned long DOT_PRODUCTS = 1ul << 20; // bit of HWCAP
    return getauxval(AT_HWCAP) & DOT_PRODUCTS;
#    else
    int    has  = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#    endif
}

#endif

bool never() { return false; }

struct family_entry {
    em_family    family;
    const char * name;
    bool (*runs)();
    void (*use)(em_kernel & k, int type, int64_t n);
};

// Families, the best one first.
constexpr family_entry FAMILIES[] = {
#if defined(EM_X86_KERNELS)
    {em_family::avx512, "avx512", em_has_avx512, em_kernel_avx512},
    {em_family::avxvnni, "avxvnni", em_has_avxvnni, em_kernel_avxvnni},
    {em_family::avx2, "avx2", em_has_avx2, em_kernel_avx2},
#else
    {em_family::avx512, "avx512", never, nullptr},
    {em_family::avxvnni, "avxvnni", never, nullptr},
    {em_family::avx2, "avx2", never, nullptr},
#endif
#if defined(EM_ARM_KERNELS)
    {em_family::neon, "neon", has_neon, em_kernel_neon},
#else
    {em_family::neon, "neon", never, nullptr},
#endif
    {em_family::none, "off", [] { return true; }, nullptr},
};

const family_entry & entry_of(em_family family) {
    return *std::find_if(std::begin(FAMILIES), std::end(FAMILIES), [&](const family_entry & f) { return f.family == family; });
}

em_family best_family() {
    static const em_family best =
        std::find_if(std::begin(FAMILIES), std::end(FAMILIES), [](const family_entry & f) { return f.runs(); })->family;
    return best;
}

std::atomic<int> chosen{-1}; // an em_family; -1: the best

} // namespace

std::string em_kernels_choose(const std::string & name) {
    if (name == "auto") {
        chosen = -1;
        return {};
    }
    for (const family_entry & f : FAMILIES) {
        if (name == f.name) {
            if (!f.runs()) {
                return "this processor cannot run the kernels '" + name + "'; its best are '" + em_family_name(best_family()) + "'";
            }
            chosen = int(f.family);
            return {};
        }
    }
    return "there are no kernels '" + name + "'; choose auto, off, avx2, avxvnni, avx512 or neon";
}

em_family em_kernels_family() {
    const int family = chosen.load(std::memory_order_relaxed);
    return family < 0 ? best_family() : em_family(family);
}

const char * em_family_name(em_family family) { return entry_of(family).name; }

bool em_family_runs(em_family family) { return entry_of(family).runs(); }

size_t em_kernel::activation_bytes(int64_t n) const {
    return block_bytes ? size_t((n + block_values - 1) / block_values) * block_bytes
                       : em_align(G.ggml_row_size(traits->vec_dot_type, n), 64);
}

bool em_kernel_own(int type, int64_t n) { return em_kernel_for(type, n, true).block_bytes > 0; }

bool em_kernel_many(int type) {
    static const auto many = [] {
        std::array<bool, TYPE_MXFP4 + 1> found{};
        for (int type :
             {TYPE_Q4_0, TYPE_Q5_0, TYPE_Q8_0, TYPE_Q2_K, TYPE_Q3_K, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ2_XXS, TYPE_IQ2_XS,
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
    const family_entry & family = entry_of(em_kernels_family());
    if (own_kernels && family.use && (k.traits->vec_dot_type == TYPE_Q8_0 || k.traits->vec_dot_type == TYPE_Q8_K)) {
        family.use(k, type, n);
    }
    return k;
}
