// What the forward and the backward kernel of gat share: both are sums over the edges of a row, weighted per head,
//
//   sums[0][c] = sum_e kept[e, h(c)] * table[index[e], c]      sums[1][c] = the same with sloped[e, h(c)]
//
// with the weights of a chunk of edges held as [edge][P], P the next power of two of the heads of the tile: several
// edges share a vector while weights are computed, and one permute spreads the weights of an edge over its columns.
#pragma once
#include "gat.h"
#include "math.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

constexpr int chunk_edges = 64;
// Measured on a 2-core Zen 4 machine, see docs/kernels-log.md.
constexpr int prefetch_distance = 16;

template <typename A>
struct Scratch {
  static constexpr int weights = (chunk_edges + 1) * lanes<A>;
  alignas(64) A score[weights], kept[weights], sloped[weights], factor[weights], lse[weights], flow[weights];
  alignas(64) A sums[2][gat_tile_columns + lanes<A>];
  alignas(64) ivec<A> head_of[gat_tile_columns / lanes<A> + 1];  // head of each column, relative to the tile
};

template <typename A>
SG_INLINE ivec<A> lane_index() {
  ivec<A> index{};
  for (int i = 0; i < lanes<A>; ++i) index[i] = i;
  return index;
}

template <typename T>
SG_INLINE vec<acc<T>> load_up_to(const T* p, int n) {
  return n == lanes<acc<T>> ? load(p) : load_n(p, n);
}

template <typename A>
void fill_head_of(Scratch<A>& s, const GatTile& t, int64_t width) {
  constexpr int L = lanes<A>;
  for (int c = 0; c < (t.columns + L - 1) / L * L; ++c) {
    const int64_t h = c / width;
    s.head_of[c / L][c % L] = h < t.heads ? h : t.heads - 1;
  }
}

// p[0 .. heads) repeated with period P.
template <int P, typename A>
SG_INLINE vec<A> repeat(const A* p, int heads) {
  alignas(64) A part[lanes<A>] = {};
  for (int i = 0; i < lanes<A>; i += P)
    for (int h = 0; h < heads; ++h) part[i + h] = p[h];
  return load(static_cast<const A*>(part));
}

template <typename V, typename A>
SG_INLINE V leaky(V score, A slope) {
  return score > 0 ? score : score * slope;
}

// Combines the lanes of equal head; every lane holds the result.
template <int P, typename A, typename F>
SG_INLINE vec<A> fold(vec<A> v, F combine) {
  for (int s = P; s < lanes<A>; s *= 2) v = combine(v, permute<A>(v, lane_index<A>() ^ s));
  return v;
}

// out[e, h] = table[index[e] * stride + h] for the n edges of a chunk; the lines of `fetch` elements of later edges, up
// to `last`, are prefetched.
template <int P, typename A>
SG_INLINE void gather(A* out, const A* table, int64_t stride, const int32_t* index, int n, int heads,
                      const int32_t* last, int fetch) {
  for (int q = 0; q < n; ++q) {
    const A* from = table + index[q] * stride;
    if (fetch > 0) {
      const int32_t* ahead = index + q + 2 * prefetch_distance;
      const char* p = reinterpret_cast<const char*>(table + *(ahead < last ? ahead : last) * stride);
      __builtin_prefetch(p);
      if (fetch * sizeof(A) > 32) __builtin_prefetch(p + fetch * sizeof(A) - 1);
    }
    if (heads == P) {
      memcpy(out + q * P, from, P * sizeof(A));
    } else {
      for (int h = 0; h < P; ++h) out[q * P + h] = h < heads ? from[h] : A{0};
    }
  }
}

// Scores of the edges [e, e + n) without the row's own part: the other end's, gathered, and the edge's.
template <int P, typename A>
SG_INLINE void gather_scores(A* out, const GatScores<A>& a, const GatTile& t, const A* other, int64_t stride, int64_t e,
                             int n, const int32_t* last, int fetch) {
  gather<P>(out, other + t.head, stride, a.index + e, n, t.heads, last, fetch);
  if (a.a_edge == nullptr) return;
  for (int q = 0; q < n; ++q) {
    const A* edge = a.a_edge + (a.slot != nullptr ? a.slot[e + q] : e + q) * a.heads + t.head;
    for (int h = 0; h < t.heads; ++h) out[q * P + h] += edge[h];
  }
}

// sum over n columns of a * b
template <typename S, typename T, typename A = acc<T>>
SG_INLINE A dot(const S* a, const T* b, int n) {
  constexpr int L = lanes<A>;
  vec<A> total{};
  int c = 0;
  for (; c + L <= n; c += L) total = load(a + c) * load(b + c) + total;
  if (c < n) total = load_n(a + c, n - c) * load_n(b + c, n - c) + total;
  return sum<A>(total);
}

// f(h, <a, b>) for every head h of `width` columns.
template <typename S, typename T, typename F>
SG_INLINE void head_dots(const S* a, const T* b, int heads, int width, const F& f) {
  using A = acc<T>;
  constexpr int L = lanes<A>;
  int h = 0;
  if (width > 0 && width < L && (width & (width - 1)) == 0) {  // several heads per vector: fold within each
    for (const int per = L / width; h + per <= heads; h += per) {
      vec<A> v = load(a + h * width) * load(b + h * width);
      for (int s = width / 2; s > 0; s /= 2) v += permute<A>(v, lane_index<A>() ^ s);
      for (int i = 0; i < per; ++i) f(h + i, v[i * width]);
    }
  }
  for (; h < heads; ++h) f(h, dot(a + h * width, b + h * width, width));
}

// Dropout factors: 0 or the scale.
template <int P, typename A>
SG_INLINE void fill_factors(Scratch<A>& s, const GatEdges<A>& a, const GatTile& t, int64_t e, int n) {
  typedef uint32_t bits __attribute__((vector_size(vector_bytes), aligned(4), may_alias));
  constexpr int L = vector_bytes / 4;
  alignas(64) uint32_t edge[chunk_edges], stream[L], spread[(chunk_edges + 1) * L];
  for (int q = 0; q < n; ++q) edge[q] = uint32_t(a.slot != nullptr ? a.slot[e + q] : e + q);
  for (int q = 0; q < n; ++q) edge[q] = random_edge(a.key, edge[q]);
  for (int i = 0; i < L; ++i) stream[i] = random_head(a.key, uint32_t(t.head) + i % P);
  const bits head = *reinterpret_cast<const bits*>(stream);
  for (int q = 0; q < n; ++q) *reinterpret_cast<bits*>(spread + q * P) = bits{} + edge[q];  // the tail is overwritten
  const int used = n * P;
  for (int i = 0; i < used; i += L) {
    const bits value = random_bits<bits>(*reinterpret_cast<const bits*>(spread + i), head);
    const bits kept = reinterpret_cast<bits>(value >= a.threshold);
    if constexpr (sizeof(A) == 4) {
      store(s.factor + i, reinterpret_cast<vec<A>>(kept & reinterpret_cast<bits>(splat(a.scale))));
    } else {
      for (int k = 0; k < L && i + k < Scratch<A>::weights; ++k) s.factor[i + k] = kept[k] ? a.scale : A{0};
    }
  }
}

// C columns of the row of an edge, or of the last one.
template <int C, typename T>
SG_INLINE void prefetch(const T* table, int64_t stride, const int32_t* edge, const int32_t* last) {
  const char* p = reinterpret_cast<const char*>(table + *(edge < last ? edge : last) * stride);
  for (int b = 0; b < C * int(sizeof(T)); b += 64) __builtin_prefetch(p + b);
}

// V vectors of columns, or one of `tail` columns, of both sums over n edges.
template <int V, bool two, bool fetch, typename T, typename A>
SG_INLINE void sum_columns(Scratch<A>& s, const T* table, int64_t stride, const int32_t* index, const int32_t* last,
                           int n, int P, int c, int tail, bool fresh) {
  constexpr int L = lanes<A>, U = V >= 4 ? 1 : 2;
  const auto get = [&](const T* p, int v) { return tail > 0 ? load_n(p + c, tail) : load(p + c + v * L); };
  ivec<A> head[V];
  vec<A> kept[U][V] = {}, sloped[U][V] = {};
  for (int v = 0; v < V; ++v) {
    head[v] = s.head_of[c / L + v];
    if (!fresh) kept[0][v] = load(s.sums[0] + c + v * L);
    if (!fresh && two) sloped[0][v] = load(s.sums[1] + c + v * L);
  }
  const auto add = [&](int q, int u) {
    const T* row = table + index[q] * stride;
    const vec<A> k = load(s.kept + q * P), d = two ? load(s.sloped + q * P) : k;
    for (int v = 0; v < V; ++v) {
      const vec<A> x = get(row, v);
      kept[u][v] = permute<A>(k, head[v]) * x + kept[u][v];
      if (two) sloped[u][v] = permute<A>(d, head[v]) * x + sloped[u][v];
    }
  };
  int q = 0;
  for (; q + U <= n; q += U) {
    for (int u = 0; u < U; ++u) {
      if (fetch) prefetch<V * L>(table + c, stride, index + q + u + prefetch_distance, last);
      add(q + u, u);
    }
  }
  if (U > 1 && q < n) add(q, 0);
  for (int v = 0; v < V; ++v) {
    for (int u = 1; u < U; ++u) kept[0][v] += kept[u][v], sloped[0][v] += sloped[u][v];
    store(s.sums[0] + c + v * L, kept[0][v]);
    if (two) store(s.sums[1] + c + v * L, sloped[0][v]);
  }
}

// All columns of the tile over the n edges at `index`; `fresh` starts the sums. `last` bounds what is prefetched.
template <bool two, bool fetch = true, typename T, typename A>
SG_NOINLINE void sum_edges(Scratch<A>& s, const T* table, int64_t stride, const int32_t* index, const int32_t* last,
                           int n, int P, int columns, bool fresh) {
  constexpr int L = lanes<A>, wide = vector_bytes == 64 ? 8 : 2;
  int c = 0;
  for (; c + wide * L <= columns; c += wide * L)
    sum_columns<wide, two, fetch>(s, table, stride, index, last, n, P, c, 0, fresh);
  if constexpr (wide > 4)
    for (; c + 4 * L <= columns; c += 4 * L)
      sum_columns<4, two, fetch>(s, table, stride, index, last, n, P, c, 0, fresh);
  if constexpr (wide > 2)
    for (; c + 2 * L <= columns; c += 2 * L)
      sum_columns<2, two, fetch>(s, table, stride, index, last, n, P, c, 0, fresh);
  for (; c + L <= columns; c += L) sum_columns<1, two, fetch>(s, table, stride, index, last, n, P, c, 0, fresh);
  if (c < columns) sum_columns<1, two, fetch>(s, table, stride, index, last, n, P, c, columns - c, fresh);
}

// Runs f.template operator()<P>() for the power of two P >= heads.
template <typename A, typename F>
SG_INLINE void with_period(int heads, const F& f) {
  if (heads == 1) return f.template operator()<1>();
  if (heads == 2) return f.template operator()<2>();
  if constexpr (lanes<A> >= 4)
    if (heads <= 4) return f.template operator()<4>();
  if constexpr (lanes<A> >= 8)
    if (heads <= 8) return f.template operator()<8>();
  if constexpr (lanes<A> >= 16) return f.template operator()<16>();
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
