#include "cuda/csr.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

using Csr = std::tuple<py::array, py::array, py::array, bool>;

template <typename Index>
Csr from_edges(const py::array& target, const py::array& source, int64_t rows, int64_t cols) {
  Array<Index> t(target), s(source);
  Array<int32_t> crow({rows + 1}), col({t.size()}), perm({t.size()}), bad({1});
  Array<char> workspace({cuda::csr_workspace_bytes(t.size())});
  *bad.data() = 0;
  check(cuda::launch_csr_from_edges(t.data(), s.data(), rows, cols, t.size(), crow.data(), col.data(), perm.data(),
                                    bad.data(), workspace.data(), nullptr));
  return {crow.numpy(), col.numpy(), perm.numpy(), *bad.data() != 0};
}

Csr csr_from_edges(const py::array& target, const py::array& source, int64_t rows, int64_t cols) {
  if (target.dtype().is(py::dtype::of<int64_t>())) return from_edges<int64_t>(target, source, rows, cols);
  return from_edges<int32_t>(target, source, rows, cols);
}

Csr csr_transpose(const py::array& crow, const py::array& col, int64_t cols) {
  Array<int32_t> p(crow), c(col), ccol({cols + 1}), row({col.size()}), perm({col.size()}), bad({1});
  Array<char> workspace({cuda::csr_workspace_bytes(c.size())});
  *bad.data() = 0;
  check(cuda::launch_csr_transpose(p.data(), c.data(), p.size() - 1, cols, c.size(), ccol.data(), row.data(),
                                   perm.data(), bad.data(), workspace.data(), nullptr));
  return {ccol.numpy(), row.numpy(), perm.numpy(), *bad.data() != 0};
}

py::object csr_degrees(const py::array& crow, const py::array& like, bool weighted) {
  return by_dtype(like, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Array<int32_t> p(crow);
    Array<T> val(like);
    Array<acc_t<T>> out({p.size() - 1});
    check(cuda::launch_csr_degrees(p.data(), weighted ? val.data() : nullptr, p.size() - 1, out.data(), nullptr));
    return out.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("csr_from_edges", &csr_from_edges);
  m.def("csr_transpose", &csr_transpose);
  m.def("csr_degrees", &csr_degrees, py::arg("crow"), py::arg("val"), py::arg("weighted") = true);
}

}  // namespace sparsegnn::emulated
