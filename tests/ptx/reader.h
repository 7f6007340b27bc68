// reader.h: the statement at hand while a kernel is decoded. Whoever decodes an opcode takes its modifiers and operands
// one after another; what is left over is an error, so nothing of an instruction is ever ignored.
#pragma once
#include <initializer_list>
#include <optional>

#include "program.h"

namespace sparsegnn::ptx {

enum class Type : uint8_t {
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  tf32,
  f32,
  f64,
  pred,
  none
};  // clang-format: one line each would hide the order

int bytes_of(Type type);
inline bool is_float(Type t) { return t == Type::f16 || t == Type::bf16 || t == Type::f32 || t == Type::f64; }
inline bool is_signed(Type t) { return t >= Type::s8 && t <= Type::s64; }

// Names of registers, of labels and of parameters of one kernel, and the rows that they have.
class Names {
 public:
  struct Row {
    uint32_t at;
    uint8_t width;  // bytes of a number; 0: a predicate
  };

  Names(const Entry& entry, Program& program) : entry_(entry), program_(program) { open(); }

  void open() { scopes_.emplace_back(); }
  void close() { scopes_.pop_back(); }
  void declare(const std::string& declaration);  // ".reg .b32 %r<34>"

  std::optional<Row> find(const std::string& name) const;
  int parameter(const std::string& name) const;  // its number, or -1
  bool is_shared(const std::string& name) const;
  uint32_t initial(Initial::What what, uint64_t value, int width);  // the row of a number known beforehand

 private:
  struct Registers {
    Row first;
    int count;  // 0: the name stands for one register
  };
  uint32_t allocate(uint32_t bytes);

  const Entry& entry_;
  Program& program_;
  std::vector<std::map<std::string, Registers>> scopes_;
  std::map<std::pair<uint64_t, int>, uint32_t> known_;
};

class Reader {
 public:
  Reader(Names& names, Instruction& to, const std::string& opcode, std::vector<std::string> operands);

  const std::string& opcode() const { return opcode_; }

  // Modifiers: is it there, which one of these is there ("" if none), the first type that is left.
  bool take(const std::string& modifier);
  std::string one_of(std::initializer_list<const char*> modifiers);
  std::string some_of(std::initializer_list<const char*> modifiers);  // must be there
  Type type();
  bool integral() const;  // is that type one of integers?

  // Operands, in order. Each is added to those of the instruction.
  void destination(Type type) { add(type, true, true); }
  void source(Type type) { add(type, false, true); }
  void wide_destination(Type type) { add(type, true, false); }  // the register may be wider than the type
  void wide_source(Type type) { add(type, false, false); }
  void nothing() { push(kNone, 0); }  // an operand that may be left out, and is
  void predicate_destination();
  void predicate_source();  // notes in `negated` that there is a "!"
  int list_size() const;    // of "{a, b}"; 1 of anything else
  void destinations(Type type, bool wide);
  void sources(Type type, bool wide);
  bool pair();             // splits "a|b" in two operands
  void address(int size);  // a register of `size` bytes and an offset; or a parameter, or shared memory
  void address_of(const std::string& text, int size);
  size_t left() const { return operands_.size(); }
  uint64_t immediate();

  Instruction& to() { return to_; }
  int parameter = -1;  // that the address is of
  void finish();       // all was taken
  [[noreturn]] void unknown(const std::string& what) const;

 private:
  void add(Type type, bool destination, bool exact, bool may_be_unused = false);
  void list(Type type, bool destination, bool wide);
  void push(uint32_t row, int width);
  std::string next();

  Names& names_;
  Instruction& to_;
  std::string opcode_;
  std::vector<std::string> modifiers_, operands_;
};

// Fills in the instruction, by the table of opcodes.
void decode_instruction(Reader& reader);

// A PTX number: decimal, hexadecimal, or the bits of a float.
std::optional<uint64_t> number_of(const std::string& text);

}  // namespace sparsegnn::ptx
