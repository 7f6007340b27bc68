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
#include "simd_transpose.h"
#include "spmm_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename T, bool weighted>
struct Sum {
  using A = acc<T>;
  static constexpr bool any_width = sizeof(T) == 4;
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
// the one before it. What loads of x wait for is the room in the out-of-order window, so an edge is few instructions.
template <typename T, bool valued, int V, bool ragged, typename A>
void near_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>, U = 4;
  const Columns<V, ragged> columns{0, int(a.width - (V - 1) * L), false};
  const int64_t stride = ragged ? a.x_stride : V * L;
  const int32_t *crow = a.crow, *col = a.col;
  const T *x = a.x, *val = a.val;
  for (int64_t r = begin; r < end; ++r) {
    typename Sum<T, valued>::template State<V, ragged> state[U];
    int64_t e = crow[r];
    const int64_t stop = crow[r + 1];
    state[0].start(a, columns, r, e, stop);
    const auto add = [&](vec<A>* sum, int64_t edge) {
      const T* row = x + col[edge] * stride;
      for (int v = 0; v < V; ++v) {
        if constexpr (valued) sum[v] += widen(val[edge]) * columns.get(row, v);
        if constexpr (!valued) sum[v] += columns.get(row, v);
      }
    };
    for (; e + U <= stop; e += U)
      for (int u = 0; u < U; ++u) add(state[u].sum, e + u);
    for (; e < stop; ++e) add(state[0].sum, e);
    for (int u = 1; u < U; ++u)
      for (int v = 0; v < V; ++v) state[0].sum[v] += state[u].sum[v];
    state[0].finish(a, columns, r);
  }
}

template <typename T, bool weighted, typename A>
void sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  const bool near = a.near && a.col_scale == nullptr && a.width > 0 && a.width <= 2 * L;
  if (!near) return reduce_rows<Sum<T, weighted>, T>(a, a.x_stride, begin, end);
  if (a.width == 2 * L) return near_rows<T, weighted, 2, false>(a, begin, end);
  if (a.width > L) return near_rows<T, weighted, 2, true>(a, begin, end);
  if (a.width == L) return near_rows<T, weighted, 1, false>(a, begin, end);
  near_rows<T, weighted, 1, true>(a, begin, end);
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

// table[k, m] = x[m, k] for k < rows, m < width; rows of x are `stride` apart.
template <typename T>
void spmm_table(const T* x, int64_t stride, T* table, int64_t rows, int64_t width) {
  constexpr int L = lanes<acc<T>>;
  for (int64_t k = 0; k < rows; k += L)
    for (int64_t m = 0; m < width; m += L) {
      const int64_t height = width - m < L ? width - m : L, columns = rows - k < L ? rows - k : L;
      vec<acc<T>> r[L];
      for (int i = 0; i < L; ++i)
        r[i] = i >= height    ? vec<acc<T>>{}
               : columns == L ? load(x + (m + i) * stride + k)
                              : load_n(x + (m + i) * stride + k, int(columns));
      transpose<acc<T>>(r);
      for (int i = 0; i < columns; ++i) {
        if (height == L) {
          store(table + (k + i) * width + m, r[i]);
        } else {
          store_n(table + (k + i) * width + m, r[i], int(height));
        }
      }
    }
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
  template void spmm_table<T>(const T*, int64_t, T*, int64_t, int64_t);       \
  template void spmm_sum_rows<T, A>(const SpmmArgs<T, A>&, int64_t, int64_t); \
  template void spmm_sum_hub<T, A>(const SpmmArgs<T, A>&, const SpmmHub&);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
