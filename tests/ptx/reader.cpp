#include "reader.h"

#include <algorithm>
#include <cstdlib>

namespace sparsegnn::ptx {
namespace {

const std::map<std::string, Type> kTypes = {
    {"b8", Type::b8},   {"b16", Type::b16}, {"b32", Type::b32},  {"b64", Type::b64},   {"u8", Type::u8},
    {"u16", Type::u16}, {"u32", Type::u32}, {"u64", Type::u64},  {"s8", Type::s8},     {"s16", Type::s16},
    {"s32", Type::s32}, {"s64", Type::s64}, {"f16", Type::f16},  {"bf16", Type::bf16}, {"tf32", Type::tf32},
    {"f32", Type::f32}, {"f64", Type::f64}, {"pred", Type::pred}};

// Special registers: what they hold, which axis, and how wide they are.
struct Special {
  Initial::What what;
  uint64_t axis;
};
const std::map<std::string, Special> kSpecial = {
    {"%tid.x", {Initial::What::thread, 0}},    {"%tid.y", {Initial::What::thread, 1}},
    {"%tid.z", {Initial::What::thread, 2}},    {"%ntid.x", {Initial::What::threads, 0}},
    {"%ntid.y", {Initial::What::threads, 1}},  {"%ntid.z", {Initial::What::threads, 2}},
    {"%ctaid.x", {Initial::What::block, 0}},   {"%ctaid.y", {Initial::What::block, 1}},
    {"%ctaid.z", {Initial::What::block, 2}},   {"%nctaid.x", {Initial::What::blocks, 0}},
    {"%nctaid.y", {Initial::What::blocks, 1}}, {"%nctaid.z", {Initial::What::blocks, 2}},
    {"%laneid", {Initial::What::lane, 0}}};

std::vector<std::string> parts(const std::string& text, char separator) {
  std::vector<std::string> found(1);
  for (char c : text) {
    if (c == separator)
      found.emplace_back();
    else if (c != ' ')
      found.back() += c;
  }
  return found;
}

}  // namespace

int bytes_of(Type type) {
  switch (type) {
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return 8;
    case Type::pred:
    case Type::none:
      return 0;
    default:
      return 4;
  }
}

std::optional<uint64_t> number_of(const std::string& text) {
  if (text.empty()) return std::nullopt;
  if (text[0] == '0' && text.size() == 10 && (text[1] == 'f' || text[1] == 'F'))
    return std::strtoull(text.c_str() + 2, nullptr, 16);
  if (text[0] == '0' && text.size() == 18 && (text[1] == 'd' || text[1] == 'D'))
    return std::strtoull(text.c_str() + 2, nullptr, 16);
  char* end = nullptr;
  const bool minus = text[0] == '-';
  const uint64_t value = std::strtoull(text.c_str() + minus, &end, 0);
  if (end == text.c_str() + minus) return std::nullopt;
  if (*end == 'U') ++end;
  if (*end != '\0') return std::nullopt;
  return minus ? uint64_t{0} - value : value;
}

Reader::Reader(Names& names, Instruction& to, const std::string& opcode, std::vector<std::string> operands)
    : names_(names), to_(to), operands_(std::move(operands)) {
  size_t at = opcode.find('.');
  opcode_ = opcode.substr(0, at);
  while (at != std::string::npos) {
    const size_t next = opcode.find('.', at + 1);
    modifiers_.push_back(opcode.substr(at + 1, next == std::string::npos ? next : next - at - 1));
    at = next;
  }
  std::fill(std::begin(to_.operand), std::end(to_.operand), kNone);
}

void Reader::unknown(const std::string& what) const {
  throw std::invalid_argument("opcode " + opcode_ + ": unknown " + what);
}

// ---- modifiers

bool Reader::take(const std::string& modifier) {
  const auto at = std::find(modifiers_.begin(), modifiers_.end(), modifier);
  if (at == modifiers_.end()) return false;
  modifiers_.erase(at);
  return true;
}

std::string Reader::one_of(std::initializer_list<const char*> modifiers) {
  for (const char* m : modifiers)
    if (take(m)) return m;
  return "";
}

std::string Reader::some_of(std::initializer_list<const char*> modifiers) {
  const std::string found = one_of(modifiers);
  if (found.empty()) unknown("kind: none of those known is there");
  return found;
}

Type Reader::type() {
  for (auto m = modifiers_.begin(); m != modifiers_.end(); ++m)
    if (const auto known = kTypes.find(*m); known != kTypes.end()) {
      modifiers_.erase(m);
      return known->second;
    }
  unknown("type");
}

bool Reader::integral() const {
  for (const std::string& m : modifiers_)
    if (const auto known = kTypes.find(m); known != kTypes.end()) return !is_float(known->second);
  return false;
}

// ---- operands

std::string Reader::next() {
  if (operands_.empty()) unknown("form: it lacks an operand");
  std::string text = operands_.front();
  operands_.erase(operands_.begin());
  return text;
}

void Reader::push(uint32_t row, int width) {
  if (to_.count == kOperands) unknown("form: too many operands");
  to_.operand[to_.count] = row;
  to_.width[to_.count++] = uint8_t(width);
}

void Reader::add(Type type, bool destination, bool exact, bool may_be_unused) {
  const std::string name = next();
  const int bytes = bytes_of(type);
  if (name == "_") {
    if (!destination || !may_be_unused) unknown("operand _");
    return push(kNone, bytes);
  }
  if (const auto row = names_.find(name)) {
    const bool fits = type == Type::pred ? row->width == 0 : exact ? row->width == bytes : row->width >= bytes;
    if (!fits) unknown("use of register " + name + ", which has another width");
    return push(row->at, row->width);
  }
  if (destination) unknown("destination " + name);
  if (const auto special = kSpecial.find(name); special != kSpecial.end() && (bytes == 4 || bytes == 2))
    return push(names_.initial(special->second.what, special->second.axis, bytes), bytes);
  if (type == Type::pred && (name == "true" || name == "false"))
    return push(names_.initial(Initial::What::constant, name == "true" ? ~uint64_t{0} : 0, 0), 0);
  if (name == "WARP_SZ") return push(names_.initial(Initial::What::constant, 32, bytes), bytes);
  if (names_.is_shared(name)) return push(names_.initial(Initial::What::constant, 0, bytes), bytes);
  if (const int p = names_.parameter(name); p >= 0 && bytes == 8)
    return push(names_.initial(Initial::What::parameter, uint64_t(p), bytes), bytes);
  const auto number = number_of(name);
  if (!number) unknown("operand " + name);
  const uint64_t bits = type == Type::pred ? (*number ? ~uint64_t{0} : 0) : *number;
  push(names_.initial(Initial::What::constant, bits, bytes), bytes);
}

void Reader::predicate_destination() { add(Type::pred, true, true, true); }

void Reader::predicate_source() {
  if (!operands_.empty() && operands_.front()[0] == '!') {
    to_.negated = true;
    operands_.front().erase(0, 1);
  }
  add(Type::pred, false, true);
}

bool Reader::pair() {
  if (operands_.empty()) return false;
  const std::vector<std::string> two = parts(operands_.front(), '|');
  if (two.size() != 2) return false;
  operands_.front() = two[0];
  operands_.insert(operands_.begin() + 1, two[1]);
  return true;
}

int Reader::list_size() const {
  const bool list = !operands_.empty() && operands_.front().front() == '{';
  return list ? int(parts(operands_.front(), ',').size()) : 1;
}

void Reader::list(Type type, bool destination, bool wide) {
  const int size = list_size();
  if (size > 1) {
    const std::string all = next();
    const std::vector<std::string> names = parts(all.substr(1, all.size() - 2), ',');
    operands_.insert(operands_.begin(), names.begin(), names.end());
  }
  for (int i = 0; i < size; ++i) add(type, destination, !wide, destination);
}

void Reader::destinations(Type type, bool wide) { list(type, true, wide); }
void Reader::sources(Type type, bool wide) { list(type, false, wide); }

// "[%rd1+4]", "[%rd1+-4]", "[name]": the register, or a constant, is an operand; the rest is in `offset`.
void Reader::address(int size) {
  std::string inside = next();
  if (inside.size() < 3 || inside.front() != '[' || inside.back() != ']') unknown("address " + inside);
  address_of(inside.substr(1, inside.size() - 2), size);
}

void Reader::address_of(const std::string& inside, int size) {
  const std::vector<std::string> sum = parts(inside, '+');
  if (sum.size() > 2) unknown("address " + inside);
  if (sum.size() == 2) {
    const auto offset = number_of(sum[1]);
    if (!offset) unknown("address " + inside);
    to_.offset = int64_t(*offset);
  }
  parameter = names_.parameter(sum[0]);
  if (parameter >= 0) return push(kNone, 8);
  if (names_.is_shared(sum[0])) return push(names_.initial(Initial::What::constant, 0, 8), 8);
  const auto row = names_.find(sum[0]);
  if (!row || (row->width != 8 && row->width != 4) || row->width < size) unknown("address " + inside);
  push(row->at, row->width);
}

uint64_t Reader::immediate() {
  const std::string text = next();
  const auto number = number_of(text);
  if (!number) unknown("operand " + text + ": not a number");
  return *number;
}

void Reader::finish() {
  if (!modifiers_.empty()) unknown("modifier ." + modifiers_.front());
  if (!operands_.empty()) unknown("form: operand " + operands_.front() + " is left over");
}

}  // namespace sparsegnn::ptx
