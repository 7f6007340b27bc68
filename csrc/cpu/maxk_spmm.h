// Arguments of the maxk_spmm kernels; see maxk_spmm.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

template <typename T, typename A>
struct MaxkSpmmArgs {
  const int32_t *crow, *col;
  const T* val;                           // or null: ones
  const A *row_scale, *col_scale, *diag;  // or null: ones, ones, zeros
  const T* values;                        // [N, k]
  const void* index;                      // [N, k], of uint8_t or int16_t
  T* y;                                   // [M, width]; backward: dy, which is only read
  int64_t edges, width, k;
  bool mean;
  bool stream;  // write y past the caches: rows are whole aligned cache lines
};

SG_DECLARE(template <typename T, typename A, typename I>
           void maxk_spmm_rows(const MaxkSpmmArgs<T, A>& a, A* scratch, int64_t begin, int64_t end))
// `sums` are those of rows [begin, end) of the transpose: [end - begin, width]
SG_DECLARE(template <typename T, typename A, typename I> void maxk_spmm_dvalues_rows(const MaxkSpmmArgs<T, A>& a,
                                                                                     const A* sums, T* dvalues,
                                                                                     int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A, typename I>
           void maxk_spmm_dval_rows(const MaxkSpmmArgs<T, A>& a, T* dval, int64_t begin, int64_t end))

}  // namespace sparsegnn
