// spmm_linear / cuda: checks, outputs, dtype, stream. The arithmetic is in spmm_linear.cuh and its backward.
#include "spmm_entry.h"
#include "spmm_linear_backward.cuh"

namespace sparsegnn::cuda {
namespace {

using Optional = std::optional<Tensor>;

// A graph with scales, from rows of `x`. Tensors are made contiguous and of the right type, and live as long as this.
struct Graph {
  Tensor x, crow, col;
  Optional val, row_scale, col_scale, diag;

  Graph(const char* op, const Tensor& x_in, const Tensor& crow_in, const Tensor& col_in, const Optional& val_in,
        const Optional& row_scale_in, const Optional& col_scale_in, const Optional& diag_in)
      : x(as_contiguous(x_in)), crow(crow_in), col(col_in), val(as_contiguous(val_in)) {
    check_matrix(op, x, crow, col, val, row_scale_in, col_scale_in, diag_in);
    row_scale = as_scale(row_scale_in, x), col_scale = as_scale(col_scale_in, x), diag = as_scale(diag_in, x);
  }
  int64_t rows() const { return crow.numel() - 1; }

  template <typename T>
  SpmmArguments<T> arguments() const {
    using A = acc_t<T>;
    return {data<T>(x),
            data<int32_t>(crow),
            data<int32_t>(col),
            data<T>(val),
            data<A>(row_scale),
            data<A>(col_scale),
            data<A>(diag),
            nullptr,
            nullptr,
            rows(),
            x.size(1),
            col.numel()};
  }
};

// What forward and backward ask of the weight, its pattern and its transpose.
void check_weight(const char* op, int64_t inputs, const Tensor& x, const Tensor& values, const Tensor& crow,
                  const Tensor& col, const Tensor& ccol, const Tensor& row, const Tensor& perm) {
  for (const Tensor* t : {&crow, &col, &ccol, &row, &perm}) check_index_on(op, "the pattern", *t, x);
  check_device(op, "values", values, x);
  check_same_dtype(op, "values", values, x);
  STD_TORCH_CHECK(crow.numel() >= 1 && ccol.numel() >= 1, op, ": the pattern must have elements");
  STD_TORCH_CHECK(inputs == ccol.numel() - 1, op, ": x must have ", ccol.numel() - 1, " columns, got ", inputs);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == col.numel(), op, ": values must have ", col.numel(),
                  " elements");
  STD_TORCH_CHECK(row.numel() == col.numel() && perm.numel() == col.numel(), op, ": the pattern must have ",
                  col.numel(), " entries, and so must its transpose");
}

Tensor spmm_linear(const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val,
                   const Optional& row_scale, const Optional& col_scale, const Optional& diag, const Optional& /*ccol*/,
                   const Optional& /*row*/, const Optional& /*perm*/, const Tensor& values_in, const Optional& bias_in,
                   const Tensor& w_crow, const Tensor& w_col, const Tensor& w_ccol, const Tensor& w_row,
                   const Tensor& w_perm, const Text& act, double dropout, const Optional& seed_in) {
  const char* op = "spmm_linear";
  const OnDevice device(x);
  const Graph graph(op, x, crow, col, val, row_scale, col_scale, diag);
  check_weight(op, x.size(1), x, values_in, w_crow, w_col, w_ccol, w_row, w_perm);
  STD_TORCH_CHECK(act == "none" || act == "relu", op, ": act must be none or relu, got ", act);
  const int64_t* seed = check_dropout(op, dropout, seed_in, x);
  const int64_t rows = graph.rows(), inputs = x.size(1), outputs = w_crow.numel() - 1, entries = w_col.numel();
  if (bias_in) {
    check_device(op, "bias", bias_in, x);
    check_same_dtype(op, "bias", *bias_in, x);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, op, ": bias must have ", outputs, " elements");
  }
  const Tensor values = as_contiguous(values_in);
  const auto bias = as_scale(bias_in, x);
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SparseLinearArguments<T> a{nullptr,
                                     data<T>(values),
                                     data<acc_t<T>>(bias),
                                     data<int32_t>(w_crow),
                                     data<int32_t>(w_col),
                                     nullptr,
                                     mutable_data<T>(y),
                                     rows,
                                     inputs,
                                     outputs,
                                     entries,
                                     linear_epilogue<acc_t<T>>(act == "relu", dropout, seed)};
    const LinearPlan plan = spmm_linear_plan(rows, inputs, outputs, sizeof(T));
    STD_TORCH_CHECK(plan.per_lane > 0, op, ": x must have fewer columns, got ", inputs,
                    ": a tile of them does not fit shared memory");
    const int64_t window = gather_window(col.numel());
    Tensor work = workspace(x, spmm_linear_workspace_bytes<T>(plan, outputs, entries, col.numel(), inputs, window));
    STD_CUDA_CHECK(launch_spmm_linear(graph.arguments<T>(), a, plan, window, work.mutable_data_ptr(), device.stream));
  });
  return y;
}

// The graph is the transposed one: ccol, row and val in its order, its scales changed.
std::tuple<Tensor, Tensor, Tensor> spmm_linear_backward(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& ccol, const Tensor& row, const Optional& val,
    const Optional& row_scale, const Optional& col_scale, const Optional& diag, const Tensor& values_in,
    const Tensor& w_crow, const Tensor& w_col, const Tensor& w_ccol, const Tensor& w_row, const Tensor& w_perm,
    bool need_dx, bool need_dvalues, bool need_dbias, const Optional& y_in, double dropout, const Optional& seed_in) {
  const char* op = "spmm_linear_backward";
  const OnDevice device(x_in);
  check_device(op, "dy", dy_in, x_in);
  check_same_dtype(op, "dy", dy_in, x_in);
  const Tensor x = as_contiguous(x_in), values = as_contiguous(values_in);
  STD_TORCH_CHECK(x.dim() == 2, op, ": x must have shape [N, K], got ", x.dim(), " dimension(s)");
  const int64_t nodes = x.size(0), inputs = x.size(1), outputs = w_crow.numel() - 1, entries = w_col.numel();
  Graph graph(op, dy_in, ccol, row, val, row_scale, col_scale, diag);
  STD_TORCH_CHECK(graph.rows() == nodes, op, ": ccol must have N + 1 elements");
  STD_TORCH_CHECK(graph.x.size(1) == outputs, op, ": dy must have ", outputs, " columns, got ", graph.x.size(1));
  check_weight(op, inputs, x, values, w_crow, w_col, w_ccol, w_row, w_perm);
  const int64_t* seed = check_dropout(op, dropout, seed_in, x);
  const int64_t targets = graph.x.size(0);
  if (y_in) {
    check_device(op, "y", y_in, x);
    check_same_dtype(op, "y", *y_in, x);
    STD_TORCH_CHECK(y_in->dim() == 2 && y_in->size(0) == targets && y_in->size(1) == outputs, op,
                    ": y must have the shape of dy");
  }
  const auto y = as_contiguous(y_in);
  Tensor dx = torch::stable::new_empty(x, {need_dx ? nodes : 0, need_dx ? inputs : 0});
  Tensor dvalues = torch::stable::new_empty(x, {need_dvalues ? entries : 0});
  if (need_dvalues) torch::stable::zero_(dvalues);  // a value that w_perm does not name is not written
  Tensor dbias = torch::stable::new_empty(x, {need_dbias ? outputs : 0});
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (y || seed != nullptr) {
      Tensor masked = torch::stable::new_empty(x, {targets, outputs});
      const auto how = linear_epilogue<acc_t<T>>(y.has_value(), dropout, seed);
      STD_CUDA_CHECK(launch_sparse_linear_mask(data<T>(graph.x), data<T>(y), targets, outputs, how,
                                               mutable_data<T>(masked), device.stream));
      graph.x = masked;
    }
    if (need_dx || need_dvalues) {
      const SpmmLinearBackwardArguments<T> a{data<T>(x),
                                             data<T>(values),
                                             data<int32_t>(w_ccol),
                                             data<int32_t>(w_row),
                                             data<int32_t>(w_perm),
                                             need_dx ? mutable_data<T>(dx) : nullptr,
                                             need_dvalues ? mutable_data<T>(dvalues) : nullptr,
                                             nodes,
                                             inputs,
                                             outputs,
                                             entries};
      const SpmmLinearBackwardPlan plan = spmm_linear_backward_plan(nodes, inputs, outputs, sizeof(T));
      STD_TORCH_CHECK(plan.product.per_lane > 0, op, ": dy must have fewer columns, got ", outputs,
                      ": a tile of them does not fit shared memory");
      const int64_t window = gather_window(row.numel());
      Tensor work =
          workspace(x, SpmmLinearBackwardWorkspace<T>(plan, inputs, outputs, entries, row.numel(), window).bytes);
      STD_CUDA_CHECK(
          launch_spmm_linear_backward(graph.arguments<T>(), a, plan, window, work.mutable_data_ptr(), device.stream));
    }
    if (need_dbias) {
      Tensor partial = workspace(x, sparse_linear_dbias_workspace_bytes<T>(targets, outputs));
      STD_CUDA_CHECK(launch_sparse_linear_dbias(data<T>(graph.x), targets, outputs, mutable_data<T>(dbias),
                                                partial.mutable_data_ptr(), device.stream));
    }
  });
  return {dx, dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("spmm_linear", TORCH_BOX(&spmm_linear));
  m.impl("spmm_linear_backward", TORCH_BOX(&spmm_linear_backward));
}

}  // namespace sparsegnn::cuda
