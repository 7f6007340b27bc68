// maxk / cuda
//
//   of every row of x [N, F], or of every group of its columns, the k largest entries: values[n, :], and their columns
//   index[n, :], ascending. NaN is largest, -0 equals 0, and of equals the lower columns are kept
//   maxk_expand: y[n, index[n, t]] = values[n, t], 0 elsewhere;   maxk_gather: values[n, t] = x[n, index[n, t]]
//
// layout     x, y row-major; index uint8_t up to 256 columns, int16_t above
// work       N * (F * s + k * (s + 1)) bytes; no flop
// schedule   a warp takes a row, or one group of its columns: keys in registers up to 1024 columns, the threshold bit
// by
//            bit from the highest, a ballot for every 32 columns and bit. Groups of 2 to 32 columns, powers of two: a
//            warp takes 32 columns, and every lane counts those of its group that come before its own
// numerics   comparisons of integers; the same choice as on the CPU
// see        sparsegnn/ops/maxk.py, tests/csrc/test_maxk.py, benchmarks/ops/bench_maxk.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

template <typename T, typename I>
struct MaxkArguments {  // device pointers
  const T* x;
  T* values;
  I* index;
  int64_t rows, width, k;
  int64_t group, kept;  // columns of a group, and how many of them stay
};

// Compressed rows and dense ones; `to` is written.
template <typename T, typename I>
struct MaxkCopyArguments {
  const T* from;
  const I* index;
  T* to;
  int64_t rows, width, k;
};

constexpr int kMaxkThreads = 256, kMaxkWarps = kMaxkThreads / kWarp;

template <typename A>
struct maxk_key {
  using type = uint32_t;
};
template <>
struct maxk_key<double> {
  using type = uint64_t;
};

// Unsigned integers in the order of the values; 0 for none of them.
template <typename A>
__device__ __forceinline__ typename maxk_key<A>::type to_maxk_key(A x) {
  using Key = typename maxk_key<A>::type;
  constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
  if (x != x) return ~Key(0);
  x += A(0);  // -0 + 0 is 0
  const Key bits = *reinterpret_cast<const Key*>(&x);
  return bits & sign ? Key(~bits) : Key(bits | sign);
}

// C vectors of 32 columns in registers; 0: read again for every bit.
template <typename T, typename I, int C>
__global__ void __launch_bounds__(kMaxkThreads) maxk_select_kernel(MaxkArguments<T, I> a) {
  using Key = typename maxk_key<acc_t<T>>::type;
  const int lane = threadIdx.x % kWarp;
  const int64_t parts = a.width / a.group, unit = int64_t{blockIdx.x} * kMaxkWarps + threadIdx.x / kWarp;
  if (unit >= a.rows * parts) return;
  const int64_t r = unit / parts, first = unit % parts * a.group;
  const T* x = a.x + r * a.width + first;
  const auto read = [&](int64_t c) { return c < a.group ? to_maxk_key(to_acc(x[c])) : Key(0); };
  const int64_t chunks = ceil_div(a.group, kWarp);
  Key held[C > 0 ? C : 1];
  if constexpr (C > 0) {
#pragma unroll
    for (int i = 0; i < C; ++i) held[i] = read(i * kWarp + lane);
  }
  Key threshold = 0;
  for (int bit = 8 * sizeof(Key) - 1; bit >= 0; --bit) {
    const Key candidate = threshold | Key(1) << bit;
    int count = 0;
    if constexpr (C > 0) {
#pragma unroll
      for (int i = 0; i < C; ++i) count += __popc(__ballot_sync(kFullMask, held[i] >= candidate));
    } else {
      for (int64_t i = 0; i < chunks; ++i)
        count += __popc(__ballot_sync(kFullMask, read(i * kWarp + lane) >= candidate));
    }
    if (count >= a.kept) threshold = candidate;
    if (count == a.kept) break;
  }
  int above = 0;
  for (int pass = 0; pass < 2; ++pass) {  // how many are above the threshold; then who stays
    const unsigned below = (1u << lane) - 1;
    int64_t at = r * a.k + first / a.group * a.kept;
    int equal_left = int(a.kept) - above;
    const auto visit = [&](int64_t i, Key key) {
      const unsigned more = __ballot_sync(kFullMask, key > threshold);
      if (pass == 0) {
        above += __popc(more);
        return;
      }
      const unsigned equal = __ballot_sync(kFullMask, key == threshold);
      const bool kept = (more >> lane & 1) || ((equal >> lane & 1) && __popc(equal & below) < equal_left);
      const unsigned stay = __ballot_sync(kFullMask, kept);
      if (kept) {
        const int64_t c = i * kWarp + lane, place = at + __popc(stay & below);
        a.values[place] = x[c];
        a.index[place] = static_cast<I>(first + c);
      }
      at += __popc(stay);
      equal_left -= __popc(equal);
    };
    if constexpr (C > 0) {
#pragma unroll
      for (int i = 0; i < C; ++i) visit(i, held[i]);
    } else {
      for (int64_t i = 0; i < chunks; ++i) visit(i, read(i * kWarp + lane));
    }
  }
}

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_groups_kernel(MaxkArguments<T, I> a) {
  const int lane = threadIdx.x % kWarp, size = static_cast<int>(a.group);
  const int64_t chunks = ceil_div(a.width, kWarp), unit = int64_t{blockIdx.x} * kMaxkWarps + threadIdx.x / kWarp;
  if (unit >= a.rows * chunks) return;
  const int64_t r = unit / chunks, first = unit % chunks * kWarp, c = first + lane;
  const bool exists = c < a.width;
  const T x = exists ? a.x[r * a.width + c] : T{};
  const auto key = to_maxk_key(to_acc(x));
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

// A warp for a row: zeros, then the values over them.
template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_expand_kernel(MaxkCopyArguments<T, I> a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t r = int64_t{blockIdx.x} * kMaxkWarps + threadIdx.x / kWarp;
  if (r >= a.rows) return;
  T* y = a.to + r * a.width;
  for (int64_t c = lane; c < a.width; c += kWarp) y[c] = from_acc<T>(0);
  __syncwarp();
  for (int64_t t = lane; t < a.k; t += kWarp) y[a.index[r * a.k + t]] = a.from[r * a.k + t];
}

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_gather_kernel(MaxkCopyArguments<T, I> a) {
  const int64_t i = int64_t{blockIdx.x} * kMaxkThreads + threadIdx.x;
  if (i < a.rows * a.k) a.to[i] = a.from[i / a.k * a.width + a.index[i]];
}

template <typename T, typename I>
cudaError_t launch_maxk(const MaxkArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.k == 0) return cudaSuccess;
  const bool small = a.group <= kWarp && (a.group & (a.group - 1)) == 0 && a.group < a.width;
  const int64_t units = a.rows * (small ? ceil_div(a.width, kWarp) : a.width / a.group);
  const dim3 grid(static_cast<unsigned>(ceil_div(units, kMaxkWarps)));
  const auto kernel = small             ? maxk_groups_kernel<T, I>
                      : a.group <= 64   ? maxk_select_kernel<T, I, 2>
                      : a.group <= 256  ? maxk_select_kernel<T, I, 8>
                      : a.group <= 1024 ? maxk_select_kernel<T, I, 32>
                                        : maxk_select_kernel<T, I, 0>;
  return launch(kernel, grid, kMaxkThreads, 0, stream, a);
}

template <typename T, typename I>
cudaError_t launch_maxk_expand(const MaxkCopyArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.rows, kMaxkWarps)));
  return launch(maxk_expand_kernel<T, I>, grid, kMaxkThreads, 0, stream, a);
}

template <typename T, typename I>
cudaError_t launch_maxk_gather(const MaxkCopyArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows * a.k == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.rows * a.k, kMaxkThreads)));
  return launch(maxk_gather_kernel<T, I>, grid, kMaxkThreads, 0, stream, a);
}

}  // namespace sparsegnn::cuda
