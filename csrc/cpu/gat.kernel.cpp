// gat / cpu, forward
//
//   e[j -> i, h] = leaky(a_src[j, h] + a_dst[i, h] + a_edge[e, h])
//   alpha        = exp(e - max) / sum exp(e - max)                  over the edges of row i, per head
//   y[i, h]      = sum m alpha x[j, h] + bias[h]                    m: dropout factor, recomputed in backward
//   lse[i, h]    = max + log sum;   tilt[i, h] = sum m alpha l' x[j, h] - (sum alpha l') y[i, h],  l' the slope at e
//   and
//                  y without its bias;   a_src and a_dst may be <x[n, h], att[h]> of a pass over the nodes
//
// layout     CSR: crow[M+1], col[E] int32; x[N, H, D] row-major; scores in the accumulator type
// work       2*E*H*D flop, twice that when the state is saved, E*H exponentials; E*H*D*s bytes at the caches
// blocking   tiles of heads (at most a vector of them, 512 columns), chunks of 64 edges: scores gathered into L1, the
//            exponentials of several edges per vector, then columns in registers, up to 8 vectors at once
// numerics   max first, so no exponential exceeds 1; sums in float (double for double) in an order fixed by the row
// backward   gat_backward.kernel.cpp
// see        gat_tile.h, sparsegnn/ops/gat.py, tests/ops/test_gat.py, benchmarks/ops/bench_gat.py
#include "gat_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// The largest score of each head over the edges [begin, end). What does not read features is compiled once for all of
// their types. Leaves the scores of the last chunk behind.
template <int P, typename A>
SG_NOINLINE vec<A> top_score(Scratch<A>& s, const GatScores<A>& a, const GatTile& t, vec<A> own, int64_t begin,
                             int64_t end, const int32_t* last) {
  constexpr int L = lanes<A>;
  const ivec<A> lane = lane_index<A>();
  const vec<A> none = splat(A(-__builtin_inf()));
  vec<A> top = none;
  for (int64_t e = begin; e < end; e += chunk_edges) {
    const int n = int(end - e < chunk_edges ? end - e : chunk_edges);
    gather_scores<P>(s.score, a, t, a.a_src, a.heads, e, n, last, t.heads);
    for (int i = 0; i < n * P; i += L) {
      const vec<A> v = lane < n * P - i ? leaky(load(s.score + i) + own, a.slope) : none;
      top = v > top ? v : top;
    }
  }
  return fold<P, A>(top, [](vec<A> u, vec<A> v) { return u > v ? u : v; });
}

// Sums of a row over the edges, per lane.
template <typename A>
struct Totals {
  vec<A> weight{}, sloped{};
};

// The weights of the n edges from e on, not yet divided by their sum; the scores are there if they are `scored`.
template <bool save, int P, typename A>
SG_NOINLINE void weigh(Scratch<A>& s, const GatScores<A>& a, const GatTile& t, vec<A> own, vec<A> top, int64_t e, int n,
                       bool scored, const int32_t* last, Totals<A>& totals) {
  constexpr int L = lanes<A>;
  const ivec<A> lane = lane_index<A>();
  if (!scored) gather_scores<P>(s.score, a, t, a.a_src, a.heads, e, n, last, 0);
  if (a.dropout) fill_factors<P>(s, a, t, e, n);
  Totals<A> sums = totals;
  for (int i = 0; i < n * P; i += L) {
    const vec<A> score = load(s.score + i) + own;
    const vec<A> weight = lane < n * P - i ? exp<A>(leaky(score, a.slope) - top) : vec<A>{};
    const vec<A> kept = a.dropout ? weight * load(s.factor + i) : weight;
    sums.weight += weight;
    store(s.kept + i, kept);
    if (save) {
      const vec<A> slope = score > 0 ? splat(A{1}) : splat(a.slope);
      sums.sloped += weight * slope;
      store(s.sloped + i, kept * slope);
    }
  }
  totals = sums;
}

template <bool save, int P, typename T, typename A>
SG_INLINE void row_tile(const GatArgs<T, A>& a, const GatTile& t, Scratch<A>& s, int64_t r, const int32_t* last) {
  constexpr int L = lanes<A>;
  const int64_t begin = a.offsets[r], end = a.offsets[r + 1], stride = a.heads * a.width;
  const vec<A> own = repeat<P>(a.a_dst + r * a.heads + t.head, t.heads);
  const vec<A> top = top_score<P, A>(s, a, t, own, begin, end, last);
  Totals<A> totals;
  for (int64_t e = begin; e < end; e += chunk_edges) {
    const int n = int(end - e < chunk_edges ? end - e : chunk_edges);
    weigh<save, P, A>(s, a, t, own, top, e, n, end - begin <= chunk_edges, last, totals);
    sum_edges<save>(s, a.x + t.column, stride, a.index + e, last, n, P, t.columns, e == begin);
  }

  const auto plus = [](vec<A> u, vec<A> v) { return u + v; };
  const vec<A> total = fold<P, A>(totals.weight, plus);
  const vec<A> inverse = 1 / total, tilt_share = fold<P, A>(totals.sloped, plus) * inverse;
  if (save && t.first) store_n(a.lse + r * a.heads + t.head, top + log<A>(total), t.heads);
  T* y = a.y + r * stride + t.column;
  T* tilt = a.tilt + r * stride + t.column;
  for (int c = 0; c < t.columns; c += L) {
    const ivec<A> head = s.head_of[c / L];
    const int n = t.columns - c < L ? t.columns - c : L;
    const vec<A> scale = permute<A>(inverse, head), sum = load(s.sums[0] + c) * scale;
    store_up_to(y + c, a.bias == nullptr ? sum : sum + load_up_to(a.bias + t.column + c, n), n);
    if (save) store_up_to(tilt + c, load(s.sums[1] + c) * scale - permute<A>(tilt_share, head) * sum, n);
  }
}

template <bool save, typename T, typename A>
SG_INLINE void empty_row(const GatArgs<T, A>& a, const GatTile& t, int64_t r) {
  const int64_t first = r * a.heads * a.width + t.column;
  constexpr int L = lanes<A>;
  for (int c = 0; c < t.columns; c += L) {
    const int n = t.columns - c < L ? t.columns - c : L;
    store_up_to(a.y + first + c, a.bias == nullptr ? vec<A>{} : load_up_to(a.bias + t.column + c, n), n);
  }
  if (!save) return;
  memset(a.tilt + first, 0, t.columns * sizeof(T));
  for (int h = 0; h < t.heads; ++h) a.lse[r * a.heads + t.head + h] = A(-__builtin_inf());
}

template <bool save, typename T, typename A>
SG_INLINE void tile_rows(const GatArgs<T, A>& a, const GatTile& t, int64_t begin, int64_t end) {
  Scratch<A> s;
  fill_head_of(s, t, a.width);
  const int32_t* last = a.index + (a.offsets[end] > 0 ? a.offsets[end] - 1 : 0);  // no edges: not read
  with_period<A>(t.heads, [&]<int P>() {
    for (int64_t r = begin; r < end; ++r) {
      if (a.offsets[r] == a.offsets[r + 1]) {
        empty_row<save>(a, t, r);
      } else {
        row_tile<save, P>(a, t, s, r, last);
      }
    }
  });
}

}  // namespace

template <typename A>
int gat_tile_heads() {
  return lanes<A>;
}

template <typename T, typename A>
void gat_scores(const T* x, const A* att_src, const A* att_dst, A* scores, int64_t nodes, int64_t heads, int64_t width,
                int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x + i * heads * width;
    head_dots(row, att_src, int(heads), int(width), [&](int h, A product) { scores[i * heads + h] = product; });
    head_dots(row, att_dst, int(heads), int(width),
              [&](int h, A product) { scores[(nodes + i) * heads + h] = product; });
  }
}

template <typename T, typename A>
void gat_rows(const GatArgs<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < n; ++i) {
    if (a.lse != nullptr) {
      tile_rows<true>(a, tiles[i], begin, end);
    } else {
      tile_rows<false>(a, tiles[i], begin, end);
    }
  }
}

template int gat_tile_heads<float>();
template int gat_tile_heads<double>();
#define SG_INSTANTIATE(T, A)                                                                     \
  template void gat_rows<T, A>(const GatArgs<T, A>&, const GatTile*, int64_t, int64_t, int64_t); \
  template void gat_scores<T, A>(const T*, const A*, const A*, A*, int64_t, int64_t, int64_t, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
