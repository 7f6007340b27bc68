// spmm / cpu: checks, outputs, dtype, threads. The arithmetic is in spmm.kernel.cpp.
#include "spmm.h"

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"

namespace sparsegnn {
namespace {

// Edges and rows of one chunk: small enough to balance hubs, large enough to make the queue free (about 20 us of work).
constexpr int64_t chunk_cost = 4096;

std::tuple<Tensor, Tensor> spmm(const Tensor& x_in, const Tensor& crow, const Tensor& col,
                                const std::optional<Tensor>& val_in, const std::optional<Tensor>& row_scale_in,
                                const std::optional<Tensor>& col_scale_in, const std::optional<Tensor>& diag_in,
                                const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
                                const std::optional<Tensor>& /*perm*/, const std::string& reduce) {
  check_index("spmm", "crow", crow);
  check_index("spmm", "col", col);
  STD_TORCH_CHECK(x_in.dim() == 2, "spmm: x must have shape [N, K], got ", x_in.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1, "spmm: crow must have at least one element");
  const bool extremum = reduce == "max" || reduce == "min";
  STD_TORCH_CHECK(extremum || reduce == "sum" || reduce == "mean", "spmm: reduce must be sum, mean, max or min, got ",
                  reduce);
  const int64_t rows = crow.numel() - 1, width = x_in.size(1);
  const Tensor x = as_contiguous(x_in);
  const auto val = as_contiguous(val_in);
  if (val) {
    check_same_dtype("spmm", "val", *val, x);
    STD_TORCH_CHECK(val->numel() == col.numel(), "spmm: val must have one element per edge");
  }
  const auto row_scale = as_scale(row_scale_in, x), col_scale = as_scale(col_scale_in, x), diag = as_scale(diag_in, x);
  STD_TORCH_CHECK(!extremum || (!row_scale && !col_scale && !diag), "spmm: scales and diag need reduce sum or mean");
  STD_TORCH_CHECK(!row_scale || row_scale->numel() == rows, "spmm: row_scale must have one element per row");
  STD_TORCH_CHECK(!col_scale || col_scale->numel() == x.size(0), "spmm: col_scale must have one element per row of x");
  STD_TORCH_CHECK(!diag || (diag->numel() == rows && rows == x.size(0)), "spmm: diag needs a square matrix");

  Tensor y = new_output(x, {rows, width});
  Tensor arg = new_output(x, {extremum ? rows : 0, extremum ? width : 0}, ScalarType::Int);
  const auto bounds = balanced_rows(data<int32_t>(crow), rows, chunk_cost);
  dispatch("spmm", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const SpmmArgs<T, A> args{
        data<int32_t>(crow), data<int32_t>(col), data<T>(val),       data<A>(row_scale),         data<A>(col_scale),
        data<A>(diag),       data<T>(x),         mutable_data<T>(y), mutable_data<int32_t>(arg), width,
        reduce == "mean",    reduce == "max"};
    const auto kernel = extremum ? SG_PICK(spmm_arg_rows<T, A>) : SG_PICK(spmm_sum_rows<T, A>);
    for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) { kernel(args, bounds[c], bounds[c + 1]); });
  });
  return {y, arg};
}

std::tuple<Tensor, Tensor> spmm_arg_backward(const Tensor& dy_in, const Tensor& x_in, const Tensor& arg,
                                             const std::optional<Tensor>& val_in, const Tensor& crow, const Tensor& col,
                                             const Tensor& ccol, const Tensor& row, const Tensor& perm, bool need_dx,
                                             bool need_dval) {
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"crow", crow},
                                {"col", col},
                                {"ccol", ccol},
                                {"row", row},
                                {"perm", perm}})
    check_index("spmm_arg_backward", name, t);
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in);
  const auto val = as_contiguous(val_in);
  const int64_t rows = crow.numel() - 1, columns = x.size(0), width = x.size(1);
  STD_TORCH_CHECK(!need_dx || ccol.numel() == columns + 1, "spmm_arg_backward: ccol must have N + 1 elements");
  Tensor dx = new_output(x, {need_dx ? columns : 0, need_dx ? width : 0});
  Tensor dval = new_output(x, {need_dval ? col.numel() : 0});
  dispatch("spmm_arg_backward", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SpmmArgBackwardArgs<T> args{
        data<int32_t>(crow), data<int32_t>(col),  data<int32_t>(ccol),   data<int32_t>(row),
        data<int32_t>(perm), data<int32_t>(arg),  data<T>(val),          data<T>(x),
        data<T>(dy),         mutable_data<T>(dx), mutable_data<T>(dval), width};
    const auto run = [&](const int32_t* offsets, int64_t n, auto kernel) {
      const auto bounds = balanced_rows(offsets, n, chunk_cost);
      for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) { kernel(args, bounds[c], bounds[c + 1]); });
    };
    if (need_dx) run(args.ccol, columns, SG_PICK(spmm_arg_dx_rows<T>));
    if (need_dval) run(args.crow, rows, SG_PICK(spmm_arg_dval_rows<T>));
  });
  return {dx, dval};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_arg_backward", TORCH_BOX(&spmm_arg_backward));
}

}  // namespace sparsegnn
