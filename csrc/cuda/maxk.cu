// maxk / cuda: checks, outputs, dtype, stream. The arithmetic is in maxk.cuh.
#include "maxk.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

constexpr int64_t most_columns = 1 << 15, narrow_width = 256;

ScalarType index_type(int64_t width) { return width <= narrow_width ? ScalarType::Byte : ScalarType::Short; }

// Calls f(I{}) with the type of the columns.
template <typename F>
void by_index(const Tensor& index, F&& f) {
  if (index.scalar_type() == ScalarType::Byte) return f(uint8_t{});
  f(int16_t{});
}

void check_compressed(const char* op, const Tensor& index, const Tensor& like, int64_t rows, int64_t width) {
  check_device(op, "index", index, like);
  STD_TORCH_CHECK(width <= most_columns, op, ": width must be at most ", most_columns, ", got ", width);
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == rows, op, ": index must have shape [N, k]");
  STD_TORCH_CHECK(index.scalar_type() == index_type(width), op,
                  ": index must be uint8 up to 256 columns and int16 above");
}

std::tuple<Tensor, Tensor> maxk(const Tensor& x_in, int64_t k, int64_t group) {
  const OnDevice device(x_in);
  STD_TORCH_CHECK(x_in.dim() == 2, "maxk: x must have shape [N, F], got ", x_in.dim(), " dimension(s)");
  const Tensor x = as_contiguous(x_in);
  const int64_t rows = x.size(0), width = x.size(1);
  group = group == 0 ? width : group;
  STD_TORCH_CHECK(k >= 1 && k <= width && width <= most_columns, "maxk: k must be in [1, F] and F at most ",
                  most_columns, ", got ", k, " and ", width);
  STD_TORCH_CHECK(group > 0 && width % group == 0 && k % (width / group) == 0,
                  "maxk: group must divide the columns into parts that keep equally many, got ", group);
  Tensor values = torch::stable::new_empty(x, {rows, k});
  Tensor index = torch::stable::new_empty(x, {rows, k}, index_type(width));
  dispatch("maxk", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    by_index(index, [&](auto column) {
      using I = decltype(column);
      const MaxkArguments<T, I> a{data<T>(x), mutable_data<T>(values), mutable_data<I>(index), rows, width, k,
                                  group,      k / (width / group)};
      STD_CUDA_CHECK(launch_maxk(a, device.stream));
    });
  });
  return {values, index};
}

Tensor maxk_expand(const Tensor& values_in, const Tensor& index_in, int64_t width) {
  const OnDevice device(values_in);
  STD_TORCH_CHECK(values_in.dim() == 2, "maxk_expand: values must have shape [N, k]");
  const Tensor values = as_contiguous(values_in), index = as_contiguous(index_in);
  const int64_t rows = values.size(0), k = values.size(1);
  check_compressed("maxk_expand", index, values, rows, width);
  STD_TORCH_CHECK(index.size(1) == k, "maxk_expand: index must have the shape of values");
  Tensor y = torch::stable::new_empty(values, {rows, width});
  dispatch("maxk_expand", values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    by_index(index, [&](auto column) {
      using I = decltype(column);
      const MaxkCopyArguments<T, I> a{data<T>(values), data<I>(index), mutable_data<T>(y), rows, width, k};
      STD_CUDA_CHECK(launch_maxk_expand(a, device.stream));
    });
  });
  return y;
}

Tensor maxk_gather(const Tensor& x_in, const Tensor& index_in) {
  const OnDevice device(x_in);
  STD_TORCH_CHECK(x_in.dim() == 2, "maxk_gather: x must have shape [N, F]");
  const Tensor x = as_contiguous(x_in), index = as_contiguous(index_in);
  const int64_t rows = x.size(0), width = x.size(1);
  check_compressed("maxk_gather", index, x, rows, width);
  Tensor values = torch::stable::new_empty(x, {rows, index.size(1)});
  dispatch("maxk_gather", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    by_index(index, [&](auto column) {
      using I = decltype(column);
      const MaxkCopyArguments<T, I> a{data<T>(x), data<I>(index), mutable_data<T>(values), rows, width, index.size(1)};
      STD_CUDA_CHECK(launch_maxk_gather(a, device.stream));
    });
  });
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("maxk", TORCH_BOX(&maxk));
  m.impl("maxk_expand", TORCH_BOX(&maxk_expand));
  m.impl("maxk_gather", TORCH_BOX(&maxk_gather));
}

}  // namespace sparsegnn::cuda
