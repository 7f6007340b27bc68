// numbers.h: what PTX's arithmetic does to one number, after the manual (PTX ISA, "Instruction set").
// Approximations (ex2.approx, div.full, ...) are replaced by the exact value, correctly rounded where the host does so.
#pragma once
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "emulator.h"

namespace sparsegnn::ptx {

// 16-bit floats, as the bits of a register.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline float widen(Half x) { return emulator::from_fp16(x.bits); }
inline float widen(Brain x) { return emulator::from_bf16(x.bits); }
template <typename T>
T widen(T x) {
  return x;
}

template <typename T>
constexpr bool kIsFloat = std::is_floating_point_v<T> || std::is_same_v<T, Half> || std::is_same_v<T, Brain>;

// Subnormals become zeros of their sign: .ftz.
template <typename T>
T flush(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T(0), x) : x;
}

inline float saturate(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }  // NaN: 0

template <typename T>
T canonical_nan() {
  if constexpr (sizeof(T) == 4) return emulator::bit_cast<T>(uint32_t{0x7fffffff});
  if constexpr (sizeof(T) == 8) return emulator::bit_cast<T>(uint64_t{0x7ff8000000000000});
}

// ---- of two numbers

struct Add {
  template <typename T>
  static T of(T a, T b) {
    return T(a + b);
  }
};
struct Subtract {
  template <typename T>
  static T of(T a, T b) {
    return T(a - b);
  }
};
struct Multiply {
  template <typename T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) return a * b;
    if constexpr (!kIsFloat<T>) return T(uint64_t(a) * uint64_t(b));
  }
};
struct MultiplyHigh {
  template <typename T>
  static T of(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Wide(a) * Wide(b) >> (8 * sizeof(T)));
  }
};
struct Divide {
  template <typename T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) return a / b;
    if constexpr (!kIsFloat<T>) {
      if (b == 0) return T(-1);
      if constexpr (std::is_signed_v<T>)
        if (b == -1) return T(uint64_t{0} - uint64_t(a));
      return T(a / b);
    }
  }
};
struct Remainder {
  template <typename T>
  static T of(T a, T b) {
    if (b == 0) return a;
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return 0;
    return T(a % b);
  }
};
// Of a NaN and a number the number; -0 is below +0.
struct Minimum {
  template <typename T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) {
      if (a != a && b != b) return canonical_nan<T>();
      if (a != a || b != b) return a != a ? b : a;
      if (a == b) return std::signbit(a) ? a : b;
    }
    return a < b ? a : b;
  }
};
struct Maximum {
  template <typename T>
  static T of(T a, T b) {
    if constexpr (kIsFloat<T>) {
      if (a != a && b != b) return canonical_nan<T>();
      if (a != a || b != b) return a != a ? b : a;
      if (a == b) return std::signbit(a) ? b : a;
    }
    return a < b ? b : a;
  }
};
// .NaN: a NaN among them is the result.
template <typename Extremum>
struct OrNan {
  template <typename T>
  static T of(T a, T b) {
    return a != a || b != b ? canonical_nan<T>() : Extremum::of(a, b);
  }
};
struct And {
  template <typename T>
  static T of(T a, T b) {
    return T(a & b);
  }
};
struct Or {
  template <typename T>
  static T of(T a, T b) {
    return T(a | b);
  }
};
struct Xor {
  template <typename T>
  static T of(T a, T b) {
    return T(a ^ b);
  }
};
struct ShiftLeft {
  template <typename T>
  static T of(T a, uint32_t n) {
    return n >= 8 * sizeof(T) ? T(0) : T(uint64_t(a) << n);
  }
};
struct ShiftRight {
  template <typename T>
  static T of(T a, uint32_t n) {
    constexpr uint32_t last = 8 * sizeof(T) - 1;
    if constexpr (std::is_signed_v<T>) return T(a >> (n < last ? n : last));
    if constexpr (!std::is_signed_v<T>) return n > last ? T(0) : T(a >> n);
  }
};
struct CopySign {  // the sign of the first, the rest of the second
  template <typename T>
  static T of(T a, T b) {
    return std::copysign(b, a);
  }
};

// ---- of one

struct Not {
  template <typename T>
  static T of(T a) {
    return T(~a);
  }
};
struct Negate {
  template <typename T>
  static T of(T a) {
    if constexpr (kIsFloat<T>) return -a;
    if constexpr (!kIsFloat<T>) return T(uint64_t{0} - uint64_t(a));
  }
};
struct Absolute {
  template <typename T>
  static T of(T a) {
    if constexpr (kIsFloat<T>) return std::fabs(a);
    if constexpr (!kIsFloat<T>) return a < 0 ? Negate::of(a) : a;
  }
};
struct SquareRoot {
  template <typename T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <typename T>
  static T of(T a) {
    return T(1) / a;
  }
};
struct ReciprocalRoot {
  template <typename T>
  static T of(T a) {
    return T(1 / std::sqrt(double(a)));
  }
};
struct PowerOfTwo {
  static float of(float a) { return float(std::exp2(double(a))); }
};
struct Logarithm {
  static float of(float a) { return float(std::log2(double(a))); }
};
template <typename Operation>
struct Flushed {
  template <typename... T>
  static auto of(T... x) {
    return flush(Operation::of(flush(x)...));
  }
};

struct Population {
  template <typename T>
  static uint32_t of(T a) {
    return uint32_t(__builtin_popcountll(a));
  }
};
struct LeadingZeros {
  template <typename T>
  static uint32_t of(T a) {
    return a == 0 ? 8 * sizeof(T) : uint32_t(__builtin_clzll(a)) - (64 - 8 * sizeof(T));
  }
};
struct ReverseBits {
  template <typename T>
  static T of(T a) {
    T r = 0;
    for (size_t i = 0; i < 8 * sizeof(T); ++i) r = T(r << 1 | (a >> i & 1));
    return r;
  }
};
// The highest bit that is not the sign; 0xffffffff if there is none. Shift: how far it is from the highest.
template <bool shift>
struct FindBit {
  template <typename T>
  static uint32_t of(T a) {
    using Bits = std::make_unsigned_t<T>;
    Bits bits = Bits(a);
    if (std::is_signed_v<T> && a < 0) bits = Bits(~bits);
    if (bits == 0) return 0xffffffffu;
    const uint32_t leading = LeadingZeros::of(bits);
    return shift ? leading : 8 * sizeof(T) - 1 - leading;
  }
};

// ---- of three and four

struct MultiplyAdd {  // integers: the lower half; floats: rounded once
  template <typename T>
  static T of(T a, T b, T c) {
    if constexpr (kIsFloat<T>) return std::fma(a, b, c);
    if constexpr (!kIsFloat<T>) return T(uint64_t(a) * uint64_t(b) + uint64_t(c));
  }
};
struct MultiplyHighAdd {
  template <typename T>
  static T of(T a, T b, T c) {
    return T(uint64_t(MultiplyHigh::of(a, b)) + uint64_t(c));
  }
};
struct MultiplyWide {
  template <typename T>
  static auto of(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 2, int32_t, int64_t>,
                                    std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>>;
    return Wide(Wide(a) * Wide(b));
  }
};
struct MultiplyWideAdd {
  template <typename T, typename Wide>
  static Wide of(T a, T b, Wide c) {
    return Wide(uint64_t(MultiplyWide::of(a, b)) + uint64_t(c));
  }
};
struct Logic {  // lop3: bit 4 a + 2 b + c of the table
  static uint32_t of(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t r = 0;
    for (uint32_t i = 0; i < 8; ++i)
      if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
  }
};
struct Permute {  // prmt: bytes of b:a by the selector's digits; 8 and above: the sign of that byte, eight times
  static uint32_t of(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t digit = selector >> 4 * i & 15, byte = bytes >> 8 * (digit & 7) & 255;
      r |= (digit & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
  }
};
struct FunnelLeft {
  static uint32_t of(uint32_t a, uint32_t b, uint32_t n) { return uint32_t((uint64_t{b} << 32 | a) << n >> 32); }
};
struct FunnelRight {
  static uint32_t of(uint32_t a, uint32_t b, uint32_t n) { return uint32_t((uint64_t{b} << 32 | a) >> n); }
};
template <typename Funnel>
struct Wrapped {
  static uint32_t of(uint32_t a, uint32_t b, uint32_t n) { return Funnel::of(a, b, n & 31); }
};
template <typename Funnel>
struct Clamped {
  static uint32_t of(uint32_t a, uint32_t b, uint32_t n) { return Funnel::of(a, b, n < 32 ? n : 32); }
};

template <typename T>
T ones(uint32_t n) {
  return n >= 8 * sizeof(T) ? T(~T(0)) : T((T(1) << n) - 1);
}
struct InsertBits {  // the lower `length` bits of a into b at `at`
  template <typename T>
  static T of(T a, T b, uint32_t at, uint32_t length) {
    at &= 255, length &= 255;
    if (at >= 8 * sizeof(T)) return b;
    const T mask = T(ones<T>(length) << at);
    return T((b & ~mask) | (T(a << at) & mask));
  }
};
struct ExtractBits {  // beyond the highest bit: the sign, or 0
  template <typename T>
  static T of(T a, uint32_t at, uint32_t length) {
    using Bits = std::make_unsigned_t<T>;
    constexpr uint32_t bits = 8 * sizeof(T);
    at &= 255, length &= 255;
    if (length == 0) return 0;
    const Bits mask = ones<Bits>(length);
    Bits r = Bits(ShiftRight::of(Bits(a), at) & mask);
    if (!std::is_signed_v<T>) return T(r);
    const uint32_t last = at + length - 1 < bits ? at + length - 1 : bits - 1;  // where the sign is read
    const uint32_t have = at >= bits ? 0 : (length < bits - at ? length : bits - at);
    if (Bits(a) >> last & 1) r = Bits(r | ~ones<Bits>(have));
    return T(r);
  }
};

// ---- comparisons; a NaN makes all of them false, but those that are Unordered

struct Equal {
  template <typename T>
  static bool of(T a, T b) {
    return a == b;
  }
};
struct NotEqual {
  template <typename T>
  static bool of(T a, T b) {
    return a < b || a > b;
  }
};
struct Less {
  template <typename T>
  static bool of(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <typename T>
  static bool of(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <typename T>
  static bool of(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <typename T>
  static bool of(T a, T b) {
    return a >= b;
  }
};
struct IsNan {
  template <typename T>
  static bool of(T a, T b) {
    return a != a || b != b;
  }
};
struct IsNumber {
  template <typename T>
  static bool of(T a, T b) {
    return a == a && b == b;
  }
};
template <typename Compare>
struct Unordered {
  template <typename T>
  static bool of(T a, T b) {
    return a != a || b != b || Compare::of(a, b);
  }
};

// ---- conversions

enum class Rounding : uint8_t { nearest, zero, down, up };

template <typename T>
T round(T x, Rounding how) {
  switch (how) {
    case Rounding::nearest:
      return std::nearbyint(x);
    case Rounding::zero:
      return std::trunc(x);
    case Rounding::down:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}

// NaN becomes 0 (PTX: for 64 bits, and f64 to 32 bits, the highest bit alone); what is out of range its nearest.
template <typename To, typename From>
To to_integer(From x, Rounding how) {
  using Limits = std::numeric_limits<To>;
  if (x != x) return sizeof(To) == 8 || sizeof(From) == 8 ? To(uint64_t{1} << (8 * sizeof(To) - 1)) : To(0);
  const double rounded = round(double(x), how);
  if (rounded < double(Limits::min())) return Limits::min();
  if (rounded >= std::ldexp(1.0, Limits::digits)) return Limits::max();
  return To(rounded);
}

template <typename To, typename From>
To convert(From from, Rounding how, bool integral) {
  if constexpr (!kIsFloat<From> && !kIsFloat<To>) return To(from);
  if constexpr (kIsFloat<From> && !kIsFloat<To>) return to_integer<To>(widen(from), how);
  if constexpr (kIsFloat<To>) {
    using Wide = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
    if constexpr (!kIsFloat<From>) {
      static_assert(sizeof(To) >= 4, "integers become f32 or f64");
      return To(from);
    }
    if constexpr (kIsFloat<From>) {
      Wide x = Wide(widen(from));
      if (integral) x = round(x, how);
      if constexpr (std::is_same_v<To, Half>) return {emulator::to_fp16(float(x))};
      if constexpr (std::is_same_v<To, Brain>) return {emulator::to_bf16(float(x))};
      if constexpr (std::is_floating_point_v<To>) return To(x);
    }
  }
}

}  // namespace sparsegnn::ptx
