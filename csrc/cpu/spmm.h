// Arguments of the spmm kernels; see spmm.kernel.cpp and spmm_arg.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

template <typename T, typename A>
struct SpmmArgs {
  const int32_t* crow;
  const int32_t* col;
  int64_t edges;
  const T* val;        // or null: ones
  const A* row_scale;  // or null: ones
  const A* col_scale;  // or null: ones
  const A* diag;       // or null: zeros
  const T* x;
  T* y;
  A* partial;    // or null; else the sums go here, not scaled, instead of y
  int32_t* arg;  // max and min; null: not wanted
  int64_t width;
  int64_t x_stride, y_stride;  // of rows, in elements; y_stride is that of partial and arg too
  bool mean;
  bool largest;  // max, not min
  bool stream;   // write y past the caches: its rows are aligned to vectors
  bool near;     // x sits in L2: nothing to prefetch
};

// A row of many edges, cut into pieces: rows [begin, end) of the partial results belong to row `row`.
struct SpmmHub {
  int64_t row, begin, end;
};

// Gradients of max and min. dx: crow, col and perm are those of the transpose. dval: those of the graph, no perm.
template <typename T, typename A>
struct SpmmArgGradient {
  const int32_t *crow, *col, *perm;
  int64_t edges;
  const T* val;  // or null: ones
  const T *x, *dy;
  const int32_t* arg;
  T* y;        // dx or dval
  A* partial;  // or null; else dx goes here
  int64_t width;
};

SG_DECLARE(template <typename T, typename A> void spmm_sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> void spmm_table(const T* x, int64_t stride, T* table, int64_t rows, int64_t width))
SG_DECLARE(template <typename T, typename A> void spmm_sum_hub(const SpmmArgs<T, A>& a, const SpmmHub& hub))
SG_DECLARE(template <typename T, typename A> void spmm_arg_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A>
           void spmm_arg_hub(const SpmmArgs<T, A>& a, const int32_t* partial_arg, const SpmmHub& hub))
SG_DECLARE(template <typename T, typename A>
           void spmm_arg_dx_rows(const SpmmArgGradient<T, A>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A>
           void spmm_arg_dval_rows(const SpmmArgGradient<T, A>& a, int64_t begin, int64_t end))

}  // namespace sparsegnn
