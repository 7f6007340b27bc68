// Elements of a table by index. Kernel files only.
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Lane i is table[index[i]] for i < n, 0 for the rest, whose indices are not read.
template <typename T>
SG_INLINE vec<acc<T>> gather(const T* table, const int32_t* index, int n = lanes<acc<T>>) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    const __mmask16 there = __mmask16((1u << n) - 1);
    return _mm512_mask_i32gather_ps(__m512{}, there, _mm512_maskz_loadu_epi32(there, index), table, 4);
  }
  if constexpr (__is_same(T, double)) {
    const __mmask8 there = __mmask8((1u << n) - 1);
    return _mm512_mask_i32gather_pd(__m512d{}, there, _mm256_maskz_loadu_epi32(there, index), table, 8);
  }
#elif defined(__AVX2__)
  if constexpr (__is_same(T, float))
    if (n == lanes<float>)
      return _mm256_i32gather_ps(table, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  if constexpr (__is_same(T, double))
    if (n == lanes<double>)
      return _mm256_i32gather_pd(table, _mm_loadu_si128(reinterpret_cast<const __m128i*>(index)), 8);
#endif
  acc<T> each[lanes<acc<T>>] = {};
  for (int i = 0; i < n; ++i) each[i] = widen(table[index[i]]);
  return load(each);
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
