// maxk_spmm, a row of sums / cuda
//
//   of a warp, in shared memory: cleared, a few edges added at once, read out column by column; see maxk_spmm.cuh
#pragma once
#include "../common/segments.cuh"

namespace sparsegnn::cuda {

template <typename T, typename I>
struct MaxkSpmmArguments {  // device pointers; null where absent
  const T* values;
  const I* index;
  const int32_t *crow, *col;
  const T* val;
  const acc_t<T>*row_scale, *col_scale, *diag;
  T* y;
  int64_t rows, edges, width, k;
  bool mean;
  int64_t group = 0;  // columns of a group, each of which keeps equally many; 0: rows are not known to be grouped
};

constexpr int kMaxkSpmmThreads = 256, kMaxkSpmmWarps = kMaxkSpmmThreads / kWarp;
constexpr int64_t kMaxkSpmmColumns = 2048;  // of a row of sums: 8 of 2048 doubles are 128 KB

// How the lanes of a warp share the kept entries of an edge, and where their sums are.
struct MaxkLayout {
  int vector = 1;   // entries of one load
  int lanes = 32;   // of an edge
  int copies = 1;   // of the sums: 32 / lanes edges at once
  int entries = 1;  // neighbouring entries of a lane, and
  int span = 0;     // the columns they lie in: whole groups; 0 in rows without groups
  int words = 0;    // of the sums of a warp
  int stride = 0;   // of a copy, in rows without groups
};

// More edges at once mean wider loads, but more sums to clear and to add: sums of 4 KB for a warp in graphs of long
// rows, else no more than a row of y.
template <typename T, typename I>
MaxkLayout maxk_layout(const MaxkSpmmArguments<T, I>& a) {
  const int64_t columns = ceil_div(min(a.width, kMaxkSpmmColumns), 4) * 4;
  const int64_t room = a.edges >= 32 * a.rows ? max<int64_t>(4096 / sizeof(acc_t<T>), columns) : columns;
  constexpr int most = min(4, kVector<T>);
  const auto widest = [&](int64_t entries) {
    int V = most;
    while (V > 1 && (entries % V != 0 || !can_vectorise(V, a.k, a.values) || !can_vectorise(V, a.k, a.index))) V /= 2;
    return V;
  };
  MaxkLayout l;
  const auto share = [&](int64_t shares) { l.lanes = group_lanes(shares), l.copies = kWarp / l.lanes; };
  const int64_t groups = a.group > 0 && a.width % a.group == 0 ? a.width / a.group : 0;
  if (groups > 0 && a.k % groups == 0 && a.width <= kMaxkSpmmColumns) {
    for (int64_t several = 4; several >= 1; several /= 2) {  // groups of a lane
      if (groups % several != 0) continue;
      share(groups / several);
      l.span = static_cast<int>(several * a.group), l.entries = static_cast<int>(several * (a.k / groups));
      l.vector = widest(l.entries), l.words = static_cast<int>(ceil_div(groups / several, l.lanes) * l.span * kWarp);
      if (l.words <= room) return l;
    }
    if (l.words <= min<int64_t>(2 * columns, 16384 / sizeof(acc_t<T>))) return l;
  }
  l.span = 0, l.stride = static_cast<int>(columns);
  for (l.vector = widest(most); l.vector >= 1; l.vector /= 2) {
    share(ceil_div(a.k, l.vector));
    l.entries = l.vector, l.words = l.copies * l.stride;
    if (l.words <= room) return l;
  }
  share(kWarp);
  l.vector = l.entries = 1, l.words = l.stride;
  return l;
}

// What every edge of row r counts, besides its own weight.
template <typename T, typename I>
__device__ __forceinline__ acc_t<T> maxk_row_factor(const MaxkSpmmArguments<T, I>& a, int64_t r) {
  const int64_t degree = a.crow[r + 1] - a.crow[r];
  const acc_t<T> scale = a.row_scale ? a.row_scale[r] : acc_t<T>(1);
  return a.mean && degree > 1 ? scale / acc_t<T>(degree) : scale;
}

// A row of sums, as a warp sees it.
template <typename T, typename I, int V, bool kGrouped>
struct MaxkSums {
  using A = acc_t<T>;
  static constexpr int U = V == 1 && sizeof(A) == 4 ? 4 : 2;  // edges whose loads are on their way at once
  const MaxkSpmmArguments<T, I>& a;
  const MaxkLayout& l;
  A* sum;
  int first, columns, k;  // of the row
  int lane, part, copy, copies;

  __device__ MaxkSums(const MaxkSpmmArguments<T, I>& arguments, const MaxkLayout& layout, A* sums)
      : a(arguments),
        l(layout),
        sum(sums + threadIdx.x / kWarp * layout.words),
        first(static_cast<int>(int64_t{blockIdx.y} * kMaxkSpmmColumns)),
        columns(static_cast<int>(min(kMaxkSpmmColumns, arguments.width - first))),
        k(static_cast<int>(arguments.k)),
        lane(threadIdx.x % kWarp),
        part(lane & (layout.lanes - 1)),
        copy(lane * layout.copies / kWarp),
        copies(layout.copies) {}

  __device__ void clear() {
    __syncwarp();
    for (int w = 4 * lane; w < l.words; w += 4 * kWarp) store(sum + w, vec<A, 4>{});
    __syncwarp();
  }

  // Entry t and its followers of U edges from `row`, for the lanes that have one (u * copies <
  // rest): read all, then add one edge after the other. `origin`: what is taken from a column; `base`: the place of
  // the lane's first sum.
  __device__ __forceinline__ void add(const int32_t (&row)[U], const A (&weight)[U], int rest, int t, int origin,
                                      int base) {
    vec<T, V> x[U];
    vec<I, V> c[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u * copies >= rest) continue;
      const int64_t at = int64_t{row[u]} * k + t;
      x[u] = load<V>(a.values + at);
      if constexpr (V * sizeof(I) == 1) c[u][0] = a.index[at];
      if constexpr (V * sizeof(I) > 1) c[u] = load<V>(a.index + at);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u * copies < rest) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const unsigned at = static_cast<unsigned>(int(c[u][v]) - origin);
          if constexpr (kGrouped) sum[base + min(at, unsigned(l.span - 1)) * kWarp] += weight[u] * to_acc(x[u][v]);
          if constexpr (!kGrouped)
            if (at < unsigned(columns)) sum[base + at] += weight[u] * to_acc(x[u][v]);
        }
      }
      if (!kGrouped) __syncwarp();  // the next edge may have the same columns in other lanes
    }
  }

  // Edges [begin, end) of row r, after the node itself if `self`.
  __device__ void walk(int64_t r, int64_t begin, int64_t end, bool self) {
    const int64_t count = end - begin + self;
#pragma unroll 1
    for (int64_t at = 0; at < count; at += kWarp) {
      const int n = static_cast<int>(min<int64_t>(kWarp, count - at));
      int32_t mine = 0;
      A own = 0;
      if (lane < n) {
        const bool node = self && at + lane == 0;
        const int64_t e = begin + at + lane - self;
        mine = node ? static_cast<int32_t>(r) : a.col[e];
        own = node ? a.diag[r] : a.val ? to_acc(a.val[e]) : A(1);
        if (a.col_scale) own *= a.col_scale[mine];
      }
#pragma unroll 1
      for (int b = 0; b < n; b += copies * U) {
        int32_t row[U];
        A weight[U];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int slot = (b + u * copies + copy) % kWarp;
          row[u] = __shfl_sync(kFullMask, mine, slot), weight[u] = __shfl_sync(kFullMask, own, slot);
        }
        const int rest = n - b - copy;  // of the edges of this copy, `copies` apart
        if constexpr (kGrouped) {
          int band = part, origin = part * l.span, base = lane;
#pragma unroll 1
          for (; origin < columns; band += l.lanes, origin += l.lanes * l.span, base += l.span * kWarp)
#pragma unroll 1
            for (int t = band * l.entries; t < (band + 1) * l.entries; t += V) add(row, weight, rest, t, origin, base);
        } else {
#pragma unroll 1
          for (int t = part * V; t - part * V < k; t += l.lanes * V)
            add(row, weight, t < k ? rest : 0, t, first, copy * l.stride);
        }
      }
    }
    __syncwarp();
  }

  // f(column, sums of E columns), every column once.
  template <int E, typename F>
  __device__ void each(const F& f) const {
    if constexpr (kGrouped) {
#pragma unroll 1
      for (int band = 0; band * l.span * kWarp < l.words; ++band) {
        const int origin = (band * l.lanes + part) * l.span;
#pragma unroll 1
        for (int row = copy * E; row < l.span; row += copies * E) {
          const A* from = sum + (band * l.span + row) * kWarp + part;
          vec<A, E> total = {};
#pragma unroll 2
          for (int u = 0; u < copies; ++u) {  // every copy begins with its own sums: lanes keep to their banks
            const int at = ((copy + u) & (copies - 1)) * l.lanes;
            for (int i = 0; i < E; ++i) total[i] += from[i * kWarp + at];
          }
          if (origin < columns) f(origin + row, total);
        }
      }
    } else {
#pragma unroll 1
      for (int c = lane * E; c < columns; c += kWarp * E) {
        vec<A, E> total = {};
#pragma unroll 2
        for (int u = 0; u < copies; ++u) {
          const auto from = *reinterpret_cast<const vec<A, E>*>(sum + u * l.stride + c);
          for (int i = 0; i < E; ++i) total[i] += from[i];
        }
        f(first + c, total);
      }
    }
  }
};

}  // namespace sparsegnn::cuda
