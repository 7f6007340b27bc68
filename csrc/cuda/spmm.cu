// spmm / cuda: checks, outputs, dtype, stream. The arithmetic is in spmm.cuh (and sddmm.cuh for dval of max and min).
#include "spmm.cuh"

#include "sddmm.cuh"
#include "spmm_entry.h"

namespace sparsegnn::cuda {
namespace {

Reduce reduce_of(const std::string& name) {
  if (name == "sum") return Reduce::sum;
  if (name == "mean") return Reduce::mean;
  if (name == "max") return Reduce::max;
  STD_TORCH_CHECK(name == "min", "spmm: reduce must be sum, mean, max or min, got ", name);
  return Reduce::min;
}

using Optional = std::optional<Tensor>;

void check_spmm(const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val, const Optional& row_scale,
                const Optional& col_scale, const Optional& diag, Reduce reduce) {
  check_matrix("spmm", x, crow, col, val, row_scale, col_scale, diag);
  const bool extremum = reduce == Reduce::max || reduce == Reduce::min;
  STD_TORCH_CHECK(!extremum || (!row_scale && !col_scale && !diag), "spmm: scales and diag need reduce sum or mean");
}

// Writes y, and arg for max and min; both contiguous.
void reduce_into(Tensor& y, Tensor& arg, const Tensor& x_in, const Tensor& crow, const Tensor& col,
                 const Optional& val_in, const Optional& row_scale_in, const Optional& col_scale_in,
                 const Optional& diag_in, Reduce reduce, const Optional& spans, cudaStream_t stream) {
  const Tensor x = as_contiguous(x_in);
  const auto val = as_contiguous(val_in);
  const auto row_scale = as_scale(row_scale_in, x), col_scale = as_scale(col_scale_in, x), diag = as_scale(diag_in, x);
  const bool extremum = reduce == Reduce::max || reduce == Reduce::min;
  const int64_t rows = crow.numel() - 1, width = x.size(1), edges = col.numel();
  dispatch("spmm", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    Tensor pieces = workspace(x, spmm_workspace_bytes<T>(edges, width, reduce));
    const SpmmArguments<T> a{data<T>(x),
                             data<int32_t>(crow),
                             data<int32_t>(col),
                             data<T>(val),
                             data<A>(row_scale),
                             data<A>(col_scale),
                             data<A>(diag),
                             mutable_data<T>(y),
                             extremum ? mutable_data<int32_t>(arg) : nullptr,
                             rows,
                             width,
                             edges,
                             x.size(0),
                             check_spans("spmm", "spans", spans, rows, edges, x)};
    STD_CUDA_CHECK(launch_spmm(a, reduce, pieces.mutable_data_ptr(), stream));
  });
}

// `arg` is written even where it is not needed: the kernel finds it anyway.
std::tuple<Tensor, Tensor> spmm(const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val,
                                const Optional& row_scale, const Optional& col_scale, const Optional& diag,
                                const Optional& /*ccol*/, const Optional& /*row*/, const Optional& /*perm*/,
                                const Text& name, bool need_arg, const Optional& spans, const Optional& /*cspans*/) {
  const OnDevice device(x);
  const Reduce reduce = reduce_of(name);
  check_spmm(x, crow, col, val, row_scale, col_scale, diag, reduce);
  const bool extremum = reduce == Reduce::max || reduce == Reduce::min;
  const int64_t rows = crow.numel() - 1, width = x.size(1);
  Tensor y = torch::stable::new_empty(x, {rows, width});
  Tensor arg = torch::stable::new_empty(x, {extremum ? rows : 0, extremum ? width : 0}, ScalarType::Int);
  reduce_into(y, arg, x, crow, col, val, row_scale, col_scale, diag, reduce, spans, device.stream);
  return {y, need_arg ? arg : torch::stable::new_empty(x, {0, 0}, ScalarType::Int)};
}

void spmm_out(Tensor y, const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val,
              const Optional& row_scale, const Optional& col_scale, const Optional& diag, const Text& name,
              const Optional& spans) {
  const OnDevice device(x);
  const Reduce reduce = reduce_of(name);
  check_spmm(x, crow, col, val, row_scale, col_scale, diag, reduce);
  check_device("spmm", "out", y, x);
  check_same_dtype("spmm", "out", y, x);
  STD_TORCH_CHECK(y.dim() == 2 && y.size(0) == crow.numel() - 1 && y.size(1) == x.size(1) && y.is_contiguous(),
                  "spmm: out must be contiguous, of shape [M, K]");
  const bool extremum = reduce == Reduce::max || reduce == Reduce::min;
  Tensor arg = torch::stable::new_empty(x, {extremum ? y.size(0) : 0, extremum ? y.size(1) : 0}, ScalarType::Int);
  reduce_into(y, arg, x, crow, col, val, row_scale, col_scale, diag, reduce, spans, device.stream);
}

std::tuple<Tensor, Tensor> spmm_arg_backward(const Tensor& dy_in, const Tensor& x_in, const Tensor& arg_in,
                                             const std::optional<Tensor>& val_in, const Tensor& crow, const Tensor& col,
                                             const Optional& ccol, const Optional& row, const Optional& perm,
                                             bool need_dx, bool need_dval, const Optional& cspans) {
  const char* op = "spmm_arg_backward";
  const OnDevice device(dy_in);
  for (const Tensor* t : {&crow, &col}) check_index_on(op, "the pattern", *t, dy_in);
  STD_TORCH_CHECK(!need_dx || (ccol && row && perm), op, ": ccol, row and perm must be given for a gradient of x");
  for (const Optional* t : {&ccol, &row, &perm})
    if (*t) check_index_on(op, "the pattern", **t, dy_in);
  check_device(op, "x", x_in, dy_in);
  check_device(op, "arg", arg_in, dy_in);
  check_device(op, "val", val_in, dy_in);
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in), arg = as_contiguous(arg_in);
  const auto val = as_contiguous(val_in);
  const int64_t rows = crow.numel() - 1, cols = x.size(0), width = x.size(1), edges = col.numel();
  check_same_dtype(op, "dy", dy, x);
  STD_TORCH_CHECK(arg.scalar_type() == ScalarType::Int, op, ": arg must be int32");
  STD_TORCH_CHECK(dy.numel() == rows * width && arg.numel() == rows * width, op, ": dy and arg must have shape [M, K]");
  STD_TORCH_CHECK(!need_dx || ccol->numel() == cols + 1, op, ": ccol must have N + 1 elements");
  Tensor dx = torch::stable::new_empty(x, {need_dx ? cols : 0, need_dx ? width : 0});
  Tensor dval = torch::stable::new_empty(x, {need_dval ? edges : 0});
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (need_dx) {
      Tensor pieces = workspace(x, spmm_workspace_bytes<T>(edges, width, Reduce::sum));
      const SpmmArgBackwardArguments<T> a{data<T>(dy),
                                          data<int32_t>(arg),
                                          data<T>(val),
                                          data<int32_t>(ccol),
                                          data<int32_t>(row),
                                          data<int32_t>(perm),
                                          mutable_data<T>(dx),
                                          cols,
                                          width,
                                          edges,
                                          rows,
                                          check_spans(op, "cspans", cspans, cols, edges, dy)};
      STD_CUDA_CHECK(launch_spmm_arg_backward(a, pieces.mutable_data_ptr(), device.stream));
    }
    if (need_dval) {
      const SddmmArguments<T> a{data<T>(dy),
                                data<T>(x),
                                data<int32_t>(crow),
                                data<int32_t>(col),
                                data<int32_t>(arg),
                                mutable_data<T>(dval),
                                rows,
                                width,
                                edges};
      STD_CUDA_CHECK(launch_sddmm(a, device.stream));
    }
  });
  return {dx, dval};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_out", TORCH_BOX(&spmm_out));
  m.impl("spmm_arg_backward", TORCH_BOX(&spmm_arg_backward));
}

}  // namespace sparsegnn::cuda
