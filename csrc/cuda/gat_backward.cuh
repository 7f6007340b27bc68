// gat, backward / cuda
//
//   with m the dropout factor, l' the slope of leaky and D[i, h] = <dy[i, h, :], y[i, h, :]>:
//   de[e, h] = alpha * l' * (m * <dy[i, h, :], x[j, h, :]> - D[i, h])              for the edge e from j to i
//   dx[j, h, :] = sum over the edges e of j of alpha * m * dy[i, h, :]
//   da_src[j, h] = sum of de = <sum of alpha * m * l' * dy[i, h, :], x[j, h, :]> - sum of alpha * l' * D[i, h]
//   da_dst[i, h] = <dy[i, h, :], tilt[i, h, :]>;  da_edge = de;  dbias = sum of dy
//   of scores <x, att>: dx += da_src att_src + da_dst att_dst;  datt = sum over nodes of da x
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
  const acc_t<T>*bias, *att_src, *att_dst;  // [H, D] or null
  const int32_t *ccol, *row, *perm;
  T* dx;
  acc_t<T>*da_src, *da_dst, *da_edge;    // da_edge may be null
  acc_t<T>*datt_src, *datt_dst, *dbias;  // [H, D] or null
  int64_t rows, cols, edges;
  SpanList spans = {};  // of the columns
};

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
  static constexpr bool kByWarps = true;
  static constexpr int V = V_, kLeastBlocks = sizeof(T) == 8 || V > 4 ? 2 : 3;
  using A = acc_t<T>;
  using State = GatBackwardState<T, V>;
  GatBackwardArguments<T> a;
  const GatNode<A>* node;
  A* part;  // of da_src, [N, H*D/V]

  // As GatOp::span.
  __device__ State span(int64_t c, int64_t begin, int64_t end, int64_t j, int lanes) const {
    const GatScores<A>& g = a.scores;
    const GatTeam team(g, j, V, lanes);
    const GatWalk walk(end - begin);
    const A own = walk.mine > 0 ? g.a_src[c * g.heads + team.scored] : A(0);
    const RandomKey key = g.key();
    State s = {};
#pragma unroll 1
    for (int t = 0; t < walk.longest; t += 2 * team.edges) {
      GatShare<A> share;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int at = t + k * team.edges + team.slot, slot = static_cast<int>(begin) + at;
        share.row[k] = 0, share.kept[k] = share.sloped[k] = 0;
        if (at >= walk.mine || !team.scores) continue;
        const int32_t i = a.row[slot], e = g.a_edge || g.seed ? a.perm[slot] : 0;
        const GatNode<A> n = load<4>(&node[team.score_at(g, i)].v[0]);
        A score = own + n[0];
        if (g.a_edge) score += g.a_edge[team.score_at(g, e)];
        const A alpha = power(g.leaky(score) - n[1]), slope = g.slope(score);
        share.row[k] = i, share.kept[k] = alpha * g.keep(key, e, team.scored);
        share.sloped[k] = share.kept[k] * slope;
        s.flow += alpha * slope * n[2];
      }
      gat_add<true>(s, share, a.dy, g, team, walk, t);
    }
    s.flow = team.of_head(team.over_edges(s.flow, [](A x, A y) { return x + y; }));
    return s;
  }

  __device__ void merge(State& s, const State& next) const {
    s.flow += next.flow;
    for (int u = 0; u < V; ++u) s.sum[u] += next.sum[u], s.slope_sum[u] += next.slope_sum[u];
  }

  __device__ void finish(int64_t c, int64_t j, int64_t, const State& s) const {
    const GatLane lane(a.scores, j);
    const int64_t at = lane.at(c);
    const A scale = a.scores.scale();
    const vec<T, V> x = load<V>(a.x + at);
    vec<T, V> dx;
    A product = 0;
    for (int u = 0; u < V; ++u) {
      dx[u] = from_acc<T>(s.sum[u] * scale);
      product += s.slope_sum[u] * scale * to_acc(x[u]);
    }
    store(a.dx + at, dx);
    part[at / V] = lane.begins ? product - s.flow : product;
  }
};

// A group of lanes for each (node, head).
template <typename T, int V>
__global__ void __launch_bounds__(kGatThreads)
    gat_nodes_kernel(GatBackwardArguments<T> a, int lanes, GatNode<acc_t<T>>* node) {
  const int64_t n = int64_t{blockIdx.x} * (kGatThreads / lanes) + threadIdx.x / lanes;
  const bool inside = n < a.rows * a.scores.heads;
  const int64_t width = inside ? a.scores.width : 0, at = inside ? n * width : 0;
  acc_t<T> flow = gat_product<V>(a.dy + at, a.y + at, width, lanes);
  if (a.bias) flow -= gat_product<1>(a.dy + at, a.bias + (inside ? n % a.scores.heads * width : 0), width, lanes);
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

// Nodes that one part of datt or dbias sums over.
inline int64_t gat_strip(int64_t nodes) { return max<int64_t>(64, ceil_div(nodes, 1024)); }

// For column c of a strip of nodes: dx += da att, and its part of datt, [2, strips, H*D]; or its part of dbias.
template <typename T>
__global__ void __launch_bounds__(kGatThreads)
    gat_columns_kernel(GatBackwardArguments<T> a, bool bias, int64_t strip, acc_t<T>* part) {
  using A = acc_t<T>;
  const int64_t columns = a.scores.heads * a.scores.width, nodes = bias ? a.rows : a.cols;
  const int64_t c = int64_t{blockIdx.x} * kGatThreads + threadIdx.x, h = c / max<int64_t>(a.scores.width, 1);
  if (c >= columns) return;
  A first = 0, second = 0;
  for (int64_t n = blockIdx.y * strip; n < min((blockIdx.y + 1) * strip, nodes); ++n) {
    const int64_t at = n * columns + c;
    if (bias) {
      first += to_acc(a.dy[at]);
      continue;
    }
    const A src = a.da_src[n * a.scores.heads + h], dst = a.da_dst[n * a.scores.heads + h], x = to_acc(a.x[at]);
    a.dx[at] = from_acc<T>(to_acc(a.dx[at]) + src * a.att_src[c] + dst * a.att_dst[c]);
    first += src * x, second += dst * x;
  }
  part[blockIdx.y * columns + c] = first;
  if (!bias) part[(gridDim.y + blockIdx.y) * columns + c] = second;
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

// The parts of the workspace, in bytes. The pointers of the arguments must be set: the widths of lanes hang on
// their alignment.
template <typename T>
struct GatBackwardWorkspace {
  int64_t nodes, parts, pieces, sums;

  explicit GatBackwardWorkspace(const GatBackwardArguments<T>& a) {
    const bool wide = gat_backward_vectors(a);
    const int64_t state = wide ? sizeof(GatBackwardState<T, kVector<T>>) : sizeof(GatBackwardState<T, 1>);
    const int64_t columns = a.scores.heads * a.scores.width / (wide ? kVector<T> : 1);
    nodes = a.rows * a.scores.heads * sizeof(GatNode<acc_t<T>>);
    parts = ceil_div(a.cols * columns * sizeof(acc_t<T>), 16) * 16;
    pieces = ceil_div(segment_pieces(a.edges) * columns * state, 16) * 16;
    const int64_t strips = max(a.datt_src ? 2 * strips_of(a.cols) : 0, a.dbias ? strips_of(a.rows) : 0);
    sums = strips * a.scores.heads * a.scores.width * sizeof(acc_t<T>);
  }
  static int64_t strips_of(int64_t nodes) { return ceil_div(nodes, gat_strip(nodes)); }
  int64_t bytes() const { return nodes + parts + pieces + sums; }
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
  if (!fits_pitch<T>(heads * width)) return cudaErrorInvalidConfiguration;
  RowSegments s{a.ccol, a.cols, heads * width, a.edges, a.spans};
  s.table = a.rows, s.bytes = sizeof(T);
  error = launch_segments(GatBackwardOp<T, V>{a, node, part}, s, pieces, stream);
  if (error == cudaSuccess && a.cols * heads > 0)
    error = launch(gat_parts_kernel<A>, blocks(a.cols * heads, kGatThreads), kGatThreads, 0, stream, part,
                   a.cols * heads, width / V, a.da_src);
  if (error == cudaSuccess && a.da_edge && a.edges * heads > 0)
    error = launch(gat_edges_kernel<T, V>, blocks(ceil_div(a.edges, kGatEdges) * heads, kGatThreads / lanes),
                   kGatThreads, 0, stream, a, lanes, node);
  return error;
}

// What sums over nodes: datt with its share of dx, and dbias.
template <typename T>
cudaError_t launch_gat_columns(const GatBackwardArguments<T>& a, bool bias, acc_t<T>* part, cudaStream_t stream) {
  using A = acc_t<T>;
  const int64_t columns = a.scores.heads * a.scores.width, nodes = bias ? a.rows : a.cols;
  if (columns == 0) return cudaSuccess;
  const int64_t strips = GatBackwardWorkspace<T>::strips_of(nodes);
  const auto blocks = static_cast<unsigned>(ceil_div(columns, kGatThreads));
  cudaError_t error = cudaSuccess;
  if (strips > 0)
    error = launch(gat_columns_kernel<T>, dim3(blocks, static_cast<unsigned>(strips)), kGatThreads, 0, stream, a, bias,
                   gat_strip(nodes), part);
  for (A* sum : {bias ? a.dbias : a.datt_src, bias ? nullptr : a.datt_dst}) {
    if (error != cudaSuccess || !sum) return error;
    error = launch_gat_sum(part, columns, strips, sum, stream);
    part += columns * strips;
  }
  return error;
}

// workspace: GatBackwardWorkspace<T>(a).bytes(), aligned to 16 bytes.
template <typename T>
cudaError_t launch_gat_backward(const GatBackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  const GatBackwardWorkspace<T> sizes(a);
  auto* part = reinterpret_cast<acc_t<T>*>(static_cast<char*>(workspace) + sizes.nodes + sizes.parts + sizes.pieces);
  cudaError_t error = gat_backward_vectors(a) ? launch_gat_backward_vectors<T, kVector<T>>(a, workspace, stream)
                                              : launch_gat_backward_vectors<T, 1>(a, workspace, stream);
  if (error == cudaSuccess && a.datt_src) error = launch_gat_columns(a, false, part, stream);
  if (error == cudaSuccess && a.dbias) error = launch_gat_columns(a, true, part, stream);
  return error;
}

}  // namespace sparsegnn::cuda
