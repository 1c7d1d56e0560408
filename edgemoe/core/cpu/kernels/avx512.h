#pragma once

// Functions that the kernels for AVX-512 with VNNI share.

#include "kernels.h"

#include <cstring>
#include <type_traits>

#if (defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)))
#    define EM_AVX512 1
#    include <immintrin.h>
#    ifndef EM_TARGET
#        define EM_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,bmi2,f16c,fma")))
#    endif
#    if defined(__clang__)
#        define EM_UNROLL _Pragma("clang loop unroll(full)")
#    else
#        define EM_UNROLL _Pragma("GCC unroll 8")
#    endif

namespace em_avx512 {

EM_TARGET static inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }

EM_TARGET static inline float half_at(const uint8_t * at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return half_to_float(half);
}

EM_TARGET static inline __m256i fold(__m512i t) {
    return _mm256_add_epi32(_mm512_castsi512_si256(t), _mm512_extracti64x4_epi64(t, 1));
}

EM_TARGET static inline float add_lanes(__m256 x) {
    __m128 r = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    r        = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}

// Bytes to touch ahead of their use. The hardware's own prefetch stops at every page of 4 KiB, and mapped files have such pages.
constexpr int AHEAD = 8192;

inline void prefetch(const void * at) { __builtin_prefetch(at, 0, 3); }

inline int32_t sum_of_four(const int8_t * q) { return q[0] + q[1] + q[2] + q[3]; }

// The nibbles of two blocks as bytes: in each block the low nibbles come before the high nibbles.
EM_TARGET static inline __m512i nibbles(const uint8_t * first, const uint8_t * second) {
    const __m512i both = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(first)))),
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(second))), 1);
    const __m512i shift =
        _mm512_set_epi64(0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(0x0f));
}

// The values of IQ4_NL and IQ4_XS, raised by 128.
EM_TARGET static inline __m512i iq4_values(__m512i nibbles) {
    return _mm512_shuffle_epi8(
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, char(129), char(141), char(153), char(166), char(181),
                                             char(197), char(217), char(241))),
        nibbles);
}

// Takes tokens in groups as large as the registers have room for sums: MOST, then half as many, and so on. `some` computes a
// group (its size is a constant) from a token on.
template <int MOST, class Some> inline void by_tokens(int64_t tokens, Some some) {
    int64_t t = 0;
    for (; t + MOST <= tokens; t += MOST) {
        some(std::integral_constant<int, MOST>(), t);
    }
    if constexpr (MOST > 1) {
        by_tokens<MOST / 2>(tokens - t, [&](auto n, int64_t from) { some(n, t + from); });
    }
}

// Each sets a kernel for its types, or does nothing.
void use_k(em_kernel & k, int type);
void use_pairs(em_kernel & k, int type, int64_t n);
void use_grids(em_kernel & k, int type); // for processors with AVX512_VBMI and AVX512_BITALG

} // namespace em_avx512

#endif
