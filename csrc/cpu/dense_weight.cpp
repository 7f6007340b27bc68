// dense_weight / cpu: checks, outputs, dtype, threads. The copies are in dense_weight.kernel.cpp.
#include "dense_weight.h"

#include "../common/parallel.h"
#include "dispatch.h"
#include "output.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_elements = 1 << 15;  // of the matrix: about 20 us

// What both directions ask of a pattern; `cols` and `height` by `width` are of the matrix and its blocks.
void check_pattern(const char* op, const Tensor& crow, const Tensor& col, int64_t cols, int64_t height, int64_t width) {
  check_index(op, "crow", crow);
  check_index(op, "col", col);
  STD_TORCH_CHECK(height >= 1 && width >= 1 && cols >= 0 && cols % width == 0, op,
                  ": blocks must divide the matrix, got blocks of ", height, " by ", width, " and ", cols, " columns");
  const int64_t rows = crow.numel() - 1;
  STD_TORCH_CHECK(rows >= 0 && data<int32_t>(crow)[0] == 0 && data<int32_t>(crow)[rows] == col.numel(), op,
                  ": crow must rise from 0 to the number of entries of col");
}

template <typename T>
void run(const char* op, bool (*kernel)(const DenseWeightArgs<T>&, int64_t, int64_t), const DenseWeightArgs<T>& args) {
  const int64_t step =
      std::max<int64_t>(1, chunk_elements / std::max<int64_t>(1, args.cols * args.height * args.width));
  std::atomic<bool> valid{true};
  for_each_chunk((args.rows + step - 1) / step, [&](int64_t c) {
    if (!kernel(args, c * step, std::min(args.rows, (c + 1) * step))) valid = false;
  });
  STD_TORCH_CHECK(valid, op, ": crow must rise from 0 to the number of entries of col, and col lie in the matrix");
}

Tensor dense_weight(const Tensor& values_in, const Tensor& crow, const Tensor& col, int64_t cols, int64_t height,
                    int64_t width) {
  const char* op = "dense_weight";
  check_pattern(op, crow, col, cols, height, width);
  STD_TORCH_CHECK(values_in.dim() == 1 && values_in.numel() == col.numel() * height * width, op,
                  ": values must have one element for each of a block");
  const Tensor values = as_contiguous(values_in);
  const int64_t rows = crow.numel() - 1;
  Tensor dense = new_output(values, {rows * height, cols});
  dispatch(op, values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run<T>(op, SG_PICK(dense_weight_fill<T>),
           {data<int32_t>(crow), data<int32_t>(col), data<T>(values), mutable_data<T>(dense), rows, cols / width,
            col.numel(), height, width});
  });
  return dense;
}

Tensor dense_weight_values(const Tensor& dense_in, const Tensor& crow, const Tensor& col, int64_t height,
                           int64_t width) {
  const char* op = "dense_weight_values";
  STD_TORCH_CHECK(dense_in.dim() == 2, op, ": dense must have shape [M, K], got ", dense_in.dim(), " dimension(s)");
  const int64_t rows = crow.numel() - 1, cols = dense_in.size(1);
  check_pattern(op, crow, col, cols, height, width);
  STD_TORCH_CHECK(dense_in.size(0) == rows * height, op, ": dense must have ", rows * height, " rows, got ",
                  dense_in.size(0));
  const Tensor dense = as_contiguous(dense_in);
  Tensor values = new_output(dense, {col.numel() * height * width});
  dispatch(op, dense.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run<T>(op, SG_PICK(dense_weight_gather<T>),
           {data<int32_t>(crow), data<int32_t>(col), data<T>(dense), mutable_data<T>(values), rows, cols / width,
            col.numel(), height, width});
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("dense_weight", TORCH_BOX(&dense_weight));
  m.impl("dense_weight_values", TORCH_BOX(&dense_weight_values));
}

}  // namespace sparsegnn
