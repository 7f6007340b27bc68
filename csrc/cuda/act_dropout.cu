// act_dropout / cuda: checks, outputs, dtype, stream. The arithmetic is in act_dropout.cuh.
#include "act_dropout.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

constexpr const char* name = "act_dropout";

Activation check(const Tensor& x, const char* x_name, const Text& act) {
  STD_TORCH_CHECK(x.dim() == 2, name, ": ", x_name, " must have shape [N, F], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(act == "none" || act == "relu" || act == "elu", name, ": act must be none, relu or elu, got ", act);
  return act == "relu" ? Activation::relu : act == "elu" ? Activation::elu : Activation::none;
}

Tensor act_dropout(const Tensor& x_in, const std::optional<Tensor>& bias_in, const Text& act_in, double dropout,
                   const std::optional<Tensor>& seed_in) {
  const OnDevice device(x_in);
  const Activation act = check(x_in, "x", act_in);
  const int64_t* seed = check_dropout(name, dropout, seed_in, x_in);
  const int64_t rows = x_in.size(0), width = x_in.size(1);
  if (bias_in) {
    check_device(name, "bias", bias_in, x_in);
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == width, name, ": bias must have ", width, " elements");
  }
  const Tensor x = as_contiguous(x_in);
  const auto bias = as_contiguous(bias_in);
  Tensor y = torch::stable::new_empty(x, {rows, width});
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto how = linear_epilogue<acc_t<T>>(act == Activation::relu, dropout, seed);
    const ActDropoutArguments<T> a{data<T>(x), data<T>(bias), mutable_data<T>(y), rows, width, how};
    STD_CUDA_CHECK(launch_act_dropout(a, act, device.stream));
  });
  return y;
}

std::tuple<Tensor, Tensor> act_dropout_backward(const Tensor& dy_in, const std::optional<Tensor>& y_in,
                                                const Text& act_in, double dropout,
                                                const std::optional<Tensor>& seed_in, bool need_dx, bool need_dbias) {
  const OnDevice device(dy_in);
  const Activation act = check(dy_in, "dy", act_in);
  const int64_t* seed = check_dropout(name, dropout, seed_in, dy_in);
  const int64_t rows = dy_in.size(0), width = dy_in.size(1);
  STD_TORCH_CHECK(y_in || act == Activation::none, name, ": y must be given with act ", act_in);
  if (y_in) {
    check_device(name, "y", y_in, dy_in);
    check_same_dtype(name, "y", *y_in, dy_in);
    STD_TORCH_CHECK(y_in->dim() == 2 && y_in->size(0) == rows && y_in->size(1) == width, name,
                    ": y must have the shape of dy");
  }
  const Tensor dy = as_contiguous(dy_in);
  const auto y = as_contiguous(y_in);
  Tensor dx = need_dx ? torch::stable::new_empty(dy, {rows, width}) : torch::stable::new_empty(dy, {0});
  Tensor dbias = torch::stable::new_empty(dy, {need_dbias ? width : 0});
  dispatch(name, dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto how = linear_epilogue<acc_t<T>>(act == Activation::relu, dropout, seed);
    const ActDropoutBackwardArguments<T> a{data<T>(dy),
                                           data<T>(y),
                                           need_dx ? mutable_data<T>(dx) : nullptr,
                                           need_dbias ? mutable_data<T>(dbias) : nullptr,
                                           rows,
                                           width,
                                           how,
                                           how.scale > 0 ? 1 / how.scale : acc_t<T>(0)};
    Tensor partial = workspace(dy, need_dbias ? act_dropout_workspace_bytes<T>(rows, width) : 0);
    STD_CUDA_CHECK(launch_act_dropout_backward(a, act, partial.mutable_data_ptr(), device.stream));
  });
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("act_dropout", TORCH_BOX(&act_dropout));
  m.impl("act_dropout_backward", TORCH_BOX(&act_dropout_backward));
}

}  // namespace sparsegnn::cuda
