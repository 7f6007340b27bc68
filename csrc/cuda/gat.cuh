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
#include "../common/random.h"
#include "../common/segments.cuh"

namespace sparsegnn::cuda {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// The scores of all edges, and their dropout. Device pointers; a_edge and seed may be null.
template <typename A>
struct GatScores {
  const A *a_src, *a_dst, *a_edge;
  int64_t heads, width;
  A negative_slope;
  double dropout;
  const int64_t* seed;

  struct Head {
    int64_t h;
    A own;  // the score of the row's own node
    uint32_t stream;
  };

  __device__ RandomKey key() const { return random_key(seed ? *seed : 0); }
  __device__ A leaky(A score) const { return score > 0 ? score : score * negative_slope; }
  __device__ A slope(A score) const { return score > 0 ? A(1) : negative_slope; }
  // 0 or 1: the scale 1 / (1 - p) multiplies the sums.
  __device__ A keep(RandomKey k, int64_t e, int64_t h) const {
    if (!seed) return 1;
    const uint32_t edge = random_edge(k, static_cast<uint32_t>(e)), head = random_head(k, static_cast<uint32_t>(h));
    return random_bits(edge, head) >= random_threshold(dropout) ? A(1) : A(0);
  }
  __device__ A scale() const { return seed ? A(random_scale(dropout)) : A(1); }
};

// Where a lane's columns j and its head are: 32-bit factors, so that an address is one multiplication.
struct GatLane {
  int columns, heads, column, head;
  bool begins;  // the lane has the first columns of its head

  template <typename A>
  __device__ __forceinline__ GatLane(const GatScores<A>& s, int64_t j)
      : columns(static_cast<int>(s.heads * s.width)), heads(static_cast<int>(s.heads)), column(static_cast<int>(j)) {
    const unsigned width = static_cast<unsigned>(s.width), of = static_cast<unsigned>(column) / width;
    head = static_cast<int>(of), begins = of * width == static_cast<unsigned>(column);
  }
  __device__ __forceinline__ int64_t at(int64_t n) const { return int64_t{int32_t(n)} * columns + column; }
  __device__ __forceinline__ int64_t score_at(int64_t n) const { return int64_t{int32_t(n)} * heads + head; }
};

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
  static constexpr int V = V_, kLeastBlocks = sizeof(T) == 8 || V > 4 ? 2 : 3;
  using A = acc_t<T>;
  using State = GatState<A, V, kSave>;
  GatArguments<T> a;

  // Four edges; the last step of a span has `left` of them: the score of one that is not there is -inf.
  template <bool kLast>
  __device__ __forceinline__ void step(State& s, int e, int left, const GatLane& lane, A own, RandomKey key) const {
    const GatScores<A>& g = a.scores;
    const int h = lane.head;
    const auto has = [&](int u) { return !kLast || u < left; };
    vec<T, V> x[4];
    A score[4], logit[4], top = s.top;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      x[u] = {}, score[u] = 0, logit[u] = -A(INFINITY);
      if (!has(u)) continue;
      const int32_t source = a.col[e + u];
      x[u] = load<V>(a.x + lane.at(source));
      score[u] = g.a_src[lane.score_at(source)] + own;
      if (g.a_edge) score[u] += g.a_edge[lane.score_at(e + u)];
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (has(u)) logit[u] = g.leaky(score[u]);
      top = max(top, logit[u]);
    }
    const A base = gat_raise(s, top);
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const A p = exponential(logit[u] - base), kept = p * g.keep(key, e + u, h);
      s.total += p;
      for (int i = 0; i < V; ++i) s.sum[i] += kept * to_acc(x[u][i]);
      if constexpr (kSave) {
        const A slope = g.slope(score[u]), sloped = kept * slope;
        s.slope_total += p * slope;
        for (int i = 0; i < V; ++i) s.slope_sum[i] += sloped * to_acc(x[u][i]);
      }
    }
  }

  __device__ State span(int64_t r, int64_t begin, int64_t end, int64_t j) const {
    const GatLane lane(a.scores, j);
    const A own = a.scores.a_dst[lane.score_at(r)];
    const RandomKey key = a.scores.key();
    State s = {};
    s.top = -A(INFINITY);
    int e = static_cast<int>(begin);
    for (; end - e >= 4; e += 4) step<false>(s, e, 4, lane, own, key);
    if (e < end) step<true>(s, e, static_cast<int>(end - e), lane, own, key);
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
  const RowSegments s{a.crow, a.rows, a.scores.heads * a.scores.width, a.edges, a.spans};
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
