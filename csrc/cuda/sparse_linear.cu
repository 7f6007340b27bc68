// sparse_linear / cuda: checks, outputs, dtype, stream. The arithmetic is in sparse_linear.cuh and its backward.
#include "dispatch.h"
#include "sparse_linear_backward.cuh"

namespace sparsegnn::cuda {
namespace {

constexpr const char* name = "sparse_linear";

// What forward and backward ask of their arguments; the same words as the CPU entry.
void check(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& ccol,
           const Tensor& row, const Tensor& perm) {
  check_index_on(name, "crow", crow, x);
  check_index_on(name, "col", col, x);
  check_index_on(name, "ccol", ccol, x);
  check_index_on(name, "row", row, x);
  check_index_on(name, "perm", perm, x);
  check_device(name, "values", values, x);
  STD_TORCH_CHECK(x.dim() == 2, "sparse_linear: x must have shape [N, K], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1 && ccol.numel() >= 1, "sparse_linear: crow and ccol must have elements");
  STD_TORCH_CHECK(x.size(1) == ccol.numel() - 1, "sparse_linear: x must have ", ccol.numel() - 1, " columns, got ",
                  x.size(1));
  check_same_dtype(name, "values", values, x);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == col.numel(),
                  "sparse_linear: values must have one element per entry of col");
  STD_TORCH_CHECK(row.numel() == col.numel() && perm.numel() == col.numel(), "sparse_linear: row and perm must have ",
                  col.numel(), " elements");
}

// y[n, :] = epilogue(bias + A x[n, :]) for the CSR matrix A of which `perm` says where the values are, or null.
template <typename T>
void multiply(const Tensor& x, const Tensor& values, const acc_t<T>* bias, const Tensor& crow, const Tensor& col,
              const int32_t* perm, Tensor& y, cudaStream_t stream, const LinearEpilogue<acc_t<T>>& epilogue = {}) {
  const SparseLinearArguments<T> a{
      data<T>(x),         data<T>(values), bias,      data<int32_t>(crow), data<int32_t>(col), perm,
      mutable_data<T>(y), x.size(0),       x.size(1), crow.numel() - 1,    col.numel(),        epilogue};
  const LinearPlan plan = linear_plan(a.batch, a.inputs, a.outputs, sizeof(T), a.entries);
  Tensor packed = workspace(x, sparse_linear_workspace_bytes<T>(plan, a.outputs, a.entries));
  STD_CUDA_CHECK(launch_sparse_linear(a, plan, packed.mutable_data_ptr(), stream));
}

void forward(const Tensor& x_in, const Tensor& values_in, const std::optional<Tensor>& bias_in, const Tensor& crow,
             const Tensor& col, const Text& act, double dropout, const std::optional<Tensor>& seed_in, Tensor& y) {
  const OnDevice device(x_in);
  STD_TORCH_CHECK(act == "none" || act == "relu", "sparse_linear: act must be none or relu, got ", act);
  const int64_t* seed = check_dropout(name, dropout, seed_in, x_in);
  const int64_t outputs = crow.numel() - 1;
  if (bias_in) {
    check_device(name, "bias", bias_in, x_in);
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, "sparse_linear: bias must have ", outputs,
                    " elements");
  }
  const Tensor x = as_contiguous(x_in), values = as_contiguous(values_in);
  const auto bias = as_scale(bias_in, x);
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto epilogue = linear_epilogue<acc_t<T>>(act == "relu", dropout, seed);
    multiply<T>(x, values, data<acc_t<T>>(bias), crow, col, nullptr, y, device.stream, epilogue);
  });
}

Tensor sparse_linear(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& crow,
                     const Tensor& col, const Tensor& ccol, const Tensor& row, const Tensor& perm, const Text& act,
                     double dropout, const std::optional<Tensor>& seed) {
  check(x, values, crow, col, ccol, row, perm);
  Tensor y = torch::stable::new_empty(x, {x.size(0), crow.numel() - 1});
  forward(x, values, bias, crow, col, act, dropout, seed, y);
  return y;
}

void sparse_linear_out(Tensor y, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                       const Tensor& crow, const Tensor& col, const Tensor& ccol, const Text& act, double dropout,
                       const std::optional<Tensor>& seed) {
  check(x, values, crow, col, ccol, col, col);
  check_device(name, "out", y, x);
  check_same_dtype(name, "out", y, x);
  STD_TORCH_CHECK(y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == crow.numel() - 1 && y.is_contiguous(),
                  "sparse_linear: out must be contiguous, of shape [N, M]");
  forward(x, values, bias, crow, col, act, dropout, seed, y);
}

std::tuple<Tensor, Tensor, Tensor> sparse_linear_backward(const Tensor& dy_in, const Tensor& x_in,
                                                          const Tensor& values_in, const Tensor& crow,
                                                          const Tensor& col, const Tensor& ccol, const Tensor& row,
                                                          const Tensor& perm, bool need_dx, bool need_dvalues,
                                                          bool need_dbias, const std::optional<Tensor>& y_in,
                                                          double dropout, const std::optional<Tensor>& seed_in) {
  const OnDevice device(x_in);
  check(x_in, values_in, crow, col, ccol, row, perm);
  check_device(name, "dy", dy_in, x_in);
  const int64_t batch = x_in.size(0), inputs = x_in.size(1), outputs = crow.numel() - 1, entries = col.numel();
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == batch && dy_in.size(1) == outputs,
                  "sparse_linear: dy must have the shape of y");
  check_same_dtype(name, "dy", dy_in, x_in);
  const int64_t* seed = check_dropout(name, dropout, seed_in, x_in);
  if (y_in) {
    check_device(name, "y", y_in, x_in);
    check_same_dtype(name, "y", *y_in, x_in);
    STD_TORCH_CHECK(y_in->dim() == 2 && y_in->size(0) == batch && y_in->size(1) == outputs,
                    "sparse_linear: y must have the shape of dy");
  }
  const auto y = as_contiguous(y_in);
  Tensor dy = as_contiguous(dy_in);
  const Tensor x = as_contiguous(x_in), values = as_contiguous(values_in);
  Tensor dx = need_dx ? torch::stable::new_empty(x, {batch, inputs}) : torch::stable::new_empty(x, {0});
  Tensor dvalues = torch::stable::new_empty(x, {need_dvalues ? entries : 0});
  Tensor dbias = torch::stable::new_empty(x, {need_dbias ? outputs : 0});
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (y || seed != nullptr) {
      Tensor masked = torch::stable::new_empty(dy, {batch, outputs});
      const auto how = linear_epilogue<acc_t<T>>(y.has_value(), dropout, seed);
      STD_CUDA_CHECK(launch_sparse_linear_mask(data<T>(dy), data<T>(y), batch, outputs, how, mutable_data<T>(masked),
                                               device.stream));
      dy = masked;
    }
    if (need_dx) multiply<T>(dy, values, nullptr, ccol, row, data<int32_t>(perm), dx, device.stream);
    if (need_dvalues) {
      const SparseLinearBackwardArguments<T> a{
          data<T>(dy), data<T>(x), data<int32_t>(crow), data<int32_t>(col), mutable_data<T>(dvalues), batch, inputs,
          outputs,     entries};
      const LinearBackwardPlan plan = linear_backward_plan(batch, inputs, outputs, sizeof(T));
      Tensor partial = workspace(x, sparse_linear_dvalues_workspace_bytes<T>(plan, outputs, entries));
      STD_CUDA_CHECK(launch_sparse_linear_dvalues(a, plan, partial.mutable_data_ptr(), device.stream));
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
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear));
  m.impl("sparse_linear_out", TORCH_BOX(&sparse_linear_out));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward));
}

}  // namespace sparsegnn::cuda
