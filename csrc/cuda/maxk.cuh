// maxk / cuda
//
//   of every row of x [N, F], or of every group of its columns, the k largest entries: values[n, :], and their columns
//   index[n, :], ascending. NaN is largest, -0 equals 0, and of equals the lower columns are kept
//   maxk_expand: y[n, index[n, t]] = values[n, t], 0 elsewhere;   maxk_gather: values[n, t] = x[n, index[n, t]]
//
// layout     x, y row-major; index uint8_t up to 256 columns, int16_t above
// work       N * (F * s + k * (s + 1)) bytes; no flop
// schedule   eight lanes take a row of up to 256 columns, or one group of its columns, a warp a longer one: 128-bit
//            loads, values in registers up to 1024 columns, the threshold by bracketing as on the CPU, a sum over the
//            lanes for every count; what stays is collected in shared memory and leaves in whole sectors. So what is
//            done for a row and not for its columns is done for four rows at once. Groups of 4, 8 and 16 columns: a
//            thread takes a group and compares every pair; of 2 and 32: a warp takes 32 columns and compares by
//            shuffles
// numerics   comparisons of numbers, of integers in their order where a row is not finite; the same choice as on the
// CPU see        sparsegnn/ops/maxk.py, tests/csrc/test_maxk.py, benchmarks/ops/bench_maxk.py
#pragma once
#include "maxk_select.cuh"

namespace sparsegnn::cuda {

// Compressed rows and dense ones; `to` is written.
template <typename T, typename I>
struct MaxkCopyArguments {
  const T* from;
  const I* index;
  T* to;
  int64_t rows, width, k;
};

constexpr int64_t kMaxkStaged = 2048;  // columns of a row that maxk_expand makes in shared memory

// A thread for a group of G columns.
template <typename T, typename I, int G>
__global__ void __launch_bounds__(kMaxkThreads) maxk_groups_kernel(MaxkArguments<T, I> a) {
  constexpr int V = min(G, kVector<T>);
  const int64_t parts = a.width / G, n = int64_t{blockIdx.x} * kMaxkThreads + threadIdx.x;
  if (n >= a.rows * parts) return;
  const T* x = a.x + n * G;
  maxk_key<T> key[G];
  for (int i = 0; i < G; i += V) {
    const vec<T, V> v = load<V>(x + i);
    for (int u = 0; u < V; ++u) key[i + u] = to_maxk_key(v[u]);
  }
  int before[G] = {};  // columns that are larger, or equal and lower
#pragma unroll
  for (int i = 0; i < G; ++i)
#pragma unroll
    for (int j = i + 1; j < G; ++j) {
      const bool larger = key[j] > key[i];
      before[i] += larger, before[j] += !larger;
    }
  unsigned stay = 0;
  for (int i = 0; i < G; ++i) stay |= unsigned(before[i] < a.kept) << i;
  const int first = static_cast<int>(n % parts) * G;
  for (int64_t at = n * a.kept; stay != 0; stay &= stay - 1, ++at) {
    const int c = __ffs(static_cast<int>(stay)) - 1;
    a.values[at] = x[c];
    a.index[at] = static_cast<I>(first + c);
  }
}

// A warp for 32 columns, whole groups.
template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_shuffle_kernel(MaxkArguments<T, I> a) {
  const int lane = threadIdx.x % kWarp, size = static_cast<int>(a.group);
  const int64_t chunks = ceil_div(a.width, kWarp), unit = int64_t{blockIdx.x} * kMaxkWarps + threadIdx.x / kWarp;
  if (unit >= a.rows * chunks) return;
  const int64_t r = unit / chunks, first = unit % chunks * kWarp, c = first + lane;
  const bool exists = c < a.width;
  const T x = exists ? a.x[r * a.width + c] : T{};
  const auto key = to_maxk_key(x);
  int before = 0;  // columns of the group that are larger, or equal and lower
  for (int s = 1; s < size; ++s) {
    const auto other = __shfl_xor_sync(kFullMask, key, s);
    before += other > key || (other == key && (lane ^ s) < lane);
  }
  const unsigned stay = __ballot_sync(kFullMask, exists && before < a.kept);
  if (!(stay >> lane & 1)) return;
  const int64_t at = r * a.k + first / size * a.kept + __popc(stay & ((1u << lane) - 1));
  a.values[at] = x;
  a.index[at] = static_cast<I>(c);
}

// A warp for a row: zeros, then the values over them; V > 1: in shared memory first.
template <typename T, typename I, int V>
__global__ void __launch_bounds__(kMaxkThreads) maxk_expand_kernel(MaxkCopyArguments<T, I> a) {
  SG_SHARED(T, staging);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t r = int64_t{blockIdx.x} * kMaxkWarps + warp;
  if (r >= a.rows) return;
  T* y = V > 1 ? staging + warp * a.width : a.to + r * a.width;
  for (int64_t c = lane * V; c < a.width; c += kWarp * V) store(y + c, vec<T, V>{});
  __syncwarp();
  for (int64_t t = lane; t < a.k; t += kWarp) y[a.index[r * a.k + t]] = a.from[r * a.k + t];
  if constexpr (V > 1) {
    __syncwarp();
    maxk_copy<V, kWarp>(y, a.to + r * a.width, static_cast<int>(a.width));
  }
}

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_gather_kernel(MaxkCopyArguments<T, I> a) {
  const int64_t i = int64_t{blockIdx.x} * kMaxkThreads + threadIdx.x;
  if (i < a.rows * a.k) a.to[i] = a.from[i / a.k * a.width + a.index[i]];
}

// ---- launchers

template <typename T, typename I>
cudaError_t launch_maxk(const MaxkArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.k == 0) return cudaSuccess;
  const bool power = (a.group & (a.group - 1)) == 0;
  if (power && a.group >= 4 && a.group <= 16 && can_vectorise(min<int>(a.group, kVector<T>), a.width, a.x)) {
    const auto kernel = a.group == 4   ? maxk_groups_kernel<T, I, 4>
                        : a.group == 8 ? maxk_groups_kernel<T, I, 8>
                                       : maxk_groups_kernel<T, I, 16>;
    return launch(kernel, maxk_grid(a.rows * (a.width / a.group), kMaxkThreads), kMaxkThreads, 0, stream, a);
  }
  if (power && a.group <= kWarp && a.group < a.width)
    return launch(maxk_shuffle_kernel<T, I>, maxk_grid(a.rows * ceil_div(a.width, kWarp), kMaxkWarps), kMaxkThreads, 0,
                  stream, a);
  const bool vectors = can_vectorise(kVector<T>, a.group, a.x);
  return vectors ? launch_maxk_select<kVector<T>>(a, stream) : launch_maxk_select<1>(a, stream);
}

template <typename T, typename I>
cudaError_t launch_maxk_expand(const MaxkCopyArguments<T, I>& a, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const dim3 grid = maxk_grid(a.rows, kMaxkWarps);
  if (a.width <= kMaxkStaged && can_vectorise(V, a.width, a.to))
    return launch(maxk_expand_kernel<T, I, V>, grid, kMaxkThreads, kMaxkWarps * a.width * sizeof(T), stream, a);
  return launch(maxk_expand_kernel<T, I, 1>, grid, kMaxkThreads, 0, stream, a);
}

template <typename T, typename I>
cudaError_t launch_maxk_gather(const MaxkCopyArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows * a.k == 0) return cudaSuccess;
  return launch(maxk_gather_kernel<T, I>, maxk_grid(a.rows * a.k, kMaxkThreads), kMaxkThreads, 0, stream, a);
}

}  // namespace sparsegnn::cuda
