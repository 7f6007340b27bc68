// Transposition of a block of lanes x lanes elements in registers: shuffles as index formulas, which compile to unpack
// and 128-bit lane instructions. Kernel files only.
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <int... I>
struct ints {};
template <int n, int... I>
struct count_up : count_up<n - 1, n - 1, I...> {};
template <int... I>
struct count_up<0, I...> {
  using type = ints<I...>;
};

template <typename A>
constexpr int group = 16 / int(sizeof(A));  // elements of a 128-bit lane
template <typename A>
constexpr int lane_count = lanes<A> / group<A>;

// Interleaves units of `unit` elements of the low (high) halves of each 128-bit lane of a and b.
template <typename A, int unit, bool high>
constexpr int unpack_index(int i) {
  const int lane = i / group<A>, u = i % group<A> / unit, half = group<A> / unit / 2;
  return (u % 2) * lanes<A> + lane * group<A> + ((high ? half : 0) + u / 2) * unit + i % unit;
}
// Half the 128-bit lanes of a, then half those of b: the even ones or the odd ones.
template <typename A, bool odd>
constexpr int pick_index(int i) {
  constexpr int half = lane_count < A >> 1 ? lane_count<A> / 2 : 1;
  const int lane = i / group<A>;
  return (lane / half) * lanes<A> + (2 * (lane % half) + odd) * group<A> + i % group<A>;
}
template <typename A, int unit, bool high, int... I>
SG_INLINE vec<A> unpack(vec<A> a, vec<A> b, ints<I...>) {
  return __builtin_shufflevector(a, b, unpack_index<A, unit, high>(I)...);
}
template <typename A, int unit, bool high>
SG_INLINE vec<A> unpack(vec<A> a, vec<A> b) {
  return unpack<A, unit, high>(a, b, typename count_up<lanes<A>>::type{});
}
template <typename A, bool odd, int... I>
SG_INLINE vec<A> pick(vec<A> a, vec<A> b, ints<I...>) {
  return __builtin_shufflevector(a, b, pick_index<A, odd>(I)...);
}
template <typename A, bool odd>
SG_INLINE vec<A> pick(vec<A> a, vec<A> b) {
  return pick<A, odd>(a, b, typename count_up<lanes<A>>::type{});
}

// Sums over lanes, of many vectors at a time: two shuffles and one addition halve their number.
template <typename A, int unit>
SG_INLINE vec<A> merge(vec<A> a, vec<A> b) {
  return unpack<A, unit, false>(a, b) + unpack<A, unit, true>(a, b);
}
// Element i of every 128 bits is the sum over these 128 bits of r[i].
template <typename A>
SG_INLINE vec<A> sums_in_groups(const vec<A>* r) {
  const vec<A> u = merge<A, 1>(r[0], r[1]);
  if constexpr (group<A> == 4) return merge<A, 2>(u, merge<A, 1>(r[2], r[3]));
  return u;
}
// The sums over 128-bit lanes of u[i], one 128-bit lane of the result for each; u is overwritten.
template <typename A>
SG_INLINE vec<A> sums_of_groups(vec<A>* u) {
#pragma GCC unroll 4
  for (int m = lane_count<A>; m > 1; m /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < m / 2; ++i)
      u[i] = pick<A, false>(u[2 * i], u[2 * i + 1]) + pick<A, true>(u[2 * i], u[2 * i + 1]);
  return u[0];
}
// Lane i of the result is the sum over the lanes of r[i].
template <typename A>
SG_INLINE vec<A> lane_sums(const vec<A>* r) {
  vec<A> u[lane_count<A>];
#pragma GCC unroll 4
  for (int i = 0; i < lane_count<A>; ++i) u[i] = sums_in_groups<A>(r + i * group<A>);
  return sums_of_groups<A>(u);
}

// r[i][j] becomes r[j][i].
template <typename A>
SG_INLINE void transpose(vec<A>* r) {
  constexpr int L = lanes<A>, g = group<A>, n = lane_count<A>;
  vec<A> u[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; i += g) {
    if constexpr (g == 4) {
      const vec<A> a = unpack<A, 1, false>(r[i], r[i + 1]), b = unpack<A, 1, true>(r[i], r[i + 1]);
      const vec<A> c = unpack<A, 1, false>(r[i + 2], r[i + 3]), d = unpack<A, 1, true>(r[i + 2], r[i + 3]);
      u[i] = unpack<A, 2, false>(a, c), u[i + 1] = unpack<A, 2, true>(a, c);
      u[i + 2] = unpack<A, 2, false>(b, d), u[i + 3] = unpack<A, 2, true>(b, d);
    } else {
      u[i] = unpack<A, 1, false>(r[i], r[i + 1]), u[i + 1] = unpack<A, 1, true>(r[i], r[i + 1]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < g; ++j) {
    if constexpr (n == 4) {
      const vec<A> a = pick<A, false>(u[j], u[g + j]), b = pick<A, true>(u[j], u[g + j]);
      const vec<A> c = pick<A, false>(u[2 * g + j], u[3 * g + j]), d = pick<A, true>(u[2 * g + j], u[3 * g + j]);
      r[j] = pick<A, false>(a, c), r[2 * g + j] = pick<A, true>(a, c);
      r[g + j] = pick<A, false>(b, d), r[3 * g + j] = pick<A, true>(b, d);
    } else if constexpr (n == 2) {
      r[j] = pick<A, false>(u[j], u[g + j]), r[g + j] = pick<A, true>(u[j], u[g + j]);
    } else {
      r[j] = u[j];
    }
  }
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
