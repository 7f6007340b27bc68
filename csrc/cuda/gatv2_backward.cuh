// gatv2, backward / cuda
//
//   with D[i, h] = <dy[i, h], y[i, h]>, l' the slope of leaky at z and de[e, h] = alpha (m <dy[i, h], x_src[j, h]> -
//   D): dx_dst[i] = att sum_row de l';   dx_src[j] = sum m alpha dy[i] + att sum_source de l' datt = sum de leaky(z);
//   dedge = de att l'
//
// layout     as gatv2.cuh, with the transpose ccol[N+1], row[E], perm[E] int32; datt in acc_t<T>
// work       20 E*H*D flop; E*H*D*s bytes over the rows (x_src), 2 E*H*D*s over the sources (x_dst and dy): the score
//            needs both ends, so that neither walk can do the work of the other. O(M*H) of workspace, pieces of long
//            rows, and at most 131072 + 16384 H*D of datt
// schedule   lse and D of every node and head in one place; the two walks as gatv2.cuh's. datt in one part per strip of
//            rows or window of edges, added up in order by another kernel
// numerics   alpha is made again from lse; sums in acc_t<T>, fixed order: the same bits in every run
// see        sparsegnn/ops/gatv2_backward.py, tests/csrc/test_gatv2.py
#pragma once
#include "gatv2.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct Gatv2BackwardArguments : Gatv2Edges<T> {
  const int32_t *crow, *col, *ccol, *row, *perm;
  const T *dy, *y;
  const acc_t<T>* lse;
  T *dx_src, *dx_dst, *dedge;  // dedge may be null
  acc_t<T>* datt;
  SpanList spans = {}, cspans = {};  // of the rows and of the columns
};

// lse and D of a row and head.
template <typename A>
using Gatv2Node = vec<A, 2>;

template <typename T, int V>
__global__ void __launch_bounds__(kGatThreads)
    gatv2_nodes_kernel(Gatv2BackwardArguments<T> a, int lanes, Gatv2Node<acc_t<T>>* node) {
  const int64_t n = int64_t{blockIdx.x} * (kGatThreads / lanes) + threadIdx.x / lanes;
  const bool inside = n < a.rows * a.scores.heads;
  const int64_t width = inside ? a.scores.width : 0, at = inside ? n * width : 0;
  const acc_t<T> flow = gat_product<V>(a.dy + at, a.y + at, width, lanes);
  if (inside && threadIdx.x % lanes == 0) node[n] = {a.lse[n], flow};
}

// dx_dst, dedge and datt, by gatv2_rows_kernel.
template <typename T, int V_, int R>
struct Gatv2RowsOp {
  static constexpr int V = V_ * R, U = gatv2_edges<T, V>, kLeastBlocks = gatv2_least_blocks<T, V>;
  using A = acc_t<T>;
  using Head = Gatv2Head<T, V_, R>;
  using State = typename Head::Sums;
  Gatv2BackwardArguments<T> a;
  Gatv2Shape shape;
  const Gatv2Node<A>* node;

  struct Target {
    typename Head::Row own, dy;
    Gatv2Node<A> node;
    int64_t r;
    RandomKey key;
    A scale;
  };

  // U edges; the last step of a span has `left` of them: for others the first is read again, and not counted.
  template <bool kLast>
  __device__ __forceinline__ void step(State& sum, State& datt, const Head& head, const Target& t, int e,
                                       int left) const {
    const auto has = [&](int u) { return !kLast || u < left; };
    const auto edge = [&](int u) { return has(u) ? e + u : e; };
    State z[U];
    typename Head::Row x[U];
    A both[2 * U];
    int32_t j[U];
#pragma unroll
    for (int u = 0; u < U; ++u) j[u] = a.col[edge(u)];
#pragma unroll
    for (int u = 0; u < U; ++u) x[u] = head.read(a.x_src, j[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      z[u] = head.z(t.own, x[u], edge(u));
      both[u] = head.score(z[u], t.r, j[u], edge(u));
      both[U + u] = head.product(t.dy, x[u], a.dy, t.r, a.x_src, j[u]);
    }
    head.template add_lanes<2 * U>(both);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!has(u)) continue;
      const A alpha = exponential(both[u] - t.node[0]);
      const A de = alpha * (a.scores.keep(t.key, e + u, head.h) * t.scale * both[U + u] - t.node[1]);
      State sloped;
      for (int i = 0; i < V; ++i) {
        sloped[i] = de * a.scores.slope(z[u][i]);
        sum[i] += sloped[i], datt[i] += sloped[i] * z[u][i];
        sloped[i] *= head.att[i];
      }
      if (a.dedge) head.write(a.dedge, e + u, sloped);
    }
  }

  __device__ State span(const Head& head, int64_t r, int64_t begin, int64_t end, State& datt) const {
    const Target t = {head.read(a.x_dst, r), head.read(a.dy, r), load<2>(&node[head.node(r)].v[0]), r,
                      a.scores.key(),        a.scores.scale()};
    State sum = {};
    int e = static_cast<int>(begin);
    for (; end - e >= U; e += U) step<false>(sum, datt, head, t, e, U);
    if (U > 1 && e < end) step<true>(sum, datt, head, t, e, static_cast<int>(end - e));
    return sum;
  }

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t r, int64_t j, int64_t, State sum) const {
    const Head head(a, shape, j);
    for (int i = 0; i < V; ++i) sum[i] *= head.att[i];
    head.write(a.dx_dst, r, sum);
  }
};

// segments_kernel, but a group takes every `strips`th unit, and leaves its part of datt.
template <typename Op>
__global__ void __launch_bounds__(kSegmentThreads, Op::kLeastBlocks)
    gatv2_rows_kernel(Op op, RowSegments s, int64_t strips, typename Op::State* piece, typename Op::A* part) {
  const int64_t j = ((s.first + blockIdx.y) * s.lanes + threadIdx.x % s.lanes) * Op::V;
  const int64_t group = int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes;
  if (j >= s.width || group >= strips) return;
  const typename Op::Head head(op.a, op.shape, j);
  typename Op::State datt = {};
  for (int64_t unit = group; unit < s.units; unit += strips) {
    RowSpan span;
    if (!segment_span(s, unit, span)) continue;
    const typename Op::State state = op.span(head, span.row, span.begin, span.end, datt);
    if (span.pieces == 1)
      op.finish(span.row, j, span.end - span.begin, state);
    else
      piece[piece_place(s, span.begin) * (s.width / Op::V) + j / Op::V] = state;
  }
  head.write(part, group, datt);
}

// dx_src, over the transpose.
template <typename T, int V_, int R>
struct Gatv2SourcesOp {
  static constexpr int V = V_ * R, U = gatv2_edges<T, V>, kLeastBlocks = gatv2_least_blocks<T, V>;
  using A = acc_t<T>;
  using Head = Gatv2Head<T, V_, R>;
  struct State {
    typename Head::Sums sum, slopes;
  };
  Gatv2BackwardArguments<T> a;
  Gatv2Shape shape;
  const Gatv2Node<A>* node;

  template <bool kLast>
  __device__ __forceinline__ void step(State& s, const Head& head, const typename Head::Row& own, int64_t j, int t,
                                       int left, RandomKey key, A scale) const {
    const auto has = [&](int u) { return !kLast || u < left; };
    const auto slot = [&](int u) { return has(u) ? t + u : t; };
    typename Head::Sums z[U];
    typename Head::Row dy[U];
    Gatv2Node<A> n[U];
    A both[2 * U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int32_t i = a.row[slot(u)], e = a.edge || a.scores.seed ? a.perm[slot(u)] : 0;
      n[u] = load<2>(&node[head.node(i)].v[0]);
      dy[u] = head.read(a.dy, i);
      z[u] = head.z(own, head.read(a.x_dst, i), e);
      both[u] = head.score(z[u], i, j, e);
      both[U + u] = head.product(dy[u], own, a.dy, i, a.x_src, j);
    }
    head.template add_lanes<2 * U>(both);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!has(u)) continue;
      const A alpha = exponential(both[u] - n[u][0]);
      const A kept = a.scores.seed ? alpha * a.scores.keep(key, a.perm[t + u], head.h) * scale : alpha;
      const A de = kept * both[U + u] - alpha * n[u][1];
      for (int i = 0; i < V; ++i) {
        s.sum[i] += kept * to_acc(dy[u].x[i / V_][i % V_]);
        s.slopes[i] += de * a.scores.slope(z[u][i]);
      }
    }
  }

  __device__ State span(int64_t j, int64_t begin, int64_t end, int64_t column) const {
    const Head head(a, shape, column);
    const typename Head::Row own = head.read(a.x_src, j);
    const RandomKey key = a.scores.key();
    const A scale = a.scores.scale();
    State s = {};
    int t = static_cast<int>(begin);
    for (; end - t >= U; t += U) step<false>(s, head, own, j, t, U, key, scale);
    if (U > 1 && t < end) step<true>(s, head, own, j, t, static_cast<int>(end - t), key, scale);
    return s;
  }

  __device__ void merge(State& s, const State& next) const {
    for (int i = 0; i < V; ++i) s.sum[i] += next.sum[i], s.slopes[i] += next.slopes[i];
  }

  __device__ void finish(int64_t j, int64_t column, int64_t, State s) const {
    const Head head(a, shape, column);
    for (int i = 0; i < V; ++i) s.sum[i] += head.att[i] * s.slopes[i];
    head.write(a.dx_src, j, s.sum);
  }
};

// ---- launchers

// The parts of the workspace, in bytes; the pointers of the arguments must be set.
template <typename T, int V, int R>
struct Gatv2Backward {
  using A = acc_t<T>;
  using Rows = Gatv2RowsOp<T, V, R>;
  using Sources = Gatv2SourcesOp<T, V, R>;
  const Gatv2BackwardArguments<T>& a;
  Gatv2Shape shape;
  RowSegments s;
  int64_t strips, nodes, parts, pieces;

  explicit Gatv2Backward(const Gatv2BackwardArguments<T>& arguments)
      : a(arguments), shape(gatv2_shape<V, R>(arguments)), s{a.crow, a.rows, shape.width, a.edges, a.spans} {
    const int64_t columns = shape.width / Rows::V;
    s.lanes = group_lanes(columns), s.groups = kSegmentThreads / s.lanes;
    cut_segments(s, segment_window(a.edges));
    strips = min<int64_t>(s.units, 131072 / s.lanes);
    nodes = ceil_div(a.rows * a.scores.heads * sizeof(Gatv2Node<A>), 16) * 16;
    parts = ceil_div(strips * a.scores.heads * a.scores.width * sizeof(A), 16) * 16;
    pieces = segment_pieces(a.edges) * columns * max(sizeof(typename Rows::State), sizeof(typename Sources::State));
  }
  int64_t bytes() const { return nodes + parts + pieces; }

  cudaError_t launch_all(void* workspace, cudaStream_t stream) const {
    auto* node = static_cast<Gatv2Node<A>*>(workspace);
    auto* part = reinterpret_cast<A*>(static_cast<char*>(workspace) + nodes);
    void* piece = static_cast<char*>(workspace) + nodes + parts;
    const auto blocks = [](int64_t items, int64_t each) { return static_cast<unsigned>(ceil_div(items, each)); };
    const int64_t columns = a.scores.heads * a.scores.width;
    const int lanes = group_lanes(a.scores.width / V);
    const int64_t slices = ceil_div(shape.width / Rows::V, s.lanes);
    cudaError_t error = cudaSuccess;
    if (a.rows > 0)
      error = launch(gatv2_nodes_kernel<T, V>, blocks(a.rows * a.scores.heads, kGatThreads / lanes), kGatThreads, 0,
                     stream, a, lanes, node);
    const Rows rows{a, shape, node};
    auto* state = static_cast<typename Rows::State*>(piece);
    for (RowSegments here = s; a.rows > 0 && here.first < slices && error == cudaSuccess; here.first += grid_rows()) {
      const auto high = static_cast<unsigned>(min(slices - here.first, grid_rows()));
      error = launch(gatv2_rows_kernel<Rows>, dim3(blocks(strips, s.groups), high), kSegmentThreads, 0, stream, rows,
                     here, strips, state, part);
      RowSegments merged = here;
      merged.units = merged_units(s);
      if (error == cudaSuccess && merged.units > 0)
        error = launch(segments_merge_kernel<Rows>, dim3(blocks(merged.units, s.groups), high), kSegmentThreads, 0,
                       stream, rows, merged, static_cast<const typename Rows::State*>(state));
    }
    if (error == cudaSuccess) error = launch_gat_sum(part, columns, strips, a.datt, stream);
    if (error != cudaSuccess) return error;
    return launch_segments(Sources{a, shape, node}, RowSegments{a.ccol, a.cols, shape.width, a.edges, a.cspans}, piece,
                           stream);
  }
};

template <typename T, typename F>
auto gatv2_backward_by_shape(const Gatv2BackwardArguments<T>& a, const F& f) {
  return gatv2_by_shape(
      a, [&](auto V, auto R) { return f(Gatv2Backward<T, V.value, R.value>(a)); }, a.dy, a.y, a.dx_src, a.dx_dst,
      a.dedge);
}

template <typename T>
int64_t gatv2_backward_workspace_bytes(const Gatv2BackwardArguments<T>& a) {
  return gatv2_backward_by_shape(a, [](const auto& backward) { return backward.bytes(); });
}

// workspace: gatv2_backward_workspace_bytes(a), aligned to 16 bytes.
template <typename T>
cudaError_t launch_gatv2_backward(const Gatv2BackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  if (a.scores.heads * a.scores.width == 0) return cudaSuccess;
  return gatv2_backward_by_shape(a, [&](const auto& backward) { return backward.launch_all(workspace, stream); });
}

}  // namespace sparsegnn::cuda
