// act_dropout / cpu: checks, outputs, dtype, threads. The arithmetic is in act_dropout.kernel.cpp.
#include "act_dropout.h"

#include "../common/parallel.h"
#include "dispatch.h"
#include "output.h"
#include "sparse_linear_entry.h"
#include "workspace.h"

namespace sparsegnn {
namespace {

constexpr const char* name = "act_dropout";
constexpr int64_t chunk_elements = 32 << 10;  // about 20 us of work
constexpr int64_t past_caches = 16 << 20;     // bytes of an output that the caches would not hold

Activation check(const Tensor& x, const char* x_name, const Text& act) {
  STD_TORCH_CHECK(x.dim() == 2, name, ": ", x_name, " must have shape [N, F], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(act == "none" || act == "relu" || act == "elu", name, ": act must be none, relu or elu, got ", act);
  return act == "relu" ? Activation::relu : act == "elu" ? Activation::elu : Activation::none;
}

// Rows that are dense in themselves, with any stride between them.
Tensor as_rows(const Tensor& t) { return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t); }

bool streams(const Tensor& y) {
  return y.numel() * int64_t(element_size(y.scalar_type())) >= past_caches && rows_are_lines(y);
}

Tensor act_dropout(const Tensor& x_in, const std::optional<Tensor>& bias_in, const Text& act_in, double dropout,
                   const std::optional<Tensor>& seed) {
  const Activation act = check(x_in, "x", act_in);
  const int64_t rows = x_in.size(0), width = x_in.size(1);
  if (bias_in) {
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == width, name, ": bias must have ", width, " elements");
  }
  const Tensor x = as_rows(x_in);
  const auto bias = as_scale(bias_in, x);
  Tensor y = new_output(x, {rows, width});
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const auto how = make_epilogue<A>(name, act == Activation::relu, dropout, seed);
    if (y.numel() == 0) return;
    const ActDropoutArgs<T, A> args{data<T>(x), data<A>(bias), mutable_data<T>(y), width, x.stride(0),
                                    act,        how,           streams(y)};
    const int64_t step = std::max<int64_t>(1, chunk_elements / width);
    const auto kernel = SG_PICK(act_dropout_rows<T, A>);
    for_each_chunk((rows + step - 1) / step,
                   [&](int64_t c) { kernel(args, c * step, std::min(rows, (c + 1) * step)); });
  });
  return y;
}

std::tuple<Tensor, Tensor> act_dropout_backward(const Tensor& dy_in, const std::optional<Tensor>& y_in,
                                                const Text& act_in, double dropout, const std::optional<Tensor>& seed,
                                                bool need_dx, bool need_dbias) {
  const Activation act = check(dy_in, "dy", act_in);
  const int64_t rows = dy_in.size(0), width = dy_in.size(1);
  STD_TORCH_CHECK(y_in || act == Activation::none, name, ": y must be given with act ", act_in);
  if (y_in) {
    check_same_dtype(name, "y", *y_in, dy_in);
    STD_TORCH_CHECK(y_in->dim() == 2 && y_in->size(0) == rows && y_in->size(1) == width, name,
                    ": y must have the shape of dy");
  }
  const Tensor dy = as_rows(dy_in);
  const auto y = as_contiguous(y_in);
  Tensor dx = need_dx ? new_output(dy, {rows, width}) : new_output(dy, {0});
  Tensor dbias = new_output(dy, {need_dbias ? width : 0});
  dispatch(name, dy.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const auto how = make_epilogue<A>(name, act == Activation::relu, dropout, seed);
    if (width == 0 || !(need_dx || need_dbias)) return;
    const A inverse = how.scale > 0 ? 1 / how.scale : A{0};
    const ActDropoutBackwardArgs<T, A> args{data<T>(dy), data<T>(y),   need_dx ? mutable_data<T>(dx) : nullptr,
                                            width,       dy.stride(0), act,
                                            how,         inverse,      need_dx && streams(dx)};
    // Few enough that their sums are small beside the matrix.
    const int64_t step = std::max<int64_t>(16, chunk_elements / width), chunks = (rows + step - 1) / step;
    thread_local Workspace memory;
    A* partials = need_dbias ? memory.get<A>(chunks * width) : nullptr;
    const auto kernel = SG_PICK(act_dropout_backward_rows<T, A>);
    for_each_chunk(chunks, [&](int64_t c) {
      kernel(args, c * step, std::min(rows, (c + 1) * step), need_dbias ? partials + c * width : nullptr);
    });
    if (!need_dbias) return;
    const auto sum = SG_PICK(sparse_linear_sum_partials<T, A>);
    constexpr int64_t columns = 64;
    for_each_chunk((width + columns - 1) / columns, [&](int64_t c) {
      sum(partials, width, chunks, nullptr, mutable_data<T>(dbias), c * columns, std::min(width, (c + 1) * columns));
    });
    memory.trim();
  });
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("act_dropout", TORCH_BOX(&act_dropout));
  m.impl("act_dropout_backward", TORCH_BOX(&act_dropout_backward));
}

}  // namespace sparsegnn
