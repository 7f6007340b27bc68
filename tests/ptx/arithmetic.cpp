// Opcodes that make a number of numbers.
#include "apply.h"

namespace sparsegnn::ptx {
namespace {

// ---- what executes them

template <typename Operation>
struct Saturated {
  template <typename... T>
  static float of(T... x) {
    return saturate(Operation::of(x...));
  }
};

// fma.rm: volatile, so that the compiler leaves it where the rounding is set.
void multiply_add_down(Warp& w, const Instruction& i) {
  std::fesetround(FE_DOWNWARD);
  w.each([&](int lane) {
    volatile float x[3];
    for (int k = 0; k < 3; ++k) x[k] = w.row<float>(i.operand[k + 1])[lane];
    volatile float r = std::fma(x[0], x[1], x[2]);
    w.row<float>(i.operand[0])[lane] = r;
  });
  std::fesetround(FE_TONEAREST);
}

// ---- forms of operands

struct Float {
  bool flushed, saturated;
};
Float float_modifiers(Reader& r) {
  const bool flushed = r.take("ftz");
  return {flushed, r.take("sat")};
}

// An operation on n floats that .ftz and .sat may change.
template <typename Operation, int n>
Execute on_floats(const Reader& r, Type t, Float how) {
  if (t == Type::f64 && !how.flushed && !how.saturated) return uniform<Operation, double, n>();
  if (t != Type::f32) r.unknown("type for it");
  if (how.flushed && how.saturated) return uniform<Saturated<Flushed<Operation>>, float, n>();
  if (how.flushed) return uniform<Flushed<Operation>, float, n>();
  if (how.saturated) return uniform<Saturated<Operation>, float, n>();
  return uniform<Operation, float, n>();
}

void refuse_for_integers(const Reader& r, Float how) {
  if (how.flushed || how.saturated) r.unknown("modifier of integers");
}

// ---- opcodes

template <typename Operation, int n>
void wrapping(Reader& r) {  // integers modulo 2^n, so that their sign does not matter; and floats
  const bool nearest = r.take("rn");
  const Float how = float_modifiers(r);
  const Type t = r.type();
  same(r, t, n);
  if (is_float(t)) return void(r.to().execute = on_floats<Operation, n>(r, t, how));
  if (nearest) r.unknown("modifier .rn of integers");
  refuse_for_integers(r, how);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t>(r, as_unsigned(t),
                                                      [](auto x) { return uniform<Operation, decltype(x), n>(); });
}

template <typename Operation, int n>
void by_sign(Reader& r) {  // integers of either sign, and floats
  const Float how = float_modifiers(r);
  const Type t = r.type();
  same(r, t, n);
  if (is_float(t)) return void(r.to().execute = on_floats<Operation, n>(r, t, how));
  refuse_for_integers(r, how);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t>(
      r, t, [](auto x) { return uniform<Operation, decltype(x), n>(); });
}

template <typename Operation, int n>
void on_integers(Reader& r) {
  const Type t = r.type();
  same(r, t, n);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t>(
      r, t, [](auto x) { return uniform<Operation, decltype(x), n>(); });
}

template <typename Extremum>
void extremum(Reader& r) {
  if (!r.take("NaN")) return by_sign<Extremum, 2>(r);
  const Float how = float_modifiers(r);
  const Type t = r.type();
  same(r, t, 2);
  r.to().execute = on_floats<OrNan<Extremum>, 2>(r, t, how);
}

template <typename Operation>
void product(Reader& r, int sources) {  // .wide: the operands have half of the result's bits
  const bool wide = r.take("wide"), high = !wide && r.take("hi");
  if (!wide && !high && !r.take("lo")) r.unknown("form: it lacks .lo, .hi or .wide");
  const Type t = r.type();
  const Type doubled = t == Type::s16 ? Type::s32 : t == Type::u16 ? Type::u32 : t == Type::s32 ? Type::s64 : Type::u64;
  r.destination(wide ? doubled : t);
  r.source(t), r.source(t);
  if (sources == 3) r.source(wide ? doubled : t);
  const auto make = [&](auto x) -> Execute {
    using T = decltype(x);
    constexpr bool two = std::is_same_v<Operation, Multiply>;
    if constexpr (sizeof(T) < 8) {
      using D = decltype(MultiplyWide::of(x, x));
      if constexpr (two)
        if (wide) return apply<MultiplyWide, D, T, T>;
      if constexpr (!two)
        if (wide) return apply<MultiplyWideAdd, D, T, T, D>;
    }
    if (wide) r.unknown("type for .wide");
    if constexpr (two) return high ? apply<MultiplyHigh, T, T, T> : apply<Multiply, T, T, T>;
    if constexpr (!two) return high ? apply<MultiplyHighAdd, T, T, T, T> : apply<MultiplyAdd, T, T, T, T>;
  };
  r.to().execute = pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t>(r, t, make);
}

void multiply(Reader& r) {
  const bool nearest = r.take("rn");
  const Float how = float_modifiers(r);
  if (!nearest && !how.flushed && !how.saturated && r.integral()) return product<Multiply>(r, 2);
  const Type t = r.type();
  same(r, t, 2);
  r.to().execute = on_floats<Multiply, 2>(r, t, how);
}

void multiply_add(Reader& r) { product<MultiplyAdd>(r, 3); }

void fused(Reader& r) {
  const bool down = r.take("rm");
  if (!down && !r.take("rn")) r.unknown("form: it lacks .rn or .rm");
  const Float how = float_modifiers(r);
  const Type t = r.type();
  same(r, t, 3);
  r.to().execute = on_floats<MultiplyAdd, 3>(r, t, how);
  if (!down) return;
  if (t != Type::f32 || how.flushed || how.saturated) r.unknown("form of .rm");
  r.to().execute = multiply_add_down;
}

void divide(Reader& r) {
  const std::string how = r.one_of({"rn", "full", "approx"});
  const Float modifiers = float_modifiers(r);
  const Type t = r.type();
  same(r, t, 2);
  if (is_float(t)) return void(r.to().execute = on_floats<Divide, 2>(r, t, modifiers));
  if (!how.empty()) r.unknown("modifier of integers");
  refuse_for_integers(r, modifiers);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t>(
      r, t, [](auto x) { return uniform<Divide, decltype(x), 2>(); });
}

template <typename Operation>
void function(Reader& r) {  // of one float
  r.some_of({"rn", "approx"});
  const bool flushed = r.take("ftz");
  const Type t = r.type();
  same(r, t, 1);
  const bool both = flushed && t == Type::f64;  // rcp.approx.ftz.f64
  r.to().execute = both ? uniform<Flushed<Operation>, double, 1>() : on_floats<Operation, 1>(r, t, {flushed, false});
}

template <typename Operation>
void float_function(Reader& r) {
  r.some_of({"approx"});
  const bool flushed = r.take("ftz");
  same(r, r.type(), 1);
  r.to().execute = flushed ? apply<Flushed<Operation>, float, float> : apply<Operation, float, float>;
}

void copy_sign(Reader& r) {
  const Type t = r.type();
  same(r, t, 2);
  r.to().execute = on_floats<CopySign, 2>(r, t, {false, false});
}

template <typename Operation>
void logic(Reader& r) {
  const Type t = r.type();
  same(r, t, 2);
  if (t == Type::pred) {
    r.to().execute = [](Warp& w, const Instruction& i) {
      w.set_predicate(i.operand[0], Operation::of(w.predicate(i.operand[1]), w.predicate(i.operand[2])));
    };
    return;
  }
  r.to().execute =
      pick<uint16_t, uint32_t, uint64_t>(r, t, [](auto x) { return uniform<Operation, decltype(x), 2>(); });
}

void invert(Reader& r) {
  const Type t = r.type();
  same(r, t, 1);
  if (t == Type::pred) {
    r.to().execute = [](Warp& w, const Instruction& i) { w.set_predicate(i.operand[0], ~w.predicate(i.operand[1])); };
    return;
  }
  r.to().execute = pick<uint16_t, uint32_t, uint64_t>(r, t, [](auto x) { return uniform<Not, decltype(x), 1>(); });
}

template <typename Operation>
void shift(Reader& r) {
  const Type t = r.type();
  r.destination(t), r.source(t), r.source(Type::u32);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t>(r, t, [](auto x) -> Execute {
    using T = decltype(x);
    return apply<Operation, T, T, uint32_t>;
  });
}

template <typename Funnel>
void funnel(Reader& r) {
  const bool wraps = r.some_of({"wrap", "clamp"}) == "wrap";
  same(r, r.type(), 2), r.source(Type::u32);
  r.to().execute = wraps ? apply<Wrapped<Funnel>, uint32_t, uint32_t, uint32_t, uint32_t>
                         : apply<Clamped<Funnel>, uint32_t, uint32_t, uint32_t, uint32_t>;
}
void funnel_shift(Reader& r) { r.some_of({"l", "r"}) == "l" ? funnel<FunnelLeft>(r) : funnel<FunnelRight>(r); }

template <typename Operation>
void count(Reader& r) {  // a number of bits
  const Type t = r.type();
  r.destination(Type::u32), r.source(t);
  r.to().execute =
      pick<uint32_t, uint64_t>(r, t, [](auto x) -> Execute { return apply<Operation, uint32_t, decltype(x)>; });
}

void find_bit(Reader& r) {
  const bool from_above = r.take("shiftamt");
  const Type t = r.type();
  r.destination(Type::u32), r.source(t);
  r.to().execute = pick<uint32_t, uint64_t, int32_t, int64_t>(r, t, [&](auto x) -> Execute {
    using T = decltype(x);
    return from_above ? apply<FindBit<true>, uint32_t, T> : apply<FindBit<false>, uint32_t, T>;
  });
}

void reverse_bits(Reader& r) {
  const Type t = r.type();
  same(r, t, 1);
  r.to().execute = pick<uint32_t, uint64_t>(r, t, [](auto x) { return uniform<ReverseBits, decltype(x), 1>(); });
}

void insert_bits(Reader& r) {
  const Type t = r.type();
  same(r, t, 2), r.source(Type::u32), r.source(Type::u32);
  r.to().execute = pick<uint32_t, uint64_t>(r, t, [](auto x) -> Execute {
    using T = decltype(x);
    return apply<InsertBits, T, T, T, uint32_t, uint32_t>;
  });
}

void extract_bits(Reader& r) {
  const Type t = r.type();
  same(r, t, 1), r.source(Type::u32), r.source(Type::u32);
  r.to().execute = pick<uint32_t, uint64_t, int32_t, int64_t>(r, t, [](auto x) -> Execute {
    using T = decltype(x);
    return apply<ExtractBits, T, T, uint32_t, uint32_t>;
  });
}

void permute(Reader& r) {
  same(r, r.type(), 3);
  r.to().execute = apply<Permute, uint32_t, uint32_t, uint32_t, uint32_t>;
}

void logic_of_three(Reader& r) {
  same(r, r.type(), 3), r.source(Type::u32);
  r.to().execute = apply<Logic, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;
}

}  // namespace

const Table& arithmetic_table() {
  static const Table table = {
      {"add", wrapping<Add, 2>},
      {"sub", wrapping<Subtract, 2>},
      {"mul", multiply},
      {"mad", multiply_add},
      {"fma", fused},
      {"div", divide},
      {"rem", on_integers<Remainder, 2>},
      {"neg", wrapping<Negate, 1>},
      {"abs", by_sign<Absolute, 1>},
      {"min", extremum<Minimum>},
      {"max", extremum<Maximum>},
      {"copysign", copy_sign},
      {"rcp", function<Reciprocal>},
      {"sqrt", function<SquareRoot>},
      {"rsqrt", function<ReciprocalRoot>},
      {"ex2", float_function<PowerOfTwo>},
      {"lg2", float_function<Logarithm>},
      {"and", logic<And>},
      {"or", logic<Or>},
      {"xor", logic<Xor>},
      {"not", invert},
      {"shl", shift<ShiftLeft>},
      {"shr", shift<ShiftRight>},
      {"shf", funnel_shift},
      {"popc", count<Population>},
      {"clz", count<LeadingZeros>},
      {"bfind", find_bit},
      {"brev", reverse_bits},
      {"bfi", insert_bits},
      {"bfe", extract_bits},
      {"prmt", permute},
      {"lop3", logic_of_three},
  };
  return table;
}

}  // namespace sparsegnn::ptx
