// program.h: one kernel of a PTX file, decoded: its parameters, the layout of its registers, its instructions.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsegnn::ptx {

class Warp;
struct Region;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&);

// What the scheduler has to know of an instruction.
enum class Kind : uint8_t { plain, branch, exit, block_barrier, collective };

constexpr uint32_t kNone = 0xffffffffu;  // no such operand
constexpr int kOperands = 14;            // mma.sync has four, four, two and four registers

// Operands are places in the registers of a warp: 32 numbers in a row, or the 32 bits of a predicate.
struct Instruction {
  Execute execute = nullptr;
  uint32_t operand[kOperands];
  uint8_t width[kOperands] = {};  // bytes of one number there
  uint8_t count = 0;
  Kind kind = Kind::plain;
  bool negated_guard = false, negated = false;  // the guard; a predicate among the operands
  bool begins = false;                          // a label is here: groups of lanes may meet
  uint32_t guard = kNone, target = kNone;       // of a branch: the instruction to go to
  int64_t offset = 0;                           // of an address
  uint32_t detail = 0;                          // what a handler wants to know: see there
  int line = 0;                                 // of the file
  const char* text = "";
  mutable Region* last = nullptr;  // the array that it touched last
};

struct Parameter {
  std::string name;
  size_t bytes;
};

// A row of registers that is written before the kernel begins.
struct Initial {
  enum class What : uint8_t { constant, thread, block, threads, blocks, lane, parameter };
  What what;
  uint32_t row;
  uint8_t width;
  uint64_t value;  // the constant, the axis, or the number of the parameter
};

struct Program {
  std::string name;
  std::vector<Parameter> parameters;
  std::vector<Instruction> code;
  std::vector<Initial> initial;
  std::vector<std::unique_ptr<std::string>> texts;  // of the instructions
  uint32_t register_bytes = 0;                      // of a warp
  uint32_t most_threads = 1024;                     // .maxntid
};

// A kernel as it stands in its file.
struct Entry {
  std::string name, parameters, directives, body;
  int line;                         // where the body begins
  std::vector<std::string> shared;  // names of the block's dynamic shared memory
};

std::vector<Entry> entries_of(const std::string& text);

// Throws std::invalid_argument with kernel, line and text where it does not know an instruction.
Program decode(const Entry& entry);

}  // namespace sparsegnn::ptx
