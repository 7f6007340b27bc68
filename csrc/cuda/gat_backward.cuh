// gat, backward / cuda
//
//   with m the dropout factor, l' the slope of leaky and D[i, h] = <dy[i, h, :], y[i, h, :]>:
//   de[e, h] = alpha * l' * (m * <dy[i, h, :], x[j, h, :]> - D[i, h])              for the edge e from j to i
//   dx[j, h, :] = sum over the edges e of j of alpha * m * dy[i, h, :]
//   da_src[j, h] = sum of de = <sum of alpha * m * l' * dy[i, h, :], x[j, h, :]> - sum of alpha * l' * D[i, h]
//   da_dst[i, h] = <dy[i, h, :], tilt[i, h, :]>;  da_edge = de
//
// layout     transposed CSR: ccol[N+1], row, perm[E]; dy[M, H, D]; the rest as gat.cuh; gradients of scores in acc_t<T>
// work       4*E*H*D flop; E*(8 + 16*H + H*D*s) bytes: each row of dy is gathered once
// schedule   first D and da_dst per node and head, packed with a_dst and lse into 16 bytes (32 in fp64). Then as
// gat.cuh
//            over the transpose; every lane leaves its part of da_src[j, h], and a third kernel adds the parts of a
//            head. da_edge, if asked for, in a kernel of its own: it needs the product of every edge
// numerics   alpha is made again from lse; sums in acc_t<T>, fixed order: the same bits in every run
// see        sparsegnn/ops/gat.py, tests/csrc/test_gat.py
#pragma once
#include "gat.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct GatBackwardArguments {
  GatScores<acc_t<T>> scores;
  const T *dy, *x, *y, *tilt;
  const acc_t<T>* lse;
  const int32_t *ccol, *row, *perm;
  T* dx;
  acc_t<T>*da_src, *da_dst, *da_edge;  // da_edge may be null
  int64_t rows, cols, edges;
};

constexpr int kGatThreads = 256;

// What an edge needs of its target, for one head: a_dst, lse, D and nothing.
template <typename A>
using GatNode = vec<A, 4>;

template <typename T, int V>
struct GatBackwardState {
  vec<acc_t<T>, V> sum, slope_sum;
  acc_t<T> flow;
};

template <typename T, int V_>
struct GatBackwardOp {
  static constexpr int V = V_, kLeastBlocks = sizeof(T) == 8 ? 1 : 2;
  using A = acc_t<T>;
  using State = GatBackwardState<T, V>;
  GatBackwardArguments<T> a;
  const GatNode<A>* node;
  A* part;  // of da_src, [N, H*D/V]

  __device__ State span(int64_t c, int64_t begin, int64_t end, int64_t j) const {
    const GatScores<A>& g = a.scores;
    const int64_t h = j / g.width;
    const A own = g.a_src[c * g.heads + h];
    const RandomKey key = g.key();
    State s = {};
#pragma unroll 4
    for (int64_t t = begin; t < end; ++t) {
      const int64_t i = a.row[t], e = g.a_edge || g.seed ? a.perm[t] : 0;
      const GatNode<A> n = load<4>(&node[i * g.heads + h].v[0]);
      const vec<T, V> dy = load<V>(a.dy + i * g.heads * g.width + j);
      A score = own + n[0];
      if (g.a_edge) score += g.a_edge[e * g.heads + h];
      const A alpha = exponential(g.leaky(score) - n[1]), slope = g.slope(score);
      const A kept = alpha * g.keep(key, e, h), sloped = kept * slope;
      s.flow += alpha * slope * n[2];
      for (int u = 0; u < V; ++u) {
        s.sum[u] += kept * to_acc(dy[u]);
        s.slope_sum[u] += sloped * to_acc(dy[u]);
      }
    }
    return s;
  }

  __device__ void merge(State& s, const State& next) const {
    s.flow += next.flow;
    for (int u = 0; u < V; ++u) s.sum[u] += next.sum[u], s.slope_sum[u] += next.slope_sum[u];
  }

  __device__ void finish(int64_t c, int64_t j, int64_t, const State& s) const {
    const int64_t at = c * a.scores.heads * a.scores.width + j;
    const A scale = a.scores.scale();
    const vec<T, V> x = load<V>(a.x + at);
    vec<T, V> dx;
    A product = 0;
    for (int u = 0; u < V; ++u) {
      dx[u] = from_acc<T>(s.sum[u] * scale);
      product += s.slope_sum[u] * scale * to_acc(x[u]);
    }
    store(a.dx + at, dx);
    part[at / V] = j % a.scores.width == 0 ? product - s.flow : product;
  }
};

// The product of two vectors of `width` elements, by a group of lanes; every lane gets it.
template <int V, typename T>
__device__ __forceinline__ acc_t<T> gat_product(const T* a, const T* b, int64_t width, int lanes) {
  acc_t<T> sum = 0;
  for (int64_t d = int64_t{threadIdx.x} % lanes * V; d < width; d += lanes * V) {
    const vec<T, V> u = load<V>(a + d), v = load<V>(b + d);
    for (int i = 0; i < V; ++i) sum += to_acc(u[i]) * to_acc(v[i]);
  }
  return warp_sum(sum, lanes);
}

// A group of lanes for each (node, head).
template <typename T, int V>
__global__ void __launch_bounds__(kGatThreads)
    gat_nodes_kernel(GatBackwardArguments<T> a, int lanes, GatNode<acc_t<T>>* node) {
  const int64_t n = int64_t{blockIdx.x} * (kGatThreads / lanes) + threadIdx.x / lanes;
  const bool inside = n < a.rows * a.scores.heads;
  const int64_t width = inside ? a.scores.width : 0, at = inside ? n * width : 0;
  const acc_t<T> flow = gat_product<V>(a.dy + at, a.y + at, width, lanes);
  const acc_t<T> da_dst = gat_product<V>(a.dy + at, a.tilt + at, width, lanes);
  if (!inside || threadIdx.x % lanes != 0) return;
  node[n] = {a.scores.a_dst[n], a.lse[n], flow, 0};
  a.da_dst[n] = da_dst;
}

// da_src[j, h] = the sum of its parts.
template <typename A>
__global__ void __launch_bounds__(kGatThreads) gat_parts_kernel(const A* part, int64_t count, int64_t parts, A* sum) {
  const int64_t n = int64_t{blockIdx.x} * kGatThreads + threadIdx.x;
  if (n >= count) return;
  A s = 0;
#pragma unroll 4
  for (int64_t p = 0; p < parts; ++p) s += part[n * parts + p];
  sum[n] = s;
}

constexpr int kGatEdges = 16;  // transposed edges of a group, so that the source is searched for once

// A group of lanes for each (run of edges, head).
template <typename T, int V>
__global__ void __launch_bounds__(kGatThreads)
    gat_edges_kernel(GatBackwardArguments<T> a, int lanes, const GatNode<acc_t<T>>* node) {
  using A = acc_t<T>;
  const GatScores<A>& g = a.scores;
  const int64_t group = int64_t{blockIdx.x} * (kGatThreads / lanes) + threadIdx.x / lanes;
  const int64_t begin = group / g.heads * kGatEdges, h = group % g.heads;
  const A scale = g.scale();
  const RandomKey key = g.key();
  int64_t c = begin < a.edges ? row_of_edge(a.ccol, a.cols, begin) : 0;
  for (int64_t t = begin; t < begin + kGatEdges; ++t) {
    const bool inside = t < a.edges;
    while (inside && t >= a.ccol[c + 1]) ++c;
    const int64_t i = inside ? a.row[t] : 0, to = i * g.heads + h, from = c * g.heads + h;
    const A product = gat_product<V>(a.dy + to * g.width, a.x + from * g.width, inside ? g.width : 0, lanes);
    if (!inside || threadIdx.x % lanes != 0) continue;
    const int64_t e = a.perm[t];
    const GatNode<A> n = node[to];
    A score = g.a_src[from] + n[0];
    if (g.a_edge) score += g.a_edge[e * g.heads + h];
    const A alpha = exponential(g.leaky(score) - n[1]);
    a.da_edge[e * g.heads + h] = alpha * g.slope(score) * (g.keep(key, e, h) * scale * product - n[2]);
  }
}

// ---- launchers

// May a lane own kVector<T> columns?
template <typename T>
bool gat_backward_vectors(const GatBackwardArguments<T>& a) {
  return can_vectorise(kVector<T>, a.scores.width, a.dy, a.x, a.y, a.tilt, a.dx);
}

// The three parts of the workspace, in bytes. The pointers of the arguments must be set: the widths of lanes hang on
// their alignment.
template <typename T>
struct GatBackwardWorkspace {
  int64_t nodes, parts, pieces;

  explicit GatBackwardWorkspace(const GatBackwardArguments<T>& a) {
    const bool wide = gat_backward_vectors(a);
    const int64_t state = wide ? sizeof(GatBackwardState<T, kVector<T>>) : sizeof(GatBackwardState<T, 1>);
    const int64_t columns = a.scores.heads * a.scores.width / (wide ? kVector<T> : 1);
    nodes = a.rows * a.scores.heads * sizeof(GatNode<acc_t<T>>);
    parts = ceil_div(a.cols * columns * sizeof(acc_t<T>), 16) * 16;
    pieces = segment_pieces(a.edges) * columns * state;
  }
  int64_t bytes() const { return nodes + parts + pieces; }
};

template <typename T, int V>
cudaError_t launch_gat_backward_vectors(const GatBackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  using A = acc_t<T>;
  const GatBackwardWorkspace<T> sizes(a);
  auto* node = static_cast<GatNode<A>*>(workspace);
  auto* part = reinterpret_cast<A*>(static_cast<char*>(workspace) + sizes.nodes);
  void* pieces = static_cast<char*>(workspace) + sizes.nodes + sizes.parts;
  const int64_t heads = a.scores.heads, width = a.scores.width;
  const int lanes = group_lanes(width / V);
  const auto blocks = [](int64_t items, int64_t each) { return static_cast<unsigned>(ceil_div(items, each)); };
  cudaError_t error = cudaSuccess;
  if (a.rows * heads > 0)
    error = launch(gat_nodes_kernel<T, V>, blocks(a.rows * heads, kGatThreads / lanes), kGatThreads, 0, stream, a,
                   lanes, node);
  if (error != cudaSuccess) return error;
  error = launch_segments(GatBackwardOp<T, V>{a, node, part}, RowSegments{a.ccol, a.cols, heads * width, a.edges},
                          pieces, stream);
  if (error == cudaSuccess && a.cols * heads > 0)
    error = launch(gat_parts_kernel<A>, blocks(a.cols * heads, kGatThreads), kGatThreads, 0, stream, part,
                   a.cols * heads, width / V, a.da_src);
  if (error != cudaSuccess || !a.da_edge || a.edges * heads == 0) return error;
  return launch(gat_edges_kernel<T, V>, blocks(ceil_div(a.edges, kGatEdges) * heads, kGatThreads / lanes), kGatThreads,
                0, stream, a, lanes, node);
}

// workspace: GatBackwardWorkspace<T>(a).bytes(), aligned to 16 bytes.
template <typename T>
cudaError_t launch_gat_backward(const GatBackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  if (gat_backward_vectors(a)) return launch_gat_backward_vectors<T, kVector<T>>(a, workspace, stream);
  return launch_gat_backward_vectors<T, 1>(a, workspace, stream);
}

}  // namespace sparsegnn::cuda
