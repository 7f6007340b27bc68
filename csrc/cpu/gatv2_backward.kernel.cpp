// gatv2 / cpu, backward
//
//   with z the sum under leaky, l' its slope there, D[i, h] = <dy, y>[i, h]:
//   alpha         = exp(e - lse[i]);   de[e, h] = alpha (m <dy[i, h], x_src[j, h]> - D[i, h])
//   rows          dx_dst[i, h, c] = att[h, c] sum de l';   datt[h, c] = sum de leaky(z);   dedge[e, h, c] = de att l'
//   transpose     dx_src[j, h, c] = sum m alpha dy[i, h, c] + att[h, c] sum de l'
//
// layout     CSR and its transpose; <dy, y> and lse of a row are packed as node[M, 2, H] on the way
// work       9*E*H*D flop over rows, 11*E*H*D over the transpose, E*H exponentials in each; nothing of size E*H
// parallel   over rows, then over rows of the transpose: every output has one owner; datt in one part per chunk of rows
// numerics   as in forward
// see        gatv2_tile.h, gatv2.kernel.cpp, sparsegnn/ops/gatv2.py
#include "gatv2_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// V vectors of columns, or one of `tail`: sum += de l'; over rows also weighted += de leaky(z) and dedge.
template <int V, bool rows, bool edges, typename T, typename A>
SG_INLINE void slope_columns(Scratch<A>& s, const Gatv2BackwardArgs<T, A>& a, const GatTile& t, const T* own,
                             const T* table, int64_t e, int n, int P, int c, int tail, bool fresh) {
  constexpr int L = lanes<A>;
  const int64_t stride = a.heads * a.width;
  const int m = tail > 0 ? tail : L;
  A *out = rows ? s.sums[0] : s.sums[1], *weighted_out = s.sums[1];
  ivec<A> head[V];
  vec<A> mine[V], sum[V] = {}, weighted[V] = {};
  for (int v = 0; v < V; ++v) {
    head[v] = s.head_of[c / L + v];
    mine[v] = load_up_to(own + t.column + c + v * L, m);
    if (!fresh) sum[v] = load(out + c + v * L);
    if (!fresh && rows) weighted[v] = load(weighted_out + c + v * L);
  }
  for (int q = 0; q < n; ++q) {
    const vec<A> flow = load(s.flow + q * P);
    const T* row = table + a.index[e + q] * stride + t.column + c;
    const int64_t at = edges ? (a.slot != nullptr ? a.slot[e + q] : e + q) * stride + t.column + c : 0;
    for (int v = 0; v < V; ++v) {
      vec<A> z = load_up_to(row + v * L, m) + mine[v];
      if (edges) z += load_up_to(a.edge + at + v * L, m);
      const vec<A> de = permute<A>(flow, head[v]), sloped = z > 0 ? de : de * a.slope;
      sum[v] += sloped;
      if (rows) weighted[v] = sloped * z + weighted[v];
      if (rows && edges && a.dedge != nullptr)
        store_up_to(a.dedge + at + v * L, sloped * load_up_to(a.att + t.column + c + v * L, m), m);
    }
  }
  for (int v = 0; v < V; ++v) {
    store(out + c + v * L, sum[v]);
    if (rows) store(weighted_out + c + v * L, weighted[v]);
  }
}

template <bool rows, bool edges, typename T, typename A>
SG_NOINLINE void sum_slopes(Scratch<A>& s, const Gatv2BackwardArgs<T, A>& a, const GatTile& t, const T* own,
                            const T* table, int64_t e, int n, int P, bool fresh) {
  constexpr int L = lanes<A>, wide = vector_bytes == 64 ? 4 : 2;
  int c = 0;
  for (; c + wide * L <= t.columns; c += wide * L)
    slope_columns<wide, rows, edges>(s, a, t, own, table, e, n, P, c, 0, fresh);
  for (; c + L <= t.columns; c += L) slope_columns<1, rows, edges>(s, a, t, own, table, e, n, P, c, 0, fresh);
  if (c < t.columns) slope_columns<1, rows, edges>(s, a, t, own, table, e, n, P, c, t.columns - c, fresh);
}

// From the scores of the n edges from e on and their products with dy: the weights, kept, and the gradients of the
// scores, flow. `node` belongs to the other ends, which over rows are not asked. Reads no features: compiled once for
// all of their types.
template <bool rows, int P, typename A>
SG_NOINLINE void weigh(Scratch<A>& s, const GatEdges<A>& a, const A* node, const GatTile& t, vec<A> own_lse,
                       vec<A> own_flow, int64_t e, int n, const int32_t* last) {
  constexpr int L = lanes<A>;
  const ivec<A> lane = lane_index<A>();
  if (!rows) {
    const int64_t stride = 2 * a.heads;
    gather<P>(s.lse, node + t.head, stride, a.index + e, n, t.heads, last, int(stride));
    gather<P>(s.flow, node + a.heads + t.head, stride, a.index + e, n, t.heads, last, 0);
  }
  if (a.dropout) fill_factors<P>(s, a, t, e, n);
  for (int i = 0; i < n * P; i += L) {
    const vec<A> alpha = exp<A>(load(s.score + i) - (rows ? own_lse : load(s.lse + i)));
    const vec<A> kept = a.dropout ? alpha * load(s.factor + i) : alpha;
    const vec<A> de = kept * load(s.sloped + i) - alpha * (rows ? own_flow : load(s.flow + i));
    store(s.kept + i, kept);
    store(s.flow + i, lane < n * P - i ? de : vec<A>{});
  }
}

// A row of A (its other end gathered from x_src), or of the transpose (from x_dst and dy).
template <bool rows, int P, typename T, typename A>
SG_INLINE void row_tile(const Gatv2BackwardArgs<T, A>& a, const GatTile& t, Scratch<A>& s, int64_t r,
                        const int32_t* last, A* datt) {
  constexpr int L = lanes<A>;
  const int64_t begin = a.offsets[r], end = a.offsets[r + 1], stride = a.heads * a.width;
  const int chunk = gatv2_chunk<T>(t, rows ? 1 : 2);
  const T *own = (rows ? a.x_dst : a.x_src) + r * stride, *table = rows ? a.x_src : a.x_dst;
  vec<A> own_lse{}, own_flow{};
  if (rows) {
    A* node = a.node + r * 2 * a.heads + t.head;
    if (t.first) {
      const int64_t first = r * a.heads + t.head;
      for (int h = 0; h < t.heads; ++h) node[h] = a.lse[first + h];
      head_dots(a.dy + first * a.width, a.y + first * a.width, t.heads, int(a.width),
                [&](int h, A product) { node[a.heads + h] = product; });
    }
    own_lse = repeat<P>(static_cast<const A*>(node), t.heads);
    own_flow = repeat<P>(static_cast<const A*>(node) + a.heads, t.heads);
  }
  for (int64_t e = begin; e < end; e += chunk) {
    const int n = int(end - e < chunk ? end - e : chunk);
    edge_scores(s.score, a, t, own, table, e, n, P, last);
    if (rows) {
      edge_products(s.sloped, a, t, a.dy + r * stride, table, e, n, P, nullptr);
    } else {
      edge_products(s.sloped, a, t, own, a.dy, e, n, P, last);
    }
    weigh<rows, P, A>(s, a, a.node, t, own_lse, own_flow, e, n, last);
    if (!rows) sum_edges<false, false>(s, a.dy + t.column, stride, a.index + e, last, n, P, t.columns, e == begin);
    if (a.edge == nullptr) {
      sum_slopes<rows, false>(s, a, t, own, table, e, n, P, e == begin);
    } else {
      sum_slopes<rows, true>(s, a, t, own, table, e, n, P, e == begin);
    }
  }
  T* out = (rows ? a.dx_dst : a.dx_src) + r * stride + t.column;
  for (int c = 0; c < t.columns; c += L) {
    const int m = t.columns - c < L ? t.columns - c : L;
    const vec<A> att = load_up_to(a.att + t.column + c, m);
    if (rows) {
      store_up_to(out + c, att * load(s.sums[0] + c), m);
      A* part = datt + t.column + c;
      store_up_to(part, load_up_to(static_cast<const A*>(part), m) + load(s.sums[1] + c), m);
    } else {
      store_up_to(out + c, att * load(s.sums[1] + c) + load(s.sums[0] + c), m);
    }
  }
}

template <bool rows, typename T, typename A>
SG_INLINE void tile_rows(const Gatv2BackwardArgs<T, A>& a, const GatTile& t, int64_t begin, int64_t end, A* datt) {
  const int32_t* last = a.index + (a.offsets[end] > 0 ? a.offsets[end] - 1 : 0);  // no edges: not read
  Scratch<A> s;
  fill_head_of(s, t, a.width);
  with_period<A>(t.heads, [&]<int P>() {
    for (int64_t r = begin; r < end; ++r) {
      if (a.offsets[r] == a.offsets[r + 1]) {
        memset((rows ? a.dx_dst : a.dx_src) + r * a.heads * a.width + t.column, 0, t.columns * sizeof(T));
      } else {
        row_tile<rows, P>(a, t, s, r, last, datt);
      }
    }
  });
}

}  // namespace

template <typename T, typename A>
void gatv2_backward_rows(const Gatv2BackwardArgs<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end,
                         A* datt) {
  memset(datt, 0, a.heads * a.width * sizeof(A));
  for (int64_t i = 0; i < n; ++i) tile_rows<true>(a, tiles[i], begin, end, datt);
}

template <typename T, typename A>
void gatv2_backward_sources(const Gatv2BackwardArgs<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin,
                            int64_t end) {
  for (int64_t i = 0; i < n; ++i) tile_rows<false>(a, tiles[i], begin, end, static_cast<A*>(nullptr));
}

#define SG_INSTANTIATE(T, A)                                                                                         \
  template void gatv2_backward_rows<T, A>(const Gatv2BackwardArgs<T, A>&, const GatTile*, int64_t, int64_t, int64_t, \
                                          A*);                                                                       \
  template void gatv2_backward_sources<T, A>(const Gatv2BackwardArgs<T, A>&, const GatTile*, int64_t, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
