// spmm_linear, a tile of aggregated rows / cuda
//
//   tile[k, n] = row_scale[r] * (sum over the edges e of row r of  val[e] * col_scale[col[e]] * x[col[e], k]
//                                + diag[r] * col_scale[r] * x[r, k])          r = sample + n
//
// layout     as spmm.cuh; the tile is LinearTile's: transposed, [columns][samples], in T
// work       E*K*s bytes from L2 or memory, and E/window*K sums of long rows
// schedule   the edges of the tile's rows and one item a row for the diagonal are cut into equal shares, one for each
//            group of 1..32 lanes, so that a hub is shared by the block's warps. A lane has 16 bytes of one or two
//            pieces of a row (else single columns), and all loads of 4 or 8 edges are on their way at once. What a
//            share has of a row that began in an earlier one is left in shared memory and added by the share in which
//            the row began. Rows of more than `window` edges are summed before, by the windows of common/segments.cuh,
//            for one block would take too long
// numerics   sums in acc_t<T>; shares and windows depend on the pattern alone: the same bits in every run
// see        spmm_linear.cuh, spmm_linear_backward.cuh, tests/csrc/test_spmm_linear.py
#pragma once
#include "sparse_linear.cuh"
#include "spmm.cuh"

namespace sparsegnn::cuda {

constexpr int64_t kGatherPieces = 8 * 1024;  // bytes of shared memory: eight words a lane

// Bytes before the tile: pieces of rows, later outputs on their way to memory; and where the rows begin.
__host__ __device__ constexpr int64_t gather_scratch(int n, int64_t element_size) {
  return max<int64_t>(kGatherPieces, linear_outputs_bytes(n, element_size));
}
__host__ __device__ constexpr int64_t gather_bytes(int n, int64_t element_size) {
  return gather_scratch(n, element_size) + ceil_div((kWarp * n + 1) * 4, 16) * 16;
}

// ---- long rows

// Edges of the longest row that is left to a block: a power of two.
inline int64_t gather_window(int64_t edges) {
  int64_t window = 1024;
  while (window * 16384 < edges) window *= 2;
  return window;
}

inline int64_t gather_windows(int64_t edges, int64_t window) { return edges > window ? ceil_div(edges, window) : 0; }

// sums[first edge of row r / window, :] of the rows longer than a window: no two of them begin in one window.
template <typename T, int V>
struct LongRowOp : SumOp<T, V, Weights::any> {
  using typename SumRowOp<T, V>::State;
  int64_t window;
  acc_t<T>* sums;

  __device__ void finish(int64_t r, int64_t j, int64_t, const State& sum) const {
    store(sums + this->a.crow[r] / window * this->a.width + j, sum);
  }
};

// The matrix, the source of the rows, and how they are gathered.
template <typename T>
struct RowGather {
  SpmmArguments<T> a;  // y and arg are not used
  int64_t window;
  acc_t<T>* sums;  // null where no row is longer than a window
  bool vectors;
  int lanes, share_bits;  // lanes of a group; 2^share_bits groups in a block
};

template <typename T>
constexpr int kGatherParts = sizeof(T) == 2 ? 1 : 2;  // vectors of a lane

template <typename T>
RowGather<T> row_gather(const SpmmArguments<T>& a, int64_t window) {
  RowGather<T> g = {a, window, nullptr, can_vectorise(kVector<T>, a.width, a.x), 0, 0};
  g.lanes = group_lanes(ceil_div(a.width, g.vectors ? kVector<T> * kGatherParts<T> : 4));
  while (g.lanes << g.share_bits < kLinearThreads) ++g.share_bits;
  return g;
}

template <typename T>
int64_t long_rows_workspace_bytes(int64_t edges, int64_t width, int64_t window) {
  return 3 * gather_windows(edges, window) * width * sizeof(acc_t<T>);  // sums, and two pieces a window
}

template <typename T, int V>
cudaError_t launch_long_rows_vectors(const RowGather<T>& g, void* pieces, cudaStream_t stream) {
  RowSegments s = {g.a.crow, g.a.rows, g.a.width, g.a.edges};
  s.lanes = group_lanes(g.a.width / V);
  cut_segments(s, g.window);
  s.units = s.halves;  // no row that is one span
  using Op = LongRowOp<T, V>;
  return launch_units<Op>(Op{{{g.a, false}}, g.window, g.sums}, s, s.halves, pieces, stream);
}

// Sums the long rows. workspace: long_rows_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_long_rows(RowGather<T>& g, void* workspace, cudaStream_t stream) {
  const int64_t windows = gather_windows(g.a.edges, g.window);
  if (windows == 0 || g.a.rows == 0 || g.a.width == 0) return cudaSuccess;
  g.sums = static_cast<acc_t<T>*>(workspace);
  void* pieces = g.sums + windows * g.a.width;
  return g.vectors ? launch_long_rows_vectors<T, kVector<T>>(g, pieces, stream)
                   : launch_long_rows_vectors<T, 1>(g, pieces, stream);
}

// ---- the tile

template <typename T, int NL, int V>
struct TileGather {
  using A = acc_t<T>;
  using Tile = LinearTile<T, NL>;
  static constexpr int R = V == 1 ? 4 : kGatherParts<T>, U = R == 1 ? 8 : 4;
  static_assert(R * V * sizeof(A) * kLinearThreads <= kGatherPieces);
  struct State {
    vec<A, V> part[R];
  };

  const RowGather<T>& g;
  T* tile;
  A* pieces;         // [R * V][threads]
  const int* begin;  // of the items of every row; of all rows
  int64_t sample;

  // Column of part t of a lane whose first is j.
  __device__ __forceinline__ int64_t column(int64_t j, int t) const { return j + t * g.lanes * V; }

  // What comes before the edges: the diagonal, and the sum of a long row.
  __device__ __forceinline__ void start(State& sum, int64_t r, int64_t j) const {
    const SpmmArguments<T>& a = g.a;
    const bool summed = g.sums && a.crow[r + 1] - a.crow[r] > g.window;
    A weight = a.diag ? a.diag[r] : A(0);
    if (a.diag && a.col_scale) weight *= a.col_scale[r];
#pragma unroll
    for (int t = 0; t < R; ++t) {
      sum.part[t] = {};
      const int64_t k = column(j, t);
      if (k >= a.width) continue;
      if (summed) sum.part[t] = load<V>(g.sums + a.crow[r] / g.window * a.width + k);
      if (!a.diag) continue;
      const vec<T, V> x = load<V>(a.x + r * a.width + k);
      for (int i = 0; i < V; ++i) sum.part[t][i] += weight * to_acc(x[i]);
    }
  }

  // Edges [e, e + count).
  __device__ __forceinline__ void add(State& sum, int64_t e, int count, int64_t j) const {
    const SpmmArguments<T>& a = g.a;
#pragma unroll 1
    for (int first = 0; first < count; first += U, e += U) {
      int64_t c[U];
      vec<T, V> x[U][R];
      A weight[U];
      for (int u = 0; u < U; ++u) c[u] = first + u < count ? a.col[e + u] : -1;
      for (int u = 0; u < U; ++u)
        for (int t = 0; t < R; ++t) {
          x[u][t] = {};
          if (c[u] >= 0 && column(j, t) < a.width) x[u][t] = load<V>(a.x + c[u] * a.width + column(j, t));
        }
      for (int u = 0; u < U; ++u) {
        weight[u] = a.val && c[u] >= 0 ? to_acc(a.val[e + u]) : A(1);
        if (a.col_scale && c[u] >= 0) weight[u] *= a.col_scale[c[u]];
      }
      for (int u = 0; u < U; ++u)
        for (int t = 0; t < R; ++t)
          for (int i = 0; i < V; ++i) sum.part[t][i] += weight[u] * to_acc(x[u][t][i]);
    }
  }

  // Writes row n of the tile. A lane begins with another of its columns than its neighbours, or their stores would meet
  // in a bank: V columns are 4 * V banks apart.
  __device__ __forceinline__ void finish(const State& sum, int n, int64_t j) const {
    const A scale = g.a.row_scale ? g.a.row_scale[sample + n] : A(1);
    const int turn = threadIdx.x / (8 / V) % V;
#pragma unroll
    for (int t = 0; t < R; ++t) {
      const int64_t k = column(j, t);
      if (k >= g.a.width) continue;
      vec<T, V> y;
      for (int i = 0; i < V; ++i) y[i] = from_acc<T>(g.a.row_scale ? sum.part[t][i] * scale : sum.part[t][i]);
#pragma unroll
      for (int bit = 1; bit < V; bit *= 2) {
        vec<T, V> turned;
        for (int i = 0; i < V; ++i) turned[i] = turn & bit ? y[(i + bit) % V] : y[i];
        y = turned;
      }
      for (int i = 0; i < V; ++i) tile[(k + (i + turn) % V) * Tile::kStride + n] = y[i];
    }
  }

  __device__ __forceinline__ int share(int total, int worker) const {
    return static_cast<int>(int64_t{total} * worker >> g.share_bits);
  }

  __device__ __forceinline__ void run() const {
    const int worker = threadIdx.x / g.lanes, total = begin[Tile::kSamples];
    const int from = share(total, worker), to = share(total, worker + 1);
    int low = 0, high = Tile::kSamples;  // begin[low] <= from < begin[high] where there is a share
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (begin[middle] <= from ? low : high) = middle;
    }
    for (int64_t slice = 0; slice < g.a.width; slice += int64_t{g.lanes} * R * V) {
      const int64_t j = slice + threadIdx.x % g.lanes * V;
      State sum = {};
      bool head = from > begin[low];  // the first row began in an earlier share
      int open = -1;                  // the row that goes on in the next one
      for (int n = low, at = from; at < to; ++n) {
        if (at == begin[n]) start(sum, sample + n, j), ++at;
        const int stop = min(to, begin[n + 1]);
        add(sum, g.a.crow[sample + n] + int64_t{at - begin[n] - 1}, stop - at, j);
        at = stop;
        if (head) {
          for (int i = 0; i < R * V; ++i) pieces[i * kLinearThreads + threadIdx.x] = sum.part[i / V][i % V];
        } else if (at < begin[n + 1]) {
          open = n;
        } else {
          finish(sum, n, j);
        }
        head = false;
      }
      __syncthreads();
      if (open >= 0) {
        const int end = begin[open + 1];
        for (int w = worker + 1; w < 1 << g.share_bits && share(total, w) < end; ++w)
          if (share(total, w) < share(total, w + 1))
            for (int i = 0; i < R * V; ++i)
              sum.part[i / V][i % V] += pieces[i * kLinearThreads + threadIdx.x + (w - worker) * g.lanes];
        finish(sum, open, j);
      }
      __syncthreads();
    }
  }
};

// Fills the tile with the rows from `sample` on, and zeros past the last; every thread of the block must call it, and
// what they wrote to shared memory before is seen by all after it. scratch: gather_bytes(NL, sizeof(T)), aligned to 16
// bytes.
template <typename T, int NL>
__device__ __forceinline__ void gather_tile(const RowGather<T>& g, T* tile, unsigned char* scratch, int64_t sample) {
  using Tile = LinearTile<T, NL>;
  int* begin = reinterpret_cast<int*>(scratch + gather_scratch(NL, sizeof(T)));
  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    int items[NL], sum = 0;
    for (int l = 0; l < NL; ++l) {
      const int64_t r = sample + lane * NL + l;
      const int degree = r < g.a.rows ? g.a.crow[r + 1] - g.a.crow[r] : -1;
      items[l] = 1 + (degree > g.window ? 0 : degree);
      sum += items[l];
    }
    int place = sum;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int lower = __shfl_up_sync(kFullMask, place, offset);
      if (lane >= offset) place += lower;
    }
    if (lane == kWarp - 1) begin[Tile::kSamples] = place;
    place -= sum;
    for (int l = 0; l < NL; ++l) begin[lane * NL + l] = place, place += items[l];
  }
  const int rows = static_cast<int>(min<int64_t>(g.a.rows - sample, Tile::kSamples)), missing = Tile::kSamples - rows;
  for (int64_t i = threadIdx.x; i < missing * g.a.width; i += kLinearThreads)
    tile[i / missing * Tile::kStride + rows + i % missing] = T{};
  __syncthreads();
  auto* pieces = reinterpret_cast<acc_t<T>*>(scratch);
  if (g.vectors)
    TileGather<T, NL, kVector<T>>{g, tile, pieces, begin, sample}.run();
  else
    TileGather<T, NL, 1>{g, tile, pieces, begin, sample}.run();
}

}  // namespace sparsegnn::cuda
