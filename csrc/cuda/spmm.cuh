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
// schedule   common/segments.cuh: a group of 1..256 lanes for a row, or for a slice of it that keeps x in the L2, long
//            rows cut into windows of edges; a lane owns V columns, 16 bytes of T where K and the pointers allow, else
//            two or one; 256 threads a block, no shared memory. Indices and values leave the caches first, so does y
// numerics   sums in acc_t<T>; the cuts depend on the shape alone and nothing is atomic: the same bits in every run
// backward   dx: this kernel on the transposed pattern, or arg_backward; dval: sddmm
// see        sparsegnn/ops/spmm.py, tests/csrc/test_spmm.py, benchmarks/ops/bench_spmm.py
#pragma once
#include <type_traits>

#include "spmm_sum.cuh"

namespace sparsegnn::cuda {

enum class Reduce { sum, mean, max, min };

template <typename T>
struct SpmmArgBackwardArguments {
  const T* dy;
  const int32_t* arg;
  const T* val;
  const int32_t *ccol, *row, *perm;
  T* dx;
  int64_t cols, width, edges, rows;
  SpanList spans = {};  // of the columns
};

template <typename T>
int64_t spmm_workspace_bytes(int64_t edges, int64_t width, Reduce reduce) {
  const int64_t state = reduce == Reduce::max || reduce == Reduce::min ? 2 * sizeof(acc_t<T>) : sizeof(acc_t<T>);
  return segment_pieces(edges) * width * state;
}

// ---- what is reduced. U edges are taken at once, and all that is read of them is asked for before any is used, so
// that U rows are on their way; the last step of a span has `left` of them.

template <typename Op>
__device__ typename Op::State reduce_span(const Op& op, int64_t begin, int64_t end, int64_t j) {
  typename Op::State state = op.start();
  int e = static_cast<int>(begin);
  const int to = static_cast<int>(end);
#pragma unroll 1
  for (; to - e >= Op::U; e += Op::U) op.template step<false>(state, e, Op::U, j);
  if (e < to) op.template step<true>(state, e, to - e, j);
  return state;
}

template <typename T, int V_>
struct ExtremumOp {
  static constexpr int V = V_, U = 4, kLeastBlocks = 4;
  struct State {
    vec<acc_t<T>, V> value;
    vec<int32_t, V> arg;
  };
  SpmmArguments<T> a;
  bool max;

  // A NaN beats every number; among equals the first stays.
  __device__ void take(State& best, int i, acc_t<T> value, int32_t arg) const {
    const bool better = max ? value > best.value[i] : value < best.value[i];
    if (best.arg[i] >= 0 && !better && !(value != value && best.value[i] == best.value[i])) return;
    best.value[i] = value;
    best.arg[i] = arg;
  }

  __device__ static State start() {
    State best;
    for (int i = 0; i < V; ++i) best.value[i] = 0, best.arg[i] = -1;
    return best;
  }

  template <bool kLast>
  __device__ __forceinline__ void step(State& best, int e, int left, int64_t j) const {
    const auto pitch = static_cast<uint32_t>(a.width * sizeof(T));
    vec<T, V> x[U];
    acc_t<T> weight[U];
    const auto has = [&](int u) { return !kLast || u < left; };
    for (int u = 0; u < U; ++u) {
      if (kLast) x[u] = {};
      weight[u] = 1;
      if (has(u)) x[u] = load<V>(row_at(a.x + j, load_streamed(a.col + e + u), pitch));
    }
    if (a.val)
      for (int u = 0; u < U; ++u)
        if (has(u)) weight[u] = to_acc(load_streamed(a.val + e + u));
    for (int u = 0; u < U; ++u)
      if (has(u))
        for (int i = 0; i < V; ++i) take(best, i, weight[u] * to_acc(x[u][i]), e + u);
  }

  __device__ State span(int64_t, int64_t begin, int64_t end, int64_t j) const {
    return reduce_span(*this, begin, end, j);
  }

  __device__ void merge(State& best, const State& next) const {
    for (int i = 0; i < V; ++i) take(best, i, next.value[i], next.arg[i]);
  }

  __device__ void finish(int64_t r, int64_t j, int64_t, const State& best) const {
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(best.value[i]);
    store_streamed(a.y + r * a.width + j, y);
    store_streamed(a.arg + r * a.width + j, best.arg);
  }
};

template <typename T, int V_>
struct ArgBackwardOp {
  static constexpr int V = V_, U = V > 4 ? 2 : 4, kLeastBlocks = 4;  // more would not fit the registers
  using State = vec<acc_t<T>, V>;
  SpmmArgBackwardArguments<T> a;

  __device__ static State start() { return {}; }

  template <bool kLast>
  __device__ __forceinline__ void step(State& sum, int t, int left, int64_t j) const {
    const auto pitch = static_cast<uint32_t>(a.width * sizeof(T)), places = static_cast<uint32_t>(a.width * 4);
    vec<int32_t, V> arg[U];
    vec<T, V> dy[U];
    int32_t e[U];
    acc_t<T> weight[U];
    const auto has = [&](int u) { return !kLast || u < left; };
    for (int u = 0; u < U; ++u) {
      arg[u] = {}, dy[u] = {}, e[u] = -2, weight[u] = 1;  // an edge that no arg names
      if (!has(u)) continue;
      const int32_t r = load_streamed(a.row + t + u);
      arg[u] = load<V>(row_at(a.arg + j, r, places)), dy[u] = load<V>(row_at(a.dy + j, r, pitch));
      e[u] = load_streamed(a.perm + t + u);
    }
    if (a.val)
      for (int u = 0; u < U; ++u)
        if (has(u)) weight[u] = to_acc(a.val[e[u]]);
    for (int u = 0; u < U; ++u)
      for (int i = 0; i < V; ++i) sum[i] += arg[u][i] == e[u] ? weight[u] * to_acc(dy[u][i]) : acc_t<T>(0);
  }

  __device__ State span(int64_t, int64_t begin, int64_t end, int64_t j) const {
    return reduce_span(*this, begin, end, j);
  }

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t c, int64_t j, int64_t, const State& sum) const {
    vec<T, V> dx;
    for (int i = 0; i < V; ++i) dx[i] = from_acc<T>(sum[i]);
    store_streamed(a.dx + c * a.width + j, dx);
  }
};

// ---- launchers

// Calls f(V): 16 bytes of T where rows of this width and the pointers allow it, else two elements, else one.
template <typename T, typename F, typename... P>
cudaError_t with_vectors(F f, int64_t width, const P*... arrays) {
  if (can_vectorise(kVector<T>, width, arrays...)) return f(std::integral_constant<int, kVector<T>>{});
  if constexpr (sizeof(T) < 8)
    if (can_vectorise(2, width, arrays...)) return f(std::integral_constant<int, 2>{});
  return f(std::integral_constant<int, 1>{});
}

// workspace: spmm_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_spmm(const SpmmArguments<T>& a, Reduce reduce, void* workspace, cudaStream_t stream) {
  if (!fits_pitch<T>(a.width)) return cudaErrorInvalidConfiguration;
  RowSegments s{a.crow, a.rows, a.width, a.edges, a.spans};
  s.table = a.cols, s.bytes = sizeof(T);
  const auto run = [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    if (reduce == Reduce::max || reduce == Reduce::min)
      return launch_segments(ExtremumOp<T, V>{a, reduce == Reduce::max}, s, workspace, stream);
    const auto sum = [&](auto weights) {
      using Op = SumOp<T, V, decltype(weights)::value>;
      return launch_segments<SumRowOp<T, V>, Op>(Op{{a, reduce == Reduce::mean}}, s, workspace, stream);
    };
    if constexpr (V == kVector<T>) {
      if (!a.val && !a.col_scale) return sum(std::integral_constant<Weights, Weights::none>{});
      if (!a.col_scale) return sum(std::integral_constant<Weights, Weights::val>{});
      if (!a.val) return sum(std::integral_constant<Weights, Weights::scale>{});
    }
    return sum(std::integral_constant<Weights, Weights::any>{});
  };
  return with_vectors<T>(run, a.width, a.x, a.y, a.arg);
}

// workspace: spmm_workspace_bytes<T>(edges, width, Reduce::sum).
template <typename T>
cudaError_t launch_spmm_arg_backward(const SpmmArgBackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  if (!fits_pitch<T>(a.width)) return cudaErrorInvalidConfiguration;
  RowSegments s{a.ccol, a.cols, a.width, a.edges, a.spans};
  s.table = a.rows, s.bytes = sizeof(T) + sizeof(int32_t);  // of dy and arg
  const auto run = [&](auto vectors) {
    return launch_segments(ArgBackwardOp<T, decltype(vectors)::value>{a}, s, workspace, stream);
  };
  return with_vectors<T>(run, a.width, a.dy, a.arg, a.dx);
}

}  // namespace sparsegnn::cuda
