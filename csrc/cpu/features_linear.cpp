// features_linear / cpu: checks, outputs, dtype, threads. The arithmetic is in features_linear.kernel.cpp.
#include "features_linear.h"

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"
#include "workspace.h"

namespace sparsegnn {
namespace {

constexpr const char* name = "features_linear";
constexpr int64_t chunk_cost = 1 << 19;    // flop: about 100 us
constexpr size_t stream_bytes = 12 << 20;  // outputs of this size are written past the caches

// Offsets from 0 to the length of `index`, whose numbers are below `limit`.
void check_side(const char* pointer, const char* index, const Tensor& crow, const Tensor& col, int64_t limit) {
  check_index(name, pointer, crow);
  check_index(name, index, col);
  const int32_t *p = data<int32_t>(crow), *i = data<int32_t>(col);
  const int64_t rows = crow.numel() - 1, entries = col.numel();
  STD_TORCH_CHECK(rows >= 0, name, ": ", pointer, " must have elements");
  bool ascends = p[0] == 0 && p[rows] == entries;
  for (int64_t r = 0; r < rows; ++r) ascends &= p[r] <= p[r + 1];
  uint32_t largest = 0;
  for (int64_t e = 0; e < entries; ++e) largest = std::max(largest, uint32_t(i[e]));
  STD_TORCH_CHECK(ascends && (entries == 0 || largest < limit), name, ": ", pointer, " must ascend from 0 to ", entries,
                  ", and ", index, " be in [0, ", limit, ")");
}

struct Sizes {
  int64_t inputs, outputs, blocks, height, width;
};

Sizes check_weight(const Tensor& ccol, const Tensor& row, const Tensor& perm, int64_t height, int64_t width,
                   int64_t outputs) {
  const bool known = (width == 1 && (height == 1 || height == 4 || height == 8 || height == 16)) ||
                     (height == width && (width == 16 || width == 32));
  STD_TORCH_CHECK(known, name, ": blocks must be 1x1, 4x1, 8x1, 16x1, 16x16 or 32x32, got ", height, "x", width);
  STD_TORCH_CHECK(outputs >= 0 && outputs % height == 0, name, ": outputs must be a multiple of ", height, ", got ",
                  outputs);
  check_side("ccol", "row", ccol, row, outputs / height);
  check_side("ccol", "perm", ccol, perm, row.numel());
  return {(ccol.numel() - 1) * width, outputs, row.numel(), height, width};
}

void check_features(const Tensor& crow, const Tensor& col, const Tensor& val, const Sizes& s, const Tensor& like) {
  check_side("x_crow", "x_col", crow, col, s.inputs);
  check_same_dtype(name, "x_val", val, like);
  STD_TORCH_CHECK(val.dim() == 1 && val.numel() == col.numel(), name, ": x_val must have ", col.numel(), " elements");
}

// A weight as the kernels take it, without its values, in memory that the thread keeps.
template <typename A>
struct Layout {
  FeaturesWeight<A> w;
  bool single;          // weights, not blocks
  int64_t elements;     // of all columns
  int64_t units, step;  // columns of single weights, else blocks

  Layout(const Tensor& ccol, const Tensor& row, const Sizes& s) : single(s.height * s.width == 1) {
    thread_local Workspace rows, starts;
    int32_t* copy = rows.get<int32_t>(s.blocks + features_linear_ahead);
    std::copy_n(data<int32_t>(row), s.blocks, copy);
    std::fill_n(copy + s.blocks, features_linear_ahead, 0);
    int64_t* start = single ? starts.get<int64_t>(s.inputs) : nullptr;
    const bool few = s.blocks <= 4 * (s.inputs / s.width);
    w = {data<int32_t>(ccol), copy, start, nullptr, s.outputs, int32_t(s.height), int32_t(s.width), few};
    elements = single ? 0 : s.blocks * s.height * s.width;
    for (int64_t k = 0; single && k < s.inputs; ++k) {
      const int64_t entries = w.ccol[k + 1] - w.ccol[k];
      start[k] = elements;
      elements += is_whole(entries, s.outputs) ? s.outputs : entries;
    }
    units = single ? s.inputs : s.blocks;
    step = std::max<int64_t>(1, 65536 / (single ? s.outputs : s.height * s.width));
  }

  template <typename F>
  void for_chunks(const F& body) const {
    for_each_chunk((units + step - 1) / step, [&](int64_t c) { body(c * step, std::min(units, (c + 1) * step)); });
  }
};

Tensor features_linear(const Tensor& values_in, const std::optional<Tensor>& bias_in, const Tensor& x_crow,
                       const Tensor& x_col, const Tensor& x_val_in, const std::optional<Tensor>& /*x_ccol*/,
                       const std::optional<Tensor>& /*x_row*/, const std::optional<Tensor>& /*x_val_t*/,
                       const Tensor& ccol, const Tensor& row, const Tensor& perm, int64_t height, int64_t width,
                       int64_t outputs, int64_t /*products*/) {
  const Sizes s = check_weight(ccol, row, perm, height, width, outputs);
  check_features(x_crow, x_col, x_val_in, s, values_in);
  STD_TORCH_CHECK(values_in.dim() == 1 && values_in.numel() == s.blocks * height * width, name,
                  ": values must have one element per position of a block");
  if (bias_in) {
    check_same_dtype(name, "bias", *bias_in, x_val_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, name, ": bias must have ", outputs,
                    " elements");
  }
  const Tensor values = as_contiguous(values_in), x_val = as_contiguous(x_val_in);
  const auto bias = as_scale(bias_in, x_val);
  const int64_t samples = x_crow.numel() - 1;
  Tensor y = new_output(x_val, {samples, outputs});
  if (y.numel() == 0) return y;
  dispatch(name, x_val.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    thread_local Workspace memory;
    Layout<A> weight(ccol, row, s);
    A* value = memory.get<A>(weight.elements + features_linear_ahead * height * width);
    std::fill_n(value + weight.elements, features_linear_ahead * height * width, A{0});
    weight.w.value = value;
    weight.for_chunks([&](int64_t begin, int64_t end) {
      if (weight.single) {
        SG_PICK(features_linear_pack_columns<T, A>)(data<T>(values), weight.w, data<int32_t>(perm), value, begin, end);
      } else {
        SG_PICK(features_linear_pack<T, A>)
        (data<T>(values), data<int32_t>(perm), value, begin, end, int(height), int(width));
      }
    });
    const FeaturesLinearArgs<T, A> args{weight.w,
                                        data<int32_t>(x_crow),
                                        data<int32_t>(x_col),
                                        data<T>(x_val),
                                        data<A>(bias),
                                        mutable_data<T>(y),
                                        size_t(y.numel()) * sizeof(T) > stream_bytes && rows_are_lines(y)};
    const int64_t each = std::max<int64_t>(1, 2 * values.numel() / std::max<int64_t>(1, s.inputs));
    const auto bounds = balanced_rows(data<int32_t>(x_crow), samples, std::max<int64_t>(64, chunk_cost / each / 4));
    const auto kernel = SG_PICK(features_linear_rows<T, A>);
    for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) {
      thread_local Workspace sums;
      kernel(args, bounds[size_t(c)], bounds[size_t(c) + 1], sums.get<A>(outputs + features_linear_spare));
    });
    memory.trim();
  });
  return y;
}

std::tuple<Tensor, Tensor> features_linear_backward(const Tensor& dy_in, const Tensor& x_crow, const Tensor& x_col,
                                                    const Tensor& x_val_in, const std::optional<Tensor>& /*x_ccol*/,
                                                    const std::optional<Tensor>& /*x_row*/,
                                                    const std::optional<Tensor>& /*x_val_t*/, const Tensor& ccol,
                                                    const Tensor& row, const Tensor& perm, int64_t height,
                                                    int64_t width, bool need_dvalues, bool need_dbias,
                                                    int64_t /*products*/) {
  STD_TORCH_CHECK(dy_in.dim() == 2, name, ": dy must have shape [N, M], got ", dy_in.dim(), " dimension(s)");
  const Sizes s = check_weight(ccol, row, perm, height, width, dy_in.size(1));
  check_features(x_crow, x_col, x_val_in, s, dy_in);
  const int64_t samples = x_crow.numel() - 1;
  STD_TORCH_CHECK(dy_in.size(0) == samples, name, ": dy must have ", samples, " rows, got ", dy_in.size(0));
  const Tensor dy = as_contiguous(dy_in), x_val = as_contiguous(x_val_in);
  const int64_t values = need_dvalues ? s.blocks * height * width : 0, biases = need_dbias ? s.outputs : 0;
  Tensor dvalues = new_output(dy, {values}), dbias = new_output(dy, {biases});
  if (values + biases == 0) return {dvalues, dbias};
  dispatch(name, dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    // As many sums as cost a sixteenth of the products, of 256 MiB at most: shapes and the pattern alone decide.
    const Layout<A> weight(ccol, row, s);
    const int64_t spare = need_dvalues ? (weight.elements + 15) / 16 * 16 : 0,
                  stride = spare + features_linear_spare + biases;
    const int64_t most = std::max<int64_t>(1, (int64_t{1} << 26) / stride);
    const int64_t entries = x_crow.numel() + x_col.numel(), each = 16 * std::max<int64_t>(1, s.inputs);
    const int64_t wanted = std::min(std::clamp<int64_t>(x_col.numel() / each, 2, 32), most);
    const auto bounds = balanced_rows(data<int32_t>(x_crow), samples, (entries + wanted - 1) / wanted);
    const int64_t chunks = int64_t(bounds.size()) - 1;
    thread_local Workspace memory;
    A* sums = memory.get<A>(chunks * stride);
    const FeaturesValuesArgs<T, A> args{weight.w,       data<int32_t>(x_crow), data<int32_t>(x_col),
                                        data<T>(x_val), data<T>(dy),           spare};
    const auto kernel = SG_PICK(features_linear_values<T, A>);
    for_each_chunk(chunks, [&](int64_t c) {
      thread_local Workspace row_of_dy;
      A* mine = sums + c * stride;
      std::fill_n(mine, stride, A{0});
      kernel(args, bounds[size_t(c)], bounds[size_t(c) + 1], need_dvalues ? mine : nullptr,
             need_dbias ? mine + (stride - biases) : nullptr, row_of_dy.get<A>(s.outputs));
    });
    const auto unpack = SG_PICK(features_linear_unpack<T, A>);
    if (need_dvalues)
      weight.for_chunks([&](int64_t begin, int64_t end) {
        if (weight.single)
          return SG_PICK(features_linear_unpack_columns<T, A>)(sums, chunks, stride, weight.w, data<int32_t>(perm),
                                                               mutable_data<T>(dvalues), begin, end);
        unpack(sums, chunks, stride, data<int32_t>(perm), mutable_data<T>(dvalues), begin, end, int(height),
               int(width));
      });
    if (need_dbias) unpack(sums + (stride - biases), chunks, stride, nullptr, mutable_data<T>(dbias), 0, biases, 1, 1);
    memory.trim();
  });
  return {dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("features_linear", TORCH_BOX(&features_linear));
  m.impl("features_linear_backward", TORCH_BOX(&features_linear_backward));
}

}  // namespace sparsegnn
