#include "avx512.h"

#ifdef EM_AVX512

void em_kernel_avx512(em_kernel & k, int type, int64_t n) {
    em_avx512::use_k(k, type);
    em_avx512::use_pairs(k, type, n);
    em_avx512::use_grids(k, type);
}

#endif
