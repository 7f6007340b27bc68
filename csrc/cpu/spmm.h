// Arguments of the spmm kernels; see spmm.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

template <typename T, typename A>
struct SpmmArgs {
  const int32_t* crow;
  const int32_t* col;
  const T* val;        // or null: ones
  const A* row_scale;  // or null: ones
  const A* col_scale;  // or null: ones
  const A* diag;       // or null: zeros
  const T* x;
  T* y;
  int32_t* arg;  // max and min only
  int64_t width;
  bool mean;
  bool largest;  // max, not min
};

// Gradients of max and min: dx gathers over the transpose, dval scatters inside its own row.
template <typename T>
struct SpmmArgBackwardArgs {
  const int32_t *crow, *col;
  const int32_t *ccol, *row, *perm;
  const int32_t* arg;
  const T *val, *x, *dy;
  T *dx, *dval;
  int64_t width;
};

SG_DECLARE(template <typename T, typename A> void spmm_sum_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A> void spmm_arg_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> void spmm_arg_dx_rows(const SpmmArgBackwardArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> void spmm_arg_dval_rows(const SpmmArgBackwardArgs<T>& a, int64_t begin, int64_t end))

}  // namespace sparsegnn
