// exp, expm1 and log of vectors (simd.h). Kernel files only.
//
//   exp   at most 2 ulp in float and double (tests/ops/test_gat.py); results below the smallest normal number are 0;
//         -inf gives 0, NaN stays NaN
//   expm1 of x <= 0, at most 3 ulp (tests/ops/test_act_dropout.py); NaN stays NaN
//   log   of finite x >= 1, at most 2 ulp of max(|log x|, 1)
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename A>
struct float_format {  // mantissa bits, exponent bias, 1.5 * 2^bits, ln 2 in two parts, where exp leaves the range
  static constexpr int bits = 23, bias = 127, terms = 7;
  static constexpr float round = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -87.0f, highest = 88.72f;
};
template <>
struct float_format<double> {
  static constexpr int bits = 52, bias = 1023, terms = 13;
  static constexpr double round = 6755399441055744.0, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double lowest = -708.0, highest = 709.78;
};

constexpr double inverse_factorial[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n by adding n to the exponent, e^r by its Taylor polynomial.
template <typename A>
SG_INLINE vec<A> exp(vec<A> x) {
  using F = float_format<A>;
  const vec<A> shifted = x * A(1.4426950408889634) + F::round;  // the low mantissa bits hold n
  const vec<A> n = shifted - F::round;
  const vec<A> r = (x - n * F::ln2_high) - n * F::ln2_low;
  vec<A> p = splat(A(inverse_factorial[F::terms]));
  for (int k = F::terms - 1; k >= 0; --k) p = p * r + A(inverse_factorial[k]);
  // In unsigned lanes: out of range, where the sum wraps, the result is replaced below.
  const vec<A> scaled =
      reinterpret_cast<vec<A>>(reinterpret_cast<uvec<A>>(p) + (reinterpret_cast<uvec<A>>(shifted) << F::bits));
  const vec<A> finite = x < F::lowest ? vec<A>{} : scaled;
  const vec<A> capped = x > F::highest ? splat(A(__builtin_inf())) : finite;
  return x == x ? capped : x;
}

// As exp, with the 1 of its polynomial left out: 2^n (e^r - 1) + (2^n - 1), whose parts cancel to half at most.
template <typename A>
SG_INLINE vec<A> expm1_below_zero(vec<A> x) {
  using F = float_format<A>;
  x = x < F::lowest ? splat(A(F::lowest)) : x;
  const vec<A> shifted = x * A(1.4426950408889634) + F::round;
  const vec<A> n = shifted - F::round;
  const vec<A> r = (x - n * F::ln2_high) - n * F::ln2_low;
  vec<A> p = splat(A(inverse_factorial[F::terms]));
  for (int k = F::terms - 1; k >= 1; --k) p = p * r + A(inverse_factorial[k]);
  const vec<A> power = reinterpret_cast<vec<A>>((reinterpret_cast<uvec<A>>(shifted) + F::bias) << F::bits);
  return power * (p * r) + (power - A(1));
}

// A guess g from the bits, within 0.05; then log x = g + log z with z = x e^-g near 1, by the series of atanh.
template <typename A>
SG_INLINE vec<A> log(vec<A> x) {
  using F = float_format<A>;
  const vec<A> exponent = __builtin_convertvector(reinterpret_cast<ivec<A>>(x), vec<A>);
  const vec<A> guess =
      (exponent * (A(1) / A(int64_t{1} << F::bits)) - (F::bias - A(0.0430357))) * A(0.6931471805599453);
  const vec<A> z = x * exp<A>(-guess);
  const vec<A> t = (z - 1) / (z + 1), s = t * t;
  vec<A> series = splat(A(1) / 11);
  for (int k = 9; k >= 1; k -= 2) series = series * s + A(1) / k;
  return guess + 2 * t * series;
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
