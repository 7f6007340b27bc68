// maxk_spmm / cuda
//
//   y[r, :] = rs[r] * (sum over edges e of row r: val[e] * cs[col[e]] * X[col[e], :]  +  diag[r] * cs[r] * X[r, :])
//   where X[j, index[j, t]] = values[j, t], 0 elsewhere;  mean: divided by the number of edges of the row
//
//   dvalues[j, t] = sum over edges e = (r, j): val[e] * cs[j] * rs[r] * dy[r, index[j, t]]   and that of diag
//   dval[e]       = sum over t: values[j, t] * cs[j] * rs[r] * dy[r, index[j, t]]
//
// layout     CSR: crow[M+1], col[E] int32; values, index [N, k]; y [M, F] row-major; scales in acc_t<T>
// work       2*E*k flop; E * (4 + k * (s + 1)) bytes forward, E * (4 + 32 * min(k, F * s / 32)) backward: whole sectors
// schedule   forward: a warp for a row, or all 8 of a block where rows are long; each adds its edges to a row of sums
// in
//            shared memory, a lane for a kept entry (columns of an edge are distinct: no two lanes meet), and the sums
//            of a block's warps are added in order. Up to 2048 columns at a time
//            dvalues: common/segments.cuh over the transpose, a lane for a kept entry; dval: a group of lanes an edge
// numerics   sums in acc_t<T>, in an order that depends on the shape alone; nothing is atomic
// see        sparsegnn/ops/maxk_spmm.py, tests/csrc/test_maxk_spmm.py, benchmarks/ops/bench_maxk_spmm.py
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
};

template <typename T, typename I>
struct MaxkSpmmBackwardArguments {
  MaxkSpmmArguments<T, I> forward;
  const T* dy;
  const int32_t *ccol, *row, *perm;
  T *dvalues, *dval;
  int64_t cols;
};

constexpr int kMaxkSpmmThreads = 256, kMaxkSpmmWarps = kMaxkSpmmThreads / kWarp;
constexpr int64_t kMaxkSpmmColumns = 2048;  // of a row of sums: 8 of 2048 doubles are 128 KB

// What every edge of row r counts, besides its own weight.
template <typename T, typename I>
__device__ __forceinline__ acc_t<T> maxk_row_factor(const MaxkSpmmArguments<T, I>& a, int64_t r) {
  const int64_t degree = a.crow[r + 1] - a.crow[r];
  const acc_t<T> scale = a.row_scale ? a.row_scale[r] : acc_t<T>(1);
  return a.mean && degree > 1 ? scale / acc_t<T>(degree) : scale;
}

// `share` warps for a row: 1 or all of the block.
template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkSpmmThreads) maxk_spmm_kernel(MaxkSpmmArguments<T, I> a, int share) {
  using A = acc_t<T>;
  SG_SHARED(A, sums);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = warp % share;
  const int64_t r = int64_t{blockIdx.x} * (kMaxkSpmmWarps / share) + warp / share;
  const int64_t first = int64_t{blockIdx.y} * kMaxkSpmmColumns, columns = min(kMaxkSpmmColumns, a.width - first);
  const int64_t stride = min(kMaxkSpmmColumns, a.width);
  A* sum = sums + warp * stride;
  for (int64_t c = lane; c < columns; c += kWarp) sum[c] = 0;
  __syncwarp();
  const auto add = [&](int64_t j, A weight) {
    for (int64_t t = lane; t < a.k; t += kWarp) {
      const int64_t c = a.index[j * a.k + t] - first;
      if (c >= 0 && c < columns) sum[c] += weight * to_acc(a.values[j * a.k + t]);
    }
    __syncwarp();
  };
  if (r < a.rows) {
    const int64_t begin = a.crow[r], degree = a.crow[r + 1] - begin;
    for (int64_t e = begin + degree * part / share; e < begin + degree * (part + 1) / share; ++e) {
      const int64_t j = a.col[e];
      const A weight = a.val ? to_acc(a.val[e]) : A(1);
      add(j, a.col_scale ? weight * a.col_scale[j] : weight);
    }
    if (a.diag && part == 0) add(r, a.col_scale ? a.diag[r] * a.col_scale[r] : a.diag[r]);
  }
  if (share > 1) __syncthreads();
  if (r >= a.rows) return;
  const A scale = maxk_row_factor(a, r);
  sum -= part * stride;
  for (int64_t c = part * kWarp + lane; c < columns; c += share * kWarp) {
    A total = sum[c];
    for (int u = 1; u < share; ++u) total += sum[u * stride + c];
    a.y[r * a.width + first + c] = from_acc<T>(total * scale);
  }
}

// Over the transpose: row j, and its kept entry t where other ops have a column.
template <typename T, typename I>
struct MaxkGatherOp {
  static constexpr int V = 1, U = 4, kLeastBlocks = 4;
  using State = acc_t<T>;
  MaxkSpmmBackwardArguments<T, I> a;

  __device__ State flow(int64_t r, int64_t c, State weight) const {
    return weight * maxk_row_factor(a.forward, r) * to_acc(a.dy[r * a.forward.width + c]);
  }

  __device__ State span(int64_t j, int64_t begin, int64_t end, int64_t t) const {
    const int64_t c = a.forward.index[j * a.forward.k + t];
    State sum = 0;
#pragma unroll 4
    for (int64_t e = begin; e < end; ++e)
      sum += flow(a.row[e], c, a.forward.val ? to_acc(a.forward.val[a.perm[e]]) : State(1));
    return sum;
  }

  __device__ void merge(State& sum, State next) const { sum += next; }

  __device__ void finish(int64_t j, int64_t t, int64_t, State sum) const {
    if (a.forward.diag) sum += flow(j, a.forward.index[j * a.forward.k + t], a.forward.diag[j]);
    if (a.forward.col_scale) sum *= a.forward.col_scale[j];
    a.dvalues[j * a.forward.k + t] = from_acc<T>(sum);
  }
};

template <typename T, typename I>
__global__ void __launch_bounds__(kMaxkSpmmThreads)
    maxk_spmm_dval_kernel(MaxkSpmmBackwardArguments<T, I> a, int lanes) {
  using A = acc_t<T>;
  const auto& f = a.forward;
  const int lane = threadIdx.x % lanes;
  const int64_t group = int64_t{blockIdx.x} * (kMaxkSpmmThreads / lanes) + threadIdx.x / lanes;
  const int64_t e = min(group, f.edges - 1);  // beyond the end: repeat the last, for the shuffles' sake
  const int64_t r = row_of_edge(f.crow, f.rows, e), j = f.col[e];
  A dot = 0;
  for (int64_t t = lane; t < f.k; t += lanes)
    dot += to_acc(f.values[j * f.k + t]) * to_acc(a.dy[r * f.width + f.index[j * f.k + t]]);
  dot = warp_sum(dot, lanes);
  if (lane == 0 && group == e)
    a.dval[e] = from_acc<T>(dot * maxk_row_factor(f, r) * (f.col_scale ? f.col_scale[j] : A(1)));
}

template <typename T, typename I>
cudaError_t launch_maxk_spmm(const MaxkSpmmArguments<T, I>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const int share = a.edges >= 128 * a.rows ? kMaxkSpmmWarps : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(a.rows, kMaxkSpmmWarps / share)),
                  static_cast<unsigned>(ceil_div(a.width, kMaxkSpmmColumns)));
  const size_t shared = kMaxkSpmmWarps * min(kMaxkSpmmColumns, a.width) * sizeof(acc_t<T>);
  return launch(maxk_spmm_kernel<T, I>, grid, kMaxkSpmmThreads, shared, stream, a, share);
}

template <typename T>
int64_t maxk_spmm_workspace_bytes(int64_t edges, int64_t k) {
  return segment_pieces(edges) * k * sizeof(acc_t<T>);
}

// workspace: maxk_spmm_workspace_bytes<T>(edges, k), aligned to 16 bytes. Null dvalues or dval are not computed.
template <typename T, typename I>
cudaError_t launch_maxk_spmm_backward(const MaxkSpmmBackwardArguments<T, I>& a, void* workspace, cudaStream_t stream) {
  const auto& f = a.forward;
  cudaError_t error = cudaSuccess;
  if (a.dvalues) {
    const RowSegments s{a.ccol, a.cols, f.k, f.edges};
    error = launch_segments(MaxkGatherOp<T, I>{a}, s, workspace, stream);
  }
  if (error != cudaSuccess || !a.dval || f.edges == 0) return error;
  const int lanes = group_lanes(f.k);
  const dim3 grid(static_cast<unsigned>(ceil_div(f.edges, kMaxkSpmmThreads / lanes)));
  return launch(maxk_spmm_dval_kernel<T, I>, grid, kMaxkSpmmThreads, 0, stream, a, lanes);
}

}  // namespace sparsegnn::cuda
