// emulator.h: runs CUDA kernels on the host. A test tool; csrc/common/gpu.cuh includes it when nvcc is not the
// compiler.
//
// Every CUDA thread is a fiber. A fiber runs until it waits at a block barrier or a warp intrinsic; when all
// whom it waits for have come, all go on. Blocks run one after another. Threads and blocks run in one of three orders
// (forward, reversed, seeded shuffle): a kernel that lacks a barrier gives different results under different orders.
//
// shared memory  one allocation of exactly the bytes asked for, filled with 0xCB before each block
// caught         barriers and intrinsics that cannot be met, exited threads at a barrier, misaligned vector access,
//                impossible launches; under ASan and UBSan out-of-bounds access and undefined behaviour
// tensor cores   tensor_core.h multiplies the fragments of a warp by PTX's layout, summing in fp32 in order of k
// not covered    memory ordering, warps that run truly at once, timing, bank conflicts, the order in which
//                a tensor core sums, wgmma, asynchronous copies
#pragma once
#include <cmath>
#include <tuple>

#include "machine.h"
#include "tensor_core.h"
#if defined(SPARSEGNN_PTX)
#include "allocation.h"  // of tests/ptx
#endif

// ---- CUDA's names

#if defined(SPARSEGNN_PTX)
#define __global__ extern inline __attribute__((gnu_inline))  // declared alone: what runs is nvcc's
#else
#define __global__ inline
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SG_SHARED(T, name) T* name = reinterpret_cast<T*>(sparsegnn::emulator::machine().shared())

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

#if !defined(SPARSEGNN_PTX)
// Memory that kernels may touch: here the sanitizers know it.
struct Allocation {
  Allocation(const void*, size_t) {}
};
#else
using ptx::Allocation;
#endif

inline void check_access(const char* what, const void* p, size_t alignment) {
  machine().check_access(what, p, alignment);
}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A&&... arguments) {
  const std::tuple<P...> parameters(std::forward<A>(arguments)...);
#if defined(SPARSEGNN_PTX)
  const auto bytes = [](const P&... p) { return std::vector<ptx::Argument>{{&p, sizeof(p)}...}; };
  return ptx::launch(reinterpret_cast<void*>(kernel), std::apply(bytes, parameters), grid, block, shared_bytes);
#else
  return machine().run([&] { std::apply(kernel, parameters); }, grid, block, shared_bytes);
#endif
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
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return r;
}
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
