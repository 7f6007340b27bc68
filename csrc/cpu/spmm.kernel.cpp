// spmm / cpu: sum and mean
//
//   sum   y[r] = rs[r] * (sum over edges e of row r: val[e] * cs[col[e]] * x[col[e]]  +  diag[r] * cs[r] * x[r])
//   mean  the sum divided by the number of edges of the row
//
// layout     CSR: crow[M+1], col[E] int32; x[N, K], y[M, K] row-major; scales in the accumulator type
// work       2*E*K flop; E*(4 + s) + E*K*s bytes at the caches, N*K*s + M*K*s at memory
// blocking   columns in blocks of up to 8 vectors held in registers; see spmm_tile.h for what is prefetched
// numerics   sums in float (double for double) in an order fixed by the row, so the thread count does not matter; rows
//            of many edges are summed in pieces of fixed size, pieces then in order
// backward   dx: the sum on the transpose; dval: sddmm
// see        spmm_arg.kernel.cpp, sparsegnn/ops/spmm.py, tests/ops/test_spmm.py, benchmarks/ops/bench_spmm.py
#include "spmm_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename T, bool weighted>
struct Sum {
  using A = acc<T>;
  using Args = SpmmArgs<T, A>;

  static const T* table(const Args& a) { return a.x; }

  template <int level, int V, bool ragged>
  SG_INLINE static void prefetch(const Args& a, const Columns<V, ragged>& columns, int64_t c) {
    columns.template prefetch<level>(a.x + c * a.x_stride);
    if (weighted && level == 2 && a.col_scale != nullptr) __builtin_prefetch(a.col_scale + c);
  }

  template <int V, bool ragged>
  struct State {
    vec<A> sum[V] = {};
    int64_t edges = 0;

    SG_INLINE void start(const Args&, const Columns<V, ragged>&, int64_t, int64_t begin, int64_t end) {
      edges = end - begin;
    }

    SG_INLINE void edge(const Args& a, const Columns<V, ragged>& columns, int64_t e, int64_t c) {
      const T* row = a.x + c * a.x_stride;
      if constexpr (weighted) {
        A w = a.val != nullptr ? widen(a.val[e]) : A{1};
        if (a.col_scale != nullptr) w *= a.col_scale[c];
        for (int v = 0; v < V; ++v) sum[v] += w * columns.get(row, v);
      } else {
        for (int v = 0; v < V; ++v) sum[v] += columns.get(row, v);
      }
    }

    SG_INLINE void finish(const Args& a, const Columns<V, ragged>& columns, int64_t r) {
      if (a.partial != nullptr) {
        for (int v = 0; v < V; ++v) columns.put(a.partial + r * a.y_stride, v, sum[v], false);
        return;
      }
      write(a, columns, r, edges);
    }

    SG_INLINE void write(const Args& a, const Columns<V, ragged>& columns, int64_t r, int64_t count) {
      if (a.diag != nullptr) {
        const A w = a.diag[r] * (a.col_scale != nullptr ? a.col_scale[r] : A{1});
        for (int v = 0; v < V; ++v) sum[v] += w * columns.get(a.x + r * a.x_stride, v);
      }
      A scale = a.row_scale != nullptr ? a.row_scale[r] : A{1};
      if (a.mean && count > 1) scale /= A(count);
      for (int v = 0; v < V; ++v) columns.put(a.y + r * a.y_stride, v, sum[v] * scale, a.stream);
    }
  };
};

// Rows of a few columns of a table near by: no prefetch, and several edges at a time, or each would wait for the sum of
// the one before it.
template <typename T, bool weighted, int V, bool ragged, typename A>
void near_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end, int n) {
  constexpr int U = 4 / V;
  const Columns<V, ragged> columns{0, n, false};
  for (int64_t r = begin; r < end; ++r) {
    typename Sum<T, weighted>::template State<V, ragged> state[U];
    int64_t e = a.crow[r];
    const int64_t stop = a.crow[r + 1];
    state[0].start(a, columns, r, e, stop);
    for (; e + U <= stop; e += U)
      for (int u = 0; u < U; ++u) state[u].edge(a, columns, e + u, a.col[e + u]);
    for (; e < stop; ++e) state[0].edge(a, columns, e, a.col[e]);
    for (int u = 1; u < U; ++u)
      for (int v = 0; v < V; ++v) state[0].sum[v] += state[u].sum[v];
    state[0].finish(a, columns, r);
  }
}

template <typename T, bool weighted, typename A>
void sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  const int n = int(a.width > L ? a.width - L : a.width);
  if (!a.near || a.width > 2 * L || a.width == 0) return reduce_rows<Sum<T, weighted>, T>(a, a.x_stride, begin, end);
  if (a.width == 2 * L) return near_rows<T, weighted, 2, false>(a, begin, end, n);
  if (a.width > L) return near_rows<T, weighted, 2, true>(a, begin, end, n);
  if (a.width == L) return near_rows<T, weighted, 1, false>(a, begin, end, n);
  near_rows<T, weighted, 1, true>(a, begin, end, n);
}

}  // namespace

template <typename T, typename A>
void spmm_sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  if (a.val != nullptr || a.col_scale != nullptr) {
    sum_rows<T, true>(a, begin, end);
  } else {
    sum_rows<T, false>(a, begin, end);
  }
  if (a.stream) stores_done();
}

// y[hub.row] from the partial sums, in order.
template <typename T, typename A>
void spmm_sum_hub(const SpmmArgs<T, A>& a, const SpmmHub& hub) {
  constexpr int L = lanes<A>;
  for (int64_t k = 0; k < a.width; k += L) {
    const Columns<1, true> columns{k, int(a.width - k < L ? a.width - k : L), false};
    typename Sum<T, false>::template State<1, true> state;
    for (int64_t p = hub.begin; p < hub.end; ++p) state.sum[0] += columns.get(a.partial + p * a.y_stride, 0);
    state.write(a, columns, hub.row, a.crow[hub.row + 1] - a.crow[hub.row]);
  }
}

#define SG_INSTANTIATE(T, A)                                                  \
  template void spmm_sum_rows<T, A>(const SpmmArgs<T, A>&, int64_t, int64_t); \
  template void spmm_sum_hub<T, A>(const SpmmArgs<T, A>&, const SpmmHub&);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
