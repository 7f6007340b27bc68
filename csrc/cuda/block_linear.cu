// block_linear / cuda: checks, outputs, dtype, stream. The arithmetic is in the .cuh files of this stem.
#include "block_linear.cuh"

#include "block_linear_backward.cuh"
#include "block_linear_scatter.cuh"
#include "dispatch.h"
#include "sparse_linear_backward.cuh"

namespace sparsegnn::cuda {
namespace {

constexpr const char* name = "block_linear";

// The kernels read values 128 bits at a time, and there are few of them: a slice that starts elsewhere is copied.
Tensor as_aligned(const Tensor& values) {
  const Tensor t = as_contiguous(values);
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

// What forward and backward ask of their arguments; the same words as the CPU entry.
void check(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& ccol,
           const Tensor& row, const Tensor& perm, int64_t height, int64_t width) {
  const bool grouped = width == 1 && (height == 4 || height == 8 || height == 16);
  STD_TORCH_CHECK(grouped || (height == width && (width == 16 || width == 32)),
                  "block_linear: blocks must be 4x1, 8x1, 16x1, 16x16 or 32x32, got ", height, "x", width);
  check_index_on(name, "crow", crow, x);
  check_index_on(name, "col", col, x);
  check_index_on(name, "ccol", ccol, x);
  check_index_on(name, "row", row, x);
  check_index_on(name, "perm", perm, x);
  check_device(name, "values", values, x);
  STD_TORCH_CHECK(x.dim() == 2, "block_linear: x must have shape [N, K], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1 && ccol.numel() >= 1, "block_linear: crow and ccol must have elements");
  STD_TORCH_CHECK(x.size(1) == (ccol.numel() - 1) * width, "block_linear: x must have ", (ccol.numel() - 1) * width,
                  " columns, got ", x.size(1));
  check_same_dtype(name, "values", values, x);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == col.numel() * height * width,
                  "block_linear: values must have one element per position of a block");
  STD_TORCH_CHECK(row.numel() == col.numel() && perm.numel() == col.numel(), "block_linear: row and perm must have ",
                  col.numel(), " elements");
}

template <typename T>
void run(const BlockLinearArguments<T>& a, bool tf32, const Tensor& x, cudaStream_t stream) {
  const BlockPlan plan = choose_block_linear(a.batch, a.inputs, a.outputs, a.height, sizeof(T), tf32);
  Tensor space = workspace(x, block_linear_workspace_bytes(a, plan));
  STD_CUDA_CHECK(launch_block_linear(a, plan, space.mutable_data_ptr(), stream));
}

template <typename T>
void run(const BlockScatterArguments<T>& a, bool tf32, const Tensor& x, cudaStream_t stream) {
  const BlockScatterPlan plan = choose_block_linear_scatter(a.inputs, a.height, sizeof(T), tf32);
  Tensor cut = workspace(x, block_linear_cut_bytes(plan.chunks, a.outputs / a.height));
  STD_CUDA_CHECK(launch_block_linear_scatter(a, plan, cut.mutable_data_ptr(), stream));
}

Tensor block_linear(const Tensor& x_in, const Tensor& values_in, const std::optional<Tensor>& bias_in,
                    const Tensor& crow, const Tensor& col, const Tensor& ccol, const Tensor& row, const Tensor& perm,
                    int64_t height, int64_t width, bool tf32) {
  const OnDevice device(x_in);
  check(x_in, values_in, crow, col, ccol, row, perm, height, width);
  const int64_t outputs = (crow.numel() - 1) * height;
  if (bias_in) {
    check_device(name, "bias", bias_in, x_in);
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, "block_linear: bias must have ", outputs,
                    " elements");
  }
  const Tensor x = as_contiguous(x_in), values = as_aligned(values_in);
  const auto bias = as_scale(bias_in, x);
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs});
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const BlockLinearArguments<T> a{data<T>(x),         data<T>(values), data<acc_t<T>>(bias), data<int32_t>(crow),
                                    data<int32_t>(col), nullptr,         mutable_data<T>(y),   x.size(0),
                                    x.size(1),          outputs,         col.numel(),          int(height),
                                    int(width)};
    run(a, tf32, x, device.stream);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> block_linear_backward(const Tensor& dy_in, const Tensor& x_in,
                                                         const Tensor& values_in, const Tensor& crow, const Tensor& col,
                                                         const Tensor& ccol, const Tensor& row, const Tensor& perm,
                                                         int64_t height, int64_t width, bool need_dx, bool need_dvalues,
                                                         bool need_dbias, bool tf32) {
  const OnDevice device(x_in);
  check(x_in, values_in, crow, col, ccol, row, perm, height, width);
  check_device(name, "dy", dy_in, x_in);
  const int64_t batch = x_in.size(0), inputs = x_in.size(1), outputs = (crow.numel() - 1) * height;
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == batch && dy_in.size(1) == outputs,
                  "block_linear: dy must have the shape of y");
  check_same_dtype(name, "dy", dy_in, x_in);
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in), values = as_aligned(values_in);
  Tensor dx = need_dx ? torch::stable::new_empty(x, {batch, inputs}) : torch::stable::new_empty(x, {0});
  Tensor dvalues = torch::stable::new_empty(x, {need_dvalues ? values.numel() : 0});
  Tensor dbias = torch::stable::new_empty(x, {need_dbias ? outputs : 0});
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (need_dx && width == 1) {
      const BlockScatterArguments<T> a{
          data<T>(dy), data<T>(values), data<int32_t>(crow), data<int32_t>(col), mutable_data<T>(dx), batch,
          inputs,      outputs,         int(height)};
      run(a, tf32, x, device.stream);
    } else if (need_dx) {
      const BlockLinearArguments<T> a{data<T>(dy),
                                      data<T>(values),
                                      nullptr,
                                      data<int32_t>(ccol),
                                      data<int32_t>(row),
                                      data<int32_t>(perm),
                                      mutable_data<T>(dx),
                                      batch,
                                      outputs,
                                      inputs,
                                      col.numel(),
                                      int(width),
                                      int(height)};
      run(a, tf32, x, device.stream);
    }
    if (need_dvalues && values.numel() > 0) {
      const BlockBackwardPlan plan =
          choose_block_linear_values(batch, inputs, outputs, col.numel(), int(height), int(width), sizeof(T), tf32);
      Tensor partial = workspace(x, plan.spans * values.numel() * int64_t(sizeof(acc_t<T>)));
      auto* sums = static_cast<acc_t<T>*>(partial.mutable_data_ptr());
      const BlockLinearBackwardArguments<T> a{
          data<T>(dy), data<T>(x), data<int32_t>(crow), data<int32_t>(col), sums,      batch,
          inputs,      outputs,    col.numel(),         int(height),        int(width)};
      STD_CUDA_CHECK(launch_block_linear_values(a, plan, device.stream));
      STD_CUDA_CHECK(
          launch_sparse_linear_partials<T>(sums, plan.spans, values.numel(), mutable_data<T>(dvalues), device.stream));
    }
    if (need_dbias) {
      Tensor partial = workspace(x, sparse_linear_dbias_workspace_bytes<T>(batch, outputs));
      STD_CUDA_CHECK(launch_sparse_linear_dbias(data<T>(dy), batch, outputs, mutable_data<T>(dbias),
                                                partial.mutable_data_ptr(), device.stream));
    }
  });
  return {dx, dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("block_linear", TORCH_BOX(&block_linear));
  m.impl("block_linear_backward", TORCH_BOX(&block_linear_backward));
}

}  // namespace sparsegnn::cuda
