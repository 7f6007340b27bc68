// memory.h: the arrays that a kernel may touch, and a check of every access: inside an array, aligned, without a race.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "order.h"

namespace sparsegnn::ptx {

enum class Space : uint8_t { generic, global, shared };

// Cells of some memory, of four bytes each until a smaller access makes them smaller.
struct Page {
  static constexpr uint32_t kBytes = 1024;
  uint32_t unit = 4;
  std::vector<Cell> cells = std::vector<Cell>(kBytes / 4);
  void refine(uint32_t bytes);
};

// One array.
struct Region {
  uint64_t begin, end;
  bool shared;
  std::vector<std::unique_ptr<Page>> pages;
};

class Memory {
 public:
  void add(uint64_t begin, size_t bytes, bool shared = false);
  void remove(uint64_t begin);
  const Region* nearest(uint64_t address) const;  // the one that begins last before it

  // Checks and notes an access. `hint` is the region of the last access of the same instruction.
  void touch(Region*& hint, Space space, uint64_t address, uint32_t bytes, Access access);

  Order order;

 private:
  [[noreturn]] void outside(uint64_t address, uint32_t bytes, Space space) const;

  std::map<uint64_t, Region> regions_;
};

inline Memory& memory() {
  static Memory m;
  return m;
}

}  // namespace sparsegnn::ptx
