#include "cuda/maxk.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

template <typename T, typename I>
py::object select(const py::array& x, int64_t k, int64_t group) {
  const int64_t rows = x.shape(0), width = x.shape(1);
  Array<T> from(x), values({rows, k});
  Array<I> index({rows, k});
  group = group == 0 ? width : group;
  check(cuda::launch_maxk(
      cuda::MaxkArguments<T, I>{from.data(), values.data(), index.data(), rows, width, k, group, k / (width / group)},
      nullptr));
  return py::make_tuple(values.numpy(), index.numpy());
}

py::object maxk(const py::array& x, int64_t k, int64_t group) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    return x.shape(1) <= 256 ? select<T, uint8_t>(x, k, group) : select<T, int16_t>(x, k, group);
  });
}

py::object maxk_expand(const py::array& values, const py::array& index, int64_t width) {
  return by_dtype(values, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<T> from(values), to({values.shape(0), width});
    const auto run = [&](auto column) -> py::object {
      Array<decltype(column)> at(index);
      const cuda::MaxkCopyArguments<T, decltype(column)> a{from.data(),     at.data(), to.data(),
                                                           values.shape(0), width,     values.shape(1)};
      check(cuda::launch_maxk_expand(a, nullptr));
      return to.numpy();
    };
    return width <= 256 ? run(uint8_t{}) : run(int16_t{});
  });
}

py::object maxk_gather(const py::array& x, const py::array& index) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<T> from(x), to({index.shape(0), index.shape(1)});
    const auto run = [&](auto column) -> py::object {
      Array<decltype(column)> at(index);
      const cuda::MaxkCopyArguments<T, decltype(column)> a{from.data(), at.data(),  to.data(),
                                                           x.shape(0),  x.shape(1), index.shape(1)};
      check(cuda::launch_maxk_gather(a, nullptr));
      return to.numpy();
    };
    return x.shape(1) <= 256 ? run(uint8_t{}) : run(int16_t{});
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("maxk", &maxk, py::arg("x"), py::arg("k"), py::arg("group") = 0);
  m.def("maxk_expand", &maxk_expand);
  m.def("maxk_gather", &maxk_gather);
}

}  // namespace sparsegnn::emulated
