// maxk / cuda
//
//   of every row of x [N, F], or of every group of its columns, the k largest entries: values[n, :], and their columns
//   index[n, :], ascending. NaN is largest, -0 equals 0, and of equals the lower columns are kept
//   maxk_expand: y[n, index[n, t]] = values[n, t], 0 elsewhere;   maxk_gather: values[n, t] = x[n, index[n, t]]
//
// layout     x, y row-major; index uint8_t up to 256 columns, int16_t above
// work       N * (F * s + k * (s + 1)) bytes; no flop
// schedule   a warp takes a row, or one group of its columns: 128-bit loads, keys in registers up to 1024 columns, the
//            threshold by bracketing as on the CPU, a warp's sum for every count; what stays is collected in shared
//            memory and leaves in whole sectors. Groups of 4, 8 and 16 columns: a thread takes a group and compares
//            every pair; of 2 and 32: a warp takes 32 columns and compares by shuffles
// numerics   comparisons of integers; the same choice as on the CPU
// see        sparsegnn/ops/maxk.py, tests/csrc/test_maxk.py, benchmarks/ops/bench_maxk.py
#pragma once
#include "maxk_key.cuh"

namespace sparsegnn::cuda {

template <typename T, typename I>
struct MaxkArguments {  // device pointers
  const T* x;
  T* values;
  I* index;
  int64_t rows, width, k, group, kept;  // columns of a group, and how many of them stay
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
constexpr int64_t kMaxkStaged = 2048;  // columns of a row that maxk_expand makes in shared memory

// A warp's columns: a lane has V neighbouring ones of every chunk of 32 * V. Their keys are in registers (C chunks), or
// made anew each time (C = 0); 0 where there is no column.
template <typename T, int V, int C>
struct MaxkColumns {
  using Key = maxk_key<T>;
  const T* x;
  int count, lane;
  Key held[C > 0 ? C* V : 1];

  __device__ MaxkColumns(const T* columns, int64_t number)
      : x(columns), count(static_cast<int>(number)), lane(threadIdx.x % kWarp) {}

  __device__ __forceinline__ int column(int chunk) const { return (chunk * kWarp + lane) * V; }

  template <typename F>
  __device__ __forceinline__ void read(int chunk, Key* key, const F& seen) const {
    for (int i = 0; i < V; ++i) key[i] = 0;
    if (column(chunk) >= count) return;
    const vec<T, V> v = load<V>(x + column(chunk));  // count is a multiple of V
    for (int i = 0; i < V; ++i) key[i] = to_maxk_key(v[i]), seen(to_acc(v[i]));
  }

  // f(chunk, keys of V columns).
  template <typename F>
  __device__ __forceinline__ void each(const F& f) const {
    if constexpr (C > 0) {
#pragma unroll
      for (int i = 0; i < C; ++i) f(i, held + i * V);
    } else {
      for (int i = 0; i * kWarp * V < count; ++i) {
        Key key[V];
        read(i, key, [](acc_t<T>) {});
        f(i, key);
      }
    }
  }

  // Mean and standard deviation; takes the keys into registers on the way.
  __device__ __forceinline__ void moments(acc_t<T>& mean, acc_t<T>& deviation) {
    acc_t<T> sum = 0, square = 0;
    const auto seen = [&](acc_t<T> v) { sum += v, square += v * v; };
    if constexpr (C > 0) {
#pragma unroll
      for (int i = 0; i < C; ++i) read(i, held + i * V, seen);
    } else {
      Key key[V];
      for (int i = 0; i * kWarp * V < count; ++i) read(i, key, seen);
    }
    mean = warp_sum(sum) / acc_t<T>(count);
    const acc_t<T> variance = warp_sum(square) / acc_t<T>(count) - mean * mean;
    deviation = variance > 0 ? acc_t<T>(sqrtf(static_cast<float>(variance))) : acc_t<T>(0);
  }

  __device__ __forceinline__ int at_least(Key key) const {
    int n = 0;
    each([&](int, const Key* k) {
      for (int i = 0; i < V; ++i) n += k[i] >= key;
    });
    return __reduce_add_sync(kFullMask, n);
  }
};

// The set bits of the lanes below, plus `before`, to which those of all lanes are added.
__device__ __forceinline__ int maxk_number(unsigned bits, int& before) {
  const int lane = threadIdx.x % kWarp, own = __popc(bits);
  int sum = own;
  for (int o = 1; o < kWarp; o *= 2) {
    const int lower = __shfl_up_sync(kFullMask, sum, o);
    if (lane >= o) sum += lower;
  }
  const int number = before + sum - own;
  before += __shfl_sync(kFullMask, sum, kWarp - 1);
  return number;
}

template <int E, typename T>
__device__ void maxk_copy(const T* from, T* to, int count) {
  for (int t = threadIdx.x % kWarp * E; t < count; t += kWarp * E)
    store(to + t, *reinterpret_cast<const vec<T, E>*>(from + t));
}

// `wide`: what stays of a row leaves four entries at a time.
template <typename T, typename I, int V, int C>
__global__ void __launch_bounds__(kMaxkThreads)
    maxk_select_kernel(MaxkArguments<T, I> a, MaxkGuess guess, int staged_bytes, bool wide) {
  using Key = maxk_key<T>;
  SG_SHARED(unsigned char, staging);
  const int64_t parts = a.width / a.group, unit = int64_t{blockIdx.x} * kMaxkWarps + threadIdx.x / kWarp;
  if (unit >= a.rows * parts) return;
  const int first = static_cast<int>(unit % parts * a.group), kept = static_cast<int>(a.kept);
  MaxkColumns<T, V, C> columns(a.x + unit / parts * a.width + first, a.group);
  acc_t<T> mean, deviation;
  columns.moments(mean, deviation);
  MaxkBracket<T> bracket(mean, deviation, guess, columns.count, kept);
  while (bracket.open()) {
    const Key key = bracket.next();
    bracket.put(key, columns.at_least(key));
  }
  T* value = a.values + unit * kept;
  I* index = a.index + unit * kept;
  if constexpr (C > 0) {
    value = reinterpret_cast<T*>(staging + threadIdx.x / kWarp * staged_bytes);
    index = reinterpret_cast<I*>(value + kept);
  }
  const Key low = bracket.low, high = bracket.high;
  const int equals = kept - bracket.high_count;  // the first of those that are equal to low stay too
  int before = 0, equal_before = 0;
  columns.each([&](int chunk, const Key* key) {
    unsigned stay = 0;
    for (int i = 0; i < V; ++i) stay |= unsigned(key[i] >= high) << i;
    if (equals > 0) {
      unsigned equal = 0;
      for (int i = 0; i < V; ++i) equal |= unsigned(key[i] == low) << i;
      int number = maxk_number(equal, equal_before);
      for (int i = 0; i < V; ++i)
        if (equal >> i & 1) stay |= unsigned(number++ < equals) << i;
    }
    int place = maxk_number(stay, before);
    if (stay == 0) return;
    const vec<T, V> x = load<V>(columns.x + columns.column(chunk));
    for (int i = 0; i < V; ++i) {
      if (!(stay >> i & 1)) continue;
      value[place] = x[i];
      index[place++] = static_cast<I>(first + columns.column(chunk) + i);
    }
  });
  if constexpr (C == 0) return;
  __syncwarp();
  if (wide)
    maxk_copy<4>(value, a.values + unit * kept, kept), maxk_copy<4>(index, a.index + unit * kept, kept);
  else
    maxk_copy<1>(value, a.values + unit * kept, kept), maxk_copy<1>(index, a.index + unit * kept, kept);
}

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
    maxk_copy<V>(y, a.to + r * a.width, static_cast<int>(a.width));
  }
}

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkThreads) maxk_gather_kernel(MaxkCopyArguments<T, I> a) {
  const int64_t i = int64_t{blockIdx.x} * kMaxkThreads + threadIdx.x;
  if (i < a.rows * a.k) a.to[i] = a.from[i / a.k * a.width + a.index[i]];
}

// ---- launchers

inline dim3 maxk_grid(int64_t items, int64_t each) { return dim3(static_cast<unsigned>(ceil_div(items, each))); }

template <int V, typename T, typename I>
cudaError_t launch_maxk_select(const MaxkArguments<T, I>& a, cudaStream_t stream) {
  const auto fits = [&](int64_t keys) { return a.group <= keys * kWarp; };
  auto kernel = V <= 4 && fits(4) ? maxk_select_kernel<T, I, V, max(1, 4 / V)> : maxk_select_kernel<T, I, V, 8 / V>;
  if constexpr (sizeof(I) > 1)  // else there are at most 256 columns
    kernel = fits(8)    ? kernel
             : fits(16) ? maxk_select_kernel<T, I, V, 16 / V>
             : fits(32) ? maxk_select_kernel<T, I, V, 32 / V>
                        : maxk_select_kernel<T, I, V, 0>;
  const int bytes = fits(32) ? static_cast<int>(ceil_div(a.kept * (sizeof(T) + sizeof(I)), 16) * 16) : 0;
  return launch(kernel, maxk_grid(a.rows * (a.width / a.group), kMaxkWarps), kMaxkThreads, kMaxkWarps * bytes, stream,
                a, maxk_guess(a.group, a.kept), bytes, can_vectorise(4, a.kept, a.values, a.index));
}

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
