// sparse_linear / cpu: checks, plans, outputs, threads. The arithmetic is in the .kernel.cpp files of this stem.
#include "sparse_linear.h"

#include <cstring>

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"
#include "sparse_linear_entry.h"
#include "sparse_linear_pack.h"
#include "sparse_linear_plan.h"

namespace sparsegnn {
namespace {

constexpr const char* name = "sparse_linear";

// Up to this many samples a row of outputs is summed straight from memory: no packing, no tiles.
constexpr int64_t few_samples = 4;

// What forward and backward ask of their arguments. Indices are validated while they are packed.
void check(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& ccol) {
  check_index(name, "crow", crow);
  check_index(name, "col", col);
  check_index(name, "ccol", ccol);
  STD_TORCH_CHECK(x.dim() == 2, "sparse_linear: x must have shape [N, K], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1 && ccol.numel() >= 1, "sparse_linear: crow and ccol must have elements");
  STD_TORCH_CHECK(x.size(1) == ccol.numel() - 1, "sparse_linear: x must have ", ccol.numel() - 1, " columns, got ",
                  x.size(1));
  check_same_dtype(name, "values", values, x);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == col.numel(),
                  "sparse_linear: values must have one element per entry of col");
}

template <typename T, typename A>
void multiply(const SparseLinearWeight<T>& w, const T* x, const A* bias, T* y, int64_t samples,
              const SparseLinearEpilogue<A>& epilogue, const SparseLinearMask<T, A>& mask) {
  const SparseLinearArgs<T, A> args{w.packed(), x, bias, y, samples, epilogue, mask};
  const auto& plan = w.packed().plan;
  const int64_t tiles = (samples + plan.tile - 1) / plan.tile, step = plan.chunk_tiles;
  const int64_t size = int64_t{plan.tile} * (plan.block + plan.panel);
  const auto kernel = SG_PICK(sparse_linear_tiles<T, A>);
  for_each_chunk((tiles + step - 1) / step, [&](int64_t c) {
    thread_local Workspace memory;
    kernel(args, c * step, std::min(tiles, (c + 1) * step), memory.get<A>(size));
  });
}

void forward(const Tensor& x_in, const Tensor& values_in, const std::optional<Tensor>& bias_in, const Tensor& crow,
             const Tensor& col, const Text& act, double dropout, const std::optional<Tensor>& seed, Tensor& y) {
  STD_TORCH_CHECK(act == "none" || act == "relu", "sparse_linear: act must be none or relu, got ", act);
  const int64_t samples = x_in.size(0), outputs = crow.numel() - 1, inputs = x_in.size(1), nnz = col.numel();
  if (bias_in) {
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == outputs, "sparse_linear: bias must have ", outputs,
                    " elements");
  }
  const Tensor x = as_contiguous(x_in), values = as_contiguous(values_in);
  const auto bias = as_scale(bias_in, x);
  if (y.numel() == 0) return;
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const auto epilogue = make_epilogue<A>(name, act == "relu", dropout, seed);
    if (samples <= few_samples || inputs == 0) {
      const SparseLinearDirectArgs<T, A> args{data<int32_t>(crow),
                                              data<int32_t>(col),
                                              data<T>(values),
                                              data<T>(x),
                                              data<A>(bias),
                                              mutable_data<T>(y),
                                              outputs,
                                              inputs,
                                              samples,
                                              nnz,
                                              epilogue};
      const auto bounds = balanced_rows(args.crow, outputs, /*cost=*/8192);
      const auto kernel = SG_PICK(sparse_linear_rows<T, A>);
      std::atomic<bool> good{true};
      for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) {
        if (!kernel(args, bounds[c], bounds[c + 1])) good = false;
      });
      return check_packed(good ? SparseLinearPackError::none : SparseLinearPackError::col);
    }
    auto plan = choose_forward(samples, outputs, inputs, nnz, sizeof(A), sizeof(T));
    plan.stream = plan.stream && rows_are_lines(y);
    const SparseLinearWeight<T> w(plan, outputs, inputs, data<int32_t>(crow), data<int32_t>(col), data<T>(values), nnz);
    multiply<T, A>(w, data<T>(x), data<A>(bias), mutable_data<T>(y), samples, epilogue, {});
  });
}

Tensor sparse_linear(const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& crow,
                     const Tensor& col, const Tensor& ccol, const Tensor& /*row*/, const Tensor& /*perm*/,
                     const Text& act, double dropout, const std::optional<Tensor>& seed) {
  check(x, values, crow, col, ccol);
  Tensor y = new_output(x, {x.size(0), crow.numel() - 1});
  forward(x, values, bias, crow, col, act, dropout, seed, y);
  return y;
}

void sparse_linear_out(Tensor y, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
                       const Tensor& crow, const Tensor& col, const Tensor& ccol, const Text& act, double dropout,
                       const std::optional<Tensor>& seed) {
  check(x, values, crow, col, ccol);
  check_same_dtype(name, "out", y, x);
  STD_TORCH_CHECK(y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == crow.numel() - 1 && y.is_contiguous(),
                  "sparse_linear: out must be contiguous, of shape [N, M]");
  forward(x, values, bias, crow, col, act, dropout, seed, y);
}

// All three gradients of one pass over dy; see sparse_linear_backward.kernel.cpp.
template <typename T, typename A>
void gradients(const SparseLinearWeight<T>& w, const T* dy, const T* x, T* dx, T* dvalues, T* dbias, int64_t samples,
               const SparseLinearMask<T, A>& mask) {
  const auto& plan = w.packed().plan;
  const int64_t outputs = w.packed().cols, places = w.places(), stride = (places + 15) / 16 * 16;
  const int64_t tiles = (samples + plan.tile - 1) / plan.tile,
                chunks = (tiles + plan.chunk_tiles - 1) / plan.chunk_tiles;
  thread_local Workspace partials;
  A* value_partial = partials.get<A>(chunks * (stride + outputs));
  A* bias_partial = value_partial + chunks * stride;
  const SparseLinearBackwardArgs<T, A> args{w.packed(),
                                            dy,
                                            x,
                                            dx,
                                            dvalues != nullptr ? value_partial : nullptr,
                                            dbias != nullptr ? bias_partial : nullptr,
                                            stride,
                                            samples,
                                            mask};
  const int64_t size =
      SG_PICK(sparse_linear_backward_scratch)(sizeof(A)) + int64_t{plan.tile} * (plan.block + 2 * int64_t{plan.panel});
  const auto kernel = SG_PICK(sparse_linear_backward_chunk<T, A>);
  for_each_chunk(chunks, [&](int64_t c) {
    thread_local Workspace memory;
    kernel(args, c, memory.get<A>(size));
  });
  const auto sum = SG_PICK(sparse_linear_sum_partials<T, A>);
  constexpr int64_t step = 16384;
  if (dvalues != nullptr)
    for_each_chunk((places + step - 1) / step, [&](int64_t c) {
      sum(value_partial, stride, chunks, w.slot(), dvalues, c * step, std::min(places, (c + 1) * step));
    });
  if (dbias != nullptr) sum(bias_partial, outputs, chunks, nullptr, dbias, 0, outputs);
  partials.trim();
}

std::tuple<Tensor, Tensor, Tensor> sparse_linear_backward(const Tensor& dy_in, const Tensor& x_in,
                                                          const Tensor& values_in, const Tensor& crow,
                                                          const Tensor& col, const Tensor& ccol, const Tensor& row,
                                                          const Tensor& perm, bool need_dx, bool need_dvalues,
                                                          bool need_dbias, const std::optional<Tensor>& y_in,
                                                          double dropout, const std::optional<Tensor>& seed) {
  check(x_in, values_in, crow, col, ccol);
  check_index(name, "row", row);
  check_index(name, "perm", perm);
  const int64_t samples = x_in.size(0), outputs = crow.numel() - 1, inputs = x_in.size(1), nnz = col.numel();
  STD_TORCH_CHECK(row.numel() == nnz && perm.numel() == nnz, "sparse_linear: row and perm must have ", nnz,
                  " elements");
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == samples && dy_in.size(1) == outputs,
                  "sparse_linear: dy must have the shape of y");
  check_same_dtype(name, "dy", dy_in, x_in);
  if (y_in) {
    check_same_dtype(name, "y", *y_in, x_in);
    STD_TORCH_CHECK(y_in->dim() == 2 && y_in->size(0) == samples && y_in->size(1) == outputs,
                    "sparse_linear: y must have the shape of dy");
  }
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in), values = as_contiguous(values_in);
  const auto y = as_contiguous(y_in);
  Tensor dx = new_output(x, {samples, inputs});
  if (!need_dx) dx = new_output(x, {0});
  Tensor dvalues = new_output(x, {need_dvalues ? nnz : 0}), dbias = new_output(x, {need_dbias ? outputs : 0});
  // A value that perm does not name is not written.
  if (dvalues.numel() > 0) {
    std::memset(dvalues.mutable_data_ptr(), 0, size_t(dvalues.numel()) * element_size(x.scalar_type()));
  }
  if (inputs == 0 && need_dbias && samples > 0 && outputs > 0) {  // one input that nothing reads
    const Tensor none = torch::stable::new_zeros(dy, {samples, 1}), offsets = torch::stable::new_zeros(crow, {2});
    dbias = std::get<2>(
        sparse_linear_backward(dy, none, values, crow, col, offsets, row, perm, false, false, true, y, dropout, seed));
    return {dx, dvalues, dbias};
  }
  if (samples == 0 || outputs == 0 || inputs == 0) {
    for (Tensor* t : {&dx, &dvalues, &dbias}) torch::stable::zero_(*t);
    return {dx, dvalues, dbias};
  }
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const SparseLinearMask<T, A> mask{data<T>(y), make_epilogue<A>(name, y.has_value(), dropout, seed)};
    const bool with_dvalues = need_dvalues || need_dbias;
    const auto plan = with_dvalues ? choose_backward(samples, inputs, outputs, nnz, sizeof(A), sizeof(T))
                                   : choose_forward(samples, inputs, outputs, nnz, sizeof(A), sizeof(T));
    const SparseLinearWeight<T> w(plan, inputs, outputs, data<int32_t>(ccol), data<int32_t>(row), data<T>(values), nnz,
                                  data<int32_t>(perm), data<int32_t>(crow), data<int32_t>(col));
    if (!with_dvalues) {
      multiply<T, A>(w, data<T>(dy), nullptr, mutable_data<T>(dx), samples, {}, mask);
      return;
    }
    gradients<T, A>(w, data<T>(dy), data<T>(x), need_dx ? mutable_data<T>(dx) : nullptr,
                    need_dvalues ? mutable_data<T>(dvalues) : nullptr, need_dbias ? mutable_data<T>(dbias) : nullptr,
                    samples, mask);
  });
  return {dx, dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("sparse_linear", TORCH_BOX(&sparse_linear));
  m.impl("sparse_linear_out", TORCH_BOX(&sparse_linear_out));
  m.impl("sparse_linear_backward", TORCH_BOX(&sparse_linear_backward));
}

}  // namespace sparsegnn
