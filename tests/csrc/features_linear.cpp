#include "cuda/features_linear.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

py::object features_linear(const py::array& values, const py::object& bias, const py::array& x_crow,
                           const py::array& x_col, const py::array& x_val, const py::array& ccol, const py::array& row,
                           const py::array& perm, int height, int width, int64_t outputs) {
  return by_dtype(values, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<int32_t> xp(x_crow), xc(x_col), wc(ccol), wr(row), wp(perm);
    Array<T> v(values), xv(x_val), y(std::vector<py::ssize_t>{xp.size() - 1, outputs});
    Optional<T> b(bias);
    cuda::FeaturesLinearArguments<T> a{};
    a.x_offset = xp.data(), a.x_index = xc.data(), a.x_val = xv.data();
    a.ccol = wc.data(), a.row = wr.data(), a.perm = wp.data(), a.values = v.data(), a.bias = b.data();
    a.out = y.data(), a.samples = xp.size() - 1, a.columns = wc.size() - 1, a.blocks = wr.size(), a.outputs = outputs;
    a.height = height, a.width = width;
    check(cuda::launch_features_linear(a, nullptr));
    return y.numpy();
  });
}

py::object features_values(const py::array& dy, const py::array& x_ccol, const py::array& x_row, const py::array& x_val,
                           const py::array& ccol, const py::array& row, const py::array& perm, int height, int width) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<int32_t> xp(x_ccol), xr(x_row), wc(ccol), wr(row), wp(perm);
    Array<T> g(dy), xv(x_val), out(std::vector<py::ssize_t>{wr.size() * height * width});
    cuda::FeaturesLinearArguments<T> a{};
    a.x_offset = xp.data(), a.x_index = xr.data(), a.x_val = xv.data();
    a.ccol = wc.data(), a.row = wr.data(), a.perm = wp.data(), a.dy = g.data(), a.out = out.data();
    a.samples = dy.shape(0), a.columns = wc.size() - 1, a.blocks = wr.size(), a.outputs = dy.shape(1);
    a.height = height, a.width = width;
    check(cuda::launch_features_values(a, nullptr));
    return out.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("features_linear", &features_linear);
  m.def("features_values", &features_values);
}

}  // namespace sparsegnn::emulated
