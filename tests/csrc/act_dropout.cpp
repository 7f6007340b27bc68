#include "cuda/act_dropout.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

cuda::Activation activation(const std::string& name) {
  return name == "relu" ? cuda::Activation::relu : name == "elu" ? cuda::Activation::elu : cuda::Activation::none;
}

py::object act_dropout(const py::array& x, const py::object& bias, const std::string& act, double dropout,
                       int64_t seed) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t rows = x.shape(0), width = x.shape(1);
    Array<T> in(x), y({rows, width});
    Optional<T> b(bias);
    Array<int64_t> seed_there = on_device(seed);
    const auto how = cuda::linear_epilogue<acc_t<T>>(act == "relu", dropout, seed_there.data());
    const cuda::ActDropoutArguments<T> a = {in.data(), b.data(), y.data(), rows, width, how};
    check(cuda::launch_act_dropout(a, activation(act), nullptr));
    return y.numpy();
  });
}

// (dx, dbias), None where it is not wanted.
py::object act_dropout_backward(const py::array& dy, const py::object& y, const std::string& act, double dropout,
                                int64_t seed, bool need_dx, bool need_dbias) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t rows = dy.shape(0), width = dy.shape(1);
    Array<T> g(dy), dx({rows, width}), dbias({width});
    Optional<T> result(y);
    Array<char> workspace({cuda::act_dropout_workspace_bytes<T>(rows, width)});
    Array<int64_t> seed_there = on_device(seed);
    const auto how = cuda::linear_epilogue<acc_t<T>>(act == "relu", dropout, seed_there.data());
    const cuda::ActDropoutBackwardArguments<T> a = {g.data(),
                                                    result.data(),
                                                    need_dx ? dx.data() : nullptr,
                                                    need_dbias ? dbias.data() : nullptr,
                                                    rows,
                                                    width,
                                                    how,
                                                    how.scale > 0 ? 1 / how.scale : acc_t<T>(0)};
    check(cuda::launch_act_dropout_backward(a, activation(act), workspace.data() - misalignment(), nullptr));
    return py::make_tuple(need_dx ? py::object(dx.numpy()) : py::none(),
                          need_dbias ? py::object(dbias.numpy()) : py::none());
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("act_dropout", &act_dropout, py::arg("x"), py::arg("bias") = py::none(), py::arg("act") = "none",
        py::arg("dropout") = 0.0, py::arg("seed") = 0);
  m.def("act_dropout_backward", &act_dropout_backward, py::arg("dy"), py::arg("y") = py::none(),
        py::arg("act") = "none", py::arg("dropout") = 0.0, py::arg("seed") = 0, py::arg("need_dx") = true,
        py::arg("need_dbias") = true);
}

}  // namespace sparsegnn::emulated
