// Kernels for AVX2: Intel from the fourth generation on, Ryzen.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#    include <immintrin.h>

#    define EM_TARGET __attribute__((target("avx2,fma,f16c")))
#    define EM_FAMILY em_kernel_avx2

namespace {

// Four products of unsigned and signed bytes, added to a sum.
EM_TARGET inline __m256i sum_of_four(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}

// Pairs of 16 bits, multiplied and added to a sum.
EM_TARGET inline __m256i multiply_add(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

} // namespace

#    include "avx2.inc"

#endif
