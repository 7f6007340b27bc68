// maxk_spmm / cuda
//
//   y[r, :] = rs[r] * (sum over edges e of row r: val[e] * cs[col[e]] * X[col[e], :]  +  diag[r] * cs[r] * X[r, :])
//   where X[j, index[j, t]] = values[j, t], 0 elsewhere;  mean: divided by the number of edges of the row
//
// layout     CSR: crow[M+1], col[E] int32; values, index [N, k]; y [M, F] row-major; scales in acc_t<T>
// work       2*E*k flop; E * (4 + k * (s + 1)) bytes, of which a lane reads up to 16 of values and 4 columns at once
// schedule   a warp adds the edges of a row to sums in shared memory. Its lanes share an edge, or several edges at
//            once, each into sums of its own; MaxkLayout says how. Rows without groups: columns of an edge are
//            distinct, so no two lanes meet; 32 random columns meet about 3.5 times in a bank. Grouped rows: the sums
//            of a lane's groups lie in one column of 32 words, [position in the groups][lane]: no lane touches
//            another's bank, no barrier. Long rows are cut into windows of edges as in common/segments.cuh, whose
//            merging kernel adds their pieces in order
// numerics   sums in acc_t<T>, in an order that depends on the shape alone; nothing is atomic
// backward   maxk_spmm_backward.cuh
// see        sparsegnn/ops/maxk_spmm.py, tests/csrc/test_maxk_spmm.py, benchmarks/ops/bench_maxk_spmm.py
#pragma once
#include "maxk_spmm_sums.cuh"

namespace sparsegnn::cuda {

// E: columns of one store.
template <typename T, typename I, int V, bool kGrouped, int E>
__global__ void __launch_bounds__(kMaxkSpmmThreads, sizeof(acc_t<T>) == 8 ? 2 : 4)
    maxk_spmm_kernel(MaxkSpmmArguments<T, I> a, MaxkLayout l, RowSegments s, acc_t<T>* piece) {
  using A = acc_t<T>;
  SG_SHARED(A, shared);
  MaxkSums<T, I, V, kGrouped> sums(a, l, shared);
  RowSpan span;
  if (!segment_span(s, int64_t{blockIdx.x} * kMaxkSpmmWarps + threadIdx.x / kWarp, span)) return;
  sums.clear();
  sums.walk(span.row, span.begin, span.end, a.diag && span.number == 0);
  const A scale = maxk_row_factor(a, span.row);
  A* raw = piece + piece_place(s, span.begin) * a.width;
  sums.template each<E>([&](int c, const vec<A, E>& total) {
    if (span.pieces > 1) return store(raw + c, total);
    vec<T, E> y;
    for (int i = 0; i < E; ++i) y[i] = from_acc<T>(total[i] * scale);
    store(a.y + span.row * a.width + c, y);
  });
}

// Of the pieces of a long row; segments_merge_kernel's.
template <typename T, typename I, int V_>
struct MaxkMergeOp {
  static constexpr int V = V_, kLeastBlocks = 4;
  using State = vec<acc_t<T>, V>;
  MaxkSpmmArguments<T, I> a;

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }
  __device__ void finish(int64_t r, int64_t j, int64_t, const State& sum) const {
    const acc_t<T> scale = maxk_row_factor(a, r);
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(sum[i] * scale);
    store(a.y + r * a.width + j, y);
  }
};

// Edges in a window: at least 256, and at most 32768 windows, whose pieces are two rows of sums each.
inline int64_t maxk_spmm_window(int64_t edges) {
  int64_t window = 256;
  while (window * 32768 < edges) window *= 2;
  return window;
}

template <typename T>
int64_t maxk_spmm_workspace_bytes(int64_t edges, int64_t width) {
  return segment_halves(edges, maxk_spmm_window(edges)) * width * sizeof(acc_t<T>);
}

template <int V, bool kGrouped, int E, typename T, typename I>
cudaError_t launch_maxk_spmm_layout(const MaxkSpmmArguments<T, I>& a, const MaxkLayout& l, acc_t<T>* piece,
                                    cudaStream_t stream) {
  RowSegments s{a.crow, a.rows, a.width, a.edges};
  cut_segments(s, maxk_spmm_window(a.edges));
  const dim3 grid(static_cast<unsigned>(ceil_div(s.units, kMaxkSpmmWarps)),
                  static_cast<unsigned>(ceil_div(a.width, kMaxkSpmmColumns)));
  const size_t shared = kMaxkSpmmWarps * l.words * sizeof(acc_t<T>);
  const cudaError_t error =
      launch(maxk_spmm_kernel<T, I, V, kGrouped, E>, grid, kMaxkSpmmThreads, shared, stream, a, l, s, piece);
  s.units = s.halves;
  if (error != cudaSuccess || s.units == 0) return error;
  s.lanes = group_lanes(a.width / E), s.groups = kSegmentThreads / s.lanes;
  const dim3 merge(static_cast<unsigned>(ceil_div(s.units, s.groups)),
                   static_cast<unsigned>(ceil_div(a.width / E, s.lanes)));
  using Op = MaxkMergeOp<T, I, E>;
  return launch(segments_merge_kernel<Op>, merge, kSegmentThreads, 0, stream, Op{a}, s,
                reinterpret_cast<const typename Op::State*>(piece));
}

// workspace: maxk_spmm_workspace_bytes<T>(edges, width), aligned to 16 bytes.
template <typename T, typename I>
cudaError_t launch_maxk_spmm(const MaxkSpmmArguments<T, I>& a, void* workspace, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  const MaxkLayout l = maxk_layout(a);
  auto* piece = static_cast<acc_t<T>*>(workspace);
  const auto run = [&](auto vector, auto grouped) {
    constexpr int V = decltype(vector)::value;
    constexpr bool G = decltype(grouped)::value;
    if (can_vectorise(4, G ? l.span : a.width, a.y) && can_vectorise(4, a.width, a.y))
      return launch_maxk_spmm_layout<V, G, 4>(a, l, piece, stream);
    return launch_maxk_spmm_layout<V, G, 1>(a, l, piece, stream);
  };
  const auto by_group = [&](auto vector) {
    return l.span > 0 ? run(vector, std::true_type{}) : run(vector, std::false_type{});
  };
  if constexpr (kVector<T> >= 4)
    if (l.vector == 4) return by_group(std::integral_constant<int, 4>{});
  return l.vector == 2 ? by_group(std::integral_constant<int, 2>{}) : by_group(std::integral_constant<int, 1>{});
}

}  // namespace sparsegnn::cuda
