// features_linear / cuda: checks, outputs, dtype, stream. The arithmetic is in features_linear.cuh.
#include "features_linear.cuh"

#include "dispatch.h"
#include "sparse_linear_backward.cuh"

namespace sparsegnn::cuda {
namespace {

constexpr const char* name = "features_linear";

void check_weight(const Tensor& ccol, const Tensor& row, const Tensor& perm, const Tensor& like, int64_t height,
                  int64_t width, int64_t outputs) {
  const bool known = (width == 1 && (height == 1 || height == 4 || height == 8 || height == 16)) ||
                     (height == width && (width == 16 || width == 32));
  STD_TORCH_CHECK(known, name, ": blocks must be 1x1, 4x1, 8x1, 16x1, 16x16 or 32x32, got ", height, "x", width);
  STD_TORCH_CHECK(outputs >= 0 && outputs % height == 0, name, ": outputs must be a multiple of ", height, ", got ",
                  outputs);
  check_index_on(name, "ccol", ccol, like);
  check_index_on(name, "row", row, like);
  check_index_on(name, "perm", perm, like);
  STD_TORCH_CHECK(ccol.numel() >= 1, name, ": ccol must have elements");
  STD_TORCH_CHECK(perm.numel() == row.numel(), name, ": perm must have ", row.numel(), " elements");
}

void check_features(const Tensor& offset, const Tensor& index, const Tensor& val, const Tensor& like) {
  check_index_on(name, "x_crow", offset, like);
  check_index_on(name, "x_col", index, like);
  check_device(name, "x_val", val, like);
  check_same_dtype(name, "x_val", val, like);
  STD_TORCH_CHECK(offset.numel() >= 1 && val.dim() == 1 && val.numel() == index.numel(), name, ": x_val must have ",
                  index.numel(), " elements");
}

Tensor features_linear(const Tensor& values_in, const std::optional<Tensor>& bias_in, const Tensor& x_crow,
                       const Tensor& x_col, const Tensor& x_val_in, const std::optional<Tensor>& /*x_ccol*/,
                       const std::optional<Tensor>& /*x_row*/, const std::optional<Tensor>& /*x_val_t*/,
                       const Tensor& ccol, const Tensor& row, const Tensor& perm, int64_t height, int64_t width,
                       int64_t outputs, int64_t /*products*/) {
  const OnDevice device(values_in);
  check_weight(ccol, row, perm, values_in, height, width, outputs);
  check_features(x_crow, x_col, x_val_in, values_in);
  STD_TORCH_CHECK(values_in.dim() == 1 && values_in.numel() == row.numel() * height * width, name,
                  ": values must have one element per position of a block");
  check_device(name, "bias", bias_in, values_in);
  if (bias_in) {
    check_same_dtype(name, "bias", *bias_in, values_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, name, ": bias must have ", outputs,
                    " elements");
  }
  const Tensor values = as_contiguous(values_in), x_val = as_contiguous(x_val_in);
  std::optional<Tensor> bias;
  if (bias_in) bias = as_contiguous(*bias_in);
  Tensor y = torch::stable::new_empty(values, {x_crow.numel() - 1, outputs});
  dispatch(name, values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    FeaturesLinearArguments<T> a{};
    a.x_offset = data<int32_t>(x_crow), a.x_index = data<int32_t>(x_col), a.x_val = data<T>(x_val);
    a.ccol = data<int32_t>(ccol), a.row = data<int32_t>(row), a.perm = data<int32_t>(perm);
    a.values = data<T>(values), a.bias = data<T>(bias), a.out = mutable_data<T>(y);
    a.samples = x_crow.numel() - 1, a.columns = ccol.numel() - 1, a.blocks = row.numel(), a.outputs = outputs;
    a.height = int(height), a.width = int(width);
    STD_CUDA_CHECK(launch_features_linear(a, device.stream));
  });
  return y;
}

std::tuple<Tensor, Tensor> features_linear_backward(
    const Tensor& dy_in, const Tensor& /*x_crow*/, const Tensor& /*x_col*/, const Tensor& /*x_val*/,
    const std::optional<Tensor>& x_ccol, const std::optional<Tensor>& x_row, const std::optional<Tensor>& x_val_t,
    const Tensor& ccol, const Tensor& row, const Tensor& perm, int64_t height, int64_t width, bool need_dvalues,
    bool need_dbias, int64_t /*products*/) {
  const OnDevice device(dy_in);
  STD_TORCH_CHECK(dy_in.dim() == 2, name, ": dy must have shape [N, M], got ", dy_in.dim(), " dimension(s)");
  const int64_t samples = dy_in.size(0), outputs = dy_in.size(1);
  check_weight(ccol, row, perm, dy_in, height, width, outputs);
  const Tensor dy = as_contiguous(dy_in);
  Tensor dvalues = torch::stable::new_empty(dy, {need_dvalues ? row.numel() * height * width : 0});
  Tensor dbias = torch::stable::new_empty(dy, {need_dbias ? outputs : 0});
  dispatch(name, dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (need_dvalues) {
      STD_TORCH_CHECK(x_ccol && x_row && x_val_t, name,
                      ": x_ccol, x_row and x_val_t must be given for a gradient on a GPU");
      check_features(*x_ccol, *x_row, *x_val_t, dy);
      STD_TORCH_CHECK(x_ccol->numel() - 1 == (ccol.numel() - 1) * width, name, ": x_ccol must have ",
                      (ccol.numel() - 1) * width + 1, " elements, got ", x_ccol->numel());
      const Tensor x_val = as_contiguous(*x_val_t);
      FeaturesLinearArguments<T> a{};
      a.x_offset = data<int32_t>(*x_ccol), a.x_index = data<int32_t>(*x_row), a.x_val = data<T>(x_val);
      a.ccol = data<int32_t>(ccol), a.row = data<int32_t>(row), a.perm = data<int32_t>(perm);
      a.dy = data<T>(dy), a.out = mutable_data<T>(dvalues);
      a.samples = samples, a.columns = ccol.numel() - 1, a.blocks = row.numel(), a.outputs = outputs;
      a.height = int(height), a.width = int(width);
      STD_CUDA_CHECK(launch_features_values(a, device.stream));
    }
    if (need_dbias) {
      Tensor partial = workspace(dy, sparse_linear_dbias_workspace_bytes<T>(samples, outputs));
      STD_CUDA_CHECK(launch_sparse_linear_dbias(data<T>(dy), samples, outputs, mutable_data<T>(dbias),
                                                partial.mutable_data_ptr(), device.stream));
    }
  });
  return {dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("features_linear", TORCH_BOX(&features_linear));
  m.impl("features_linear_backward", TORCH_BOX(&features_linear_backward));
}

}  // namespace sparsegnn::cuda
