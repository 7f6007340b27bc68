#include "cuda/dense_weight.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

py::object dense_weight(const py::array& values, const py::array& crow, const py::array& col, int64_t cols,
                        int64_t height, int64_t width) {
  return by_dtype(values, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<int32_t> p(crow), c(col);
    const int64_t rows = p.size() - 1;
    Array<T> v(values), dense(py::array(dtype_of<T>(), std::vector<py::ssize_t>{rows * height, cols}));
    std::memset(static_cast<void*>(dense.data()), 0, size_t(dense.size()) * sizeof(T));
    const cuda::DenseWeightArguments<T> a = {p.data(),     c.data(), v.data(), dense.data(), rows,
                                             cols / width, c.size(), height,   width};
    check(cuda::launch_dense_weight<true>(a, nullptr));
    return dense.numpy();
  });
}

py::object dense_weight_values(const py::array& dense, const py::array& crow, const py::array& col, int64_t height,
                               int64_t width) {
  return by_dtype(dense, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<int32_t> p(crow), c(col);
    Array<T> d(dense), values({c.size() * height * width});
    const cuda::DenseWeightArguments<T> a = {
        p.data(), c.data(), values.data(), d.data(), p.size() - 1, dense.shape(1) / width, c.size(), height, width};
    check(cuda::launch_dense_weight<false>(a, nullptr));
    return values.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("dense_weight", &dense_weight);
  m.def("dense_weight_values", &dense_weight_values);
}

}  // namespace sparsegnn::emulated
