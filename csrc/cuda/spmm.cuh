// spmm / cuda
//
//   y[r, :] = row_scale[r] * (reduce over the edges e of row r of  val[e] * col_scale[col[e]] * x[col[e], :]
//                             + diag[r] * col_scale[r] * x[r, :])                            sum, mean, max, min
//   arg[r, :] = edge slot of the first extremum, -1 in a row without edges                   max, min
//
//   dx[c, :] = sum over edges e of column c:  val[e] * dy[row(e), :] where arg[row(e), :] == e        (arg_backward)
//
// layout     CSR: crow[M+1], col[E] int32; val[E]; x[N, K], y[M, K] row-major; scales and diag in acc_t<T>
// work       2*E*K flop; E*(4 + K*s) bytes from L2 or memory
// schedule   a group of 1..32 lanes owns a slice of lanes*V columns of one row; V = 16 bytes of T where K and the
//            pointers allow, else 1; 256 threads a block, no shared memory. A row longer than `window` edges is left to
//            the windows: fixed spans of `window` consecutive edges, one group each. Such a row is cut at window
//            borders; its pieces go to a workspace (at most two a window) and a second kernel adds them in edge order
// numerics   sums in acc_t<T>; the cuts depend on the shape alone and nothing is atomic: the same bits in every run
// backward   dx: this kernel on the transposed pattern, or arg_backward; dval: sddmm
// see        sparsegnn/ops/spmm.py, tests/csrc/test_spmm.py, benchmarks/ops/bench_spmm.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

enum class Reduce { sum, mean, max, min };

// Device pointers; null where absent.
template <typename T>
struct SpmmArguments {
  const T* x;
  const int32_t *crow, *col;
  const T* val;
  const acc_t<T>*row_scale, *col_scale, *diag;
  T* y;
  int32_t* arg;
  int64_t rows, width, edges;
};

template <typename T>
struct SpmmArgBackwardArguments {
  const T* dy;
  const int32_t* arg;
  const T* val;
  const int32_t *ccol, *row, *perm;
  T* dx;
  int64_t cols, width, edges;
};

// Edges in a window: 256, or more where that would make over 16384 windows.
inline int64_t spmm_window(int64_t edges) {
  int64_t window = 256;  // short enough that a hub of a small graph feeds many warps
  while (window * 16384 < edges) window *= 2;
  return window;
}

template <typename T>
int64_t spmm_workspace_bytes(int64_t edges, int64_t width, Reduce reduce) {
  const int64_t window = spmm_window(edges);
  if (edges <= window) return 0;  // no row can be longer than a window
  const int64_t state = reduce == Reduce::max || reduce == Reduce::min ? 2 * sizeof(acc_t<T>) : sizeof(acc_t<T>);
  return 2 * ceil_div(edges, window) * width * state;
}

// ---- what is reduced: span() over edges of one row, merge() of two spans, finish() of the row

template <typename T, int V_>
struct SumOp {
  static constexpr int V = V_;
  using State = vec<acc_t<T>, V>;
  SpmmArguments<T> a;
  bool mean;

  __device__ State span(int64_t begin, int64_t end, int64_t j) const {
    State sum = {};
#pragma unroll 4
    for (int64_t e = begin; e < end; ++e) {
      const int64_t c = a.col[e];
      acc_t<T> weight = 1;
      if (a.val) weight = to_acc(a.val[e]);
      if (a.col_scale) weight *= a.col_scale[c];
      const vec<T, V> x = load<V>(a.x + c * a.width + j);
      for (int i = 0; i < V; ++i) sum[i] += weight * to_acc(x[i]);
    }
    return sum;
  }

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t r, int64_t j, int64_t degree, State sum) const {
    if (a.diag) {
      const acc_t<T> weight = a.col_scale ? a.diag[r] * a.col_scale[r] : a.diag[r];
      const vec<T, V> x = load<V>(a.x + r * a.width + j);
      for (int i = 0; i < V; ++i) sum[i] += weight * to_acc(x[i]);
    }
    if (mean && degree > 1)
      for (int i = 0; i < V; ++i) sum[i] /= acc_t<T>(degree);
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(a.row_scale ? sum[i] * a.row_scale[r] : sum[i]);
    store(a.y + r * a.width + j, y);
  }
};

template <typename T, int V_, bool kMax>
struct ExtremumOp {
  static constexpr int V = V_;
  struct State {
    vec<acc_t<T>, V> value;
    vec<int32_t, V> arg;
  };
  SpmmArguments<T> a;

  // A NaN beats every number; among equals the first stays.
  __device__ static void take(State& best, int i, acc_t<T> value, int32_t arg) {
    const bool better = kMax ? value > best.value[i] : value < best.value[i];
    if (best.arg[i] >= 0 && !better && !(value != value && best.value[i] == best.value[i])) return;
    best.value[i] = value;
    best.arg[i] = arg;
  }

  __device__ State span(int64_t begin, int64_t end, int64_t j) const {
    State best;
    for (int i = 0; i < V; ++i) best.value[i] = 0, best.arg[i] = -1;
#pragma unroll 4
    for (int64_t e = begin; e < end; ++e) {
      const acc_t<T> weight = a.val ? to_acc(a.val[e]) : acc_t<T>(1);
      const vec<T, V> x = load<V>(a.x + int64_t{a.col[e]} * a.width + j);
      for (int i = 0; i < V; ++i) take(best, i, weight * to_acc(x[i]), static_cast<int32_t>(e));
    }
    return best;
  }

  __device__ void merge(State& best, const State& next) const {
    for (int i = 0; i < V; ++i) take(best, i, next.value[i], next.arg[i]);
  }

  __device__ void finish(int64_t r, int64_t j, int64_t, const State& best) const {
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(best.value[i]);
    store(a.y + r * a.width + j, y);
    store(a.arg + r * a.width + j, best.arg);
  }
};

template <typename T, int V_>
struct ArgBackwardOp {
  static constexpr int V = V_;
  using State = vec<acc_t<T>, V>;
  SpmmArgBackwardArguments<T> a;

  __device__ State span(int64_t begin, int64_t end, int64_t j) const {
    State sum = {};
#pragma unroll 4
    for (int64_t t = begin; t < end; ++t) {
      const int64_t at = a.row[t] * a.width + j;
      const int32_t e = a.perm[t];
      const acc_t<T> weight = a.val ? to_acc(a.val[e]) : acc_t<T>(1);
      const vec<int32_t, V> arg = load<V>(a.arg + at);
      const vec<T, V> dy = load<V>(a.dy + at);
      for (int i = 0; i < V; ++i) sum[i] += arg[i] == e ? weight * to_acc(dy[i]) : acc_t<T>(0);
    }
    return sum;
  }

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t c, int64_t j, int64_t, const State& sum) const {
    vec<T, V> dx;
    for (int i = 0; i < V; ++i) dx[i] = from_acc<T>(sum[i]);
    store(a.dx + c * a.width + j, dx);
  }
};

// ---- kernels

constexpr int kSpmmThreads = 256;

// A CSR pattern and how its edges are cut: the blocks before `window_blocks` walk windows, the others rows.
struct Segments {
  const int32_t* crow;
  int64_t rows, width, edges;
  int64_t window = 0, windows = 0, window_blocks = 0;
  int lanes = 0, groups = 0;  // lanes in a group, groups in a block
};

template <typename Op>
__global__ void __launch_bounds__(kSpmmThreads) spmm_kernel(Op op, Segments s, typename Op::State* piece) {
  const int64_t j = (int64_t{blockIdx.y} * s.lanes + threadIdx.x % s.lanes) * Op::V;
  if (j >= s.width) return;
  const int64_t group = int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes;
  if (blockIdx.x >= s.window_blocks) {
    const int64_t r = group - s.window_blocks * s.groups;
    if (r >= s.rows) return;
    const int64_t begin = s.crow[r], end = s.crow[r + 1];
    if (end - begin <= s.window) op.finish(r, j, end - begin, op.span(begin, end, j));
    return;
  }
  if (group >= s.windows) return;
  const int64_t begin = group * s.window, end = min(begin + s.window, s.edges);
  const int64_t columns = s.width / Op::V;
  int64_t r = row_of_edge(s.crow, s.rows, begin);
  for (int side = 0; side < 2; ++side) {  // the row at the window's first edge, then the one at its last
    const int64_t from = max<int64_t>(begin, s.crow[r]), to = min<int64_t>(end, s.crow[r + 1]);
    if (s.crow[r + 1] - s.crow[r] > s.window) piece[(2 * group + side) * columns + j / Op::V] = op.span(from, to, j);
    if (to == end) return;
    r = row_of_edge(s.crow, s.rows, end - 1);
  }
}

// Adds the pieces of the row that begins in each window and is longer than one.
template <typename Op>
__global__ void __launch_bounds__(kSpmmThreads) spmm_merge_kernel(Op op, Segments s, const typename Op::State* piece) {
  const int64_t j = (int64_t{blockIdx.y} * s.lanes + threadIdx.x % s.lanes) * Op::V;
  const int64_t w = int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes;
  if (j >= s.width || w >= s.windows) return;
  const int64_t r = row_of_edge(s.crow, s.rows, min((w + 1) * s.window, s.edges) - 1);
  const int64_t begin = s.crow[r], end = s.crow[r + 1];
  if (end - begin <= s.window || begin < w * s.window) return;
  const int64_t columns = s.width / Op::V;
  piece += j / Op::V;
  typename Op::State state = piece[(2 * w + (begin > w * s.window)) * columns];
#pragma unroll 4
  for (int64_t u = w + 1; u * s.window < end; ++u) op.merge(state, piece[2 * u * columns]);
  op.finish(r, j, end - begin, state);
}

// ---- launchers

template <typename Op>
cudaError_t launch_segments(Op op, Segments s, void* workspace, cudaStream_t stream) {
  if (s.rows == 0 || s.width == 0) return cudaSuccess;
  const int64_t columns = s.width / Op::V;
  s.lanes = group_lanes(columns);
  s.groups = kSpmmThreads / s.lanes;
  s.window = spmm_window(s.edges);
  s.windows = s.edges > s.window ? ceil_div(s.edges, s.window) : 0;
  s.window_blocks = ceil_div(s.windows, s.groups);
  auto* piece = static_cast<typename Op::State*>(workspace);
  const unsigned slices = static_cast<unsigned>(ceil_div(columns, s.lanes));
  const dim3 grid(static_cast<unsigned>(s.window_blocks + ceil_div(s.rows, s.groups)), slices);
  const cudaError_t error = launch(spmm_kernel<Op>, grid, kSpmmThreads, 0, stream, op, s, piece);
  if (error != cudaSuccess || s.windows == 0) return error;
  return launch(spmm_merge_kernel<Op>, dim3(static_cast<unsigned>(s.window_blocks), slices), kSpmmThreads, 0, stream,
                op, s, piece);
}

template <typename T, int V>
cudaError_t launch_spmm_vectors(const SpmmArguments<T>& a, Reduce reduce, void* workspace, cudaStream_t stream) {
  const Segments s{a.crow, a.rows, a.width, a.edges};
  if (reduce == Reduce::max) return launch_segments(ExtremumOp<T, V, true>{a}, s, workspace, stream);
  if (reduce == Reduce::min) return launch_segments(ExtremumOp<T, V, false>{a}, s, workspace, stream);
  return launch_segments(SumOp<T, V>{a, reduce == Reduce::mean}, s, workspace, stream);
}

// workspace: spmm_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_spmm(const SpmmArguments<T>& a, Reduce reduce, void* workspace, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (can_vectorise(V, a.width, a.x, a.y, a.arg)) return launch_spmm_vectors<T, V>(a, reduce, workspace, stream);
  return launch_spmm_vectors<T, 1>(a, reduce, workspace, stream);
}

// workspace: spmm_workspace_bytes<T>(edges, width, Reduce::sum).
template <typename T>
cudaError_t launch_spmm_arg_backward(const SpmmArgBackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const Segments s{a.ccol, a.cols, a.width, a.edges};
  if (can_vectorise(V, a.width, a.dy, a.arg, a.dx))
    return launch_segments(ArgBackwardOp<T, V>{a}, s, workspace, stream);
  return launch_segments(ArgBackwardOp<T, 1>{a}, s, workspace, stream);
}

}  // namespace sparsegnn::cuda
