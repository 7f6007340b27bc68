// maxk_spmm, backward / cuda
//
//   dvalues[j, t] = sum over edges e = (r, j): val[e] * cs[j] * rs[r] * dy[r, index[j, t]]   and that of diag
//   dval[e]       = sum over t: values[j, t] * cs[j] * rs[r] * dy[r, index[j, t]]
//
// layout     the transpose ccol[N+1], row[E], perm[E] int32; dy [M, F]; the rest as maxk_spmm.cuh
// work       dvalues: 2*E*k flop and the sectors of dy that hold an entry, or 2*E*F flop and whole rows of dy
// schedule   dvalues: common/segments.cuh over the transpose. Where few sectors of a row of dy hold what is asked for,
//            a lane has a kept entry and gathers it; else, as in 16 bits, lanes read the rows 128 bits at a time, sum
//            all columns and write those that are kept. dval: a group of lanes for a run of edges, four at once
// numerics   sums in acc_t<T>, in an order that depends on the shape alone; nothing is atomic
// see        sparsegnn/ops/maxk_spmm_backward.py, tests/csrc/test_maxk_spmm.py
#pragma once
#include "maxk_spmm.cuh"

namespace sparsegnn::cuda {

template <typename T, typename I>
struct MaxkSpmmBackwardArguments {
  MaxkSpmmArguments<T, I> forward;
  const T* dy;
  const int32_t *ccol, *row, *perm;
  T *dvalues, *dval;  // null: not computed
  int64_t cols;
  SpanList spans = {};               // of the columns
  const acc_t<T>* factor = nullptr;  // of every row, set by the launcher; null: 1
};

// Over the transpose. Columns j of a lane: entries (gathered) or columns of dy (whole rows).
template <typename T, typename I>
struct MaxkFlow {
  using A = acc_t<T>;
  MaxkSpmmBackwardArguments<T, I> a;

  // Rows of dy and weights of the first `left` of U transposed edges; others have no row.
  template <bool kLast, int U>
  __device__ __forceinline__ void edges(int e, int left, int32_t (&r)[U], A (&weight)[U]) const {
    const auto has = [&](int u) { return !kLast || u < left; };
#pragma unroll
    for (int u = 0; u < U; ++u) r[u] = has(u) ? a.row[e + u] : -1, weight[u] = 1;
    if (a.forward.val)
      for (int u = 0; u < U; ++u)
        if (has(u)) weight[u] = to_acc(a.forward.val[a.perm[e + u]]);
    if (a.factor)
      for (int u = 0; u < U; ++u)
        if (has(u)) weight[u] *= a.factor[r[u]];
  }
  __device__ __forceinline__ A own(int64_t j) const {  // the weight of the node itself
    return a.factor ? a.forward.diag[j] * a.factor[j] : a.forward.diag[j];
  }
};

template <typename T, typename I>
struct MaxkGatherOp : MaxkFlow<T, I> {
  static constexpr int V = 1, U = 4, kLeastBlocks = 4;
  using State = acc_t<T>;
  using MaxkFlow<T, I>::a;

  template <bool kLast>
  __device__ __forceinline__ void step(State& sum, int e, int left, const T* dy) const {
    int32_t r[U];
    State weight[U];
    T x[U];
    const int width = static_cast<int>(a.forward.width);
    this->template edges<kLast>(e, left, r, weight);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      x[u] = {};
      if (!kLast || u < left) x[u] = dy[int64_t{r[u]} * width];
    }
#pragma unroll
    for (int u = 0; u < U; ++u) sum += weight[u] * to_acc(x[u]);
  }

  __device__ State span(int64_t j, int64_t begin, int64_t end, int64_t t) const {
    const T* dy = a.dy + a.forward.index[j * a.forward.k + t];
    State sum = 0;
    int e = static_cast<int>(begin);
    for (; end - e >= U; e += U) step<false>(sum, e, U, dy);
    if (e < end) step<true>(sum, e, static_cast<int>(end - e), dy);
    return sum;
  }

  __device__ void merge(State& sum, State next) const { sum += next; }

  __device__ void finish(int64_t j, int64_t t, int64_t, State sum) const {
    const auto& f = a.forward;
    if (f.diag) sum += this->own(j) * to_acc(a.dy[j * f.width + f.index[j * f.k + t]]);
    if (f.col_scale) sum *= f.col_scale[j];
    a.dvalues[j * f.k + t] = from_acc<T>(sum);
  }
};

template <typename T, typename I>
struct MaxkRowsOp : MaxkFlow<T, I> {
  static constexpr int V = kVector<T>, U = V > 4 ? 2 : 4, kLeastBlocks = 4;
  using A = acc_t<T>;
  using State = vec<A, V>;
  using MaxkFlow<T, I>::a;

  template <bool kLast>
  __device__ __forceinline__ void step(State& sum, int e, int left, int j) const {
    int32_t r[U];
    A weight[U];
    vec<T, V> x[U];
    const int width = static_cast<int>(a.forward.width);
    this->template edges<kLast>(e, left, r, weight);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      x[u] = {};
      if (!kLast || u < left) x[u] = load<V>(a.dy + int64_t{r[u]} * width + j);
    }
#pragma unroll
    for (int u = 0; u < U; ++u)
      for (int i = 0; i < V; ++i) sum[i] += weight[u] * to_acc(x[u][i]);
  }

  __device__ State span(int64_t, int64_t begin, int64_t end, int64_t j) const {
    State sum = {};
    int e = static_cast<int>(begin);
    for (; end - e >= U; e += U) step<false>(sum, e, U, int(j));
    if (e < end) step<true>(sum, e, static_cast<int>(end - e), int(j));
    return sum;
  }

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t n, int64_t j, int64_t, State sum) const {
    const auto& f = a.forward;
    if (f.diag) {
      const A weight = this->own(n);
      const vec<T, V> x = load<V>(a.dy + n * f.width + j);
      for (int i = 0; i < V; ++i) sum[i] += weight * to_acc(x[i]);
    }
    const A scale = f.col_scale ? f.col_scale[n] : A(1);
    const I* index = f.index + n * f.k;
    int64_t t = 0, end = f.k;  // the first entry at column j or behind it: columns ascend
    while (t < end) {
      const int64_t middle = (t + end) / 2;
      if (index[middle] < j)
        t = middle + 1;
      else
        end = middle;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (t >= f.k || index[t] != j + i) continue;
      a.dvalues[n * f.k + t] = from_acc<T>(sum[i] * scale);
      ++t;
    }
  }
};

// What every edge of a row counts; only of means, elsewhere it is row_scale.
template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkSpmmThreads) maxk_spmm_factor_kernel(MaxkSpmmArguments<T, I> a, acc_t<T>* to) {
  const int64_t r = int64_t{blockIdx.x} * kMaxkSpmmThreads + threadIdx.x;
  if (r < a.rows) to[r] = maxk_row_factor(a, r);
}

constexpr int kMaxkEdges = 16;  // of a group of lanes, so that the row is searched for once

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkSpmmThreads)
    maxk_spmm_dval_kernel(MaxkSpmmBackwardArguments<T, I> a, int lanes) {
  using A = acc_t<T>;
  constexpr int U = 4;
  const auto& f = a.forward;
  const int lane = threadIdx.x % lanes;
  const int64_t begin = (int64_t{blockIdx.x} * (kMaxkSpmmThreads / lanes) + threadIdx.x / lanes) * kMaxkEdges;
  int64_t r = row_of_edge(f.crow, f.rows, min(begin, f.edges - 1));
  for (int64_t e = begin; e < begin + kMaxkEdges; e += U) {  // beyond the end: the last again, for the shuffles' sake
    int64_t row[U], j[U];
    A dot[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = min(e + u, f.edges - 1);
      if (at >= f.crow[r + 1] && at >= f.crow[++r + 1]) r = row_of_edge(f.crow, f.rows, at);
      row[u] = r, j[u] = f.col[at];
    }
    for (int64_t t = lane; t < f.k; t += lanes)
#pragma unroll
      for (int u = 0; u < U; ++u)
        dot[u] += to_acc(f.values[j[u] * f.k + t]) * to_acc(a.dy[row[u] * f.width + f.index[j[u] * f.k + t]]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      dot[u] = warp_sum(dot[u], lanes);
      const A scale = (a.factor ? a.factor[row[u]] : A(1)) * (f.col_scale ? f.col_scale[j[u]] : A(1));
      if (lane == 0 && e + u < f.edges) a.dval[e + u] = from_acc<T>(dot[u] * scale);
    }
  }
}

// ---- launchers

// Over the columns of dy, or over the kept entries.
template <typename T, typename I>
RowSegments maxk_flow_segments(const MaxkSpmmBackwardArguments<T, I>& a, bool rows) {
  const auto& f = a.forward;
  RowSegments s{a.ccol, a.cols, rows ? f.width : f.k, f.edges, a.spans};
  if (rows) s.table = f.rows, s.bytes = sizeof(T);
  return s;
}

// Whole rows of dy where a 32-byte sector holds two entries or more on average. Expected, not measured: 64 % of the
// sectors are touched at one a sector, 87 % at two, and rows are read with an eighth of the instructions. Where the L2
// holds slices of dy, which come at 9.7/4.3 of the speed of memory, 45 % of the sectors are worth as much: .6 entries.
template <typename T, typename I>
bool maxk_reads_rows(const MaxkSpmmBackwardArguments<T, I>& a) {
  const auto& f = a.forward;
  if (!can_vectorise(kVector<T>, f.width, a.dy)) return false;
  const int64_t sectors = f.width * int64_t(sizeof(T)) / 32;
  return f.k >= 2 * sectors || (5 * f.k >= 3 * sectors && segment_slice(maxk_flow_segments(a, true), kVector<T>) > 0);
}

template <typename T, typename I>
int64_t maxk_spmm_pieces_bytes(const MaxkSpmmBackwardArguments<T, I>& a) {
  const int64_t columns = maxk_reads_rows(a) ? a.forward.width : a.forward.k;
  return ceil_div(segment_pieces(a.forward.edges) * columns * sizeof(acc_t<T>), 16) * 16;
}

template <typename T, typename I>
int64_t maxk_spmm_backward_workspace_bytes(const MaxkSpmmBackwardArguments<T, I>& a) {
  return maxk_spmm_pieces_bytes(a) + (a.forward.mean ? a.forward.rows * sizeof(acc_t<T>) : 0);
}

// workspace: maxk_spmm_backward_workspace_bytes(a), aligned to 16 bytes.
template <typename T, typename I>
cudaError_t launch_maxk_spmm_backward(MaxkSpmmBackwardArguments<T, I> a, void* workspace, cudaStream_t stream) {
  const auto& f = a.forward;
  cudaError_t error = cudaSuccess;
  a.factor = f.row_scale;
  if (f.mean && f.rows > 0) {
    auto* factor = reinterpret_cast<acc_t<T>*>(static_cast<char*>(workspace) + maxk_spmm_pieces_bytes(a));
    a.factor = factor;
    error = launch(maxk_spmm_factor_kernel<T, I>, dim3(static_cast<unsigned>(ceil_div(f.rows, kMaxkSpmmThreads))),
                   kMaxkSpmmThreads, 0, stream, f, factor);
  }
  if (error == cudaSuccess && a.dvalues) {
    const bool rows = maxk_reads_rows(a);
    const RowSegments s = maxk_flow_segments(a, rows);
    error = rows ? launch_segments(MaxkRowsOp<T, I>{a}, s, workspace, stream)
                 : launch_segments(MaxkGatherOp<T, I>{a}, s, workspace, stream);
  }
  if (error != cudaSuccess || !a.dval || f.edges == 0) return error;
  const int lanes = group_lanes(f.k);
  const dim3 grid(static_cast<unsigned>(ceil_div(ceil_div(f.edges, kMaxkEdges), kMaxkSpmmThreads / lanes)));
  return launch(maxk_spmm_dval_kernel<T, I>, grid, kMaxkSpmmThreads, 0, stream, a, lanes);
}

}  // namespace sparsegnn::cuda
