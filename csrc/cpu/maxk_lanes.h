// Sets of columns as bits. Kernel files only.
//
//   a row of F columns is F bits, column c bit c % 64 of word c / 64
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

SG_INLINE int count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

// The bits of the vector of L columns that begins at column c, a multiple of L.
template <int L>
SG_INLINE uint32_t lane_bits(const uint64_t* row, int64_t c) {
  return uint32_t(row[c / 64] >> c % 64) & ((1u << L) - 1);
}

// One bit per lane that is not zero.
template <typename A>
SG_INLINE uint32_t to_bits(ivec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v));
  if constexpr (sizeof(A) == 8) return _mm512_movepi64_mask(reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return uint32_t(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
  if constexpr (sizeof(A) == 8) return uint32_t(_mm256_movemask_pd(reinterpret_cast<__m256d>(v)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<A>; ++i) bits |= uint32_t(v[i] != 0) << i;
  return bits;
#endif
}

// Lanes where x >= t, or x is NaN.
template <typename A>
SG_INLINE uint32_t at_least(vec<A> x, vec<A> t) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_cmp_ps_mask(x, t, _CMP_NLT_UQ);
  if constexpr (sizeof(A) == 8) return _mm512_cmp_pd_mask(x, t, _CMP_NLT_UQ);
#else
  return to_bits<A>(~(x < t));
#endif
}

// Byte i of entry b is the place of the i-th bit of b that is set.
struct Tables {
  alignas(64) uint64_t place[256];
};
constexpr Tables make_tables() {
  Tables t{};
  for (int b = 0; b < 256; ++b) {
    int n = 0;
    for (int i = 0; i < 8; ++i) {
      if (b >> i & 1) t.place[b] |= uint64_t(i) << 8 * n++;
    }
  }
  return t;
}
constexpr Tables tables = make_tables();

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
