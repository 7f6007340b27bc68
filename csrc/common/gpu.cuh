// gpu.cuh: the only header a kernel file csrc/cuda/<op>.cuh includes, itself or by way of segments.cuh or
// mma.cuh. Torch-free.
//
// nvcc sees CUDA; a host compiler sees tests/csrc/emulator.h, which runs the same source with one fiber per thread.
// A kernel that keeps to these rules runs under both:
//
// shared memory  SG_SHARED(T, name); is the only source of it: T* name is the start of the block's dynamic shared
// memory
//                (several arrays: one struct, or offsets from one pointer). Never write __shared__.
// launch         launch(kernel<T>, grid, block, shared_bytes, stream, arguments...) returns cudaError_t. Never <<<>>>.
// memory         load<V>(p) reads V elements at once through the read-only path, store(p, vec) writes them; p must be
//                aligned to min(16, V * sizeof(T)) bytes. Ask can_vectorise() on the host first. load_streamed(p) reads
//                and store_streamed(p, vec) writes global memory that leaves the caches first.
// types          T is float, double, bf16 or fp16; sums are made in acc_t<T>; to_acc(x), from_acc<T>(x) convert.
// warps          CUDA's *_sync intrinsics with an explicit mask; helpers warp_sum, warp_max over groups of lanes.
// errors         launch_<op> returns cudaSuccess without a launch when there is nothing to do; kernels never trap.
#pragma once
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define SG_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char sg_shared_bytes[]; \
  T* name = reinterpret_cast<T*>(sg_shared_bytes)
#else
#include "emulator.h"
#endif

namespace sparsegnn::cuda {

// ---- numbers

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

template <typename T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename accumulator<T>::type;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }

template <typename T>
__device__ __forceinline__ T from_acc(acc_t<T> x) {
  return x;
}

#if defined(__CUDACC__)
__device__ __forceinline__ float to_acc(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ __forceinline__ float to_acc(fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <>
__device__ __forceinline__ bf16 from_acc<bf16>(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
__device__ __forceinline__ fp16 from_acc<fp16>(float x) {
  fp16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#else
inline float to_acc(bf16 x) { return emulator::from_bf16(x.bits); }
inline float to_acc(fp16 x) { return emulator::from_fp16(x.bits); }
template <>
inline bf16 from_acc<bf16>(float x) {
  return {emulator::to_bf16(x)};
}
template <>
inline fp16 from_acc<fp16>(float x) {
  return {emulator::to_fp16(x)};
}
#endif

// Own min and max: CUDA's and the standard library's differ in what they accept.
template <typename T>
__host__ __device__ constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
__host__ __device__ constexpr T max(T a, T b) {
  return a < b ? b : a;
}
__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- memory

template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) vec {
  T v[V];
  __device__ __forceinline__ T& operator[](int i) { return v[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

// Elements of T in one 128-bit load.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// May every row of `width` elements of these arrays be read `V` elements at a time?
template <typename T>
bool can_vectorise(int V, int64_t width, const T* first) {
  return width % V == 0 && reinterpret_cast<uintptr_t>(first) % min<size_t>(16, V * sizeof(T)) == 0;
}
template <typename T, typename... U>
bool can_vectorise(int V, int64_t width, const T* first, const U*... others) {
  return can_vectorise(V, width, first) && can_vectorise(V, width, others...);
}

#if defined(__CUDACC__)
template <typename Word, typename T, int V>
__device__ __forceinline__ vec<T, V> load_words(const T* p) {
  vec<T, V> r;
#pragma unroll
  for (int i = 0; i < int(sizeof(r) / sizeof(Word)); ++i)
    reinterpret_cast<Word*>(&r)[i] = __ldg(reinterpret_cast<const Word*>(p) + i);
  return r;
}
template <int V, typename T>
__device__ __forceinline__ vec<T, V> load(const T* p) {
  constexpr int bytes = sizeof(T) * V;
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes % 16 == 0, "load: V must make a power of two of bytes");
  if constexpr (bytes == 2) return load_words<unsigned short, T, V>(p);
  if constexpr (bytes == 4) return load_words<unsigned int, T, V>(p);
  if constexpr (bytes == 8) return load_words<uint2, T, V>(p);
  if constexpr (bytes % 16 == 0) return load_words<uint4, T, V>(p);
}
template <typename T, int V>
__device__ __forceinline__ void store(T* p, const vec<T, V>& x) {
  *reinterpret_cast<vec<T, V>*>(p) = x;
}
// One element that is read once by each of the blocks that need it: the L1 and the L2 give it up first.
template <typename T>
__device__ __forceinline__ T load_streamed(const T* p) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  T x;
  if constexpr (sizeof(T) == 2) asm("ld.global.cs.nc.u16 %0, [%1];" : "=h"(reinterpret_cast<uint16_t&>(x)) : "l"(p));
  if constexpr (sizeof(T) == 4) asm("ld.global.cs.nc.u32 %0, [%1];" : "=r"(reinterpret_cast<uint32_t&>(x)) : "l"(p));
  if constexpr (sizeof(T) == 8) asm("ld.global.cs.nc.u64 %0, [%1];" : "=l"(reinterpret_cast<uint64_t&>(x)) : "l"(p));
  return x;
}
template <typename Word, typename T, int V>
__device__ __forceinline__ void store_words_streamed(T* p, const vec<T, V>& x) {
#pragma unroll
  for (int i = 0; i < int(sizeof(x) / sizeof(Word)); ++i)
    __stcs(reinterpret_cast<Word*>(p) + i, reinterpret_cast<const Word*>(&x)[i]);
}
template <typename T, int V>
__device__ __forceinline__ void store_streamed(T* p, const vec<T, V>& x) {
  constexpr int bytes = sizeof(T) * V;
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes % 16 == 0, "as load");
  if constexpr (bytes == 2) store_words_streamed<unsigned short>(p, x);
  if constexpr (bytes == 4) store_words_streamed<unsigned int>(p, x);
  if constexpr (bytes == 8) store_words_streamed<uint2>(p, x);
  if constexpr (bytes % 16 == 0) store_words_streamed<uint4>(p, x);
}
#else
template <int V, typename T>
vec<T, V> load(const T* p) {
  vec<T, V> r;
  emulator::check_access("load", p, alignof(vec<T, V>));
  std::copy(p, p + V, r.v);
  return r;
}
template <typename T, int V>
void store(T* p, const vec<T, V>& x) {
  emulator::check_access("store", p, alignof(vec<T, V>));
  std::copy(x.v, x.v + V, p);
}
template <typename T>
T load_streamed(const T* p) {
  return *p;
}
template <typename T, int V>
void store_streamed(T* p, const vec<T, V>& x) {
  store(p, x);
}
#endif

// ---- warps

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Sum and maximum over aligned groups of `width` lanes (a power of two); every lane of `mask` gets the result.
template <typename T>
__device__ __forceinline__ T warp_sum(T x, int width = kWarp, unsigned mask = kFullMask) {
  for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(mask, x, offset);
  return x;
}
template <typename T>
__device__ __forceinline__ T warp_max(T x, int width = kWarp, unsigned mask = kFullMask) {
  for (int offset = width / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(mask, x, offset));
  return x;
}

// Lanes of a group that serves rows of `columns` vectors: the least power of two that covers them, at most a warp.
constexpr int group_lanes(int64_t columns) {
  int lanes = 1;
  while (lanes < kWarp && lanes < columns) lanes *= 2;
  return lanes;
}

// ---- CSR

// The row that holds edge e: the last r with crow[r] <= e.
__device__ __forceinline__ int64_t row_of_edge(const int32_t* crow, int64_t rows, int64_t e) {
  int64_t low = 0, high = rows;  // crow[low] <= e < crow[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (crow[middle] <= e ? low : high) = middle;
  }
  return low;
}

// The first entry of row r at or after column `column`; columns ascend.
__device__ __forceinline__ int32_t entry_at_column(const int32_t* crow, const int32_t* col, int64_t r, int64_t column) {
  int32_t low = crow[r], high = crow[r + 1];
  if (column == 0) return low;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (col[middle] < column)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// ---- launch

#if defined(__CUDACC__)
constexpr int64_t grid_rows() { return 65535; }  // blocks of a grid in y; in x 2^31 - 1, more than memory can need

// Bytes of the L2 of the current device, asked for once; 0 where it does not say. Nothing of it enters a stream.
inline int64_t l2_bytes() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) == cudaSuccess) {
    if (device < kDevices && (bytes = known[device].load(std::memory_order_relaxed)) > 0) return bytes;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device) == cudaSuccess) {
      if (device < kDevices) known[device].store(bytes, std::memory_order_relaxed);
      return bytes;
    }
  }
  cudaGetLastError();
  return 0;
}
#else
inline int64_t grid_rows() { return emulator::machine().grid_rows; }
inline int64_t l2_bytes() { return emulator::machine().l2_bytes; }
#endif

#if defined(__CUDACC__)
template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   A&&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024)  // more than CUDA gives without being asked
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();  // ours to report; leave nothing behind for the next caller
  return error;
}
#else
using emulator::launch;
#endif

}  // namespace sparsegnn::cuda
