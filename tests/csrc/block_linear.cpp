#include "cuda/block_linear.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// One product: height outputs by width inputs a block, whose elements are at the given strides in `values`.
py::object block_linear(const py::array& x, const py::array& values, const py::object& bias, const py::array& crow,
                        const py::array& col, const py::object& perm, int height, int width, bool transposed) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), outputs = (crow.size() - 1) * height;
    Array<T> a(x), v(values), y({batch, outputs});
    Optional<acc_t<T>> b(bias);
    Array<int32_t> p(crow), c(col);
    Optional<int32_t> t(perm);
    const cuda::BlockLinearArguments<T> arguments = {a.data(),
                                                     v.data(),
                                                     b.data(),
                                                     p.data(),
                                                     c.data(),
                                                     t.data(),
                                                     y.data(),
                                                     batch,
                                                     inputs,
                                                     outputs,
                                                     width,
                                                     transposed ? 1 : width,
                                                     transposed ? height : 1};
    check(cuda::launch_block_linear(arguments, height, nullptr));
    return y.numpy();
  });
}

// Partial sums [spans, values], for spans of so many samples, or those of the shape.
py::object block_linear_dvalues(const py::array& dy, const py::array& x, const py::array& crow, const py::array& col,
                                int height, int width, int64_t span) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), outputs = (crow.size() - 1) * height;
    const int64_t count = col.size() * height * width;
    if (span == 0) span = cuda::block_linear_span(batch);
    const int64_t spans = cuda::ceil_div(batch, span);
    Array<T> g(dy), a(x);
    Array<acc_t<T>> partial({spans, count});
    Array<int32_t> p(crow), c(col);
    const cuda::BlockLinearBackwardArguments<T> arguments = {
        g.data(), a.data(), p.data(), c.data(), partial.data(), batch, inputs, outputs, count, span, spans, width};
    check(cuda::launch_block_linear_dvalues(arguments, height, nullptr));
    return partial.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("block_linear", &block_linear);
  m.def("block_linear_dvalues", &block_linear_dvalues);
}

}  // namespace sparsegnn::emulated
