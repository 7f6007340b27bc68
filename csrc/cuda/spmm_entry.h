// What the entries of spmm and spmm_linear ask of a graph with scales.
#pragma once
#include "dispatch.h"

namespace sparsegnn::cuda {

inline void check_matrix(const char* op, const Tensor& x, const Tensor& crow, const Tensor& col,
                         const std::optional<Tensor>& val, const std::optional<Tensor>& row_scale,
                         const std::optional<Tensor>& col_scale, const std::optional<Tensor>& diag) {
  check_index_on(op, "crow", crow, x);
  check_index_on(op, "col", col, x);
  check_device(op, "val", val, x);
  check_device(op, "row_scale", row_scale, x);
  check_device(op, "col_scale", col_scale, x);
  check_device(op, "diag", diag, x);
  STD_TORCH_CHECK(x.dim() == 2, op, ": x must have shape [N, K], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1, op, ": crow must have at least one element");
  const int64_t rows = crow.numel() - 1;
  if (val) {
    check_same_dtype(op, "val", *val, x);
    STD_TORCH_CHECK(val->numel() == col.numel(), op, ": val must have one element per edge");
  }
  STD_TORCH_CHECK(!row_scale || row_scale->numel() == rows, op, ": row_scale must have one element per row");
  STD_TORCH_CHECK(!col_scale || col_scale->numel() == x.size(0), op, ": col_scale must have one element per row of x");
  STD_TORCH_CHECK(!diag || (diag->numel() == rows && rows == x.size(0)), op, ": diag needs a square matrix");
}

}  // namespace sparsegnn::cuda
