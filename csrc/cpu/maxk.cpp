// maxk / cpu: checks, outputs, dtype, threads. The arithmetic is in maxk.kernel.cpp.
#include "maxk.h"

#include <cmath>

#include "../common/parallel.h"
#include "dispatch.h"
#include "output.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_elements = 32 << 10;  // about 20 us of work

ScalarType index_type(int64_t width) { return width <= maxk_narrow_width ? ScalarType::Byte : ScalarType::Short; }

// Calls f(I{}) with the type of the columns.
template <typename F>
void by_index(const Tensor& index, F&& f) {
  if (index.scalar_type() == ScalarType::Byte) return f(uint8_t{});
  f(int16_t{});
}

void check_compressed(const char* op, const Tensor& index, int64_t rows, int64_t width) {
  STD_TORCH_CHECK(width <= maxk_most_columns, op, ": width must be at most ", maxk_most_columns, ", got ", width);
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == rows, op, ": index must have shape [N, k]");
  STD_TORCH_CHECK(index.scalar_type() == index_type(width), op,
                  ": index must be uint8 up to 256 columns and int16 above");
}

// Rows in chunks of about equal work.
template <typename F>
void over_rows(int64_t rows, int64_t width, const F& f) {
  const int64_t step = std::max<int64_t>(1, chunk_elements / std::max<int64_t>(1, width));
  for_each_chunk((rows + step - 1) / step, [&](int64_t c) { f(c * step, std::min(rows, (c + 1) * step)); });
}

// z with a share `upper` of normal data above it.
float normal_quantile(double upper) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(middle / std::sqrt(2.0)) > upper ? low : high) = middle;
  }
  return float(low);
}

std::tuple<Tensor, Tensor> maxk(const Tensor& x_in, int64_t k, int64_t group) {
  STD_TORCH_CHECK(x_in.dim() == 2, "maxk: x must have shape [N, F], got ", x_in.dim(), " dimension(s)");
  const Tensor x = as_contiguous(x_in);
  const int64_t rows = x.size(0), width = x.size(1);
  group = group == 0 ? width : group;
  STD_TORCH_CHECK(k >= 1 && k <= width && width <= maxk_most_columns, "maxk: k must be in [1, F] and F at most ",
                  maxk_most_columns, ", got ", k, " and ", width);
  STD_TORCH_CHECK(group > 0 && width % group == 0 && k % (width / group) == 0,
                  "maxk: group must divide the columns into parts that keep equally many, got ", group);
  const int64_t kept = k / (width / group);
  Tensor values = new_output(x, {rows, k}), index = new_output(x, {rows, k}, index_type(width));
  const float guess = normal_quantile(std::clamp((kept - 0.5) / double(group), 1e-6, 1 - 1e-6));
  dispatch("maxk", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const MaxkArgs<T> args{data<T>(x), mutable_data<T>(values), index.mutable_data_ptr(), width, k, group, kept, guess};
    by_index(index, [&](auto column) {
      const auto kernel = SG_PICK(maxk_rows<T, decltype(column)>);
      over_rows(rows, width, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    });
  });
  return {values, index};
}

Tensor maxk_expand(const Tensor& values_in, const Tensor& index_in, int64_t width) {
  STD_TORCH_CHECK(values_in.dim() == 2, "maxk_expand: values must have shape [N, k]");
  const Tensor values = as_contiguous(values_in), index = as_contiguous(index_in);
  const int64_t rows = values.size(0), k = values.size(1);
  check_compressed("maxk_expand", index, rows, width);
  STD_TORCH_CHECK(index.size(1) == k, "maxk_expand: index must have the shape of values");
  Tensor y = new_output(values, {rows, width});
  // Larger than what the caches hold: they are not read to be overwritten.
  const bool stream = y.numel() * int64_t(y.element_size()) >= 16 << 20 && rows_are_lines(y);
  dispatch("maxk_expand", values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const MaxkCopyArgs<T> args{data<T>(values), index.const_data_ptr(), mutable_data<T>(y), width, k, stream};
    by_index(index, [&](auto column) {
      const auto kernel = SG_PICK(maxk_expand_rows<T, decltype(column)>);
      over_rows(rows, width, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    });
  });
  return y;
}

Tensor maxk_gather(const Tensor& x_in, const Tensor& index_in) {
  STD_TORCH_CHECK(x_in.dim() == 2, "maxk_gather: x must have shape [N, F]");
  const Tensor x = as_contiguous(x_in), index = as_contiguous(index_in);
  const int64_t rows = x.size(0), width = x.size(1);
  check_compressed("maxk_gather", index, rows, width);
  Tensor values = new_output(x, {rows, index.size(1)});
  dispatch("maxk_gather", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const MaxkCopyArgs<T> args{data<T>(x), index.const_data_ptr(), mutable_data<T>(values),
                               width,      index.size(1),          false};
    by_index(index, [&](auto column) {
      const auto kernel = SG_PICK(maxk_gather_rows<T, decltype(column)>);
      over_rows(rows, width, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    });
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("maxk", TORCH_BOX(&maxk));
  m.impl("maxk_expand", TORCH_BOX(&maxk_expand));
  m.impl("maxk_gather", TORCH_BOX(&maxk_gather));
}

}  // namespace sparsegnn
