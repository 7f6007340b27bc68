// maxk_spmm / cpu
//
//   y[r, :] = rs[r] * (sum over edges e of row r: val[e] * cs[col[e]] * X[col[e], :]  +  diag[r] * cs[r] * X[r, :])
//   where X[j, index[j, t]] = values[j, t], 0 elsewhere;  mean: divided by the number of edges of the row
//
//   dvalues[j, t] = sum over edges e = (r, j): val[e] * cs[j] * rs[r] * dy[r, index[j, t]]   and that of diag
//   dval[e]       = sum over t: values[j, t] * cs[j] * rs[r] * dy[r, index[j, t]]
//
// layout     CSR: crow[M+1], col[E] int32; values, index [N, k]; y [M, F] row-major; scales in the accumulator type
// work       2*E*k flop; E * (4 + k * (s + 1)) bytes at the caches forward, where spmm reads E * (4 + F * s)
// blocking   forward: values are added, one by one, to a row of sums that stays in L1 and is written at its end.
//            (Expanding them into vectors by bits, in registers, takes twice as long on Zen 4: docs/kernels-log.md.)
//            backward: spmm's sums over the transpose, a few rows in L2 at a time, of which k columns are picked: a row
//            of dy is 16 cache lines of which 32 random columns touch 14. (Adding rows of dy to dvalues in the order of
//            the rows, k columns at a time, moves a third of the bytes but takes longer: docs/kernels-log.md.)
// numerics   sums in float (double for double), in the order of the edges: the same bits for any number of threads
// see        sparsegnn/ops/maxk_spmm.py, tests/ops/test_maxk_spmm.py, benchmarks/ops/bench_maxk_spmm.py
#include "maxk_spmm.h"

#include "simd_stream.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Edges ahead at which rows are asked for into L2, where many misses can be in flight, and into L1; as spmm.
constexpr int64_t far_ahead = 64, near_ahead = 8;

template <int level>
SG_INLINE void prefetch(const void* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(p) + b, 0, level);
}

// What the edge at `e` needs, if there is one.
template <int level, typename T, typename A, typename I>
SG_INLINE void prefetch_edge(const MaxkSpmmArgs<T, A>& a, int64_t e, const I* index) {
  const int64_t j = a.col[e < a.edges ? e : a.edges - 1];
  prefetch<level>(a.values + j * a.k, a.k * int64_t(sizeof(T)));
  prefetch<level>(index + j * a.k, a.k * int64_t(sizeof(I)));
}

template <typename T, typename A>
SG_INLINE A edge_weight(const MaxkSpmmArgs<T, A>& a, int64_t e, int64_t c) {
  const A w = a.val != nullptr ? widen(a.val[e]) : A{1};
  return a.col_scale != nullptr ? w * a.col_scale[c] : w;
}

template <typename T, typename A>
SG_INLINE A row_factor(const MaxkSpmmArgs<T, A>& a, int64_t r) {
  const int64_t edges = a.crow[r + 1] - a.crow[r];
  const A scale = a.row_scale != nullptr ? a.row_scale[r] : A{1};
  return a.mean && edges > 1 ? scale / A(edges) : scale;
}

// sum += w * X[j]
template <typename I, typename T, typename A>
SG_INLINE void add_row(const MaxkSpmmArgs<T, A>& a, int64_t j, A w, A* sum) {
  const T* values = a.values + j * a.k;
  const I* at = static_cast<const I*>(a.index) + j * a.k;
  int64_t t = 0;
  for (; t + 8 <= a.k; t += 8) {
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sum[at[t + u]] += w * widen(values[t + u]);
  }
  for (; t < a.k; ++t) sum[at[t]] += w * widen(values[t]);
}

// --- backward ---

// The dot product of values and x[at].
template <typename I, typename T, typename A = acc<T>>
SG_INLINE A dot_row(const T* x, const I* at, const T* values, int64_t k) {
  A sum[4] = {};
  int64_t t = 0;
  for (; t + 4 <= k; t += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] += widen(x[at[t + u]]) * widen(values[t + u]);
  }
  for (; t < k; ++t) sum[0] += widen(x[at[t]]) * widen(values[t]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

template <typename T, typename A, typename I>
void maxk_spmm_rows(const MaxkSpmmArgs<T, A>& a, A* sum, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  const auto* index = static_cast<const I*>(a.index);
  memset(sum, 0, size_t(a.width) * sizeof(A));
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      prefetch_edge<2>(a, e + far_ahead, index);
      prefetch_edge<3>(a, e + near_ahead, index);
      add_row<I>(a, a.col[e], edge_weight(a, e, a.col[e]), sum);
    }
    if (a.diag != nullptr) add_row<I>(a, r, a.diag[r] * (a.col_scale != nullptr ? a.col_scale[r] : A{1}), sum);
    const A scale = row_factor(a, r);
    T* y = a.y + r * a.width;
    int64_t c = 0;
    for (; c + L <= a.width; c += L) {
      const vec<A> out = load(sum + c) * scale;
      store(sum + c, vec<A>{});
      if (a.stream) {
        store_past_caches(y + c, out);
      } else {
        store(y + c, out);
      }
    }
    if (c < a.width) {
      store_n(y + c, load_n(sum + c, int(a.width - c)) * scale, int(a.width - c));
      store_n(sum + c, vec<A>{}, int(a.width - c));
    }
  }
  if (a.stream) stores_done();
}

template <typename T, typename A, typename I>
void maxk_spmm_dvalues_rows(const MaxkSpmmArgs<T, A>& a, const A* sums, T* dvalues, int64_t begin, int64_t end) {
  const auto* index = static_cast<const I*>(a.index);
  for (int64_t j = begin; j < end; ++j) {
    const A* sum = sums + (j - begin) * a.width;
    const I* at = index + j * a.k;
    const A scale = a.col_scale != nullptr ? a.col_scale[j] : A{1};
    const A loop = a.diag != nullptr ? row_factor(a, j) * a.diag[j] : A{0};
    for (int64_t t = 0; t < a.k; ++t) {
      const A total = a.diag != nullptr ? sum[at[t]] + loop * widen(a.y[j * a.width + at[t]]) : sum[at[t]];
      dvalues[j * a.k + t] = narrow<T>(scale * total);
    }
  }
}

template <typename T, typename A, typename I>
void maxk_spmm_dval_rows(const MaxkSpmmArgs<T, A>& a, T* dval, int64_t begin, int64_t end) {
  const auto* index = static_cast<const I*>(a.index);
  for (int64_t r = begin; r < end; ++r) {
    const A scale = row_factor(a, r);
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      const int64_t j = a.col[e];
      prefetch_edge<2>(a, e + far_ahead, index);
      prefetch_edge<3>(a, e + near_ahead, index);
      const A dot = dot_row(a.y + r * a.width, index + j * a.k, a.values + j * a.k, a.k);
      dval[e] = narrow<T>(dot * (a.col_scale != nullptr ? scale * a.col_scale[j] : scale));
    }
  }
}

#define SG_INSTANTIATE_INDEX(T, A, I)                                                                       \
  template void maxk_spmm_rows<T, A, I>(const MaxkSpmmArgs<T, A>&, A*, int64_t, int64_t);                   \
  template void maxk_spmm_dvalues_rows<T, A, I>(const MaxkSpmmArgs<T, A>&, const A*, T*, int64_t, int64_t); \
  template void maxk_spmm_dval_rows<T, A, I>(const MaxkSpmmArgs<T, A>&, T*, int64_t, int64_t);
#define SG_INSTANTIATE(T, A)          \
  SG_INSTANTIATE_INDEX(T, A, uint8_t) \
  SG_INSTANTIATE_INDEX(T, A, int16_t)
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
