// gatv2 / cpu, forward
//
//   e[j -> i, h] = sum_c att[h, c] leaky(x_src[j, h, c] + x_dst[i, h, c] + edge[e, h, c])
//   alpha        = softmax of e over the edges of row i, per head
//   y[i, h]      = sum m alpha x_src[j, h]                          m: dropout factor, recomputed in backward
//   lse[i, h]    = log sum exp(e), all that the backward needs besides inputs and output
//
// layout     CSR: crow[M+1], col[E] int32; x_src[N, H, D], x_dst[M, H, D], edge[E, H, D] row-major; att[H, D] in the
//            accumulator type
// work       5*E*H*D flop, E*H exponentials; E*H*D*s bytes at the caches: a row of x_src is gathered once
// blocking   tiles of heads and columns as gat; chunks of edges whose rows stay in L1: their scores, then the weights
// of
//            several edges per vector, then the weighted sum. A maximum that a later chunk raises rescales the sums
// numerics   sums in float (double for double) in an order fixed by the row; the same bits for any number of threads
// backward   gatv2_backward.kernel.cpp
// see        gatv2_tile.h, sparsegnn/ops/gatv2.py, tests/ops/test_gatv2.py, benchmarks/ops/bench_gatv2.py
#include "gatv2_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <int P, typename T, typename A>
SG_INLINE void row_tile(const Gatv2Args<T, A>& a, const GatTile& t, Scratch<A>& s, int64_t r, const int32_t* last) {
  constexpr int L = lanes<A>;
  const int64_t begin = a.offsets[r], end = a.offsets[r + 1], stride = a.heads * a.width;
  const int chunk = gatv2_chunk<T>(t, 1);
  const ivec<A> lane = lane_index<A>();
  const vec<A> none = splat(A(-__builtin_inf()));
  vec<A> top = none, total{};
  for (int64_t e = begin; e < end; e += chunk) {
    const int n = int(end - e < chunk ? end - e : chunk);
    edge_scores(s.score, a, t, a.x_dst + r * stride, a.x_src, e, n, P, last);
    vec<A> high = top;
    for (int i = 0; i < n * P; i += L) {
      const vec<A> v = lane < n * P - i ? load(s.score + i) : none;
      high = v > high ? v : high;
    }
    high = fold<P, A>(high, [](vec<A> u, vec<A> v) { return u > v ? u : v; });
    const vec<A> base = high > none ? high : vec<A>{};  // no score is above -inf: sums stay 0, or what they became
    if (e != begin) {
      const vec<A> factor = exp<A>(top - base);
      total *= factor;
      for (int c = 0; c < t.columns; c += L)
        store(s.sums[0] + c, load(s.sums[0] + c) * permute<A>(factor, s.head_of[c / L]));
    }
    top = high;
    if (a.dropout) fill_factors<P>(s, a, t, e, n);
    for (int i = 0; i < n * P; i += L) {
      const vec<A> weight = lane < n * P - i ? exp<A>(load(s.score + i) - base) : vec<A>{};
      total += weight;
      store(s.kept + i, a.dropout ? weight * load(s.factor + i) : weight);
    }
    sum_edges<false, false>(s, a.x_src + t.column, stride, a.index + e, last, n, P, t.columns, e == begin);
  }
  total = fold<P, A>(total, [](vec<A> u, vec<A> v) { return u + v; });
  const vec<A> inverse = 1 / total;
  if (a.lse != nullptr && t.first) store_n(a.lse + r * a.heads + t.head, top + log<A>(total), t.heads);
  T* y = a.y + r * stride + t.column;
  for (int c = 0; c < t.columns; c += L)
    store_up_to(y + c, load(s.sums[0] + c) * permute<A>(inverse, s.head_of[c / L]),
                t.columns - c < L ? t.columns - c : L);
}

template <typename T, typename A>
SG_INLINE void empty_row(const Gatv2Args<T, A>& a, const GatTile& t, int64_t r) {
  memset(a.y + r * a.heads * a.width + t.column, 0, t.columns * sizeof(T));
  for (int h = 0; a.lse != nullptr && h < t.heads; ++h) a.lse[r * a.heads + t.head + h] = A(-__builtin_inf());
}

}  // namespace

template <typename T, typename A>
void gatv2_rows(const Gatv2Args<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end) {
  const int32_t* last = a.index + (a.offsets[end] > 0 ? a.offsets[end] - 1 : 0);  // no edges: not read
  for (int64_t i = 0; i < n; ++i) {
    Scratch<A> s;
    fill_head_of(s, tiles[i], a.width);
    with_period<A>(tiles[i].heads, [&]<int P>() {
      for (int64_t r = begin; r < end; ++r) {
        if (a.offsets[r] == a.offsets[r + 1]) {
          empty_row(a, tiles[i], r);
        } else {
          row_tile<P>(a, tiles[i], s, r, last);
        }
      }
    });
  }
}

template void gatv2_rows<float, float>(const Gatv2Args<float, float>&, const GatTile*, int64_t, int64_t, int64_t);
template void gatv2_rows<double, double>(const Gatv2Args<double, double>&, const GatTile*, int64_t, int64_t, int64_t);
template void gatv2_rows<bf16, float>(const Gatv2Args<bf16, float>&, const GatTile*, int64_t, int64_t, int64_t);
template void gatv2_rows<f16, float>(const Gatv2Args<f16, float>&, const GatTile*, int64_t, int64_t, int64_t);

}  // namespace SG_ISA
}  // namespace sparsegnn
