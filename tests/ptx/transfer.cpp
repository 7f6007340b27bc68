// Opcodes of memory, of other lanes, and of control.
#include <cstring>

#include "instructions.h"
#include "launch.h"
#include "numbers.h"

namespace sparsegnn::ptx {
namespace {

// ---- memory

// Of `detail`: the space, and whether the load is one of constants.
constexpr uint32_t kSpace = 3, kConstant = 4;

Space space_of(Reader& r) {
  const std::string name = r.one_of({"global", "shared"});
  return name == "global" ? Space::global : name == "shared" ? Space::shared : Space::generic;
}

uint64_t address_of(Warp& w, const Instruction& i, int operand, int lane) {
  const unsigned char* row = w.bytes(i.operand[operand]);
  const uint64_t base = i.width[operand] == 8 ? get<uint64_t>(row, 8, lane) : get<uint32_t>(row, 4, lane);
  return base + uint64_t(i.offset);
}

template <typename T>
void load(Warp& w, const Instruction& i) {  // one, two or four destinations, and the address
  const int n = i.count - 1;
  const auto space = Space(i.detail & kSpace);
  const Access access = i.detail & kConstant ? Access::constant : Access::read;
  w.each([&](int lane) {
    const unsigned char* from =
        w.launch->touch(w, i, lane, space, address_of(w, i, n, lane), uint32_t(n * sizeof(T)), access);
    T x[4];
    std::memcpy(x, from, size_t(n) * sizeof(T));
    for (int k = 0; k < n; ++k)
      if (i.operand[k] != kNone) put(w.bytes(i.operand[k]), i.width[k], lane, x[k]);
  });
}

template <typename T>
void store(Warp& w, const Instruction& i) {  // the address, and one, two or four sources
  const int n = i.count - 1;
  const auto space = Space(i.detail & kSpace);
  w.each([&](int lane) {
    T x[4];
    for (int k = 0; k < n; ++k) x[k] = get<T>(w.bytes(i.operand[k + 1]), i.width[k + 1], lane);
    unsigned char* to =
        w.launch->touch(w, i, lane, space, address_of(w, i, 0, lane), uint32_t(n * sizeof(T)), Access::write);
    std::memcpy(to, x, size_t(n) * sizeof(T));
  });
}

// Of the bytes of one parameter, all within it.
void check_parameter(Warp& w, const Instruction& i, int lane, uint64_t at, uint32_t bytes, const Argument& argument) {
  const auto begin = reinterpret_cast<uint64_t>(argument.value);
  if (at < begin || at + bytes > begin + argument.bytes) w.launch->fail(w, i, lane, "out of the bounds of a parameter");
}

template <typename T>
void take(Warp& w, const Instruction& i, int lane, uint64_t at) {
  for (int k = 0; k < i.count - 1; ++k) {
    T x;
    std::memcpy(&x, reinterpret_cast<const unsigned char*>(at) + size_t(k) * sizeof(T), sizeof(T));
    if (i.operand[k] != kNone) put(w.bytes(i.operand[k]), i.width[k], lane, x);
  }
}

// Of the parameter whose number is in `detail`.
template <typename T>
void load_parameter(Warp& w, const Instruction& i) {
  const Argument& argument = w.launch->arguments()[i.detail];
  const uint64_t at = reinterpret_cast<uint64_t>(argument.value) + uint64_t(i.offset);
  check_parameter(w, i, __builtin_ctz(w.lanes), at, uint32_t((i.count - 1) * sizeof(T)), argument);
  w.each([&](int lane) { take<T>(w, i, lane, at); });
}

// By an address in one of the parameters.
template <typename T>
void load_parameter_at(Warp& w, const Instruction& i) {
  const std::vector<Argument>& arguments = w.launch->arguments();
  w.each([&](int lane) {
    const uint64_t at = address_of(w, i, i.count - 1, lane);
    const Argument* here = &arguments.front();
    for (const Argument& a : arguments)
      if (at - reinterpret_cast<uint64_t>(a.value) < a.bytes) here = &a;
    check_parameter(w, i, lane, at, uint32_t((i.count - 1) * sizeof(T)), *here);
    take<T>(w, i, lane, at);
  });
}

int vector_of(Reader& r) {
  const std::string name = r.one_of({"v2", "v4"});
  return name.empty() ? 1 : name[1] - '0';
}

void check_list(const Reader& r, int size) {
  if (r.list_size() != size) r.unknown("number of elements");
}

void decode_load(Reader& r) {
  const bool parameter = r.take("param"), constant = r.take("nc");
  const Space space = space_of(r);
  r.one_of({"cs", "cg", "ca", "lu"});  // what the caches keep
  const int n = vector_of(r);
  const Type t = as_bits(r.type());
  check_list(r, n);
  r.destinations(t, true);
  r.address(parameter ? 8 : 4);
  if (!parameter && r.parameter >= 0) r.unknown("use of a parameter");
  if (constant && space != Space::global) r.unknown("modifier .nc");
  r.to().detail = parameter ? uint32_t(r.parameter) : uint32_t(space) | (constant ? kConstant : 0);
  const auto make = [&](auto x) -> Execute {
    using T = decltype(x);
    return !parameter ? load<T> : r.parameter >= 0 ? load_parameter<T> : load_parameter_at<T>;
  };
  r.to().execute = pick<uint8_t, uint16_t, uint32_t, uint64_t, int8_t, int16_t, int32_t, int64_t>(r, t, make);
}

void decode_store(Reader& r) {
  const Space space = space_of(r);
  r.one_of({"cs", "cg", "wb", "wt"});
  const int n = vector_of(r);
  const Type t = as_unsigned(as_bits(r.type()));
  r.address(4);
  if (r.parameter >= 0) r.unknown("use of a parameter");
  check_list(r, n);
  r.sources(t, true);
  r.to().detail = uint32_t(space);
  r.to().execute =
      pick<uint8_t, uint16_t, uint32_t, uint64_t>(r, t, [](auto x) -> Execute { return store<decltype(x)>; });
}

void decode_address(Reader& r) {  // cvta: global addresses are the host's, shared ones begin at 0
  const bool to_space = r.take("to");
  const Space space = space_of(r);
  if (space == Space::generic) r.unknown("space");
  const Type t = r.type();
  if (t != Type::u64) r.unknown("type for it");
  r.destination(t), r.source(t);
  r.to().detail = space == Space::global ? 0 : to_space ? 1 : 2;
  r.to().execute = [](Warp& w, const Instruction& i) {
    const auto base = reinterpret_cast<uint64_t>(Launch::shared());
    const uint64_t offset = i.detail == 0 ? 0 : i.detail == 1 ? uint64_t{0} - base : base;
    w.each([&](int lane) { w.row<uint64_t>(i.operand[0])[lane] = w.row<uint64_t>(i.operand[1])[lane] + offset; });
  };
}

// ---- atomics: destination (left out by red), address, what it is combined with, and for cas what it becomes

struct Exchange {
  template <typename T>
  static T of(T, T b) {
    return b;
  }
};

template <typename Operation, typename T>
void atomic(Warp& w, const Instruction& i) {
  w.launch->each_in_turn(w, [&](int lane) {
    unsigned char* at =
        w.launch->touch(w, i, lane, Space(i.detail), address_of(w, i, 1, lane), sizeof(T), Access::atomic);
    T old;
    std::memcpy(&old, at, sizeof(T));
    const T b = w.row<T>(i.operand[2])[lane];
    T now;
    if constexpr (std::is_void_v<Operation>)
      now = old == b ? w.row<T>(i.operand[3])[lane] : old;  // cas
    else
      now = Operation::of(old, b);
    std::memcpy(at, &now, sizeof(T));
    if (i.operand[0] != kNone) w.row<T>(i.operand[0])[lane] = old;
  });
}

template <typename Operation>
Execute atomic_of(const Reader& r, Type t) {
  return pick<uint32_t, uint64_t, int32_t, int64_t>(r, t,
                                                    [](auto x) -> Execute { return atomic<Operation, decltype(x)>; });
}

void decode_atomic(Reader& r) {
  r.take("relaxed"), r.take("gpu");
  const Space space = space_of(r);
  const std::string name = r.some_of({"add", "min", "max", "and", "or", "xor", "exch", "cas"});
  const Type t = r.type();  // of integers alone: sums of floats would depend on the order
  if (r.opcode() == "red")
    r.nothing();
  else
    r.destination(t);
  r.address(4), r.source(t);
  if (name == "cas") r.source(t);
  r.to().detail = uint32_t(space);
  r.to().execute = name == "add"    ? atomic_of<Add>(r, t)
                   : name == "min"  ? atomic_of<Minimum>(r, t)
                   : name == "max"  ? atomic_of<Maximum>(r, t)
                   : name == "and"  ? atomic_of<And>(r, t)
                   : name == "or"   ? atomic_of<Or>(r, t)
                   : name == "xor"  ? atomic_of<Xor>(r, t)
                   : name == "exch" ? atomic_of<Exchange>(r, t)
                                    : atomic_of<void>(r, t);
}

// ---- other lanes

constexpr uint32_t kUndefined = 0xCBCBCBCBu;  // from a lane that is not there

uint32_t mask_of(Warp& w, const Instruction& i, int lane) {
  return w.row<uint32_t>(i.operand[i.detail])[lane] & w.lanes;
}

enum class Shuffle { up, down, bfly, idx };

// shfl d|p, a, b, c: from the lane that b names, or from itself where that lies beyond the bound of c.
template <Shuffle how>
void shuffle(Warp& w, const Instruction& i) {
  uint32_t from[kLanes], p = 0;
  std::memcpy(from, w.row<uint32_t>(i.operand[2]), sizeof(from));
  w.each([&](int lane) {
    const int b = int(w.row<uint32_t>(i.operand[3])[lane] & 31);
    const uint32_t c = w.row<uint32_t>(i.operand[4])[lane];
    const int segment = int(c >> 8 & 31), clamp = int(c & 31);
    const int first = lane & segment, last = first | (clamp & ~segment);
    int source = how == Shuffle::up     ? lane - b
                 : how == Shuffle::down ? lane + b
                 : how == Shuffle::bfly ? lane ^ b
                                        : first | (b & ~segment);
    const bool inside = how == Shuffle::up ? source >= last : source <= last;
    if (!inside) source = lane;
    p |= uint32_t(inside) << lane;
    w.row<uint32_t>(i.operand[0])[lane] = mask_of(w, i, lane) >> source & 1 ? from[source] : kUndefined;
  });
  w.set_predicate(i.operand[1], p);
}

void decode_shuffle(Reader& r) {
  if (!r.take("sync")) r.unknown("form: it lacks .sync");
  const std::string how = r.some_of({"up", "down", "bfly", "idx"});
  const Type t = r.type();
  if (t != Type::b32) r.unknown("type for it");
  const bool two = r.pair();
  r.destination(t);
  two ? r.predicate_destination() : r.nothing();
  for (int k = 0; k < 4; ++k) r.source(t);
  r.to().kind = Kind::collective, r.to().detail = 5;
  r.to().execute = how == "up"     ? shuffle<Shuffle::up>
                   : how == "down" ? shuffle<Shuffle::down>
                   : how == "bfly" ? shuffle<Shuffle::bfly>
                                   : shuffle<Shuffle::idx>;
}

void vote_ballot(Warp& w, const Instruction& i) {
  const uint32_t p = i.negated ? ~w.predicate(i.operand[1]) : w.predicate(i.operand[1]);
  w.each([&](int lane) { w.row<uint32_t>(i.operand[0])[lane] = p & mask_of(w, i, lane); });
}

enum class Vote { any, all, uni };

template <Vote how>
void vote(Warp& w, const Instruction& i) {
  const uint32_t p = i.negated ? ~w.predicate(i.operand[1]) : w.predicate(i.operand[1]);
  uint32_t result = 0;
  w.each([&](int lane) {
    const uint32_t mask = mask_of(w, i, lane), yes = p & mask;
    const bool v = how == Vote::any ? yes != 0 : how == Vote::all ? yes == mask : yes == mask || yes == 0;
    result |= uint32_t(v) << lane;
  });
  w.set_predicate(i.operand[0], result);
}

void decode_vote(Reader& r) {
  if (!r.take("sync")) r.unknown("form: it lacks .sync");
  const std::string how = r.some_of({"ballot", "any", "all", "uni"});
  const Type t = r.type();
  if (t != (how == "ballot" ? Type::b32 : Type::pred)) r.unknown("type for it");
  r.destination(t), r.predicate_source(), r.source(Type::b32);
  r.to().kind = Kind::collective, r.to().detail = 2;
  r.to().execute = how == "ballot" ? vote_ballot
                   : how == "any"  ? vote<Vote::any>
                   : how == "all"  ? vote<Vote::all>
                                   : vote<Vote::uni>;
}

template <typename Operation, typename T>
void reduce(Warp& w, const Instruction& i) {
  T from[kLanes];
  std::memcpy(from, w.row<T>(i.operand[1]), sizeof(from));
  w.each([&](int lane) {
    const uint32_t others = mask_of(w, i, lane) & ~(1u << lane);
    T all = from[lane];
    each_bit(others, [&](int other) { all = Operation::of(all, from[other]); });
    w.row<T>(i.operand[0])[lane] = all;
  });
}

template <typename Operation>
Execute reduce_of(const Reader& r, Type t) {
  return pick<uint32_t, int32_t>(r, t, [](auto x) -> Execute { return reduce<Operation, decltype(x)>; });
}

void decode_reduce(Reader& r) {
  if (!r.take("sync")) r.unknown("form: it lacks .sync");
  const std::string name = r.some_of({"add", "min", "max", "and", "or", "xor"});
  const Type t = r.type();
  r.destination(t), r.source(t), r.source(Type::b32);
  r.to().kind = Kind::collective, r.to().detail = 2;
  r.to().execute = name == "add"   ? reduce_of<Add>(r, t)
                   : name == "min" ? reduce_of<Minimum>(r, t)
                   : name == "max" ? reduce_of<Maximum>(r, t)
                   : name == "and" ? reduce_of<And>(r, t)
                   : name == "or"  ? reduce_of<Or>(r, t)
                                   : reduce_of<Xor>(r, t);
}

void match(Warp& w, const Instruction& i) {
  uint32_t from[kLanes];
  std::memcpy(from, w.row<uint32_t>(i.operand[1]), sizeof(from));
  w.each([&](int lane) {
    uint32_t equal = 0;
    each_bit(mask_of(w, i, lane), [&](int other) { equal |= uint32_t(from[other] == from[lane]) << other; });
    w.row<uint32_t>(i.operand[0])[lane] = equal;
  });
}

void decode_match(Reader& r) {
  if (!r.take("any") || !r.take("sync")) r.unknown("form: it lacks .any.sync");
  const Type t = r.type();
  if (t != Type::b32) r.unknown("type for it");
  r.destination(t), r.source(t), r.source(t);
  r.to().kind = Kind::collective, r.to().detail = 2;
  r.to().execute = match;
}

// ---- barriers

void warp_barrier(Warp& w, const Instruction& i) {
  for (uint32_t left = w.lanes; left != 0;) {
    const uint32_t mask = mask_of(w, i, __builtin_ctz(left));
    w.launch->warp_barrier(w, mask);
    left &= ~mask;
  }
}

void decode_barrier(Reader& r) {
  if (r.take("warp")) {
    if (!r.take("sync")) r.unknown("form: it lacks .sync");
    r.source(Type::b32);
    r.to().kind = Kind::collective, r.to().detail = 0;
    r.to().execute = warp_barrier;
    return;
  }
  r.take("cta"), r.take("aligned");
  if (!r.take("sync")) r.unknown("form: it lacks .sync");
  if (r.immediate() != 0) r.unknown("barrier: other than 0");
  r.to().kind = Kind::block_barrier;
}

void decode_exit(Reader& r) {
  r.take("uni");
  r.to().kind = Kind::exit;
}

// ---- tensor cores: D[16, 8] = A[16, K] B[K, 8] + C by the 32 lanes of a warp, K eight words long. By the manual's
// tables lane 4 g + t holds of A rows g and g + 8, of B column g, and of C and D columns 2 t and 2 t + 1

struct Tf32 {
  static constexpr int kParts = 1;
  static float of(uint32_t word, int) { return emulator::from_tf32(word); }
};
template <typename T>
struct Two {
  static constexpr int kParts = 2;
  static float of(uint32_t word, int part) { return widen(T{uint16_t(word >> 16 * part)}); }
};

template <typename T>
void multiply_matrices(Warp& w, const Instruction& i) {
  constexpr int parts = T::kParts, depth = 8 * parts;
  float a[16][depth], b[depth][8], d[16][8];
  const auto word = [&](int operand, int lane) { return w.row<uint32_t>(i.operand[operand])[lane]; };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < parts; ++part)
      for (int k = 0; k < 2; ++k) {  // the lower and the upper half of K
        const int column = (4 * k + t) * parts + part;
        a[g][column] = T::of(word(4 + 2 * k, lane), part);
        a[g + 8][column] = T::of(word(5 + 2 * k, lane), part);
        b[column][g] = T::of(word(8 + k, lane), part);
      }
    for (int k = 0; k < 4; ++k) d[g + k / 2 * 8][2 * t + k % 2] = w.row<float>(i.operand[10 + k])[lane];
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < depth; ++k) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int k = 0; k < 4; ++k) w.row<float>(i.operand[k])[lane] = d[lane / 4 + k / 2 * 8][2 * (lane % 4) + k % 2];
}

void decode_matrices(Reader& r) {
  for (const char* needed : {"sync", "aligned", "row", "col"})
    if (!r.take(needed)) r.unknown(std::string("form: it lacks .") + needed);
  const std::string shape = r.some_of({"m16n8k8", "m16n8k16"});
  const Type d = r.type(), a = r.type(), b = r.type(), c = r.type();
  const bool two = a == Type::f16 || a == Type::bf16;
  if (d != Type::f32 || c != Type::f32 || a != b || !(two || a == Type::tf32) || two != (shape == "m16n8k16"))
    r.unknown("types for it");
  const int sizes[4] = {4, 4, 2, 4};
  for (int k = 0; k < 4; ++k) {
    check_list(r, sizes[k]);
    k == 0 ? r.destinations(Type::b32, false) : r.sources(Type::b32, false);
  }
  r.to().kind = Kind::collective, r.to().detail = kNone;  // all lanes
  r.to().execute = a == Type::tf32   ? multiply_matrices<Tf32>
                   : a == Type::bf16 ? multiply_matrices<Two<Brain>>
                                     : multiply_matrices<Two<Half>>;
}

}  // namespace

const Table& transfer_table() {
  static const Table table = {
      {"ld", decode_load},     {"st", decode_store},     {"cvta", decode_address},    {"atom", decode_atomic},
      {"red", decode_atomic},  {"shfl", decode_shuffle}, {"vote", decode_vote},       {"redux", decode_reduce},
      {"match", decode_match}, {"bar", decode_barrier},  {"barrier", decode_barrier}, {"ret", decode_exit},
      {"exit", decode_exit},   {"mma", decode_matrices},
  };
  return table;
}

void decode_instruction(Reader& reader) {
  for (const Table* table : {&arithmetic_table(), &conversion_table(), &transfer_table()})
    if (const auto known = table->find(reader.opcode()); known != table->end()) return known->second(reader);
  throw std::invalid_argument("unknown opcode " + reader.opcode());
}

}  // namespace sparsegnn::ptx
