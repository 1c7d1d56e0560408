// Kernels for AVX-VNNI: Intel from the twelfth generation on, which has no AVX-512, and Ryzen 9000.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#    include <immintrin.h>

#    define EM_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
#    define EM_FAMILY em_kernel_avxvnni

namespace {

// Four products of unsigned and signed bytes, added to a sum.
EM_TARGET inline __m256i sum_of_four(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }

// Pairs of 16 bits, multiplied and added to a sum.
EM_TARGET inline __m256i multiply_add(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }

} // namespace

#    include "avx2.inc"

#endif
