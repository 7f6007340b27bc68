// spmm / cpu
//
//   sum   y[r] = rs[r] * (sum over edges e of row r: val[e] * cs[col[e]] * x[col[e]]  +  diag[r] * cs[r] * x[r])
//   mean  the sum divided by the number of edges of the row
//   max   y[r, k] = max over e of val[e] * x[col[e], k];  arg[r, k] = the first e that reaches it; 0 and -1 without
//   edges
//
// layout     CSR: crow[M+1], col[E] int32; x[N, K], y[M, K] row-major; scales in the accumulator type
// work       2*E*K flop; E*(4 + s) + E*K*s bytes at the caches, N*K*s + M*K*s at memory
// blocking   columns in blocks of up to 8 vectors held in registers; narrow blocks take several edges at once, so that
//            4 or more independent FMA chains are in flight; rows of x are prefetched 16 edges ahead
// numerics   sums in float (double for double) in an order fixed by the row, so the thread count does not matter
// backward   dx: the sum on the transpose; dval: sddmm; max and min: the two kernels at the end
// see        sparsegnn/ops/spmm.py, tests/ops/test_spmm.py, benchmarks/ops/bench_spmm.py
#include "spmm.h"

#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Measured on a 2-core Zen 4 machine: 16 to 32 edges ahead is best (+10..30 % over none at 170k nodes, 2.3M edges).
constexpr int prefetch_distance = 16;

template <typename T>
SG_INLINE void prefetch(const T* p, int bytes) {
  for (int b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + b);
}

template <bool weighted, typename T, typename A>
SG_INLINE A edge_weight(const SpmmArgs<T, A>& a, int64_t e, int64_t c) {
  A w = 1;
  if constexpr (weighted) {
    if (a.val != nullptr) w = widen(a.val[e]);
    if (a.col_scale != nullptr) w *= a.col_scale[c];
  }
  return w;
}

// Columns [k, k + V * lanes) of row r; the last vector has `n` columns when `tail`.
template <bool weighted, int V, bool tail, typename T, typename A>
SG_INLINE void sum_block(const SpmmArgs<T, A>& a, int64_t r, int64_t k, int n, A scale) {
  constexpr int L = lanes<A>, U = V >= 4 ? 1 : 4 / V;
  const int64_t end = a.crow[r + 1], last = end - 1;
  const auto get = [&](const T* p, int v) { return tail ? load_n(p, n) : load(p + v * L); };
  vec<A> sum[U][V] = {};
  int64_t e = a.crow[r];
  for (; e + U <= end; e += U) {
    for (int u = 0; u < U; ++u) {
      const int64_t c = a.col[e + u];
      prefetch(a.x + int64_t{a.col[e + u + prefetch_distance < last ? e + u + prefetch_distance : last]} * a.width + k,
               tail ? 1 : V * L * int(sizeof(T)));
      const T* row = a.x + c * a.width + k;
      const A w = edge_weight<weighted>(a, e + u, c);
      for (int v = 0; v < V; ++v) sum[u][v] = weighted ? w * get(row, v) + sum[u][v] : get(row, v) + sum[u][v];
    }
  }
  for (; e < end; ++e) {
    const int64_t c = a.col[e];
    const T* row = a.x + c * a.width + k;
    const A w = edge_weight<weighted>(a, e, c);
    for (int v = 0; v < V; ++v) sum[0][v] += w * get(row, v);
  }
  for (int u = 1; u < U; ++u)
    for (int v = 0; v < V; ++v) sum[0][v] += sum[u][v];
  if (a.diag != nullptr) {
    const A w = a.diag[r] * (a.col_scale != nullptr ? a.col_scale[r] : A{1});
    for (int v = 0; v < V; ++v) sum[0][v] += w * get(a.x + r * a.width + k, v);
  }
  T* out = a.y + r * a.width + k;
  for (int v = 0; v < V; ++v) {
    const vec<A> y = sum[0][v] * scale;
    if (tail) {
      store_n(out, y, n);
    } else {
      store(out + v * L, y);
    }
  }
}

template <bool weighted, typename T, typename A>
SG_INLINE void sum_row(const SpmmArgs<T, A>& a, int64_t r) {
  constexpr int L = lanes<A>;
  const int64_t edges = a.crow[r + 1] - a.crow[r];
  A scale = a.row_scale != nullptr ? a.row_scale[r] : A{1};
  if (a.mean && edges > 1) scale /= A(edges);
  int64_t k = 0;
  for (; k + 8 * L <= a.width; k += 8 * L) sum_block<weighted, 8, false>(a, r, k, L, scale);
  for (; k + 4 * L <= a.width; k += 4 * L) sum_block<weighted, 4, false>(a, r, k, L, scale);
  for (; k + 2 * L <= a.width; k += 2 * L) sum_block<weighted, 2, false>(a, r, k, L, scale);
  for (; k + L <= a.width; k += L) sum_block<weighted, 1, false>(a, r, k, L, scale);
  if (k < a.width) sum_block<weighted, 1, true>(a, r, k, int(a.width - k), scale);
}

template <typename A>
struct index_of {
  using type = int32_t;
};
template <>
struct index_of<double> {
  using type = int64_t;
};

// V vectors of columns of row r (`n` columns of one when `tail`): the extremum and the edge it comes from. NaN wins
// over everything; of equals the first edge stays.
template <int V, bool tail, typename T, typename A>
SG_INLINE void arg_block(const SpmmArgs<T, A>& a, int64_t r, int64_t k, int n) {
  using I = typename index_of<A>::type;
  constexpr int L = lanes<A>;
  const A sign = a.largest ? A{1} : A{-1};
  const int64_t begin = a.crow[r], end = a.crow[r + 1];
  const auto get = [&](int64_t e, int v) {
    const T* row = a.x + int64_t{a.col[e]} * a.width + k;
    return (a.val != nullptr ? sign * widen(a.val[e]) : sign) * (tail ? load_n(row, n) : load(row + v * L));
  };
  vec<A> best[V] = {};
  vec<I> arg[V];
  for (int v = 0; v < V; ++v) {
    arg[v] = vec<I>{} + I(begin < end ? begin : -1);
    if (begin < end) best[v] = get(begin, v);
  }
  for (int64_t e = begin + 1; e < end; ++e) {
    const int64_t ahead = e + prefetch_distance < end ? e + prefetch_distance : end - 1;
    prefetch(a.x + int64_t{a.col[ahead]} * a.width + k, tail ? 1 : V * L * int(sizeof(T)));
    for (int v = 0; v < V; ++v) {
      const vec<A> value = get(e, v);
      const auto take = ~(value <= best[v]) & (best[v] == best[v]);
      best[v] = take ? value : best[v];
      arg[v] = take ? vec<I>{} + I(e) : arg[v];
    }
  }
  for (int v = 0; v < V; ++v) {
    T* y = a.y + r * a.width + k + v * L;
    if (tail) {
      store_n(y, sign * best[v], n);
    } else {
      store(y, sign * best[v]);
    }
    int32_t slots[L];
    for (int i = 0; i < L; ++i) slots[i] = int32_t(arg[v][i]);
    memcpy(a.arg + r * a.width + k + v * L, slots, size_t(tail ? n : L) * sizeof(int32_t));
  }
}

}  // namespace

template <typename T, typename A>
void spmm_sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  const bool weighted = a.val != nullptr || a.col_scale != nullptr;
  for (int64_t r = begin; r < end; ++r) {
    if (weighted) {
      sum_row<true>(a, r);
    } else {
      sum_row<false>(a, r);
    }
  }
}

template <typename T, typename A>
void spmm_arg_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  for (int64_t r = begin; r < end; ++r) {
    int64_t k = 0;
    for (; k + 4 * L <= a.width; k += 4 * L) arg_block<4, false>(a, r, k, L);
    for (; k + L <= a.width; k += L) arg_block<1, false>(a, r, k, L);
    if (k < a.width) arg_block<1, true>(a, r, k, int(a.width - k));
  }
}

// dx[c, k] = sum over transposed edges t of c:  val[perm[t]] * dy[row[t], k]  where arg[row[t], k] == perm[t]
template <typename T>
void spmm_arg_dx_rows(const SpmmArgBackwardArgs<T>& a, int64_t begin, int64_t end) {
  constexpr int block = 64;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t k = 0; k < a.width; k += block) {
      const int n = int(a.width - k < block ? a.width - k : block);
      acc<T> sum[block] = {};
      for (int64_t t = a.ccol[c]; t < a.ccol[c + 1]; ++t) {
        const int32_t e = a.perm[t];
        const int64_t at = int64_t{a.row[t]} * a.width + k;
        const acc<T> w = a.val != nullptr ? widen(a.val[e]) : acc<T>{1};
        for (int i = 0; i < n; ++i) sum[i] += a.arg[at + i] == e ? w * widen(a.dy[at + i]) : acc<T>{0};
      }
      for (int i = 0; i < n; ++i) a.dx[c * a.width + k + i] = narrow<T>(sum[i]);
    }
  }
}

// dval[e] = sum over k with arg[r, k] == e:  dy[r, k] * x[col[e], k];  edges of a row belong to that row alone
template <typename T>
void spmm_arg_dval_rows(const SpmmArgBackwardArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      const T* x = a.x + int64_t{a.col[e]} * a.width;
      acc<T> sum = 0;
      for (int64_t k = 0; k < a.width; ++k)
        sum += a.arg[r * a.width + k] == int32_t(e) ? widen(a.dy[r * a.width + k]) * widen(x[k]) : acc<T>{0};
      a.dval[e] = narrow<T>(sum);
    }
  }
}

#define SG_INSTANTIATE(T, A)                                                          \
  template void spmm_sum_rows<T, A>(const SpmmArgs<T, A>&, int64_t, int64_t);         \
  template void spmm_arg_rows<T, A>(const SpmmArgs<T, A>&, int64_t, int64_t);         \
  template void spmm_arg_dx_rows<T>(const SpmmArgBackwardArgs<T>&, int64_t, int64_t); \
  template void spmm_arg_dval_rows<T>(const SpmmArgBackwardArgs<T>&, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
