// warp.h: 32 lanes that execute one instruction at a time. Lanes that part at a branch go on in groups, each at its own
// instruction, until they meet again.
#pragma once
#include <cstdint>
#include <type_traits>
#include <vector>

#include "program.h"

namespace sparsegnn::ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

class Launch;

// f(i) for the bits that are set.
template <typename F>
void each_bit(uint32_t bits, const F& f) {
  for (; bits != 0; bits &= bits - 1) f(__builtin_ctz(bits));
}

struct Group {
  enum class State : uint8_t { runs, waits_for_warp, waits_for_block };
  uint32_t at = 0, lanes = 0;  // the instruction that is next
  State state = State::runs;
};

class Warp {
 public:
  Launch* launch = nullptr;
  int number = 0;
  uint32_t present = 0, alive = 0, lanes = 0;  // exist; have not returned; execute the instruction at hand
  std::vector<unsigned char> registers;

  // Groups have lanes, and no lane is in two: there are at most 32. `used` has a bit for each.
  Group groups[kLanes];
  uint32_t used = 0;
  void add(Group group) {
    const int k = __builtin_ctz(~used);
    groups[k] = group;
    used |= 1u << k;
  }
  void drop(int k) { used &= ~(1u << k); }
  bool parted() const { return (used & (used - 1)) != 0; }

  template <typename T>
  T* row(uint32_t at) {
    return reinterpret_cast<T*>(registers.data() + at);
  }
  unsigned char* bytes(uint32_t at) { return registers.data() + at; }
  uint32_t& predicate(uint32_t at) { return *row<uint32_t>(at); }
  void set_predicate(uint32_t at, uint32_t bits) {
    if (at != kNone) predicate(at) = (predicate(at) & ~lanes) | (bits & lanes);
  }

  // f(lane) for the lanes that execute the instruction.
  template <typename F>
  void each(const F& f) {
    if (lanes == kAllLanes)
      for (int lane = 0; lane < kLanes; ++lane) f(lane);
    else
      each_bit(lanes, f);
  }
};

// A number of type T in a register that may be wider than it: `width` bytes for each lane.
template <typename T>
T get(const unsigned char* row, int width, int lane) {
  T x;
  __builtin_memcpy(&x, row + lane * width, sizeof(T));
  return x;
}
// Extends integers by their sign, or by zeros.
template <typename T>
void put(unsigned char* row, int width, int lane, T x) {
  unsigned char* to = row + lane * width;
  if (width == int(sizeof(T))) {
    __builtin_memcpy(to, &x, sizeof(T));
    return;
  }
  int64_t wide = 0;
  if constexpr (std::is_integral_v<T>)
    wide = int64_t(x);
  else
    __builtin_memcpy(&wide, &x, sizeof(T));
  if (width == 2) __builtin_memcpy(to, &wide, 2);
  if (width == 4) __builtin_memcpy(to, &wide, 4);
  if (width == 8) __builtin_memcpy(to, &wide, 8);
}

}  // namespace sparsegnn::ptx
