// gatv2 / cuda
//
//   z = x_src[j, h, :] + x_dst[i, h, :] + edge[e, h, :],   s[e, h] = sum_c att[h, c] leaky(z)[c]
//   alpha = softmax of s over the edges of row i;  y[i, h, :] = sum m alpha x_src[j, h, :];  lse = log sum exp(s)
//
// layout     CSR crow[M+1], col[E] int32; features [N or M, H, D] and edge [E, H, D] in T; att[H, D], lse[M, H] in
//            acc_t<T>; seed int64[1]
// work       5*E*H*D flop; E*(4 + H*D*s) bytes from L2 or memory: each row of x_src is gathered once for all heads
// schedule   common/segments.cuh: a group of lanes for a row, long rows cut into windows. The lanes of a head, a power
//            of two of them, hold its columns of x_dst and att in registers, R vectors of V columns each, and share the
//            product of an edge: a few edges at a time, so that loads and shuffles overlap. Heads wider than R vectors
//            of a warp are cut into slices, each of which reads all columns for the scores
// numerics   online softmax; sums in acc_t<T>, fixed order: the same bits in every run
// backward   gatv2_backward.cuh
// see        sparsegnn/ops/gatv2.py, tests/csrc/test_gatv2.py, benchmarks/ops/bench_gatv2.py
#pragma once
#include "gat.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct Gatv2Edges {
  GatScores<acc_t<T>> scores;     // heads, width, slope and dropout; no scores of nodes
  const T *x_src, *x_dst, *edge;  // edge may be null
  const acc_t<T>* att;
  int64_t rows, cols, edges;
};

template <typename T>
struct Gatv2Arguments : Gatv2Edges<T> {
  const int32_t *crow, *col;
  T* y;
  acc_t<T>* lse;        // null when nothing is saved
  SpanList spans = {};  // of the rows
};

// Columns as common/segments.cuh counts them: V * R for every lane, `lanes` for every slice of a head.
struct Gatv2Shape {
  int lanes, slices;
  int64_t width;
};

template <int V, int R, typename T>
Gatv2Shape gatv2_shape(const Gatv2Edges<T>& a) {
  const int lanes = group_lanes(ceil_div(a.scores.width, V * R));
  const int slices = static_cast<int>(ceil_div(a.scores.width, int64_t{lanes} * V * R));
  return {lanes, slices, a.scores.heads * slices * lanes * V * R};
}

// A lane's share of a head, or of a slice of it.
template <typename T, int V, int R>
struct Gatv2Head {
  using A = acc_t<T>;
  using Sums = vec<A, V * R>;
  struct Row {
    vec<T, V> x[R];
  };
  const Gatv2Edges<T>& a;
  int heads, h, width, stride;  // the head, its columns, those of a row
  int lane, lanes, first;       // first: the lane's first vector
  unsigned mask;                // of the lanes of the head
  bool whole;                   // they hold all its columns
  Sums att;

  __device__ __forceinline__ Gatv2Head(const Gatv2Edges<T>& edges, const Gatv2Shape& shape, int64_t j)
      : a(edges),
        heads(static_cast<int>(edges.scores.heads)),
        width(static_cast<int>(edges.scores.width)),
        stride(static_cast<int>(edges.scores.width * edges.scores.heads)),
        lanes(shape.lanes),
        whole(shape.slices == 1) {
    const unsigned unit = static_cast<unsigned>(j) / (V * R), of = unit / lanes;  // over heads, slices and lanes
    lane = static_cast<int>(unit % lanes);
    h = static_cast<int>(of / shape.slices);
    first = static_cast<int>(of % shape.slices) * R * lanes + lane;
    mask = (lanes == kWarp ? kFullMask : (1u << lanes) - 1) << (threadIdx.x % kWarp / lanes * lanes);
    for (int k = 0; k < R; ++k)
      for (int v = 0; v < V; ++v) att[k * V + v] = has(k) ? a.att[h * width + column(k) + v] : A(0);
  }
  __device__ __forceinline__ int64_t at(int64_t n) const { return int64_t{int32_t(n)} * stride + h * width; }
  __device__ __forceinline__ int64_t node(int64_t n) const { return int64_t{int32_t(n)} * heads + h; }
  __device__ __forceinline__ int column(int k) const { return (first + k * lanes) * V; }
  __device__ __forceinline__ bool has(int k) const { return column(k) < width; }
  __device__ __forceinline__ bool begins() const { return first == 0; }

  // Where a head ends within the lanes: zeros.
  __device__ __forceinline__ Row read(const T* x, int64_t n) const {
    Row row = {};
    for (int k = 0; k < R; ++k)
      if (has(k)) row.x[k] = load<V>(x + at(n) + column(k));
    return row;
  }
  template <typename S>  // T, or the type of the sums
  __device__ __forceinline__ void write(S* x, int64_t n, const Sums& sums) const {
    for (int k = 0; k < R; ++k) {
      if (!has(k)) continue;
      vec<S, V> row;
      for (int v = 0; v < V; ++v) row[v] = from_acc<S>(sums[k * V + v]);
      store(x + at(n) + column(k), row);
    }
  }
  __device__ __forceinline__ Sums z(const Row& own, const Row& other, int64_t e) const {
    Sums z;
    for (int i = 0; i < V * R; ++i) z[i] = to_acc(own.x[i / V][i % V]) + to_acc(other.x[i / V][i % V]);
    if (a.edge) {
      const Row edge = read(a.edge, e);
      for (int i = 0; i < V * R; ++i) z[i] += to_acc(edge.x[i / V][i % V]);
    }
    return z;
  }

  // The lane's part of the score of edge e, whose ends are rows `target` and `source`.
  __device__ __forceinline__ A score(const Sums& z, int64_t target, int64_t source, int64_t e) const {
    A sum = 0;
    if (R == 1 || whole) {
      for (int i = 0; i < V * R; ++i) sum += att[i] * a.scores.leaky(z[i]);
    } else {
#pragma unroll 1
      for (int c = lane * V; c < width; c += kWarp * V) {
        const vec<T, V> u = load<V>(a.x_src + at(source) + c), w = load<V>(a.x_dst + at(target) + c);
        const vec<T, V> edge = a.edge ? load<V>(a.edge + at(e) + c) : vec<T, V>{};
        for (int v = 0; v < V; ++v)
          sum += a.att[h * width + c + v] * a.scores.leaky(to_acc(u[v]) + to_acc(w[v]) + to_acc(edge[v]));
      }
    }
    return sum;
  }
  // That of the product of rows n of u and m of v.
  __device__ __forceinline__ A product(const Row& p, const Row& q, const T* u, int64_t n, const T* v, int64_t m) const {
    A sum = 0;
    if (R == 1 || whole) {
      for (int i = 0; i < V * R; ++i) sum += to_acc(p.x[i / V][i % V]) * to_acc(q.x[i / V][i % V]);
    } else {
#pragma unroll 1
      for (int c = lane * V; c < width; c += kWarp * V) {
        const vec<T, V> x = load<V>(u + at(n) + c), y = load<V>(v + at(m) + c);
        for (int i = 0; i < V; ++i) sum += to_acc(x[i]) * to_acc(y[i]);
      }
    }
    return sum;
  }
  template <int U>
  __device__ __forceinline__ void add_lanes(A (&x)[U]) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int u = 0; u < U; ++u) x[u] += __shfl_xor_sync(mask, x[u], offset);
  }
};

// Blocks on an SM for V columns of a lane, and edges at a time so that they fit the registers.
template <typename T, int V>
constexpr int gatv2_least_blocks = V > 4 || sizeof(T) == 8 ? 2 : 3;
template <typename T, int V>
constexpr int gatv2_edges = V > 8 || sizeof(T) * V > 16 + 16 * (sizeof(T) < 8) ? 1 : 2;

template <typename T, int V_, int R>
struct Gatv2Op {
  static constexpr int V = V_ * R, U = sizeof(T) * V > 16 ? gatv2_edges<T, V> : 4,
                       kLeastBlocks = gatv2_least_blocks<T, V>;
  using A = acc_t<T>;
  using Head = Gatv2Head<T, V_, R>;
  using State = GatState<A, V, false>;
  Gatv2Arguments<T> a;
  Gatv2Shape shape;

  // U edges; the last step of a span has `left` of them: for others the first is read again, and not counted.
  template <bool kLast>
  __device__ __forceinline__ void step(State& s, const Head& head, const typename Head::Row& own, int64_t r, int e,
                                       int left, RandomKey key) const {
    const auto has = [&](int u) { return !kLast || u < left; };
    const auto edge = [&](int u) { return has(u) ? e + u : e; };
    typename Head::Row x[U];
    A score[U], top = s.top;
    int32_t j[U];
#pragma unroll
    for (int u = 0; u < U; ++u) j[u] = a.col[edge(u)];
#pragma unroll
    for (int u = 0; u < U; ++u) x[u] = head.read(a.x_src, j[u]);
#pragma unroll
    for (int u = 0; u < U; ++u) score[u] = head.score(head.z(own, x[u], edge(u)), r, j[u], edge(u));
    head.template add_lanes<U>(score);
#pragma unroll
    for (int u = 0; u < U; ++u) top = max(top, score[u]);
    const A base = gat_raise(s, top);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (!has(u)) continue;
      const A p = exponential(score[u] - base), kept = p * a.scores.keep(key, e + u, head.h);
      s.total += p;
      for (int i = 0; i < V; ++i) s.sum[i] += kept * to_acc(x[u].x[i / V_][i % V_]);
    }
  }

  __device__ State span(int64_t r, int64_t begin, int64_t end, int64_t j) const {
    const Head head(a, shape, j);
    const typename Head::Row own = head.read(a.x_dst, r);
    const RandomKey key = a.scores.key();
    State s = {};
    s.top = -A(INFINITY);
    int e = static_cast<int>(begin);
    for (; end - e >= U; e += U) step<false>(s, head, own, r, e, U, key);
    if (U > 1 && e < end) step<true>(s, head, own, r, e, static_cast<int>(end - e), key);
    return s;
  }

  __device__ void merge(State& s, State next) const { gat_merge(s, next); }

  __device__ void finish(int64_t r, int64_t j, int64_t degree, State s) const {
    const Head head(a, shape, j);
    const A scale = degree > 0 ? a.scores.scale() / s.total : A(0);
    for (int i = 0; i < V; ++i) s.sum[i] *= scale;
    head.write(a.y, r, s.sum);
    if (a.lse && head.begins()) a.lse[head.node(r)] = degree > 0 ? s.top + logarithm(s.total) : -A(INFINITY);
  }
};

// ---- launchers

// Calls f(V, R) as constants: how lanes share a head. R = 1 where a warp has all its columns, else two vectors a lane;
// of 16 bits eight columns in any case, for 16 of them would not fit the registers of two blocks.
template <typename T, typename F, typename... P>
auto gatv2_by_shape(const Gatv2Edges<T>& a, const F& f, const P*... written) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  constexpr int V = kVector<T>;
  if (!can_vectorise(V, a.scores.width, a.x_src, a.x_dst, a.edge, written...)) return f(One{}, Two{});
  if (a.scores.width <= kWarp * V) return f(std::integral_constant<int, V>{}, One{});
  return f(std::integral_constant<int, min(V, 4)>{}, Two{});
}

// Of pieces of long rows, of the size of State, in the shape that these arguments get.
template <typename T>
int64_t gatv2_workspace_bytes(const Gatv2Arguments<T>& a) {
  return gatv2_by_shape(
      a,
      [&](auto V, auto R) -> int64_t {
        using Op = Gatv2Op<T, V.value, R.value>;
        const Gatv2Shape shape = gatv2_shape<V.value, R.value>(a);
        return segment_pieces(a.edges) * (shape.width / Op::V) * sizeof(typename Op::State);
      },
      a.y);
}

// workspace: gatv2_workspace_bytes(a), aligned to 16 bytes.
template <typename T>
cudaError_t launch_gatv2(const Gatv2Arguments<T>& a, void* workspace, cudaStream_t stream) {
  if (a.rows * a.scores.heads * a.scores.width == 0) return cudaSuccess;
  return gatv2_by_shape(
      a,
      [&](auto V, auto R) {
        const Gatv2Shape shape = gatv2_shape<V.value, R.value>(a);
        return launch_segments(Gatv2Op<T, V.value, R.value>{a, shape},
                               RowSegments{a.crow, a.rows, shape.width, a.edges, a.spans}, workspace, stream);
      },
      a.y);
}

}  // namespace sparsegnn::cuda
