#include "cuda/sddmm.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

py::object sddmm(const py::array& a, const py::array& b, const py::array& crow, const py::array& col,
                 const py::object& arg) {
  return by_dtype(a, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<T> x(a), y(b), out({col.size()});
    Array<int32_t> p(crow), c(col);
    Optional<int32_t> g(arg);
    const cuda::SddmmArguments<T> arguments = {x.data(),   y.data(),     p.data(),   c.data(), g.data(),
                                               out.data(), p.size() - 1, a.shape(1), c.size()};
    check(cuda::launch_sddmm(arguments, nullptr));
    return out.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("sddmm", &sddmm, py::arg("a"), py::arg("b"), py::arg("crow"), py::arg("col"), py::arg("arg") = py::none());
}

}  // namespace sparsegnn::emulated
