// Opcodes that compare numbers, choose, move and convert them.
#include "apply.h"

namespace sparsegnn::ptx {
namespace {

// ---- comparisons and choices: setp d|q, a, b{, {!}c}: d = (a ? b) and c, q = !(a ? b) and c

template <typename Compare, bool flushed, typename T>
void compare(Warp& w, const Instruction& i) {
  const T *a = w.row<T>(i.operand[2]), *b = w.row<T>(i.operand[3]);
  uint32_t p = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    T x = a[lane], y = b[lane];
    if constexpr (flushed) x = flush(x), y = flush(y);
    p |= uint32_t(Compare::of(x, y)) << lane;
  }
  uint32_t q = ~p;
  if (i.detail != 0) {
    const uint32_t c = i.negated ? ~w.predicate(i.operand[4]) : w.predicate(i.operand[4]);
    p = i.detail == 1 ? p & c : i.detail == 2 ? p | c : p ^ c;
    q = i.detail == 1 ? q & c : i.detail == 2 ? q | c : q ^ c;
  }
  w.set_predicate(i.operand[0], p), w.set_predicate(i.operand[1], q);
}

template <typename Compare, bool for_floats_alone = false>
Execute comparison(const Reader& r, Type t, bool flushed) {
  if (flushed) return t == Type::f32 ? compare<Compare, true, float> : (r.unknown("use of .ftz"), nullptr);
  if constexpr (for_floats_alone)
    return pick<float, double>(r, t, [](auto x) -> Execute { return compare<Compare, false, decltype(x)>; });
  if constexpr (!for_floats_alone)
    return pick<uint16_t, uint32_t, uint64_t, int16_t, int32_t, int64_t, float, double>(
        r, t, [](auto x) -> Execute { return compare<Compare, false, decltype(x)>; });
}

const std::map<std::string, Execute (*)(const Reader&, Type, bool)> kComparisons = {
    {"eq", comparison<Equal>},
    {"ne", comparison<NotEqual>},
    {"lt", comparison<Less>},
    {"le", comparison<LessEqual>},
    {"gt", comparison<Greater>},
    {"ge", comparison<GreaterEqual>},
    {"lo", comparison<Less>},
    {"ls", comparison<LessEqual>},
    {"hi", comparison<Greater>},
    {"hs", comparison<GreaterEqual>},
    {"equ", comparison<Unordered<Equal>, true>},
    {"neu", comparison<Unordered<NotEqual>, true>},
    {"ltu", comparison<Unordered<Less>, true>},
    {"leu", comparison<Unordered<LessEqual>, true>},
    {"gtu", comparison<Unordered<Greater>, true>},
    {"geu", comparison<Unordered<GreaterEqual>, true>},
    {"num", comparison<IsNumber, true>},
    {"nan", comparison<IsNan, true>},
};

void set_predicate(Reader& r) {
  Execute (*make)(const Reader&, Type, bool) = nullptr;
  for (const auto& [name, known] : kComparisons)
    if (make == nullptr && r.take(name)) make = known;
  if (make == nullptr) r.unknown("comparison");
  const std::string combined = r.one_of({"and", "or", "xor"});
  const bool flushed = r.take("ftz");
  const Type t = r.type();
  const bool two = r.pair();
  r.predicate_destination();
  two ? r.predicate_destination() : r.nothing();
  r.source(t), r.source(t);
  if (!combined.empty()) r.predicate_source();
  r.to().detail = combined.empty() ? 0 : combined == "and" ? 1 : combined == "or" ? 2 : 3;
  r.to().execute = make(r, t, flushed);
}

template <typename T>
void choose(Warp& w, const Instruction& i) {
  const uint32_t p = w.predicate(i.operand[3]);
  const T *a = w.row<T>(i.operand[1]), *b = w.row<T>(i.operand[2]);
  T* d = w.row<T>(i.operand[0]);
  w.each([&](int lane) { d[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
}

void select_by_predicate(Reader& r) {
  const Type t = r.type();
  same(r, t, 2), r.source(Type::pred);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t>(r, as_unsigned(as_bits(t)),
                                                      [](auto x) -> Execute { return choose<decltype(x)>; });
}

// ---- moves and conversions

struct Copy {
  template <typename T>
  static T of(T a) {
    return a;
  }
};

template <typename Part, typename Whole>
void unpack(Warp& w, const Instruction& i) {
  constexpr int n = sizeof(Whole) / sizeof(Part);
  const Whole* s = w.row<Whole>(i.operand[n]);
  Whole from[kLanes];  // a part may lie in the register of the whole
  w.each([&](int lane) { from[lane] = s[lane]; });
  for (int k = 0; k < n; ++k)
    if (i.operand[k] != kNone)
      w.each([&](int lane) { w.row<Part>(i.operand[k])[lane] = Part(from[lane] >> (8 * sizeof(Part) * k)); });
}

template <typename Part, typename Whole>
void pack(Warp& w, const Instruction& i) {
  constexpr int n = sizeof(Whole) / sizeof(Part);
  w.each([&](int lane) {
    Whole all = 0;
    for (int k = 0; k < n; ++k) all |= Whole(w.row<Part>(i.operand[k + 1])[lane]) << (8 * sizeof(Part) * k);
    w.row<Whole>(i.operand[0])[lane] = all;
  });
}

void move_parts(Reader& r, Type t, int parts, bool unpacks) {
  const Type part = bytes_of(t) / parts == 4 ? Type::b32 : Type::b16;
  if (bytes_of(part) * parts != bytes_of(t)) r.unknown("number of parts");
  unpacks ? r.destinations(part, false) : r.sources(part, false);
  if (unpacks) r.source(t);
  Instruction& i = r.to();
  if (t == Type::b32)
    i.execute = unpacks ? unpack<uint16_t, uint32_t> : pack<uint16_t, uint32_t>;
  else if (part == Type::b32)
    i.execute = unpacks ? unpack<uint32_t, uint64_t> : pack<uint32_t, uint64_t>;
  else
    i.execute = unpacks ? unpack<uint16_t, uint64_t> : pack<uint16_t, uint64_t>;
}

void move(Reader& r) {
  const Type t = r.type();
  if (t == Type::pred) {
    same(r, t, 1);
    r.to().execute = [](Warp& w, const Instruction& i) { w.set_predicate(i.operand[0], w.predicate(i.operand[1])); };
    return;
  }
  if (const int parts = r.list_size(); parts > 1) return move_parts(r, t, parts, true);
  r.destination(t);
  if (const int parts = r.list_size(); parts > 1) return move_parts(r, t, parts, false);
  r.source(t);
  r.to().execute = pick<uint16_t, uint32_t, uint64_t>(r, as_unsigned(as_bits(t)),
                                                      [](auto x) { return uniform<Copy, decltype(x), 1>(); });
}

// Bits of `detail` of a conversion, above its rounding.
constexpr uint32_t kIntegral = 4, kFlushed = 8, kSaturated = 16;

template <typename To, typename From>
void convert_row(Warp& w, const Instruction& i) {
  const auto rounding = Rounding(i.detail & 3);
  unsigned char* d = w.bytes(i.operand[0]);
  const unsigned char* s = w.bytes(i.operand[1]);
  w.each([&](int lane) {
    From x = get<From>(s, i.width[1], lane);
    if constexpr (std::is_same_v<From, float>)
      if (i.detail & kFlushed) x = flush(x);
    To y = convert<To>(x, rounding, (i.detail & kIntegral) != 0);
    if constexpr (std::is_same_v<To, float>) {
      if (i.detail & kFlushed) y = flush(y);
      if (i.detail & kSaturated) y = saturate(y);
    }
    put(d, i.width[0], lane, y);
  });
}

template <typename From>
Execute conversion_from(const Reader& r, Type to) {
  const auto make = [](auto x) -> Execute { return convert_row<decltype(x), From>; };
  if constexpr (std::is_same_v<From, float>)
    return pick<uint8_t, uint16_t, uint32_t, uint64_t, int8_t, int16_t, int32_t, int64_t, float, double, Half, Brain>(
        r, to, make);
  if constexpr (std::is_same_v<From, Half> || std::is_same_v<From, Brain>) return pick<float>(r, to, make);
  return pick<uint8_t, uint16_t, uint32_t, uint64_t, int8_t, int16_t, int32_t, int64_t, float, double>(r, to, make);
}

void round_to_tf32(Warp& w, const Instruction& i) {
  w.each([&](int lane) { w.row<uint32_t>(i.operand[0])[lane] = emulator::to_tf32(w.row<float>(i.operand[1])[lane]); });
}

void convert_number(Reader& r) {
  if (r.take("rna")) {
    const Type to = r.type(), from = r.type();
    if (to != Type::tf32 || from != Type::f32) r.unknown("conversion by .rna");
    r.destination(Type::b32), r.source(from);
    r.to().execute = round_to_tf32;
    return;
  }
  const std::string integral = r.one_of({"rni", "rzi", "rmi", "rpi"});
  const bool nearest = r.take("rn"), flushed = r.take("ftz"), saturated = r.take("sat");
  const Type to = r.type(), from = r.type();
  const bool narrows = is_float(to) && (!is_float(from) || bytes_of(to) < bytes_of(from));
  if (nearest != narrows) r.unknown(narrows ? "form: it lacks .rn" : "modifier .rn");
  if (is_float(from) && !is_float(to) && integral.empty()) r.unknown("form: it lacks .rni, .rzi, .rmi or .rpi");
  if (!integral.empty() && (!is_float(from) || (is_float(to) && to != from))) r.unknown("modifier ." + integral);
  if (saturated && to != Type::f32) r.unknown("modifier .sat");
  if (flushed && from != Type::f32 && to != Type::f32) r.unknown("modifier .ftz");
  r.wide_destination(to), r.wide_source(from);
  const Rounding rounding = integral == "rzi"   ? Rounding::zero
                            : integral == "rmi" ? Rounding::down
                            : integral == "rpi" ? Rounding::up
                                                : Rounding::nearest;
  r.to().detail =
      uint32_t(rounding) | (integral.empty() ? 0 : kIntegral) | (flushed ? kFlushed : 0) | (saturated ? kSaturated : 0);
  const auto type_of = [&](Type t) { return t == Type::b16 || t == Type::b32 || t == Type::b64 ? Type::none : t; };
  const Type f = type_of(from);
  r.to().execute = f == Type::u8     ? conversion_from<uint8_t>(r, to)
                   : f == Type::u16  ? conversion_from<uint16_t>(r, to)
                   : f == Type::u32  ? conversion_from<uint32_t>(r, to)
                   : f == Type::u64  ? conversion_from<uint64_t>(r, to)
                   : f == Type::s8   ? conversion_from<int8_t>(r, to)
                   : f == Type::s16  ? conversion_from<int16_t>(r, to)
                   : f == Type::s32  ? conversion_from<int32_t>(r, to)
                   : f == Type::s64  ? conversion_from<int64_t>(r, to)
                   : f == Type::f16  ? conversion_from<Half>(r, to)
                   : f == Type::bf16 ? conversion_from<Brain>(r, to)
                   : f == Type::f32  ? conversion_from<float>(r, to)
                   : f == Type::f64  ? conversion_from<double>(r, to)
                                     : (r.unknown("type to convert from"), nullptr);
}

}  // namespace

const Table& conversion_table() {
  static const Table table = {
      {"setp", set_predicate}, {"selp", select_by_predicate}, {"mov", move}, {"cvt", convert_number}};
  return table;
}

}  // namespace sparsegnn::ptx
