// maxk_spmm / cpu: checks, outputs, dtype, threads. The arithmetic is in maxk_spmm.kernel.cpp.
#include "maxk_spmm.h"

#include <vector>

#include "../common/parallel.h"
#include "dispatch.h"
#include "maxk.h"
#include "output.h"
#include "spmm.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_cost = 4096;      // edges and rows; as spmm
constexpr int64_t sums_bytes = 64 << 10;  // of backward's sums before columns are picked: in L2
constexpr int64_t stream_bytes =
    16 << 20;  // outputs from this size on do not fit the caches, and are written past them

// Calls f(I{}) with the type of the columns.
template <typename F>
void by_index(const Tensor& index, F&& f) {
  if (index.scalar_type() == ScalarType::Byte) return f(uint8_t{});
  f(int16_t{});
}

// Contiguous and checked inputs of both directions.
struct Inputs {
  Tensor values, index;
  std::optional<Tensor> val, row_scale, col_scale, diag;
  int64_t rows, cols, edges, width, k;
  bool mean;
};

Inputs check_inputs(const char* op, const Tensor& values, const Tensor& index, int64_t width, const Tensor& crow,
                    const Tensor& col, const std::optional<Tensor>& val, const std::optional<Tensor>& row_scale,
                    const std::optional<Tensor>& col_scale, const std::optional<Tensor>& diag, const Text& reduce) {
  check_index(op, "crow", crow);
  check_index(op, "col", col);
  STD_TORCH_CHECK(crow.numel() >= 1, op, ": crow must have at least one element");
  STD_TORCH_CHECK(reduce == "sum" || reduce == "mean", op, ": reduce must be sum or mean, got ", reduce);
  STD_TORCH_CHECK(
      values.dim() == 2 && index.dim() == 2 && index.size(0) == values.size(0) && index.size(1) == values.size(1), op,
      ": values and index must have the same shape [N, k]");
  STD_TORCH_CHECK(width <= maxk_most_columns && values.size(1) <= width, op, ": width must be in [k, ",
                  maxk_most_columns, "], got ", width);
  STD_TORCH_CHECK(index.scalar_type() == (width <= maxk_narrow_width ? ScalarType::Byte : ScalarType::Short), op,
                  ": index must be uint8 up to 256 columns and int16 above");
  Inputs in{as_contiguous(values),
            as_contiguous(index),
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

template <typename T, typename A>
MaxkSpmmArgs<T, A> arguments(const Inputs& in, const Tensor& crow, const Tensor& col) {
  return {data<int32_t>(crow),
          data<int32_t>(col),
          data<T>(in.val),
          data<A>(in.row_scale),
          data<A>(in.col_scale),
          data<A>(in.diag),
          data<T>(in.values),
          in.index.const_data_ptr(),
          nullptr,
          in.edges,
          in.width,
          in.k,
          in.mean,
          false};
}

Tensor maxk_spmm(const Tensor& values, const Tensor& index, int64_t width, const Tensor& crow, const Tensor& col,
                 const std::optional<Tensor>& val, const std::optional<Tensor>& row_scale,
                 const std::optional<Tensor>& col_scale, const std::optional<Tensor>& diag,
                 const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
                 const std::optional<Tensor>& /*perm*/, const Text& reduce, int64_t /*group*/,
                 const std::optional<Tensor>& /*cspans*/) {
  const Inputs in = check_inputs("maxk_spmm", values, index, width, crow, col, val, row_scale, col_scale, diag, reduce);
  Tensor y = new_output(in.values, {in.rows, width});
  const auto bounds = balanced_rows(data<int32_t>(crow), in.rows, chunk_cost);
  dispatch("maxk_spmm", values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    auto args = arguments<T, A>(in, crow, col);
    args.y = mutable_data<T>(y);
    args.stream = in.rows * width * int64_t(sizeof(T)) >= stream_bytes && rows_are_lines(y);
    by_index(in.index, [&](auto column) {
      using I = decltype(column);
      const auto kernel = SG_PICK(maxk_spmm_rows<T, A, I>);
      for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) {
        std::vector<A> sum(width);
        kernel(args, sum.data(), bounds[c], bounds[c + 1]);
      });
    });
  });
  return y;
}

// What the edges of a row count in its gradient: row_scale, divided by their number for the mean.
template <typename T, typename A>
std::vector<A> row_factors(const MaxkSpmmArgs<T, A>& a, int64_t rows) {
  std::vector<A> factor(a.row_scale == nullptr && !a.mean ? 0 : rows);
  for (int64_t r = 0; r < int64_t(factor.size()); ++r) {
    const int64_t edges = a.crow[r + 1] - a.crow[r];
    factor[r] = (a.row_scale != nullptr ? a.row_scale[r] : A{1}) / A(a.mean && edges > 1 ? edges : 1);
  }
  return factor;
}

std::tuple<Tensor, Tensor> maxk_spmm_backward(const Tensor& dy_in, const Tensor& values, const Tensor& index,
                                              const Tensor& crow, const Tensor& col, const std::optional<Tensor>& val,
                                              const std::optional<Tensor>& row_scale,
                                              const std::optional<Tensor>& col_scale, const std::optional<Tensor>& diag,
                                              const std::optional<Tensor>& ccol, const std::optional<Tensor>& row,
                                              const std::optional<Tensor>& perm, const Text& reduce, bool need_dvalues,
                                              bool need_dval, const std::optional<Tensor>& /*cspans*/) {
  const char* op = "maxk_spmm_backward";
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == crow.numel() - 1, op, ": dy must have one row per row of A");
  check_same_dtype(op, "dy", dy_in, values);
  const Inputs in = check_inputs(op, values, index, dy_in.size(1), crow, col, val, row_scale, col_scale, diag, reduce);
  if (need_dvalues) {
    STD_TORCH_CHECK(
        ccol && row && perm && ccol->numel() == in.cols + 1 && row->numel() == in.edges && perm->numel() == in.edges,
        op, ": ccol, row and perm must be those of the transpose");
    for (const Tensor* t : {&*ccol, &*row, &*perm}) check_index(op, "the transpose", *t);
  }
  const Tensor dy = as_contiguous(dy_in);
  Tensor dvalues = new_output(in.values, {need_dvalues ? in.cols : 0, need_dvalues ? in.k : 0});
  Tensor dval = new_output(in.values, {need_dval ? in.edges : 0});
  dispatch(op, values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    auto args = arguments<T, A>(in, crow, col);
    args.y = const_cast<T*>(data<T>(dy));
    const auto run = [&](const Tensor& offsets, int64_t rows, const auto& body) {
      const auto bounds = balanced_rows(data<int32_t>(offsets), rows, chunk_cost);
      for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) { body(bounds[c], bounds[c + 1]); });
    };
    by_index(in.index, [&](auto column) {
      using I = decltype(column);
      if (need_dvalues) {
        const auto factor = row_factors(args, in.rows);
        std::vector<T> weight(args.val != nullptr ? in.edges : 0);
        const int32_t* edge = data<int32_t>(*perm);
        for (int64_t t = 0; t < int64_t(weight.size()); ++t) weight[t] = args.val[edge[t]];
        SpmmArgs<T, A> sum{};
        sum.crow = data<int32_t>(*ccol), sum.col = data<int32_t>(*row), sum.edges = in.edges;
        sum.val = weight.empty() ? nullptr : weight.data();
        sum.col_scale = factor.empty() ? nullptr : factor.data();
        sum.x = args.y, sum.width = sum.x_stride = sum.y_stride = in.width;
        const auto add = SG_PICK(spmm_sum_rows<T, A>);
        const auto pick = SG_PICK(maxk_spmm_dvalues_rows<T, A, I>);
        T* out = mutable_data<T>(dvalues);
        const int64_t step = std::max<int64_t>(1, sums_bytes / std::max<int64_t>(1, in.width * sizeof(A)));
        run(*ccol, in.cols, [&](int64_t begin, int64_t end) {
          std::vector<A> sums(std::min(step, end - begin) * in.width);
          for (int64_t j = begin; j < end; j += step) {
            SpmmArgs<T, A> few = sum;
            few.partial = sums.data() - j * in.width;
            add(few, j, std::min(end, j + step));
            pick(args, sums.data(), out, j, std::min(end, j + step));
          }
        });
      }
      if (need_dval) {
        const auto kernel = SG_PICK(maxk_spmm_dval_rows<T, A, I>);
        T* out = mutable_data<T>(dval);
        run(crow, in.rows, [&](int64_t begin, int64_t end) { kernel(args, out, begin, end); });
      }
    });
  });
  return {dvalues, dval};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("maxk_spmm", TORCH_BOX(&maxk_spmm));
  m.impl("maxk_spmm_backward", TORCH_BOX(&maxk_spmm_backward));
}

}  // namespace sparsegnn
