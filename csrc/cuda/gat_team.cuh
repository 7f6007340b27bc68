// gat, scores that lanes share / cuda
//
//   the scores of 32/H edges and H heads are made by the 32 lanes of a warp, one each, and taken from each other by
//   shuffles: what a lane adds of a row, it weighs with the score of its columns' head; see gat.cuh, gat_backward.cuh
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

// exp of what is not positive, but for rounding.
__device__ __forceinline__ double power(double x) { return exp(x); }
__device__ __forceinline__ float power(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
#else
  return std::exp2(x * 1.4426950408889634f);
#endif
}

// The lanes of a group in one warp, which own neighbouring columns, and score edges for the heads of those.
struct GatTeam {
  int column, head;  // the lane's first column, clamped to the last there is, and its head
  int bits, edges;   // 1 << bits lanes from an edge to the next; edges that the team scores at once
  int slot, scored;  // which of them this lane scores, and for which head
  bool scores;       // false: for none
  int from, size;    // lane of the warp that scores edge 0 for `head`; lanes of the team

  template <typename A>
  __device__ __forceinline__ GatTeam(const GatScores<A>& s, int64_t j, int V, int lanes) : bits(0), size(lanes) {
    const auto width = static_cast<unsigned>(s.width), columns = static_cast<unsigned>(s.heads) * width;
    const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
    const unsigned first = static_cast<unsigned>(j) - lane * V, behind = min(first + lanes * V, columns);
    column = static_cast<int>(min(static_cast<unsigned>(j), columns - V)), head = column / width;
    const int lowest = first / width, heads = (behind - 1) / width - lowest + 1, own = head - lowest;
    while (1 << bits < heads) ++bits;
    edges = lanes >> bits, slot = lane >> bits;
    const int mine = lane & ((1 << bits) - 1);
    scores = mine < heads, scored = lowest + (scores ? mine : 0);
    from = (static_cast<int>(threadIdx.x) & (kWarp - 1)) - lane + own;
  }
  template <typename A>
  __device__ __forceinline__ int64_t score_at(const GatScores<A>& s, int n) const {
    return int64_t{n} * static_cast<int>(s.heads) + scored;
  }
  // What the lanes that score for the same head have, as one: all of them get it.
  template <typename A, typename F>
  __device__ __forceinline__ A over_edges(A x, const F& join) const {
    for (int offset = 1 << bits; offset < size; offset *= 2) x = join(x, __shfl_xor_sync(kFullMask, x, offset));
    return x;
  }
  // What a lane has that scores for the head of the own columns.
  template <typename A>
  __device__ __forceinline__ A of_head(A x) const {
    return __shfl_sync(kFullMask, x, from);
  }
};

// Edges of the own span, and of the longest and the shortest of the warp.
struct GatWalk {
  int mine, longest, shortest;
  __device__ __forceinline__ explicit GatWalk(int64_t edges)
      : mine(static_cast<int>(edges)), longest(warp_max(mine)), shortest(-warp_max(-mine)) {}
};

// Of two edges that a lane has scored: the rows to gather, and what they count, without and with the slope of leaky.
template <typename A>
struct GatShare {
  int32_t row[2];
  A kept[2], sloped[2];
};

// Adds rows of x to s.sum and, times the slope, to s.slope_sum: B edges, in order. kEdges: those that a team scores at
// once where that is 1 or 2, else 4.
template <int kEdges, bool kLast, bool kSlopes, typename S, typename T, typename A>
__device__ __forceinline__ void gat_add_edges(S& s, const GatShare<A>& share, const T* x, uint32_t pitch,
                                              const GatTeam& team, int left, int k, int first) {
  constexpr int B = kEdges == 1 ? 2 : 4, V = sizeof(s.sum) / sizeof(A);
  const int step = 1 << team.bits, lane = team.from + (first << team.bits);
  vec<T, V> row[B];
  A kept[B], sloped[B];
#pragma unroll
  for (int u = 0; u < B; ++u) {
    const int part = kEdges < 4 ? u / kEdges : k, at = kEdges < 4 ? u % kEdges : u, from = lane + at * step;
    const int32_t r = __shfl_sync(kFullMask, share.row[part], from);
    kept[u] = __shfl_sync(kFullMask, share.kept[part], from);
    if constexpr (kSlopes) sloped[u] = __shfl_sync(kFullMask, share.sloped[part], from);
    if (kLast) row[u] = {};
    if (!kLast || part * team.edges + first + at < left) row[u] = load<V>(row_at(x, r, pitch));
  }
#pragma unroll
  for (int u = 0; u < B; ++u)
    for (int i = 0; i < V; ++i) {
      s.sum[i] += kept[u] * to_acc(row[u][i]);
      if constexpr (kSlopes) s.slope_sum[i] += sloped[u] * to_acc(row[u][i]);
    }
}

// The 2 * team.edges edges from t on that the team has scored.
template <bool kSlopes, typename S, typename T, typename A>
__device__ __forceinline__ void gat_add(S& s, const GatShare<A>& share, const T* x, const GatScores<A>& g,
                                        const GatTeam& team, const GatWalk& walk, int t) {
  const auto pitch = static_cast<uint32_t>(g.heads * g.width * sizeof(T));
  const int left = walk.mine - t;
  x += team.column;
  if (team.edges == 1) return gat_add_edges<1, true, kSlopes>(s, share, x, pitch, team, left, 0, 0);
  if (team.edges == 2) return gat_add_edges<2, true, kSlopes>(s, share, x, pitch, team, left, 0, 0);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int before = t + k * team.edges, whole = min(team.edges, walk.shortest - before) & ~3;
    const int all = min(team.edges, walk.longest - before);
    int first = 0;
#pragma unroll 1
    for (; first < whole; first += 4) gat_add_edges<4, false, kSlopes>(s, share, x, pitch, team, left, k, first);
#pragma unroll 1
    for (; first < all; first += 4) gat_add_edges<4, true, kSlopes>(s, share, x, pitch, team, left, k, first);
  }
}

}  // namespace sparsegnn::cuda
