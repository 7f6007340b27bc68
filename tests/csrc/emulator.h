// emulator.h: runs CUDA kernels on the host. A test tool; csrc/common/gpu.cuh includes it when nvcc is not the
// compiler.
//
// Every CUDA thread is a fiber (ucontext). A fiber runs until it waits at a block barrier or a warp intrinsic; when all
// whom it waits for have come, all go on. Blocks run one after another. Threads and blocks run in one of three orders
// (forward, reversed, seeded shuffle): a kernel that lacks a barrier gives different results under different orders.
//
// shared memory  one allocation of exactly the bytes asked for, filled with 0xCB before each block
// caught         barriers and intrinsics that cannot be met, exited threads at a barrier, misaligned vector access,
//                impossible launches; under ASan and UBSan out-of-bounds access and undefined behaviour
// not covered    memory ordering, warps that run truly at once, timing, bank conflicts, tensor cores
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
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
#include <tuple>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---- CUDA's names

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SG_SHARED(T, name) T* name = reinterpret_cast<T*>(sparsegnn::emulator::machine().shared())

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

// ---- half precision

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float from_bf16(uint16_t x) { return bit_cast<float>(uint32_t{x} << 16); }

inline uint16_t to_bf16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return 0x7fff;  // the NaN that cvt.rn.bf16.f32 returns
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_fp16(uint16_t x) {
  const uint32_t sign = uint32_t{x} >> 15 << 31, exponent = x >> 10 & 31, mantissa = x & 1023;
  if (exponent == 0) return std::copysign(std::ldexp(float(mantissa), -24), bit_cast<float>(sign | 0x3f800000));
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return bit_cast<float>(sign | biased << 23 | mantissa << 13);
}

inline uint16_t to_fp16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 31 << 15);
  if (x != x) return 0x7fff;                          // the NaN that cvt.rn.f16.f32 returns
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 65536 and more
  if (magnitude < 0x38800000)                         // subnormal: let the addition round
    return sign | static_cast<uint16_t>(bit_cast<uint32_t>(std::fabs(x) + 0.5f) - 0x3f000000);
  return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

// ---- fibers

enum class Schedule { forward, reversed, shuffled };
enum class State { runnable, block, warp, done };
enum class Call { sync, shfl, shfl_up, shfl_down, shfl_xor, ballot, add, min, max, bit_and, bit_or, match };

// What a thread brings to a warp intrinsic, and what it gets.
struct WarpCall {
  Call kind;
  unsigned mask;
  int64_t value;
  int argument, width;
  int64_t result;
};

struct Fiber {
  ucontext_t context;
  State state;
  uint3 thread;
  int index;
  WarpCall call;
};

class Machine {
 public:
  Schedule schedule = Schedule::forward;
  uint32_t seed = 0;
  std::vector<int64_t> warp_loads;  // vector loads by each warp of every launch since the last clear, summed over lanes

  uint3 block_index{}, thread_index{};
  dim3 block_size, grid_size;

  void* shared() { return shared_.get(); }
  int lane() const { return current_->index % 32; }

  cudaError_t run(const std::function<void()>& body, dim3 grid, dim3 block, size_t shared_bytes) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || block.z > 64 || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535 || shared_bytes > 227 * 1024)
      return cudaErrorInvalidConfiguration;
    body_ = &body;
    block_size = block;
    grid_size = grid;
    prepare(static_cast<int>(threads));
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

  void prepare(int threads) {
    random_.seed(seed);
    fibers_.resize(threads);
    while (stacks_.size() < fibers_.size()) stacks_.emplace_back(static_cast<unsigned char*>(std::malloc(kStack)));
  }

  void run_block() {
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    for (int i : order) start(i);
    error_ = nullptr;
    for (size_t done = 0; done < fibers_.size();) {
      bool moved = false;
      arrange_pass(order);
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

  void arrange_pass(std::vector<int>& order) {
    std::sort(order.begin(), order.end());
    arrange(order);
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
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks_[i].get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, &Machine::enter, 0);
  }

  static void enter();

  // The switches tell ASan which stack they go to: `from` keeps the state of the one left, null when it ends.
  void switch_stacks(ucontext_t* save, ucontext_t* to, [[maybe_unused]] const void* bottom,
                     [[maybe_unused]] size_t size, [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
    void* from = nullptr;
    __sanitizer_start_switch_fiber(ends ? nullptr : &from, bottom, size);
    swapcontext(save, to);
    __sanitizer_finish_switch_fiber(from, nullptr, nullptr);
#else
    swapcontext(save, to);
#endif
  }

  void resume(Fiber& f) {
    current_ = &f;
    thread_index = f.thread;
    switch_stacks(&main_, &f.context, stacks_[f.index].get(), kStack, false);
  }

  void wait(State state) {
    current_->state = state;
    switch_stacks(&current_->context, &main_, main_bottom_, main_size_, state == State::done);
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
    for (int lane = 0; lane < lanes; ++lane)
      if (present >> lane & 1) warp[lane].call.result = result(warp, present, lane);
    for (int lane = 0; lane < lanes; ++lane)
      if (present >> lane & 1) warp[lane].state = State::runnable;
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
  ucontext_t main_{};
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

inline void check_access(const char* what, const void* p, size_t alignment) {
  machine().check_access(what, p, alignment);
}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A&&... arguments) {
  const std::tuple<P...> parameters(std::forward<A>(arguments)...);
  return machine().run([&] { std::apply(kernel, parameters); }, grid, block, shared_bytes);
}

// A value of at most eight bytes through the 64-bit slot of a warp intrinsic.
template <typename T>
T exchange(Call kind, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= sizeof(int64_t));
  int64_t slot = 0;
  std::memcpy(&slot, &value, sizeof(T));
  slot = machine().warp(kind, mask, slot, argument, width);
  std::memcpy(&value, &slot, sizeof(T));
  return value;
}

// Atomics: blocks and fibers never run at once, so plain updates are atomic.
template <typename T, typename F>
T update(T* p, F f) {
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace sparsegnn::emulator

// ---- CUDA's built-ins

#define threadIdx (sparsegnn::emulator::machine().thread_index)
#define blockIdx (sparsegnn::emulator::machine().block_index)
#define blockDim (sparsegnn::emulator::machine().block_size)
#define gridDim (sparsegnn::emulator::machine().grid_size)

inline void __syncthreads() { sparsegnn::emulator::machine().block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::sync, mask, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return sparsegnn::emulator::exchange(sparsegnn::emulator::Call::shfl, mask, value, lane, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return sparsegnn::emulator::exchange(sparsegnn::emulator::Call::shfl_up, mask, value, int(delta), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return sparsegnn::emulator::exchange(sparsegnn::emulator::Call::shfl_down, mask, value, int(delta), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return sparsegnn::emulator::exchange(sparsegnn::emulator::Call::shfl_xor, mask, value, lanes, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::ballot, mask, predicate));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  int64_t slot = 0;
  std::memcpy(&slot, &value, sizeof(T));
  return unsigned(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::match, mask, slot));
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
  return T(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::add, mask, value));
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
  return T(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::min, mask, value));
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
  return T(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::max, mask, value));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return unsigned(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::bit_and, mask, value));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return unsigned(sparsegnn::emulator::machine().warp(sparsegnn::emulator::Call::bit_or, mask, value));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }
inline float __uint_as_float(unsigned x) { return sparsegnn::emulator::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return sparsegnn::emulator::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return sparsegnn::emulator::bit_cast<int>(x); }
inline float __int_as_float(int x) { return sparsegnn::emulator::bit_cast<float>(x); }

// Integers only: float atomics would make results depend on the order.
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T atomicAdd(T* p, T x) {
  static_assert(std::is_integral_v<T>, "atomicAdd: float atomics are not deterministic");
  return sparsegnn::emulator::update(p, [x](T old) { return T(old + x); });
}
template <typename T>
T atomicMin(T* p, T x) {
  return sparsegnn::emulator::update(p, [x](T old) { return std::min(old, x); });
}
template <typename T>
T atomicMax(T* p, T x) {
  return sparsegnn::emulator::update(p, [x](T old) { return std::max(old, x); });
}
template <typename T>
T atomicOr(T* p, T x) {
  return sparsegnn::emulator::update(p, [x](T old) { return T(old | x); });
}
template <typename T>
T atomicAnd(T* p, T x) {
  return sparsegnn::emulator::update(p, [x](T old) { return T(old & x); });
}
template <typename T>
T atomicExch(T* p, T x) {
  return sparsegnn::emulator::update(p, [x](T) { return x; });
}
template <typename T>
T atomicCAS(T* p, T expected, T x) {
  return sparsegnn::emulator::update(p, [=](T old) { return old == expected ? x : old; });
}
