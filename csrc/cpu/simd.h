// One vector vocabulary for all instruction sets, on the compiler's vector extensions (g++ and clang).
//
//   vec<A>          lanes<A> elements of the accumulator type A (float or double)
//   load<T>(p)      widens T (float, double, bf16, f16) to vec<acc<T>>; load_n: only the first n, the rest 0
//   store<T>(p, v)  narrows with round-to-nearest-even; store_n: only the first n
//   a * b + c       contracts to one FMA where the instruction set has it (-ffp-contract=fast)
//
// Kernel files only. Everything is in the namespace of the instruction set and has internal linkage.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sparsegnn {
namespace SG_ISA {
namespace {

#define SG_INLINE inline __attribute__((always_inline))
#define SG_NOINLINE __attribute__((noinline))

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <typename T>
struct acc_of {
  using type = float;
};
template <>
struct acc_of<double> {
  using type = double;
};
template <typename T>
using acc = typename acc_of<T>::type;

template <typename A>
struct vec_of {
  typedef A type __attribute__((vector_size(vector_bytes)));
  typedef A loose __attribute__((vector_size(vector_bytes), aligned(alignof(A)), may_alias));
};
template <typename A>
using vec = typename vec_of<A>::type;
template <typename A>
constexpr int lanes = vector_bytes / int(sizeof(A));

template <typename A>
SG_INLINE vec<A> splat(A value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_set1_ps(value);
  if constexpr (sizeof(A) == 8) return _mm512_set1_pd(value);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return _mm256_set1_ps(value);
  if constexpr (sizeof(A) == 8) return _mm256_set1_pd(value);
#endif
  return vec<A>{} + value;
}
// Keeps a vector in a register, where the compiler would rather load it once per use.
template <typename V>
SG_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// --- one element ---

SG_INLINE float widen(float v) { return v; }
SG_INLINE double widen(double v) { return v; }
SG_INLINE float widen(bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
SG_INLINE float widen(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  uint32_t bits;
  float f;
  if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: exact in float
    f = float(magnitude) * 5.9604644775390625e-8f;
    memcpy(&bits, &f, 4);
  }
  bits |= sign;
  memcpy(&f, &bits, 4);
  return f;
#endif
}

template <typename T>
SG_INLINE T narrow(acc<T> v);
template <>
SG_INLINE float narrow<float>(float v) {
  return v;
}
template <>
SG_INLINE double narrow<double>(double v) {
  return v;
}
template <>
SG_INLINE bf16 narrow<bf16>(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{uint16_t((bits >> 16) | 0x40u)};  // keep NaN a NaN
  return bf16{uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
SG_INLINE f16 narrow<f16>(float v) {
#if defined(__F16C__)
  return f16{uint16_t(_cvtss_sh(v, 0))};
#else
  uint32_t bits;
  memcpy(&bits, &v, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return f16{uint16_t(sign | 0x7e00u)};
  if (bits >= 0x477ff000u) return f16{uint16_t(sign | 0x7c00u)};
  if (bits < 0x38800000u) {  // subnormal or zero: let the float adder round
    float f;
    memcpy(&f, &bits, 4);
    f += 0.5f;
    memcpy(&bits, &f, 4);
    return f16{uint16_t(sign | (bits - 0x3f000000u))};
  }
  return f16{uint16_t(sign | ((bits - (112u << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13))};
#endif
}

// --- one vector ---

template <typename T>
SG_INLINE vec<acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == sizeof(acc<T>)) {
    return *reinterpret_cast<const typename vec_of<acc<T>>::loose*>(p);
  } else {
#if defined(__AVX512F__)
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (sizeof(T) == 2 && __is_same(T, f16)) return _mm512_cvtph_ps(raw);
    return reinterpret_cast<vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#elif defined(__AVX2__)
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (sizeof(T) == 2 && __is_same(T, f16)) return _mm256_cvtph_ps(raw);
    return reinterpret_cast<vec<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#else
    vec<float> v;
    for (int i = 0; i < lanes<float>; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }
}

template <typename T>
SG_INLINE void store(T* p, vec<acc<T>> v) {
  if constexpr (sizeof(T) == sizeof(acc<T>)) {
    *reinterpret_cast<typename vec_of<acc<T>>::loose*>(p) = v;
  } else {
#if defined(__AVX512F__)
    if constexpr (__is_same(T, f16)) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0));
      return;
    }
#elif defined(__AVX2__)
    if constexpr (__is_same(T, f16)) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
      return;
    }
#endif
    if constexpr (__is_same(T, bf16)) {  // narrow<bf16>, on all lanes
      typedef uint32_t words __attribute__((vector_size(vector_bytes)));
      typedef uint16_t halves __attribute__((vector_size(vector_bytes / 2)));
      const words bits = reinterpret_cast<words>(v), high = bits >> 16;
      const words nan = reinterpret_cast<words>((bits & 0x7fffffffu) > 0x7f800000u);
      const words rounded = (bits + 0x7fffu + (high & 1u)) >> 16;
      const halves out = __builtin_convertvector((nan & (high | 0x40u)) | (~nan & rounded), halves);
      memcpy(p, &out, sizeof(out));
    } else {
      T out[lanes<float>];
      for (int i = 0; i < lanes<float>; ++i) out[i] = narrow<T>(v[i]);
      memcpy(p, out, sizeof(out));
    }
  }
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// All ones in the first n of 8 lanes.
SG_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first n lanes (0 <= n <= lanes); memory behind them is neither read nor written.
template <typename T>
SG_INLINE vec<acc<T>> load_n(const T* p, int n) {
  constexpr int width = lanes<acc<T>>;
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  if constexpr (__is_same(T, double)) return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#elif defined(__AVX2__)
  if constexpr (__is_same(T, float)) return _mm256_maskload_ps(p, first_lanes(n));
#endif
  T part[width] = {};
  memcpy(part, p, size_t(n) * sizeof(T));
  return load(static_cast<const T*>(part));
}

template <typename T>
SG_INLINE void store_n(T* p, vec<acc<T>> v, int n) {
  constexpr int width = lanes<acc<T>>;
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
  if constexpr (__is_same(T, double)) return _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
#endif
  T part[width];
  store(part, v);
  memcpy(p, part, size_t(n) * sizeof(T));
}

// One signed integer per lane, as wide as A: what comparisons give and what permute takes.
template <typename A>
using ivec = decltype(vec<A>{} < vec<A>{});

// Unsigned integers of A's width: sums wrap instead of being undefined.
template <typename A>
struct bits_of {
  using type = uint32_t;
};
template <>
struct bits_of<double> {
  using type = uint64_t;
};
template <typename A>
using uvec = typename vec_of<typename bits_of<A>::type>::type;

// Lane i of the result is lane index[i] of v; every index must be in [0, lanes).
template <typename A>
SG_INLINE vec<A> permute(vec<A> v, ivec<A> index) {
#if defined(__AVX512F__)
  if constexpr (__is_same(A, float)) return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), v);
  if constexpr (__is_same(A, double)) return _mm512_permutexvar_pd(reinterpret_cast<__m512i>(index), v);
#elif defined(__AVX2__)
  if constexpr (__is_same(A, float)) return _mm256_permutevar8x32_ps(v, reinterpret_cast<__m256i>(index));
  if constexpr (__is_same(A, double)) {  // as pairs of 32-bit lanes
    const ivec<A> pairs = (index << 1) | ((index << 33) + (int64_t{1} << 32));
    return reinterpret_cast<vec<A>>(
        _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(pairs)));
  }
#else
  vec<A> out;
  for (int i = 0; i < lanes<A>; ++i) out[i] = v[index[i]];
  return out;
#endif
}

// store for n == lanes, store_n for less.
template <typename T>
SG_INLINE void store_up_to(T* p, vec<acc<T>> v, int n) {
  if (n == lanes<acc<T>>) return store(p, v);
  store_n(p, v, n);
}

// Sum over lanes, in a fixed tree order: halves first.
template <typename A>
SG_INLINE A sum(vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (__is_same(A, float)) return _mm512_reduce_add_ps(v);
  if constexpr (__is_same(A, double)) return _mm512_reduce_add_pd(v);
#elif defined(__AVX2__)
  if constexpr (__is_same(A, float)) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
#endif
  A part[lanes<A>];
  memcpy(part, &v, sizeof(v));
  for (int half = lanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
