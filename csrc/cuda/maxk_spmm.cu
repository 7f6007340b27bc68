// maxk_spmm / cuda: checks, outputs, dtype, stream. The arithmetic is in maxk_spmm*.cuh.
#include "dispatch.h"
#include "maxk_spmm_backward.cuh"

namespace sparsegnn::cuda {
namespace {

using Optional = std::optional<Tensor>;
constexpr int64_t most_columns = 1 << 15, narrow_width = 256;

// Contiguous and checked inputs of both directions.
struct Inputs {
  Tensor values, index, crow, col;
  Optional val, row_scale, col_scale, diag;
  int64_t rows, cols, edges, width, k;
  bool mean;
};

Inputs check_inputs(const char* op, const Tensor& values, const Tensor& index, int64_t width, const Tensor& crow,
                    const Tensor& col, const Optional& val, const Optional& row_scale, const Optional& col_scale,
                    const Optional& diag, const Text& reduce) {
  check_index_on(op, "crow", crow, values);
  check_index_on(op, "col", col, values);
  check_device(op, "index", index, values);
  check_device(op, "val", val, values);
  check_device(op, "row_scale", row_scale, values);
  check_device(op, "col_scale", col_scale, values);
  check_device(op, "diag", diag, values);
  STD_TORCH_CHECK(crow.numel() >= 1, op, ": crow must have at least one element");
  STD_TORCH_CHECK(reduce == "sum" || reduce == "mean", op, ": reduce must be sum or mean, got ", reduce);
  STD_TORCH_CHECK(
      values.dim() == 2 && index.dim() == 2 && index.size(0) == values.size(0) && index.size(1) == values.size(1), op,
      ": values and index must have the same shape [N, k]");
  STD_TORCH_CHECK(width <= most_columns && values.size(1) <= width, op, ": width must be in [k, ", most_columns,
                  "], got ", width);
  STD_TORCH_CHECK(index.scalar_type() == (width <= narrow_width ? ScalarType::Byte : ScalarType::Short), op,
                  ": index must be uint8 up to 256 columns and int16 above");
  Inputs in{as_contiguous(values),
            as_contiguous(index),
            crow,
            col,
            as_contiguous(val),
            as_scale(row_scale, values),
            as_scale(col_scale, values),
            as_scale(diag, values),
            crow.numel() - 1,
            values.size(0),
            col.numel(),
            width,
            values.size(1),
            reduce == "mean"};
  if (in.val) {
    check_same_dtype(op, "val", *in.val, values);
    STD_TORCH_CHECK(in.val->numel() == in.edges, op, ": val must have one element per edge");
  }
  STD_TORCH_CHECK(!in.row_scale || in.row_scale->numel() == in.rows, op, ": row_scale must have one element per row");
  STD_TORCH_CHECK(!in.col_scale || in.col_scale->numel() == in.cols, op,
                  ": col_scale must have one element per row of values");
  STD_TORCH_CHECK(!in.diag || (in.diag->numel() == in.rows && in.rows == in.cols), op, ": diag needs a square matrix");
  return in;
}

// Calls f(T{}, arguments) with the types of the values and the columns.
template <typename F>
void by_types(const char* op, const Inputs& in, const F& f) {
  dispatch(op, in.values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const auto run = [&](auto column) {
      using I = decltype(column);
      f(zero,
        MaxkSpmmArguments<T, I>{data<T>(in.values), data<I>(in.index), data<int32_t>(in.crow), data<int32_t>(in.col),
                                data<T>(in.val), data<A>(in.row_scale), data<A>(in.col_scale), data<A>(in.diag),
                                nullptr, in.rows, in.edges, in.width, in.k, in.mean});
    };
    if (in.index.scalar_type() == ScalarType::Byte) return run(uint8_t{});
    run(int16_t{});
  });
}

Tensor maxk_spmm(const Tensor& values, const Tensor& index, int64_t width, const Tensor& crow, const Tensor& col,
                 const Optional& val, const Optional& row_scale, const Optional& col_scale, const Optional& diag,
                 const Optional& /*ccol*/, const Optional& /*row*/, const Optional& /*perm*/, const Text& reduce,
                 int64_t group, const Optional& /*cspans*/) {
  const OnDevice device(values);
  STD_TORCH_CHECK(group >= 0, "maxk_spmm: group must be at least 0, got ", group);
  const Inputs in = check_inputs("maxk_spmm", values, index, width, crow, col, val, row_scale, col_scale, diag, reduce);
  Tensor y = torch::stable::new_empty(values, {in.rows, width});
  by_types("maxk_spmm", in, [&](auto zero, auto a) {
    using T = decltype(zero);
    a.y = mutable_data<T>(y), a.group = group;
    Tensor pieces = workspace(values, maxk_spmm_workspace_bytes<T>(in.edges, width));
    STD_CUDA_CHECK(launch_maxk_spmm(a, pieces.mutable_data_ptr(), device.stream));
  });
  return y;
}

std::tuple<Tensor, Tensor> maxk_spmm_backward(const Tensor& dy_in, const Tensor& values, const Tensor& index,
                                              const Tensor& crow, const Tensor& col, const Optional& val,
                                              const Optional& row_scale, const Optional& col_scale,
                                              const Optional& diag, const Optional& ccol, const Optional& row,
                                              const Optional& perm, const Text& reduce, bool need_dvalues,
                                              bool need_dval, const Optional& cspans) {
  const char* op = "maxk_spmm_backward";
  const OnDevice device(values);
  check_device(op, "dy", dy_in, values);
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == crow.numel() - 1, op, ": dy must have one row per row of A");
  check_same_dtype(op, "dy", dy_in, values);
  const Inputs in = check_inputs(op, values, index, dy_in.size(1), crow, col, val, row_scale, col_scale, diag, reduce);
  if (need_dvalues) {
    STD_TORCH_CHECK(
        ccol && row && perm && ccol->numel() == in.cols + 1 && row->numel() == in.edges && perm->numel() == in.edges,
        op, ": ccol, row and perm must be those of the transpose");
    for (const Tensor* t : {&*ccol, &*row, &*perm}) check_index_on(op, "the transpose", *t, values);
  }
  const Tensor dy = as_contiguous(dy_in);
  Tensor dvalues = torch::stable::new_empty(values, {need_dvalues ? in.cols : 0, need_dvalues ? in.k : 0});
  Tensor dval = torch::stable::new_empty(values, {need_dval ? in.edges : 0});
  by_types(op, in, [&](auto zero, auto a) {
    using T = decltype(zero);
    using I = std::remove_const_t<std::remove_pointer_t<decltype(a.index)>>;
    const MaxkSpmmBackwardArguments<T, I> b{a,
                                            data<T>(dy),
                                            data<int32_t>(ccol),
                                            data<int32_t>(row),
                                            data<int32_t>(perm),
                                            need_dvalues ? mutable_data<T>(dvalues) : nullptr,
                                            need_dval ? mutable_data<T>(dval) : nullptr,
                                            in.cols,
                                            check_spans(op, "cspans", cspans, in.cols, in.edges, values)};
    Tensor space = workspace(values, maxk_spmm_backward_workspace_bytes(b));
    STD_CUDA_CHECK(launch_maxk_spmm_backward(b, space.mutable_data_ptr(), device.stream));
  });
  return {dvalues, dval};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("maxk_spmm", TORCH_BOX(&maxk_spmm));
  m.impl("maxk_spmm_backward", TORCH_BOX(&maxk_spmm_backward));
}

}  // namespace sparsegnn::cuda
