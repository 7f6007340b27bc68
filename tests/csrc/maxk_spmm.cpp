#include "cuda/maxk_spmm_backward.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// y; or, with dy, (dvalues, dval).
template <typename T, typename I>
py::object run(const py::array& values, const py::array& index, int64_t width, const py::array& crow,
               const py::array& col, const py::object& val, const py::object& row_scale, const py::object& col_scale,
               const py::object& diag, bool mean, const py::object& dy, const py::object& transpose, int64_t group,
               const py::object& list) {
  const int64_t rows = crow.size() - 1, cols = values.shape(0), k = values.shape(1), edges = col.size();
  Array<T> v(values), y({rows, width});
  Array<I> at(index);
  Array<int32_t> p(crow), c(col);
  Optional<T> w(val);
  Optional<acc_t<T>> rs(row_scale), cs(col_scale), d(diag);
  const cuda::MaxkSpmmArguments<T, I> a{v.data(),  at.data(), p.data(), c.data(), w.data(),
                                        rs.data(), cs.data(), d.data(), y.data(), rows,
                                        edges,     width,     k,        mean,     group};
  if (dy.is_none()) {
    Array<char> workspace({cuda::maxk_spmm_workspace_bytes<T>(edges, width)});
    check(cuda::launch_maxk_spmm(a, workspace.data() - misalignment(), nullptr));
    return y.numpy();
  }
  Spans spans(list);
  const auto t = transpose.cast<std::tuple<py::array, py::array, py::array>>();
  Array<T> g{py::array(dy)}, dvalues({cols, k}), dval({edges});
  Array<int32_t> ccol(std::get<0>(t)), row(std::get<1>(t)), perm(std::get<2>(t));
  const cuda::MaxkSpmmBackwardArguments<T, I> b{
      a, g.data(), ccol.data(), row.data(), perm.data(), dvalues.data(), dval.data(), cols, spans};
  Array<char> workspace({cuda::maxk_spmm_backward_workspace_bytes(b)});
  check(cuda::launch_maxk_spmm_backward(b, workspace.data() - misalignment(), nullptr));
  return py::make_tuple(dvalues.numpy(), dval.numpy());
}

py::object maxk_spmm(const py::array& values, const py::array& index, int64_t width, const py::array& crow,
                     const py::array& col, const py::object& val, const py::object& row_scale,
                     const py::object& col_scale, const py::object& diag, bool mean, const py::object& dy,
                     const py::object& transpose, int64_t group, const py::object& list) {
  return by_dtype(values, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const auto f = width <= 256 ? run<T, uint8_t> : run<T, int16_t>;
    return f(values, index, width, crow, col, val, row_scale, col_scale, diag, mean, dy, transpose, group, list);
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("maxk_spmm", &maxk_spmm, py::arg("values"), py::arg("index"), py::arg("width"), py::arg("crow"), py::arg("col"),
        py::arg("val") = py::none(), py::arg("row_scale") = py::none(), py::arg("col_scale") = py::none(),
        py::arg("diag") = py::none(), py::arg("mean") = false, py::arg("dy") = py::none(),
        py::arg("transpose") = py::none(), py::arg("group") = 0, py::arg("cspans") = py::none());
}

}  // namespace sparsegnn::emulated
