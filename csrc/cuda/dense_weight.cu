// dense_weight / cuda: checks, output, dtype, stream. The copies are in dense_weight.cuh.
#include "dense_weight.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

// What both directions ask of a pattern; `cols` and `height` by `width` are of the matrix and its blocks.
void check_pattern(const char* op, const Tensor& crow, const Tensor& col, const Tensor& like, int64_t cols,
                   int64_t height, int64_t width) {
  check_index_on(op, "crow", crow, like);
  check_index_on(op, "col", col, like);
  STD_TORCH_CHECK(crow.numel() >= 1, op, ": crow must have at least one element");
  STD_TORCH_CHECK(height >= 1 && width >= 1 && cols >= 0 && cols % width == 0, op,
                  ": blocks must divide the matrix, got blocks of ", height, " by ", width, " and ", cols, " columns");
  STD_TORCH_CHECK(crow.numel() > 1 || col.numel() == 0, op, ": col must be empty where there is no row");
}

Tensor dense_weight(const Tensor& values_in, const Tensor& crow, const Tensor& col, int64_t cols, int64_t height,
                    int64_t width) {
  const char* op = "dense_weight";
  const OnDevice device(values_in);
  check_pattern(op, crow, col, values_in, cols, height, width);
  STD_TORCH_CHECK(values_in.dim() == 1 && values_in.numel() == col.numel() * height * width, op,
                  ": values must have one element for each of a block");
  Tensor values = as_contiguous(values_in);
  const int64_t rows = crow.numel() - 1;
  Tensor dense = torch::stable::new_zeros(values, {rows * height, cols});
  dispatch(op, values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const DenseWeightArguments<T> a{data<int32_t>(crow),
                                    data<int32_t>(col),
                                    const_cast<T*>(data<T>(values)),
                                    mutable_data<T>(dense),
                                    rows,
                                    cols / width,
                                    col.numel(),
                                    height,
                                    width};
    STD_CUDA_CHECK(launch_dense_weight<true>(a, device.stream));
  });
  return dense;
}

Tensor dense_weight_values(const Tensor& dense_in, const Tensor& crow, const Tensor& col, int64_t height,
                           int64_t width) {
  const char* op = "dense_weight_values";
  const OnDevice device(dense_in);
  STD_TORCH_CHECK(dense_in.dim() == 2, op, ": dense must have shape [M, K], got ", dense_in.dim(), " dimension(s)");
  const int64_t rows = crow.numel() - 1, cols = dense_in.size(1);
  check_pattern(op, crow, col, dense_in, cols, height, width);
  STD_TORCH_CHECK(dense_in.size(0) == rows * height, op, ": dense must have ", rows * height, " rows, got ",
                  dense_in.size(0));
  const Tensor dense = as_contiguous(dense_in);
  Tensor values = torch::stable::new_empty(dense, {col.numel() * height * width});
  dispatch(op, dense.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const DenseWeightArguments<T> a{data<int32_t>(crow),
                                    data<int32_t>(col),
                                    mutable_data<T>(values),
                                    const_cast<T*>(data<T>(dense)),
                                    rows,
                                    cols / width,
                                    col.numel(),
                                    height,
                                    width};
    STD_CUDA_CHECK(launch_dense_weight<false>(a, device.stream));
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("dense_weight", TORCH_BOX(&dense_weight));
  m.impl("dense_weight_values", TORCH_BOX(&dense_weight_values));
}

}  // namespace sparsegnn::cuda
