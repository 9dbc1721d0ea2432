/* Vectors of this instruction set, and the few operations that compilers do not find themselves. */
#ifndef KSSM_LANES_H
#define KSSM_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif
#define PANEL (2 * LANES)
#define ALONE (ROWS / 2) /* panels at once for one row: their sums hide each other's latency */
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
/* The same in memory, where they may start at any number. */
typedef float stored __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t stored_whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t stored_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vector widen_bfloat16(const uint16_t *at) {
#if defined(__AVX512F__)
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)), 16);
#elif defined(__AVX2__)
    return (vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at)), 16);
#else
    return (vector)(__builtin_convertvector(*(const stored_halves *)at, bits) << 16);
#endif
}

/* Of finite numbers. */
INLINE vector widen_float16(const uint16_t *at) {
#if defined(__AVX512F__)
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)at));
#elif defined(__F16C__)
    return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const void *)at));
#else
    bits half = __builtin_convertvector(*(const stored_halves *)at, bits);
    vector size = (vector)((half & 0x7fff) << 13) * 0x1p112f; /* the exponents differ by 112 */
    return (vector)((bits)size | (half & 0x8000) << 16);
#endif
}

/* sum + the product of four bytes of each: w from 0 to 255, x from -128 to 127. Exact: a sum of
 * 16 bits that saturates, as in vpmaddubsw, is avoided. */
INLINE whole dot4(whole sum, whole w, whole x) {
#if defined(__AVX512VNNI__)
    return (whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
    return (whole)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__AVX512BW__)
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8);
    __m512i odd = _mm512_srai_epi16((__m512i)x, 8);
    __m512i low = _mm512_and_si512((__m512i)w, _mm512_set1_epi16(255));
    sum += (whole)_mm512_madd_epi16(low, even);
    return sum + (whole)_mm512_madd_epi16(_mm512_srli_epi16((__m512i)w, 8), odd);
#elif defined(__AVX2__)
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
    __m256i odd = _mm256_srai_epi16((__m256i)x, 8);
    __m256i low = _mm256_and_si256((__m256i)w, _mm256_set1_epi16(255));
    sum += (whole)_mm256_madd_epi16(low, even);
    return sum + (whole)_mm256_madd_epi16(_mm256_srli_epi16((__m256i)w, 8), odd);
#else
    UNROLL
    for (int i = 0; i < 4; i++)
        sum += (whole)((bits)w >> 8 * i & 255) * ((whole)((bits)x << (24 - 8 * i)) >> 24);
    return sum;
#endif
}

#endif
