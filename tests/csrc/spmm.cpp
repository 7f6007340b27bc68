#include "cuda/spmm.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

cuda::Reduce reduce_of(const std::string& name) {
  if (name == "sum") return cuda::Reduce::sum;
  if (name == "mean") return cuda::Reduce::mean;
  if (name == "max") return cuda::Reduce::max;
  if (name == "min") return cuda::Reduce::min;
  throw py::value_error("unknown reduce " + name);
}

py::object spmm(const py::array& x, const py::array& crow, const py::array& col, const py::object& val,
                const py::object& row_scale, const py::object& col_scale, const py::object& diag,
                const std::string& name) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const cuda::Reduce reduce = reduce_of(name);
    const bool extremum = reduce == cuda::Reduce::max || reduce == cuda::Reduce::min;
    const int64_t rows = crow.size() - 1, width = x.shape(1);
    Array<T> a(x), y({rows, width});
    Array<int32_t> p(crow), c(col), arg({extremum ? rows : 0, extremum ? width : 0});
    Optional<T> v(val);
    Optional<acc_t<T>> rs(row_scale), cs(col_scale), d(diag);
    Array<char> workspace({cuda::spmm_workspace_bytes<T>(c.size(), width, reduce)});
    const cuda::SpmmArguments<T> arguments = {a.data(), p.data(),  c.data(),
                                              v.data(), rs.data(), cs.data(),
                                              d.data(), y.data(),  extremum ? arg.data() : nullptr,
                                              rows,     width,     c.size()};
    check(cuda::launch_spmm(arguments, reduce, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(y.numpy(), arg.numpy());
  });
}

py::object spmm_arg_backward(const py::array& dy, const py::array& arg, const py::object& val, const py::array& ccol,
                             const py::array& row, const py::array& perm) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t cols = ccol.size() - 1, width = dy.shape(1);
    Array<T> g(dy), dx({cols, width});
    Array<int32_t> k(arg), p(ccol), r(row), t(perm);
    Optional<T> v(val);
    Array<char> workspace({cuda::spmm_workspace_bytes<T>(r.size(), width, cuda::Reduce::sum)});
    const cuda::SpmmArgBackwardArguments<T> arguments = {g.data(), k.data(),  v.data(), p.data(), r.data(),
                                                         t.data(), dx.data(), cols,     width,    r.size()};
    check(cuda::launch_spmm_arg_backward(arguments, workspace.data() - misalignment(), nullptr));
    return dx.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("spmm", &spmm, py::arg("x"), py::arg("crow"), py::arg("col"), py::arg("val") = py::none(),
        py::arg("row_scale") = py::none(), py::arg("col_scale") = py::none(), py::arg("diag") = py::none(),
        py::arg("reduce") = "sum");
  m.def("spmm_arg_backward", &spmm_arg_backward);
}

}  // namespace sparsegnn::emulated
