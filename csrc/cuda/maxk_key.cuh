// maxk, keys and thresholds / cuda
//
//   unsigned integers in the order of the values, and the bracket [low, high) that closes in on the k-th largest
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

// 0 stands for no value. As wide as the values, so that halving ends soon in 16 bits.
template <typename T>
struct maxk_bits {
  using type = uint32_t;
  static constexpr uint32_t sign = 0x80000000, infinity = 0x7f800000;
};
template <>
struct maxk_bits<double> {
  using type = uint64_t;
  static constexpr uint64_t sign = 0x8000000000000000, infinity = 0x7ff0000000000000;
};
template <>
struct maxk_bits<bf16> {
  using type = uint32_t;
  static constexpr uint32_t sign = 0x8000, infinity = 0x7f80;
};
template <>
struct maxk_bits<fp16> {
  using type = uint32_t;
  static constexpr uint32_t sign = 0x8000, infinity = 0x7c00;
};
template <typename T>
using maxk_key = typename maxk_bits<T>::type;

template <typename T>
__device__ __forceinline__ maxk_key<T> to_maxk_key(T x) {
  using B = maxk_bits<T>;
  constexpr maxk_key<T> all = B::sign | (B::sign - 1);
  maxk_key<T> bits;
  if constexpr (sizeof(T) == 2) bits = x.bits;
  if constexpr (sizeof(T) != 2) bits = *reinterpret_cast<const maxk_key<T>*>(&x);
  const maxk_key<T> magnitude = bits & (B::sign - 1);
  if (magnitude > B::infinity) return B::sign + B::infinity + 1;  // NaN, next above infinity
  if (magnitude == 0) return B::sign;                             // -0 as 0
  return bits & B::sign ? all - bits : bits | B::sign;
}

template <typename T>
__device__ __forceinline__ acc_t<T> from_maxk_key(maxk_key<T> key) {
  using B = maxk_bits<T>;
  constexpr maxk_key<T> all = B::sign | (B::sign - 1);
  const maxk_key<T> bits = key & B::sign ? key - B::sign : all - key;
  if constexpr (sizeof(T) == 2) return to_acc(T{static_cast<uint16_t>(bits)});
  if constexpr (sizeof(T) != 2) return *reinterpret_cast<const T*>(&bits);
}

// Where the threshold would be in normal data of mean 0 and deviation 1, how much further one column fewer is at or
// above it, and what share of the columns one is.
struct MaxkGuess {
  float quantile, step, column;
};

inline MaxkGuess maxk_guess(int64_t columns, int64_t kept) {
  const double above = (double(kept) - 0.5) / double(columns), tail = above < 0.5 ? above : 1 - above;
  const double t = std::sqrt(-2 * std::log(tail));  // Abramowitz and Stegun 26.2.23
  const double z =
      t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return {float(above < 0.5 ? z : -z), float(1 / (0.39894228 * double(columns) * std::exp(-z * z / 2))),
          float(1 / double(columns))};
}

// A reciprocal of a few bits less: it chooses a threshold.
__device__ __forceinline__ float maxk_reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

// count(keys >= low) > kept > count(keys >= high) while open. Closed, `high_count` keys are at or above high, and the
// others that stay are equal to low.
template <typename T>
struct MaxkBracket {
  using Key = maxk_key<T>;
  using A = acc_t<T>;
  static constexpr Key zero = maxk_bits<T>::sign, lowest = zero - 1 - maxk_bits<T>::infinity,
                       top = zero + maxk_bits<T>::infinity + 2;
  Key low = lowest, high = top;
  A low_value, high_value;  // what the keys stand for
  float low_count, high_count = 0, kept;
  A t, step;  // the next threshold, and how far a surplus of one column moves it

  __device__ __forceinline__ MaxkBracket(A mean, A deviation, MaxkGuess guess, int columns, int keep)
      : low_value(0),
        high_value(0),
        low_count(columns),
        kept(keep),
        t(mean + guess.quantile * deviation),
        step(deviation * A(guess.step)) {
    if (keep == columns) high = low, high_count = kept;
  }

  __device__ __forceinline__ bool open() const { return high - low > 1; }

  // The key of a finite number; that of -0 is one less than that of 0, which no column has.
  static __device__ __forceinline__ Key key_of(A value) {
    using B = maxk_bits<T>;
    constexpr Key all = B::sign | (B::sign - 1);
    const T x = from_acc<T>(value);
    Key bits;
    if constexpr (sizeof(T) == 2) bits = x.bits;
    if constexpr (sizeof(T) != 2) bits = *reinterpret_cast<const Key*>(&x);
    return bits ^ (bits & B::sign ? all : B::sign);
  }

  template <bool kFinite>
  __device__ __forceinline__ Key next(int round) const {
    Key key = low + (high - low) / 2;
    if (round < 9) {
      if (kFinite || t == t) key = kFinite ? key_of(t) : to_maxk_key(from_acc<T>(t));
      // Zeros are the likeliest equals: is the threshold one?
      if (round == 3 && low < zero + 1 && high > zero + 1) key = zero + 1;
      if (round == 4 && low < zero && high > zero) key = zero;
    }
    return key <= low ? low + 1 : key >= high ? high - 1 : key;
  }

  // `count` keys are at or above `key`, which stands for `value`.
  __device__ __forceinline__ void put(Key key, A value, float count, int round) {
    if (!open()) return;
    const bool more = count > kept;
    if (count >= kept) low = key;
    if (more)
      low_value = value, low_count = count;
    else
      high = key, high_value = value, high_count = count;
    const float part = round % 4 == 3 ? 0.5f : (low_count - kept) * maxk_reciprocal(low_count - high_count);
    const A inside = low_value + (high_value - low_value) * A(part), outside = t + A(count - kept) * step;
    t = low == lowest || high == top ? outside : inside;
  }
};

}  // namespace sparsegnn::cuda
