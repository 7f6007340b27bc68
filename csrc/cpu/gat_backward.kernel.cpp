// gat / cpu, backward
//
//   nodes         D[i, h] = <dy, y - bias>[i, h];   da_dst[i, h] = <dy, tilt>[i, h];   dbias = sum dy
//   transpose     alpha = exp(e - lse[i]);   dx[j, h] = sum over edges to i of m alpha dy[i, h]
//                 da_src[j, h] = <sum m alpha l' dy[i, h], x[j, h]> - sum alpha l' D[i, h]
//                 da_edge[e, h] = l' alpha (m <dy[i, h], x[j, h]> - D[i, h]), only when asked for
//                 of scores <x, att>: dx[j, h] += da_src att_src + da_dst att_dst;   datt = sum da x
//
// layout     CSR of the transpose: ccol[N+1], row[E], perm[E] int32; what an edge needs of its row besides dy is packed
//            as node[M, 3, H], two cache lines for 8 heads
// work       4*E*H*D flop, E*H exponentials; no dot product per edge unless da_edge is asked for
// parallel   over nodes, then over rows of the transpose: every output has one owner; dbias and datt in one part a
// chunk numerics   as in forward; products per node are sums over columns in a fixed tree order see        gat_tile.h,
// gat.kernel.cpp, sparsegnn/ops/gat.py
#include "gat_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// The weights of the n edges from e on, and the sum of their flows per lane. Reads no features: compiled once for all
// of their types.
template <int P, typename A>
SG_NOINLINE void weigh(Scratch<A>& s, const GatScores<A>& a, const A* node, const GatTile& t, vec<A> own, int64_t e,
                       int n, const int32_t* last, vec<A>& flow_total) {
  constexpr int L = lanes<A>;
  const ivec<A> lane = lane_index<A>();
  const int64_t stride = 3 * a.heads;
  gather_scores<P>(s.score, a, t, node, stride, e, n, last, int(stride));
  gather<P>(s.lse, node + a.heads + t.head, stride, a.index + e, n, t.heads, last, 0);
  gather<P>(s.flow, node + 2 * a.heads + t.head, stride, a.index + e, n, t.heads, last, 0);
  if (a.dropout) fill_factors<P>(s, a, t, e, n);
  vec<A> total = flow_total;
  for (int i = 0; i < n * P; i += L) {
    const vec<A> score = load(s.score + i) + own;
    const vec<A> slope = score > 0 ? splat(A{1}) : splat(a.slope);
    const vec<A> alpha = exp<A>(score * slope - load(s.lse + i));
    const vec<A> kept = a.dropout ? alpha * load(s.factor + i) : alpha;
    const vec<A> flow = alpha * slope * load(s.flow + i);
    total += lane < n * P - i ? flow : vec<A>{};
    store(s.kept + i, kept);
    store(s.sloped + i, kept * slope);
    store(s.flow + i, flow);
  }
  flow_total = total;
}

template <int P, typename T, typename A>
SG_INLINE void row_tile(const GatBackwardArgs<T, A>& a, const GatTile& t, Scratch<A>& s, int64_t j,
                        const int32_t* last) {
  constexpr int L = lanes<A>;
  const int64_t begin = a.offsets[j], end = a.offsets[j + 1], stride = a.heads * a.width;
  const int width = t.columns / t.heads;
  const vec<A> own = repeat<P>(a.a_src + j * a.heads + t.head, t.heads);
  const T* x = a.x + j * stride + t.column;
  vec<A> flow_total{};
  for (int64_t e = begin; e < end; e += chunk_edges) {
    const int n = int(end - e < chunk_edges ? end - e : chunk_edges);
    weigh<P, A>(s, a, a.node, t, own, e, n, last, flow_total);
    sum_edges<true>(s, a.dy + t.column, stride, a.index + e, last, n, P, t.columns, e == begin);
    if (a.da_edge == nullptr) continue;
    for (int q = 0; q < n; ++q) {
      const T* dy = a.dy + a.index[e + q] * stride + t.column;
      A* out = a.da_edge + a.slot[e + q] * a.heads + t.head;
      head_dots(dy, x, t.heads, width, [&](int h, A product) {
        out[h] = (t.first ? -s.flow[q * P + h] : out[h]) + s.sloped[q * P + h] * product;
      });
    }
  }
  const vec<A> flow = fold<P, A>(flow_total, [](vec<A> u, vec<A> v) { return u + v; });
  A* da_src = a.da_src + j * a.heads + t.head;
  head_dots(static_cast<const A*>(s.sums[1]), x, t.heads, width,
            [&](int h, A product) { da_src[h] = (t.first ? -flow[h] : da_src[h]) + product; });
  T* dx = a.dx + j * stride + t.column;
  for (int c = 0; c < t.columns; c += L)
    store_up_to(dx + c, load(s.sums[0] + c), t.columns - c < L ? t.columns - c : L);
}

template <typename T, typename A>
SG_INLINE void empty_row(const GatBackwardArgs<T, A>& a, const GatTile& t, int64_t j) {
  memset(a.dx + j * a.heads * a.width + t.column, 0, t.columns * sizeof(T));
  for (int h = 0; h < t.heads; ++h) a.da_src[j * a.heads + t.head + h] = 0;
}

// What the scores <x, att> of a node bring: dx += da att, and datt += da x.
template <int P, typename T, typename A>
SG_INLINE void fold_scores(const GatBackwardArgs<T, A>& a, const GatTile& t, const Scratch<A>& s, int64_t j, A* datt) {
  constexpr int L = lanes<A>;
  const int64_t stride = a.heads * a.width;
  const vec<A> src = repeat<P>(static_cast<const A*>(a.da_src) + j * a.heads + t.head, t.heads);
  const vec<A> dst = repeat<P>(static_cast<const A*>(a.da_dst) + j * a.heads + t.head, t.heads);
  for (int c = 0; c < t.columns; c += L) {
    const int n = t.columns - c < L ? t.columns - c : L;
    const int64_t at = t.column + c;
    const vec<A> u = permute<A>(src, s.head_of[c / L]), v = permute<A>(dst, s.head_of[c / L]);
    const vec<A> x = load_up_to(a.x + j * stride + at, n);
    T* dx = a.dx + j * stride + at;
    const vec<A> sum = load_up_to(static_cast<const T*>(dx), n);
    store_up_to(dx, u * load_up_to(a.att_src + at, n) + (v * load_up_to(a.att_dst + at, n) + sum), n);
    A *first = datt + at, *second = datt + stride + at;
    store_up_to(first, u * x + load_up_to(static_cast<const A*>(first), n), n);
    store_up_to(second, v * x + load_up_to(static_cast<const A*>(second), n), n);
  }
}

}  // namespace

template <typename T, typename A>
void gat_backward_nodes(const GatBackwardArgs<T, A>& a, int64_t begin, int64_t end, A* dbias) {
  constexpr int L = lanes<A>;
  const int heads = int(a.heads), width = int(a.width), columns = heads * width;
  if (dbias != nullptr) memset(dbias, 0, columns * sizeof(A));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * heads;
    A* node = a.node + 3 * first;
    for (int h = 0; h < heads; ++h) node[h] = a.a_dst[first + h], node[heads + h] = a.lse[first + h];
    const T* dy = a.dy + first * width;
    head_dots(dy, a.y + first * width, heads, width, [&](int h, A product) { node[2 * heads + h] = product; });
    if (a.bias != nullptr)
      head_dots(dy, a.bias, heads, width, [&](int h, A product) { node[2 * heads + h] -= product; });
    head_dots(dy, a.tilt + first * width, heads, width, [&](int h, A product) { a.da_dst[first + h] = product; });
    for (int c = 0; dbias != nullptr && c < columns; c += L) {
      const int n = columns - c < L ? columns - c : L;
      store_up_to(dbias + c, load_up_to(static_cast<const A*>(dbias) + c, n) + load_up_to(dy + c, n), n);
    }
  }
}

template <typename T, typename A>
void gat_backward_rows(const GatBackwardArgs<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end,
                       A* datt) {
  const int32_t* last = a.index + (a.offsets[end] > 0 ? a.offsets[end] - 1 : 0);  // no edges: not read
  for (int64_t i = 0; i < n; ++i) {
    Scratch<A> s;
    fill_head_of(s, tiles[i], a.width);
    with_period<A>(tiles[i].heads, [&]<int P>() {
      for (int64_t j = begin; j < end; ++j) {
        if (a.offsets[j] == a.offsets[j + 1]) {
          empty_row(a, tiles[i], j);
        } else {
          row_tile<P>(a, tiles[i], s, j, last);
        }
      }
    });
  }
  if (a.att_src == nullptr) return;
  memset(datt, 0, 2 * a.heads * a.width * sizeof(A));
  for (int64_t i = 0; i < n; ++i) {  // every tile of a head is done: its scores' gradients are whole
    Scratch<A> s;
    fill_head_of(s, tiles[i], a.width);
    with_period<A>(tiles[i].heads, [&]<int P>() {
      for (int64_t j = begin; j < end; ++j) fold_scores<P>(a, tiles[i], s, j, datt);
    });
  }
}

#define SG_INSTANTIATE(T, A)                                                                  \
  template void gat_backward_nodes<T, A>(const GatBackwardArgs<T, A>&, int64_t, int64_t, A*); \
  template void gat_backward_rows<T, A>(const GatBackwardArgs<T, A>&, const GatTile*, int64_t, int64_t, int64_t, A*);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
