// spmm, sums and means / cuda
//
//   of the edges of a span, with kernels of their own for edges without weights, with values, and with scales of their
//   columns; see spmm.cuh
//
// work       fp32, machine instructions of the loop for an edge and 16 bytes a lane: 8.75 without weights, 11.25 with
//            values or scales. Columns and values are asked for one step ahead of the rows
#pragma once
#include "../common/segments.cuh"

namespace sparsegnn::cuda {

// Device pointers; null where absent.
template <typename T>
struct SpmmArguments {
  const T* x;
  const int32_t *crow, *col;
  const T* val;
  const acc_t<T>*row_scale, *col_scale, *diag;
  T* y;
  int32_t* arg;
  int64_t rows, width, edges;
  int64_t cols = 0;     // rows of x; 0: x is gathered in slices of a warp
  SpanList spans = {};  // of the rows
};

// What a sum does with its rows, whatever the weights of the edges are.
template <typename T, int V_>
struct SumRowOp {
  static constexpr int V = V_, kLeastBlocks = 4;
  using State = vec<acc_t<T>, V>;
  SpmmArguments<T> a;
  bool mean;

  __device__ void merge(State& sum, const State& next) const {
    for (int i = 0; i < V; ++i) sum[i] += next[i];
  }

  __device__ void finish(int64_t r, int64_t j, int64_t degree, State sum) const {
    if (a.diag) {
      const acc_t<T> weight = a.col_scale ? a.diag[r] * a.col_scale[r] : a.diag[r];
      const vec<T, V> x = load<V>(a.x + r * a.width + j);
      for (int i = 0; i < V; ++i) sum[i] += weight * to_acc(x[i]);
    }
    if (mean && degree > 1)
      for (int i = 0; i < V; ++i) sum[i] /= acc_t<T>(degree);
    vec<T, V> y;
    for (int i = 0; i < V; ++i) y[i] = from_acc<T>(a.row_scale ? sum[i] * a.row_scale[r] : sum[i]);
    store_streamed(a.y + r * a.width + j, y);
  }
};

// Which weights the edges have; any: the arguments say.
enum class Weights { none, val, scale, any };

template <typename T, int V_, Weights kWeights>
struct SumOp : SumRowOp<T, V_> {
  static constexpr int V = V_, U = 4, kLeastBlocks = kWeights == Weights::any && V == kVector<T> ? 3 : 4;
  using A = acc_t<T>;
  using typename SumRowOp<T, V>::State;
  using SumRowOp<T, V>::a;

  // Columns and values of edges, and scales of their columns.
  struct Edges {
    int32_t c[U];
    A val[U], scale[U];
  };
  __device__ __forceinline__ bool has_val() const {
    return kWeights == Weights::val || (kWeights == Weights::any && a.val);
  }
  __device__ __forceinline__ bool has_scale() const {
    return kWeights == Weights::scale || (kWeights == Weights::any && a.col_scale);
  }

  template <bool kLast>
  __device__ __forceinline__ void read(Edges& to, int e, int left) const {
    const int32_t* col = a.col + e;
    for (int u = 0; u < U; ++u) to.c[u] = !kLast || u < left ? load_streamed(col + u) : 0;
    if (has_val())
      for (int u = 0; u < U; ++u) to.val[u] = !kLast || u < left ? to_acc(load_streamed(a.val + e + u)) : A(0);
  }
  template <bool kLast>
  __device__ __forceinline__ void rows(vec<T, V> (&x)[U], Edges& of, int left, const T* from, uint32_t pitch) const {
    for (int u = 0; u < U; ++u) {
      if (kLast) x[u] = {};
      if (!kLast || u < left) x[u] = load<V>(row_at(from, of.c[u], pitch));
    }
    if (has_scale())
      for (int u = 0; u < U; ++u) of.scale[u] = !kLast || u < left ? a.col_scale[of.c[u]] : A(0);
  }
  __device__ __forceinline__ void add(State& sum, const vec<T, V> (&x)[U], const Edges& of) const {
    for (int u = 0; u < U; ++u) {
      A weight = has_val() ? of.val[u] : A(1);
      if (has_scale()) weight = has_val() ? weight * of.scale[u] : of.scale[u];
      const bool plain = kWeights == Weights::none;
      for (int i = 0; i < V; ++i) sum[i] += plain ? to_acc(x[u][i]) : weight * to_acc(x[u][i]);
    }
  }

  // The columns and values of a step are asked for before the rows of the one before are used.
  __device__ State span(int64_t, int64_t begin, int64_t end, int64_t j) const {
    const T* x = a.x + j;
    const auto pitch = static_cast<uint32_t>(a.width * sizeof(T));
    int e = static_cast<int>(begin), left = static_cast<int>(end - begin);
    State sum = {};
    vec<T, V> row[U];
    Edges now = {};
    if (left >= U) read<false>(now, e, U);
#pragma unroll 1
    while (left >= U) {
      rows<false>(row, now, U, x, pitch);
      const Edges of = now;
      e += U, left -= U;
      if (left >= U) read<false>(now, e, U);
      add(sum, row, of);
    }
    if (left > 0) {
      read<true>(now, e, left);
      rows<true>(row, now, left, x, pitch);
      add(sum, row, now);
    }
    return sum;
  }
};

}  // namespace sparsegnn::cuda
