// maxk, the largest entries of rows and of wide groups / cuda
//
// layout     as maxk.cuh
// work       of a row of 256 fp32 columns about a thousand instructions of a warp for four rows, most of them counts
// schedule   L lanes take a row, or one group of its columns. The row passes through shared memory, so that global
//            memory is read 128 bits at a time by neighbouring lanes, and yet a lane has K neighbouring columns: what
//            stays of them is in order, and its place is a sum over the lanes below. A row too wide for registers is
//            read anew for every count
// numerics   comparisons of the numbers, NaN above all; thresholds are halved as integers in their order
// see        maxk.cuh, maxk_key.cuh
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

constexpr int kMaxkThreads = 256, kMaxkWarps = kMaxkThreads / kWarp;

inline dim3 maxk_grid(int64_t items, int64_t each) { return dim3(static_cast<unsigned>(ceil_div(items, each))); }

template <int E, int L, typename T>
__device__ void maxk_copy(const T* from, T* to, int count) {
#pragma unroll 1
  for (int t = threadIdx.x % L * E; t < count; t += L * E) store(to + t, *reinterpret_cast<const vec<T, E>*>(from + t));
}

// The columns of L lanes. K > 0: each has K neighbours in registers, -infinity where there is no column. K = 0: V
// neighbours of every chunk of L * V, read anew each time.
template <typename T, int V, int K, int L>
struct MaxkColumns {
  using A = acc_t<T>;
  static constexpr int kHeld = K > 0 ? K : V;  // values that a lane looks at together
  const T* x;
  int count, lane;
  bool finite;  // no NaN, no infinity in any row of the warp
  A held[kHeld];

  __device__ MaxkColumns(const T* columns, int64_t number)
      : x(columns), count(static_cast<int>(number)), lane(threadIdx.x % L) {}

  __device__ __forceinline__ int column(int chunk) const { return (chunk * L + lane) * kHeld; }

  // Columns [column, column + V), of which there are all or none.
  __device__ __forceinline__ vec<T, V> read(int column) const {
    vec<T, V> v;
    for (int i = 0; i < V; ++i) v[i] = from_acc<T>(-A(INFINITY));
    return column < count ? load<V>(x + column) : v;
  }

  // Where in shared memory a column is: eight lanes that read 16 bytes of theirs find them in different banks.
  static __device__ __forceinline__ int place(int column) {
    constexpr int kUnit = 16 / int(sizeof(T)), kUnits = max(1, K / kUnit);  // units of 16 bytes of a lane
    const int lane = column / max(1, K);
    return column ^ lane * min(kUnits, 8) / 8 % kUnits * kUnit;
  }

  // Takes the row into registers by way of `row`, L * K elements of shared memory, where it stays.
  __device__ __forceinline__ void take(T* row) {
    constexpr int kUnit = 16 / int(sizeof(T));
    vec<T, V> v[K / V];
    if (count == L * K)
#pragma unroll
      for (int i = 0; i < K / V; ++i) v[i] = load<V>(x + lane * V + i * L * V);
    else
#pragma unroll
      for (int i = 0; i < K / V; ++i) v[i] = read((i * L + lane) * V);
#pragma unroll
    for (int i = 0; i < K / V; ++i) store(row + place((i * L + lane) * V), v[i]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < K; i += kUnit) {
      const auto u = *reinterpret_cast<const vec<T, kUnit>*>(row + place(column(0) + i));
      for (int j = 0; j < kUnit; ++j) held[i + j] = to_acc(u[j]);
    }
  }

  // f(first column, values of kHeld columns).
  template <typename F>
  __device__ __forceinline__ void each(const F& f) const {
    if constexpr (K > 0) {
      f(column(0), held);
    } else {
      for (int chunk = 0; chunk * L * V < count; ++chunk) {
        A values[V];
        const vec<T, V> v = read(column(chunk));
        for (int i = 0; i < V; ++i) values[i] = to_acc(v[i]);
        f(column(chunk), values);
      }
    }
  }

  // Mean and standard deviation.
  __device__ __forceinline__ void moments(MaxkGuess guess, A& mean, A& deviation) {
    A sum = 0, square = 0;
    each([&](int first, const A(&v)[kHeld]) {
      if (count == L * K)  // no column is missing
        for (int i = 0; i < kHeld; ++i) sum += v[i], square += v[i] * v[i];
      else
        for (int i = 0; i < kHeld; ++i)
          if (first + i < count) sum += v[i], square += v[i] * v[i];
    });
    mean = warp_sum(sum, L) * A(guess.column);
    square = warp_sum(square, L);
    const A variance = square * A(guess.column) - mean * mean;
    deviation = variance > 0 ? A(sqrtf(static_cast<float>(variance))) : A(0);
    finite = __all_sync(kFullMask, square < A(INFINITY));
  }

  // f(i, 1 or 0): is value i at or above `least`, or if `nan` NaN? A float, because one instruction makes it.
  template <bool kFinite, typename F>
  static __device__ __forceinline__ void compare(const A (&v)[kHeld], A least, bool nan, const F& f) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) f(i, v[i] >= least || (!kFinite && nan && v[i] != v[i]) ? 1.0f : 0.0f);
  }
  // Bit i: column first + i is there, and at or above a key.
  template <bool kFinite>
  __device__ __forceinline__ uint32_t at_least(int first, const A (&v)[kHeld], maxk_key<T> key) const {
    static_assert(kHeld <= 32);
    float half[2] = {};  // of the bits, exact
    compare<kFinite>(v, from_maxk_key<T>(key), key < MaxkBracket<T>::top,
                     [&](int i, float above) { half[i / 16] += above * static_cast<float>(1 << i % 16); });
    const uint32_t bits = static_cast<uint32_t>(half[0]) | static_cast<uint32_t>(half[1]) << 16;
    const int there = count - first;
    return there >= kHeld ? bits : there <= 0 ? 0 : bits & ((1u << there) - 1);
  }
  // How many of the row are at or above `least`, more than -infinity, or NaN.
  template <bool kFinite>
  __device__ __forceinline__ float number_at_least(A least) const {
    float n = 0;
    each([&](int, const A(&v)[kHeld]) { compare<kFinite>(v, least, true, [&](int, float above) { n += above; }); });
    return warp_sum(n, L);
  }
};

// The set bits of the lanes below, plus `before`, to which those of all L lanes are added.
template <int L>
__device__ __forceinline__ int maxk_number(uint32_t bits, int& before) {
  const int lane = threadIdx.x % L, own = __popc(bits);
  int sum = own;
#pragma unroll
  for (int o = 1; o < L; o *= 2) {
    const int lower = __shfl_up_sync(kFullMask, sum, o, L);
    if (lane >= o) sum += lower;
  }
  const int number = before + sum - own;
  before += __shfl_sync(kFullMask, sum, L - 1, L);
  return number;
}

// Finds the threshold and writes what stays to `value` and `index`; first: the group's first column; row: where the
// row is in shared memory. All lanes of the warp come, and go on until the rows of all of them are done.
template <bool kFinite, typename T, typename I, int V, int K, int L>
__device__ __forceinline__ void maxk_choose(const MaxkColumns<T, V, K, L>& columns, MaxkBracket<T>& bracket, int kept,
                                            int first, const T* row, T* value, I* index) {
  using Columns = MaxkColumns<T, V, K, L>;
#pragma unroll 1
  for (int round = 0; __any_sync(kFullMask, bracket.open()); ++round) {
    const maxk_key<T> key = bracket.template next<kFinite>(round);
    const acc_t<T> least = from_maxk_key<T>(key);
    bracket.put(key, least, columns.template number_at_least<kFinite>(least), round);
  }
  const int equals = kept - static_cast<int>(bracket.high_count);  // the first of those equal to low stay too
  const bool any_equals = __any_sync(kFullMask, equals > 0);
  int before = 0, equal_before = 0;
  columns.each([&](int column, const acc_t<T>(&v)[Columns::kHeld]) {
    uint32_t stay = columns.template at_least<kFinite>(column, v, bracket.high);
    if (any_equals) {
      uint32_t equal = columns.template at_least<kFinite>(column, v, bracket.low) & ~stay;
      int left = equals - maxk_number<L>(equal, equal_before);
      for (; equal != 0 && left > 0; equal &= equal - 1, --left) stay |= equal & -equal;
    }
    const int place = maxk_number<L>(stay, before), at = K > 0 ? Columns::place(column) : 0;
    T* to = value + place;
    I* column_to = index + place;
#pragma unroll 1
    for (; stay != 0; stay &= stay - 1) {
      const int i = __ffs(static_cast<int>(stay)) - 1;
      *to++ = K > 0 ? row[at ^ i] : columns.x[column + i];
      *column_to++ = static_cast<I>(first + column + i);
    }
  });
}

// parts: groups of a row; staged_bytes: of shared memory for one. `wide`: what stays of a row leaves four entries at a
// time.
template <typename T, typename I, int V, int K, int L>
__global__ void __launch_bounds__(kMaxkThreads, L == kWarp && K == 32 ? 2 : 3)
    maxk_select_kernel(MaxkArguments<T, I> a, int64_t parts, MaxkGuess guess, int staged_bytes, bool wide) {
  static_assert(L == kWarp || K > 0);
  SG_SHARED(unsigned char, staging);
  T* row = reinterpret_cast<T*>(staging + threadIdx.x / L * staged_bytes);
  const int64_t units = a.rows * parts;
  const int64_t own = int64_t{blockIdx.x} * (kMaxkThreads / L) + threadIdx.x / L, unit = min(own, units - 1);
  if (own - threadIdx.x % kWarp / L >= units) return;  // the warp has none
  const int64_t r = parts == 1 ? unit : unit / parts;
  const int first = static_cast<int>((unit - r * parts) * a.group), kept = static_cast<int>(a.kept);
  MaxkColumns<T, V, K, L> columns(a.x + r * a.width + first, a.group);
  if constexpr (K > 0) columns.take(row);
  acc_t<T> mean, deviation;
  columns.moments(guess, mean, deviation);
  MaxkBracket<T> bracket(mean, deviation, guess, columns.count, kept);
  T* value = K > 0 ? row + L * K : a.values + unit * kept;
  I* index = K > 0 ? reinterpret_cast<I*>(value + kept) : a.index + unit * kept;
  if (columns.finite)
    maxk_choose<true>(columns, bracket, kept, first, row, value, index);
  else
    maxk_choose<false>(columns, bracket, kept, first, row, value, index);
  if constexpr (K == 0) return;
  __syncwarp();
  if (own >= units) return;
  if (wide)
    maxk_copy<4, L>(value, a.values + unit * kept, kept), maxk_copy<4, L>(index, a.index + unit * kept, kept);
  else
    maxk_copy<1, L>(value, a.values + unit * kept, kept), maxk_copy<1, L>(index, a.index + unit * kept, kept);
}

template <int V, typename T, typename I>
cudaError_t launch_maxk_select(const MaxkArguments<T, I>& a, cudaStream_t stream) {
  const auto run = [&](auto kernel, int64_t columns, int lanes) {
    const int64_t row = columns * sizeof(T) + a.kept * (sizeof(T) + sizeof(I));  // and what stays of it
    const int bytes = columns == 0 ? 0 : static_cast<int>(ceil_div(row, 16) * 16);
    const int units = kMaxkThreads / lanes;  // of a block
    const int64_t parts = a.width / a.group;
    return launch(kernel, maxk_grid(a.rows * parts, units), kMaxkThreads, size_t(units) * bytes, stream, a, parts,
                  maxk_guess(a.group, a.kept), bytes, can_vectorise(4, a.kept, a.values, a.index));
  };
  if (a.group <= 128) return run(maxk_select_kernel<T, I, V, 16, 8>, 128, 8);
  if constexpr (sizeof(T) < 8)  // rows of doubles would take too much shared memory
    if (a.group <= 256) return run(maxk_select_kernel<T, I, V, 32, 8>, 256, 8);
  if constexpr (sizeof(I) > 1 || sizeof(T) == 8)
    if (a.group <= 512) return run(maxk_select_kernel<T, I, V, 16, kWarp>, 512, kWarp);
  if constexpr (sizeof(I) > 1) {
    if constexpr (sizeof(T) < 8)
      if (a.group <= 1024) return run(maxk_select_kernel<T, I, V, 32, kWarp>, 1024, kWarp);
    return run(maxk_select_kernel<T, I, V, 0, kWarp>, 0, kWarp);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsegnn::cuda
