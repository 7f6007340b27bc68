// launch.h: a launch at work. Blocks run one after another; within a block a warp runs until all of its lanes wait or
// have returned, then the next. Which block, which warp and which group of a warp comes first is the schedule's choice.
#pragma once
#include <algorithm>
#include <random>
#include <string>

#include "allocation.h"
#include "memory.h"
#include "warp.h"

namespace sparsegnn::ptx {

class Launch {
 public:
  Launch(const Program& program, const std::vector<Argument>& arguments, dim3 grid, dim3 block, size_t shared_bytes);
  void run();

  // For what executes instructions.
  const std::vector<Argument>& arguments() const { return arguments_; }
  static unsigned char* shared();
  // Checks and notes what a lane does to memory; returns where.
  unsigned char* touch(const Warp& warp, const Instruction& i, int lane, Space space, uint64_t address, uint32_t bytes,
                       Access access);
  void warp_barrier(const Warp& warp, uint32_t lanes);
  // f(lane), for lanes that change the same memory one after another.
  template <typename F>
  void each_in_turn(const Warp& warp, const F& f) {
    const uint32_t first = schedule_ == Schedule::shuffled ? random_() : 0;
    for (uint32_t j = 0; j < kLanes; ++j) {
      const uint32_t lane = schedule_ == Schedule::reversed ? kLanes - 1 - j : (first + j * (first | 1)) % kLanes;
      if (warp.lanes >> lane & 1) f(int(lane));
    }
  }
  [[noreturn]] void fail(const Warp& warp, const Instruction& i, int lane, const std::string& what) const;

 private:
  using Schedule = emulator::Schedule;
  using State = Group::State;

  void prepare(Warp& warp, bool of_block);
  void run_block(uint64_t number);
  void run_warp(Warp& warp);
  void run_group(Warp& warp, int k);
  int next_group(Warp& warp);
  void join(Warp& warp, int k, State state);
  void branch(Warp& warp, int k, const Instruction& i, uint32_t taken);
  void leave(Warp& warp, int k, uint32_t lanes);
  void part(Warp& warp, int k, uint32_t lanes);
  bool meet(Warp& warp, int k, const Instruction& i);
  bool release_block();
  [[noreturn]] void deadlock() const;
  std::string block_name() const;
  template <typename T>
  void arrange(std::vector<T>& order) {
    if (schedule_ == Schedule::reversed) std::reverse(order.begin(), order.end());
    if (schedule_ == Schedule::shuffled) std::shuffle(order.begin(), order.end(), random_);
  }

  const Program& program_;
  const std::vector<Argument>& arguments_;
  const dim3 grid_, block_;
  const size_t shared_bytes_;
  const Schedule schedule_;
  std::vector<Warp>& warps_;
  std::mt19937 random_;
  uint3 index_{};  // of the block
  uint64_t jumps_ = 0;
};

}  // namespace sparsegnn::ptx
