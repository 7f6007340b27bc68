// order.h: what has happened before what in a launch, as CUDA's memory model orders it, and the races that this shows.
//
// Within a thread   in the order of the program
// within a block    by bar.sync, for all of its threads: it begins a new interval
// within a warp     by bar.warp.sync, for the lanes of its mask; shuffles and votes order nothing
// between blocks    by nothing: the kernels have no fences; blocks may only meet in atomics
//
// A cell is a piece of memory of one, two or four bytes. It knows who has read it, who has written it and who has
// changed it atomically since they were last ordered before a write. Two accesses of which one writes, and of which
// none happened before the other, are a race, in whatever order they were run.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

namespace sparsegnn::ptx {

enum class Access : uint8_t { read, constant, write, atomic };  // constant: ld.global.nc, never written in the launch

// Threads that have done one thing to a cell, of the last interval in which any has.
struct Accesses {
  uint32_t interval = 0, lanes = 0, time = 0;
  int line = 0;
  uint16_t warp = 0;
  bool warps = false, blocks = false;  // more than one
};

struct Cell {
  Accesses read, write, atomic;
};

class Order {
 public:
  // The thread that acts.
  int warp = 0, lane = 0, line = 0;

  void begin_launch() { launch_ = ++interval_; }
  void begin_block(int warps) {
    block_ = ++interval_;
    syncs_.assign(size_t(warps), 0);
    known_.assign(size_t(warps), {});
  }
  void block_barrier() { ++interval_; }
  void warp_barrier(uint32_t lanes) {
    const uint32_t time = ++syncs_[size_t(warp)];
    uint32_t all[32] = {};
    Known& known = known_[size_t(warp)];
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1)
        for (int other = 0; other < 32; ++other)
          if (known.until[lane][other] > all[other]) all[other] = known.until[lane][other];
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) all[lane] = time;
    for (int lane = 0; lane < 32; ++lane)
      if (lanes >> lane & 1) std::memcpy(known.until[lane], all, sizeof(all));
  }

  // The access that this one is in a race with, or null; notes this one.
  const Accesses* touch(Cell& cell, Access access, bool shared) {
    const uint32_t first = shared ? block_ : launch_;  // what was before is over
    switch (access) {
      case Access::constant:
        if (cell.write.interval >= first) return &cell.write;
        if (cell.atomic.interval >= first) return &cell.atomic;
        cell.read = {interval_, 0, 0, line, 0, true, true};
        return nullptr;
      case Access::read:
        if (races(cell.write, first)) return &cell.write;
        if (races(cell.atomic, first)) return &cell.atomic;
        add(cell.read, first);
        return nullptr;
      case Access::atomic:
        if (races(cell.write, first)) return &cell.write;
        if (races(cell.read, first)) return &cell.read;
        add(cell.atomic, first);
        return nullptr;
      default:
        if (races(cell.write, first)) return &cell.write;
        if (races(cell.read, first)) return &cell.read;
        if (races(cell.atomic, first)) return &cell.atomic;
        cell.write = me();
        cell.read.interval = cell.atomic.interval = 0;
        return nullptr;
    }
  }

  // Where the other one of a race was.
  const char* between(const Accesses& other) const {
    if (other.blocks || other.interval < block_) return "blocks";
    return other.warps || other.warp != warp ? "warps" : "lanes of a warp";
  }

 private:
  struct Known {
    uint32_t until[32][32] = {};  // [lane][other]: what the other did before this many of the warp's barriers
  };

  Accesses me() const { return {interval_, 1u << lane, syncs_[size_t(warp)], line, uint16_t(warp), false, false}; }
  bool knows(int other, uint32_t time) const { return other == lane || known_[size_t(warp)].until[lane][other] > time; }

  bool races(const Accesses& other, uint32_t first) const {
    if (other.interval < first) return false;
    if (other.blocks || other.interval < block_) return true;
    if (other.interval < interval_) return false;
    if (other.warps || other.warp != warp) return true;
    for (uint32_t left = other.lanes; left != 0; left &= left - 1)
      if (!knows(__builtin_ctz(left), other.time)) return true;
    return false;
  }

  // Those whom this thread comes after are left out: who comes after this thread comes after them.
  void add(Accesses& to, uint32_t first) {
    if (to.interval >= first && to.blocks) return;
    if (to.interval < first) {
      to = me();
    } else if (to.interval < block_) {
      to = me(), to.blocks = true;
    } else if (to.interval < interval_) {
      to = me();
    } else if (to.warps || to.warp != warp) {
      to.warps = true;
    } else {
      for (uint32_t left = to.lanes; left != 0; left &= left - 1)
        if (const int other = __builtin_ctz(left); knows(other, to.time)) to.lanes &= ~(1u << other);
      to.lanes |= 1u << lane;
      to.time = syncs_[size_t(warp)];
    }
  }

  uint32_t interval_ = 0, launch_ = 0, block_ = 0;
  std::vector<uint32_t> syncs_;  // of each warp: how many barriers it has passed
  std::vector<Known> known_;
};

}  // namespace sparsegnn::ptx
