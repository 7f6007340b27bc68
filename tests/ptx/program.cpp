// Reading PTX: kernels of a file, statements of a kernel, names of its registers.
#include "program.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "reader.h"

namespace sparsegnn::ptx {
namespace {

constexpr int kLanes = 32;

// Comments become blanks, so that lines keep their numbers.
std::string without_comments(std::string text) {
  for (size_t i = 0; (i = text.find("//", i)) != std::string::npos;)
    for (; i < text.size() && text[i] != '\n'; ++i) text[i] = ' ';
  for (size_t i = 0; (i = text.find("/*", i)) != std::string::npos;) {
    const size_t end = std::min(text.find("*/", i), text.size() - 2) + 2;
    for (; i < end; ++i)
      if (text[i] != '\n') text[i] = ' ';
  }
  return text;
}

// Words with single blanks between.
std::string tidy(const std::string& text) {
  std::istringstream words(text);
  std::string all, word;
  while (words >> word) all += (all.empty() ? "" : " ") + word;
  return all;
}

// Parts between separators that stand in no bracket.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == separator && depth == 0)
      parts.push_back(tidy(part)), part.clear();
    else
      part += c;
  }
  if (!tidy(part).empty()) parts.push_back(tidy(part));
  return parts;
}

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }

int line_of(const std::string& text, size_t at) {
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(at), '\n'));
}

size_t closing(const std::string& text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i)
    if ((depth += (text[i] == '{') - (text[i] == '}')) == 0) return i;
  throw std::invalid_argument("PTX: a kernel without an end");
}

// ".param .align 8 .b8 name[96]", ".param .u64 .ptr .global .align 1 name"
Parameter parameter_of(const std::string& declaration) {
  static const std::map<std::string, size_t> sizes = {{".b8", 1},  {".u8", 1},  {".s8", 1},  {".b16", 2}, {".u16", 2},
                                                      {".s16", 2}, {".f16", 2}, {".b32", 4}, {".u32", 4}, {".s32", 4},
                                                      {".f32", 4}, {".b64", 8}, {".u64", 8}, {".s64", 8}, {".f64", 8}};
  std::istringstream words(declaration);
  std::string word;
  size_t bytes = 0;
  while (words >> word)
    if (bytes == 0 && sizes.count(word)) bytes = sizes.at(word);
  const size_t bracket = word.find('[');
  if (bracket != std::string::npos) bytes *= std::stoul(word.substr(bracket + 1));
  if (bytes == 0) throw std::invalid_argument("PTX: a parameter of no known type: " + declaration);
  return {word.substr(0, bracket), bytes};
}

struct Statement {
  std::string text;
  int line;
  bool label;
};

// What stands between semicolons; labels, and braces around a scope, alone.
std::vector<Statement> statements_of(const std::string& body, int line) {
  std::vector<Statement> found;
  std::string text;
  int depth = 0, begin = line;
  const auto add = [&](bool label) {
    if (std::string whole = tidy(text); !whole.empty()) found.push_back({std::move(whole), begin, label});
    text.clear();
  };
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    const bool blank = text.find_first_not_of(" \t\n") == std::string::npos;
    if (c == '\n') ++line;
    if (blank) begin = line;
    if (blank && (c == '{' || c == '}')) {
      found.push_back({std::string(1, c), line, false});
      continue;
    }
    depth += (c == '{') - (c == '}');
    if (c == ';' && depth == 0)
      add(false);
    else if (c == ':' && depth == 0 &&
             std::all_of(text.begin() + ptrdiff_t(text.find_first_not_of(" \t\n")), text.end(), is_name))
      add(true);
    else
      text += c;
  }
  if (!tidy(text).empty()) throw std::invalid_argument("PTX: no semicolon after: " + tidy(text));
  return found;
}

}  // namespace

std::vector<Entry> entries_of(const std::string& source) {
  const std::string text = without_comments(source);
  std::vector<std::string> shared;
  for (size_t at = 0; (at = text.find(".extern .shared", at)) != std::string::npos; ++at) {
    const size_t end = text.find('[', at), begin = text.find_last_of(" \t", end) + 1;
    shared.push_back(text.substr(begin, end - begin));
  }
  std::vector<Entry> found;
  for (size_t at = 0; (at = text.find(".entry", at)) != std::string::npos;) {
    const size_t open = text.find('(', at), close = text.find(')', open), body = text.find('{', close);
    const size_t end = closing(text, body);
    found.push_back({tidy(text.substr(at + 6, open - at - 6)), text.substr(open + 1, close - open - 1),
                     tidy(text.substr(close + 1, body - close - 1)), text.substr(body + 1, end - body - 1),
                     line_of(text, body), shared});
    at = end;
  }
  return found;
}

// ---- names

uint32_t Names::allocate(uint32_t bytes) {
  const uint32_t at = program_.register_bytes, unit = std::min(bytes, 64u);
  const uint32_t aligned = (at + unit - 1) / unit * unit;
  program_.register_bytes = aligned + bytes;
  return aligned;
}

void Names::declare(const std::string& declaration) {
  std::istringstream words(declaration);
  std::string word, type;
  words >> word >> type;
  static const std::map<std::string, int> widths = {{".pred", 0}, {".b16", 2}, {".u16", 2}, {".s16", 2}, {".f16", 2},
                                                    {".b32", 4},  {".u32", 4}, {".s32", 4}, {".f32", 4}, {".b64", 8},
                                                    {".u64", 8},  {".s64", 8}, {".f64", 8}};
  if (word != ".reg" || !widths.count(type)) throw std::invalid_argument("unknown declaration: " + declaration);
  const int width = widths.at(type);
  const uint32_t bytes = width == 0 ? 4 : uint32_t(kLanes * width);
  std::string names;
  std::getline(words, names);
  for (const std::string& name : split(names, ',')) {
    const size_t bracket = name.find('<');
    const int count = bracket == std::string::npos ? 0 : std::stoi(name.substr(bracket + 1));
    Registers& r = scopes_.back()[name.substr(0, bracket)];
    r = {{allocate(bytes), uint8_t(width)}, count};
    for (int i = 1; i < count; ++i) allocate(bytes);
  }
}

std::optional<Names::Row> Names::find(const std::string& name) const {
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (auto r = scope->find(name); r != scope->end() && r->second.count == 0) return r->second.first;
    if (digits == name.size()) continue;
    if (auto r = scope->find(name.substr(0, digits)); r != scope->end()) {
      const uint32_t number = uint32_t(std::stoul(name.substr(digits)));
      Row row = r->second.first;
      if (number >= uint32_t(r->second.count)) continue;
      row.at += number * (row.width == 0 ? 4u : uint32_t(kLanes * row.width));
      return row;
    }
  }
  return std::nullopt;
}

int Names::parameter(const std::string& name) const {
  for (size_t i = 0; i < program_.parameters.size(); ++i)
    if (program_.parameters[i].name == name) return int(i);
  return -1;
}

bool Names::is_shared(const std::string& name) const {
  return std::find(entry_.shared.begin(), entry_.shared.end(), name) != entry_.shared.end();
}

uint32_t Names::initial(Initial::What what, uint64_t value, int width) {
  const auto known = known_.find({value, width});
  if (what == Initial::What::constant && known != known_.end()) return known->second;
  const uint32_t row = allocate(width == 0 ? 4 : uint32_t(kLanes * width));
  program_.initial.push_back({what, row, uint8_t(width), value});
  if (what == Initial::What::constant) known_[{value, width}] = row;
  return row;
}

// ---- kernels

namespace {

class Decoder {
 public:
  explicit Decoder(const Entry& entry) : entry_(entry), names_(entry, program_) {
    program_.name = entry.name;
    for (const std::string& p : split(entry.parameters, ',')) program_.parameters.push_back(parameter_of(p));
    if (const size_t at = entry.directives.find(".maxntid"); at != std::string::npos)
      program_.most_threads = threads_of(entry.directives.substr(at + 8));
  }

  Program run() {
    for (const Statement& s : statements_of(entry_.body, entry_.line)) {
      try {
        read(s);
      } catch (const std::exception& error) {
        throw std::invalid_argument("PTX of " + entry_.name + ", line " + std::to_string(s.line) + ": \"" + s.text +
                                    "\": " + error.what());
      }
    }
    if (label_) throw std::invalid_argument("PTX of " + entry_.name + ": a label at the end");
    for (const auto& [instruction, label] : jumps_) {
      if (!labels_.count(label)) throw std::invalid_argument("PTX of " + entry_.name + ": no label " + label);
      program_.code[instruction].target = labels_.at(label);
    }
    return std::move(program_);
  }

 private:
  static uint32_t threads_of(const std::string& numbers) {  // "256, 1, 1"
    uint32_t threads = 1;
    for (const std::string& n : split(numbers, ',')) {
      threads *= uint32_t(std::stoul(n));
      if (n.find(' ') != std::string::npos) break;  // the next directive
    }
    return threads;
  }

  void read(const Statement& s) {
    if (s.text == "{") return names_.open();
    if (s.text == "}") return names_.close();
    if (s.label) return label(s.text);
    if (s.text.rfind(".reg", 0) == 0) return names_.declare(s.text);
    if (s.text.rfind(".pragma", 0) == 0) return;
    if (s.text[0] == '.') throw std::invalid_argument("unknown directive");
    instruction(s);
  }

  void label(const std::string& name) {
    labels_[name] = uint32_t(program_.code.size());
    label_ = true;
  }

  void instruction(const Statement& s) {
    Instruction i;
    i.line = s.line;
    i.begins = std::exchange(label_, false);
    program_.texts.push_back(std::make_unique<std::string>(s.text));
    i.text = program_.texts.back()->c_str();
    std::string rest = s.text;
    if (rest[0] == '@') {
      const size_t end = rest.find(' ');
      i.negated_guard = rest[1] == '!';
      const std::string name = rest.substr(i.negated_guard ? 2 : 1, end - (i.negated_guard ? 2 : 1));
      const auto row = names_.find(name);
      if (!row || row->width != 0) throw std::invalid_argument("unknown predicate " + name);
      i.guard = row->at;
      rest = rest.substr(end + 1);
    }
    const size_t end = std::min(rest.find(' '), rest.size());
    const std::string opcode = rest.substr(0, end);
    std::vector<std::string> operands = split(rest.substr(end), ',');
    if (opcode == "bra" || opcode == "bra.uni") {
      i.kind = Kind::branch;
      jumps_.emplace_back(program_.code.size(), operands.at(0));
    } else {
      Reader reader(names_, i, opcode, std::move(operands));
      decode_instruction(reader);
      reader.finish();
    }
    program_.code.push_back(i);
  }

  const Entry& entry_;
  Program program_;
  Names names_;
  std::map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  bool label_ = false;
};

}  // namespace

Program decode(const Entry& entry) { return Decoder(entry).run(); }

}  // namespace sparsegnn::ptx
