// machine.h: the emulator's processor. Fibers in place of threads, barriers, and what warps exchange.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace sparsegnn::emulator {

enum class Schedule { forward, reversed, shuffled };
enum class State { runnable, block, warp, done };
enum class Call { sync, shfl, shfl_up, shfl_down, shfl_xor, ballot, add, min, max, bit_and, bit_or, match, collective };

// What a thread brings to a warp intrinsic, and what it gets.
struct WarpCall {
  Call kind;
  unsigned mask;
  int64_t value;
  int argument, width;
  int64_t result;
};

// Base of what the lanes of a whole warp bring to an instruction that they execute as one.
struct Collective {
  void (*run)(Collective* const* lanes);
};

struct Fiber {
  Context context;
  State state;
  uint3 thread;
  int index;
  WarpCall call;
};

class Machine {
 public:
  Schedule schedule = Schedule::forward;
  uint32_t seed = 0, grid_rows = 65535, l2_bytes = 60 << 20;  // grid_rows: blocks of a grid in y and in z
  std::vector<int64_t> warp_loads;  // vector loads by each warp of every launch since the last clear, summed over lanes

  uint3 block_index{}, thread_index{};
  dim3 block_size, grid_size;

  void* shared() { return shared_.get(); }
  int lane() const { return current_->index % 32; }

  bool possible(dim3 grid, dim3 block, size_t shared_bytes) const {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
    return threads > 0 && threads <= 1024 && block.z <= 64 && blocks > 0 && grid.x <= 0x7fffffffu &&
           grid.y <= grid_rows && grid.z <= grid_rows && shared_bytes <= 227 * 1024;
  }

  cudaError_t run(const std::function<void()>& body, dim3 grid, dim3 block, size_t shared_bytes) {
    if (!possible(grid, block, shared_bytes)) return cudaErrorInvalidConfiguration;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
    body_ = &body;
    block_size = block;
    grid_size = grid;
    reserve(static_cast<int>(threads));
    std::vector<uint64_t> order(blocks);
    std::iota(order.begin(), order.end(), uint64_t{0});
    arrange(order);
    const size_t first = warp_loads.size(), warps = (threads + 31) / 32;
    warp_loads.resize(first + blocks * warps);
    for (uint64_t b : order) {
      block_index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
      loads_ = warp_loads.data() + first + b * warps;
      shared_.reset(static_cast<unsigned char*>(std::malloc(shared_bytes)));
      std::memset(shared_.get(), 0xCB, shared_bytes);
      run_block();
    }
    return cudaSuccess;
  }

  // Called by fibers.
  void block_barrier() { wait(State::block); }
  int64_t warp(Call kind, unsigned mask, int64_t value, int argument = 0, int width = 32) {
    if (!(mask >> lane() & 1)) throw std::runtime_error(here() + ": the mask of a warp intrinsic lacks the caller");
    current_->call = {kind, mask, value, argument, width, 0};
    wait(State::warp);
    return current_->call.result;
  }
  // Runs call.run once for the warp; what the lanes' calls point to stays valid until then.
  void collective(Collective& call) { warp(Call::collective, 0xffffffffu, reinterpret_cast<intptr_t>(&call)); }
  void check_access(const char* what, const void* p, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
      throw std::runtime_error(here() + ": misaligned " + what + ", needs " + std::to_string(alignment) + " bytes");
    if (what[0] == 'l') ++loads_[current_->index / 32];
  }
  std::string here() const {
    return "block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
           std::to_string(block_index.z) + "), thread " + std::to_string(current_->index);
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };

  template <typename T>
  void arrange(std::vector<T>& order) {
    if (schedule == Schedule::reversed) std::reverse(order.begin(), order.end());
    if (schedule == Schedule::shuffled) std::shuffle(order.begin(), order.end(), random_);
  }

  void reserve(int threads) {
    random_.seed(seed);
    fibers_.resize(threads);
    while (stacks_.size() < fibers_.size()) stacks_.emplace_back(static_cast<unsigned char*>(std::malloc(kStack)));
  }

  void run_block() {
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    for (int i : order) start(i);
    arrange(order);
    error_ = nullptr;
    for (size_t done = 0; done < fibers_.size();) {
      bool moved = false;
      if (schedule == Schedule::shuffled) arrange(order);
      for (int i : order) {
        if (fibers_[i].state != State::runnable) continue;
        moved = true;
        resume(fibers_[i]);
        if (error_) std::rethrow_exception(error_);
        if (fibers_[i].state == State::done) ++done;
        if (fibers_[i].state == State::warp) release_warp(fibers_[i]);
        if (fibers_[i].state == State::done) release_exited(i / 32);
      }
      if (!moved && !release_block()) deadlock();
    }
  }

  void start(int i) {
    Fiber& f = fibers_[i];
    f.state = State::runnable;
    f.index = i;
    const unsigned t = i;
    f.thread = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks_[i].get(), kStack);  // frames of a fiber that ended here before
#endif
    prepare(f.context, stacks_[i].get(), kStack, &Machine::enter);
  }

  static void enter();

  // The switches tell ASan which stack they go to: `from` keeps the state of the one left, null when it ends.
  void switch_stacks(Context& save, Context& to, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size,
                     [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
    void* from = nullptr;
    __sanitizer_start_switch_fiber(ends ? nullptr : &from, bottom, size);
    switch_context(save, to);
    __sanitizer_finish_switch_fiber(from, nullptr, nullptr);
#else
    switch_context(save, to);
#endif
  }

  void resume(Fiber& f) {
    current_ = &f;
    thread_index = f.thread;
    switch_stacks(main_, f.context, stacks_[f.index].get(), kStack, false);
  }

  void wait(State state) {
    current_->state = state;
    switch_stacks(current_->context, main_, main_bottom_, main_size_, state == State::done);
  }

  // Lets the lanes of the caller's mask go on when all that have not exited have come.
  void release_warp(const Fiber& caller) {
    const int first = caller.index / 32 * 32, lanes = std::min<int>(32, int(fibers_.size()) - first);
    const unsigned mask = caller.call.mask;
    unsigned present = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      if (lane >= lanes || fibers_[first + lane].state == State::done) continue;
      if (fibers_[first + lane].state != State::warp || fibers_[first + lane].call.mask != mask) return;
      present |= 1u << lane;
    }
    Fiber* warp = &fibers_[first];
    for (int lane = 0; lane < lanes; ++lane)
      if ((present >> lane & 1) && warp[lane].call.kind != caller.call.kind)
        throw std::runtime_error(here() + ": lanes of one mask met at different warp intrinsics");
    if (caller.call.kind == Call::collective) run_collective(warp, present);
    for (int lane = 0; lane < lanes; ++lane)
      if (present >> lane & 1) warp[lane].call.result = result(warp, present, lane);
    for (int lane = 0; lane < lanes; ++lane)
      if (present >> lane & 1) warp[lane].state = State::runnable;
  }

  void run_collective(const Fiber* warp, unsigned present) {
    if (present != 0xffffffffu) throw std::runtime_error(here() + ": an instruction of the whole warp lacks lanes");
    Collective* lanes[32];
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = reinterpret_cast<Collective*>(warp[lane].call.value);
    for (int lane = 0; lane < 32; ++lane)
      if (lanes[lane]->run != lanes[0]->run) throw std::runtime_error(here() + ": lanes met at different instructions");
    lanes[0]->run(lanes);
  }

  void release_exited(int warp) {
    for (size_t i = size_t(warp) * 32; i < std::min(fibers_.size(), size_t(warp) * 32 + 32); ++i)
      if (fibers_[i].state == State::warp) release_warp(fibers_[i]);
  }

  static int64_t result(const Fiber* warp, unsigned present, int lane) {
    const WarpCall& call = warp[lane].call;
    const int base = lane & ~(call.width - 1), last = base | (call.width - 1);
    int from = lane;
    switch (call.kind) {
      case Call::sync:
      case Call::collective:
        return 0;
      case Call::shfl:
        from = base | (call.argument & (call.width - 1));
        break;
      case Call::shfl_up:
        from = lane - call.argument < base ? lane : lane - call.argument;
        break;
      case Call::shfl_down:
        from = lane + call.argument > last ? lane : lane + call.argument;
        break;
      case Call::shfl_xor:
        from = (lane ^ call.argument) > last ? lane : lane ^ call.argument;
        break;
      default: {
        int64_t r = call.kind == Call::ballot || call.kind == Call::match ? 0 : call.value;
        for (int i = 0; i < 32; ++i) {
          if (!(present >> i & 1)) continue;
          const int64_t v = warp[i].call.value;
          if (call.kind == Call::ballot) r |= int64_t{v != 0} << i;
          if (call.kind == Call::match) r |= int64_t{v == call.value} << i;
          if (call.kind == Call::add && i != lane) r += v;
          if (call.kind == Call::min) r = std::min(r, v);
          if (call.kind == Call::max) r = std::max(r, v);
          if (call.kind == Call::bit_and) r &= v;
          if (call.kind == Call::bit_or) r |= v;
        }
        return r;
      }
    }
    return present >> from & 1 ? warp[from].call.value : int64_t(0xCBCBCBCBCBCBCBCBull);  // nobody there: undefined
  }

  bool release_block() {
    for (const Fiber& f : fibers_)
      if (f.state != State::block) return false;
    for (Fiber& f : fibers_) f.state = State::runnable;
    return true;
  }

  [[noreturn]] void deadlock() {
    int count[4] = {};
    for (const Fiber& f : fibers_) ++count[static_cast<int>(f.state)];
    throw std::runtime_error(
        "divergent barrier in block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
        std::to_string(block_index.z) + "): " + std::to_string(count[1]) + " thread(s) wait at __syncthreads, " +
        std::to_string(count[2]) + " at a warp intrinsic, " + std::to_string(count[3]) + " have returned");
  }

  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<unsigned char, Free>> stacks_;
  std::unique_ptr<unsigned char, Free> shared_;
  Fiber* current_ = nullptr;
  Context main_{};
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
  int64_t* loads_ = nullptr;
  std::mt19937 random_;
  std::exception_ptr error_;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

inline void Machine::enter() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.main_bottom_, &m.main_size_);
#endif
  try {
    (*m.body_)();
  } catch (...) {
    m.error_ = std::current_exception();
  }
  m.wait(State::done);
}

}  // namespace sparsegnn::emulator
