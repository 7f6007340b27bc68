// instructions.h: what the tables of opcodes share.
#pragma once
#include <map>
#include <string>

#include "reader.h"
#include "warp.h"

namespace sparsegnn::ptx {

// Opcode without modifiers -> takes these and the operands, and says what executes it.
using Table = std::map<std::string, void (*)(Reader&)>;
const Table& arithmetic_table();
const Table& conversion_table();
const Table& transfer_table();  // memory, other lanes, control

struct Half;
struct Brain;

inline Type as_unsigned(Type t) {
  switch (t) {
    case Type::s8:
    case Type::b8:
      return Type::u8;
    case Type::s16:
    case Type::b16:
      return Type::u16;
    case Type::s32:
    case Type::b32:
      return Type::u32;
    case Type::s64:
    case Type::b64:
      return Type::u64;
    default:
      return t;
  }
}
// The bits of a number, for what only carries it.
inline Type as_bits(Type t) {
  if (t == Type::f16 || t == Type::bf16) return Type::u16;
  if (t == Type::f32) return Type::u32;
  if (t == Type::f64) return Type::u64;
  return t;
}

template <typename T>
constexpr Type kTypeOf = Type::none;
template <>
constexpr Type kTypeOf<uint8_t> = Type::u8;
template <>
constexpr Type kTypeOf<uint16_t> = Type::u16;
template <>
constexpr Type kTypeOf<uint32_t> = Type::u32;
template <>
constexpr Type kTypeOf<uint64_t> = Type::u64;
template <>
constexpr Type kTypeOf<int8_t> = Type::s8;
template <>
constexpr Type kTypeOf<int16_t> = Type::s16;
template <>
constexpr Type kTypeOf<int32_t> = Type::s32;
template <>
constexpr Type kTypeOf<int64_t> = Type::s64;
template <>
constexpr Type kTypeOf<float> = Type::f32;
template <>
constexpr Type kTypeOf<double> = Type::f64;
template <>
constexpr Type kTypeOf<Half> = Type::f16;
template <>
constexpr Type kTypeOf<Brain> = Type::bf16;

// make(T{}) for the one of these types that `t` is; .b32 is as .u32.
template <typename... T, typename Make>
Execute pick(const Reader& reader, Type t, const Make& make) {
  const bool bits = t == Type::b8 || t == Type::b16 || t == Type::b32 || t == Type::b64;
  const Type wanted = bits ? as_unsigned(t) : t;
  Execute found = nullptr;
  ((kTypeOf<T> == wanted ? void(found = make(T{})) : void()), ...);
  if (found == nullptr) reader.unknown("type for it");
  return found;
}

}  // namespace sparsegnn::ptx
