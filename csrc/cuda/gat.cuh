// gat / cuda
//
//   s[e, h] = a_src[col[e], h] + a_dst[r, h] + a_edge[e, h]                       for the edges e of row r
//   alpha[e, h] = softmax over the row of leaky(s[e, h]),  kept[e, h] = dropout(alpha[e, h])
//   y[r, h, :] = sum over e of kept[e, h] * x[col[e], h, :] + bias[h, :]
//   lse[r, h] = log of the sum of exp(leaky(s));  tilt = sum over e of kept * l' * x - (sum over e of alpha * l') * y
//   with y without its bias. a_src and a_dst may be products <x[n, h, :], att[h, :]>, made first
//   with l' the slope of leaky at s: what the backward needs; lse is -inf in a row without edges
//
// layout     CSR: crow[M+1], col[E] int32; x[N, H, D], y, tilt[M, H, D] in T; scores and lse in acc_t<T>; seed int64[1]
// work       2*E*H*D flop (twice that for tilt); E*(4 + H*D*s) bytes from L2 or memory, each row of x once for all
// heads schedule   as spmm: a group of lanes owns a slice of the H*D columns of one row, a lane V columns of one head;
// rows
//            longer than a window are cut. A lane keeps the running maximum and sum of its head (online softmax), four
//            edges at a time, so that nothing passes between lanes
// numerics   sums in acc_t<T>, fixed order: the same bits in every run
// backward   gat_backward.cuh
// see        sparsegnn/ops/gat.py, tests/csrc/test_gat.py, benchmarks/ops/bench_gat.py
#pragma once
#include "gat_team.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct GatArguments {
  GatScores<acc_t<T>> scores;
  const T* x;
  const acc_t<T>* bias;  // [H, D] or null
  const int32_t *crow, *col;
  T* y;
  acc_t<T>* lse;  // lse and tilt may be null when nothing is saved
  T* tilt;
  int64_t rows, edges;
  SpanList spans = {};  // of the rows
  int64_t cols = 0;     // rows of x; 0: x is gathered in slices of a warp
};

// Sums relative to the running maximum `top`: of exp, of kept exp * x, and both times the slope.
template <typename A, int V, bool kSave>
struct GatState {
  A top, total;
  vec<A, V> sum;
};
template <typename A, int V>
struct GatState<A, V, true> {
  A top, total;
  vec<A, V> sum;
  A slope_total;
  vec<A, V> slope_sum;
};

// Makes `top` the maximum. Until a score is finite the sums are 0 and stay so: exp(-inf - 0) = 0.
template <typename A, int V, bool kSave>
__device__ __forceinline__ A gat_raise(GatState<A, V, kSave>& s, A top) {
  const A base = top == -A(INFINITY) ? A(0) : top;
  const A factor = exponential(s.top - base);
  s.top = top;
  s.total *= factor;
  for (int i = 0; i < V; ++i) s.sum[i] *= factor;
  if constexpr (kSave) {
    s.slope_total *= factor;
    for (int i = 0; i < V; ++i) s.slope_sum[i] *= factor;
  }
  return base;
}

template <typename A, int V, bool kSave>
__device__ __forceinline__ void gat_merge(GatState<A, V, kSave>& s, GatState<A, V, kSave>& next) {
  const A top = max(s.top, next.top);
  gat_raise(s, top);
  gat_raise(next, top);
  s.total += next.total;
  for (int i = 0; i < V; ++i) s.sum[i] += next.sum[i];
  if constexpr (kSave) {
    s.slope_total += next.slope_total;
    for (int i = 0; i < V; ++i) s.slope_sum[i] += next.slope_sum[i];
  }
}

template <typename T, int V_, bool kSave>
struct GatOp {
  static constexpr bool kByWarps = true;
  static constexpr int V = V_, kLeastBlocks = kSave || sizeof(T) == 8 || V > 4 ? 2 : 3;
  using A = acc_t<T>;
  using State = GatState<A, V, kSave>;
  GatArguments<T> a;

  // A lane scores two edges of a step for one head; the sums are then made of what all lanes of the team have scored.
  __device__ State span(int64_t r, int64_t begin, int64_t end, int64_t j, int lanes) const {
    const GatScores<A>& g = a.scores;
    const GatTeam team(g, j, V, lanes);
    const GatWalk walk(end - begin);
    const A own = walk.mine > 0 ? g.a_dst[r * g.heads + team.scored] : A(0);
    const RandomKey key = g.key();
    State s = {};
    s.top = -A(INFINITY);  // from here on of the head that the lane scores, as are the totals
#pragma unroll 1
    for (int t = 0; t < walk.longest; t += 2 * team.edges) {
      GatShare<A> share;
      A logit[2], slope[2], top = s.top;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int at = t + k * team.edges + team.slot, e = static_cast<int>(begin) + at;
        logit[k] = -A(INFINITY), slope[k] = 0, share.row[k] = 0;
        if (at >= walk.mine || !team.scores) continue;
        share.row[k] = a.col[e];
        A score = g.a_src[team.score_at(g, share.row[k])] + own;
        if (g.a_edge) score += g.a_edge[team.score_at(g, e)];
        logit[k] = g.leaky(score), slope[k] = g.slope(score);
      }
      top = team.over_edges(max(top, max(logit[0], logit[1])), [](A x, A y) { return max(x, y); });
      const A base = top == -A(INFINITY) ? A(0) : top, factor = power(s.top - base);
      const bool raised = factor != 1 && s.top > -A(INFINITY);  // before, the sums are 0
      s.top = top;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const A p = power(logit[k] - base);
        share.kept[k] = p * g.keep(key, static_cast<int>(begin) + t + k * team.edges + team.slot, team.scored);
        s.total = (k ? s.total : s.total * factor) + p;
        share.sloped[k] = share.kept[k] * slope[k];
        if constexpr (kSave) s.slope_total = (k ? s.slope_total : s.slope_total * factor) + p * slope[k];
      }
      if (__any_sync(kFullMask, raised)) {
        const A mine = team.of_head(factor);
        for (int i = 0; i < V; ++i) s.sum[i] *= mine;
        if constexpr (kSave)
          for (int i = 0; i < V; ++i) s.slope_sum[i] *= mine;
      }
      gat_add<kSave>(s, share, a.x, g, team, walk, t);
    }
    const auto plus = [](A x, A y) { return x + y; };
    s.top = team.of_head(s.top), s.total = team.of_head(team.over_edges(s.total, plus));
    if constexpr (kSave) s.slope_total = team.of_head(team.over_edges(s.slope_total, plus));
    return s;
  }

  __device__ void merge(State& s, State next) const { gat_merge(s, next); }

  __device__ void finish(int64_t r, int64_t j, int64_t degree, const State& s) const {
    const GatLane lane(a.scores, j);
    const A over = degree > 0 ? 1 / s.total : A(0), scale = over * a.scores.scale();
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(s.sum[i] * scale + (a.bias ? a.bias[j + i] : A(0)));
    store(a.y + lane.at(r), y);
    if constexpr (kSave) {
      vec<T, V> tilt;
      for (int i = 0; i < V; ++i)
        tilt[i] = from_acc<T>(s.slope_sum[i] * scale - s.slope_total * over * (s.sum[i] * scale));
      store(a.tilt + lane.at(r), tilt);
      if (lane.begins) a.lse[lane.score_at(r)] = degree > 0 ? s.top + logarithm(s.total) : -A(INFINITY);
    }
  }
};

constexpr int kGatThreads = 256;

// The product of two vectors of `width` elements, by a group of lanes; every lane gets it.
template <int V, typename T, typename S>
__device__ __forceinline__ acc_t<T> gat_product(const T* a, const S* b, int64_t width, int lanes) {
  acc_t<T> sum = 0;
  for (int64_t d = int64_t{threadIdx.x} % lanes * V; d < width; d += lanes * V) {
    const vec<T, V> u = load<V>(a + d);
    const vec<S, V> v = load<V>(b + d);
    for (int i = 0; i < V; ++i) sum += to_acc(u[i]) * to_acc(v[i]);
  }
  return warp_sum(sum, lanes);
}

// scores[0 or 1, n, h] = <x[n, h, :], att_src or att_dst [h, :]>: a group of lanes for each (node, head).
template <typename T>
__global__ void __launch_bounds__(kGatThreads)
    gat_scores_kernel(const T* x, const acc_t<T>* att_src, const acc_t<T>* att_dst, int64_t count, int64_t heads,
                      int64_t columns, int lanes, acc_t<T>* scores) {
  const int64_t n = int64_t{blockIdx.x} * (kGatThreads / lanes) + threadIdx.x / lanes;
  const bool inside = n < count;
  const int64_t width = inside ? columns : 0, at = inside ? n * columns : 0, head = inside ? n % heads * columns : 0;
  const acc_t<T> src = gat_product<1>(x + at, att_src + head, width, lanes);
  const acc_t<T> dst = gat_product<1>(x + at, att_dst + head, width, lanes);
  if (!inside || threadIdx.x % lanes != 0) return;
  scores[n] = src, scores[count + n] = dst;
}

constexpr int kGatSumThreads = 512;

// sum[c] = the sum over p of part[p, c], in order within 16 shares, which are added in order.
template <typename A>
__global__ void __launch_bounds__(kGatSumThreads)
    gat_sum_kernel(const A* part, int64_t columns, int64_t parts, A* sum) {
  SG_SHARED(A, shares);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t c = int64_t{blockIdx.x} * kWarp + lane;
  A s = 0;
  if (c < columns)
#pragma unroll 8
    for (int64_t p = warp; p < parts; p += kGatSumThreads / kWarp) s += part[p * columns + c];
  shares[threadIdx.x] = s;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
  for (int u = kWarp; u < kGatSumThreads; u += kWarp) s += shares[u + lane];
  sum[c] = s;
}

// ---- launchers

template <typename A>
cudaError_t launch_gat_sum(const A* part, int64_t columns, int64_t parts, A* sum, cudaStream_t stream) {
  return launch(gat_sum_kernel<A>, dim3(static_cast<unsigned>(ceil_div(columns, kWarp))), kGatSumThreads,
                kGatSumThreads * sizeof(A), stream, part, columns, parts, sum);
}

// scores [2, N, H] of nodes [N, H, D].
template <typename T>
cudaError_t launch_gat_scores(const T* x, const acc_t<T>* att_src, const acc_t<T>* att_dst, int64_t nodes,
                              int64_t heads, int64_t width, acc_t<T>* scores, cudaStream_t stream) {
  if (nodes * heads == 0) return cudaSuccess;
  const int lanes = group_lanes(width);
  const auto blocks = static_cast<unsigned>(ceil_div(nodes * heads, kGatThreads / lanes));
  return launch(gat_scores_kernel<T>, dim3(blocks), kGatThreads, 0, stream, x, att_src, att_dst, nodes * heads, heads,
                width, lanes, scores);
}

template <typename T>
int64_t gat_workspace_bytes(int64_t edges, int64_t columns, bool save) {
  using A = acc_t<T>;
  constexpr int V = kVector<T>;
  const int64_t wide = save ? sizeof(GatState<A, V, true>) : sizeof(GatState<A, V, false>);
  const int64_t narrow = save ? sizeof(GatState<A, 1, true>) : sizeof(GatState<A, 1, false>);
  return segment_pieces(edges) * max(ceil_div(columns, V) * wide, columns * narrow);
}

template <typename T, int V>
cudaError_t launch_gat_vectors(const GatArguments<T>& a, bool save, void* workspace, cudaStream_t stream) {
  RowSegments s{a.crow, a.rows, a.scores.heads * a.scores.width, a.edges, a.spans};
  if (!fits_pitch<T>(s.width)) return cudaErrorInvalidConfiguration;
  s.table = a.cols, s.bytes = sizeof(T);
  if (save) return launch_segments(GatOp<T, V, true>{a}, s, workspace, stream);
  return launch_segments(GatOp<T, V, false>{a}, s, workspace, stream);
}

// workspace: gat_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_gat(const GatArguments<T>& a, bool save, void* workspace, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (can_vectorise(V, a.scores.width, a.x, a.y, a.tilt)) return launch_gat_vectors<T, V>(a, save, workspace, stream);
  return launch_gat_vectors<T, 1>(a, save, workspace, stream);
}

}  // namespace sparsegnn::cuda
