#include "cuda/spmm.cuh"

#include <sys/mman.h>

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
                const std::string& name, const py::object& list) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const cuda::Reduce reduce = reduce_of(name);
    const bool extremum = reduce == cuda::Reduce::max || reduce == cuda::Reduce::min;
    const int64_t rows = crow.size() - 1, width = x.shape(1);
    Array<T> a(x), y({rows, width});
    Array<int32_t> p(crow), c(col), arg({extremum ? rows : 0, extremum ? width : 0});
    Optional<T> v(val);
    Optional<acc_t<T>> rs(row_scale), cs(col_scale), d(diag);
    Spans spans(list);
    Array<char> workspace({cuda::spmm_workspace_bytes<T>(c.size(), width, reduce)});
    const cuda::SpmmArguments<T> arguments = {a.data(),   p.data(),  c.data(),
                                              v.data(),   rs.data(), cs.data(),
                                              d.data(),   y.data(),  extremum ? arg.data() : nullptr,
                                              rows,       width,     c.size(),
                                              x.shape(0), spans};
    check(cuda::launch_spmm(arguments, reduce, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(y.numpy(), arg.numpy());
  });
}

py::object spmm_arg_backward(const py::array& dy, const py::array& arg, const py::object& val, const py::array& ccol,
                             const py::array& row, const py::array& perm, const py::object& list) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t cols = ccol.size() - 1, width = dy.shape(1);
    Array<T> g(dy), dx({cols, width});
    Array<int32_t> k(arg), p(ccol), r(row), t(perm);
    Optional<T> v(val);
    Spans spans(list);
    Array<char> workspace({cuda::spmm_workspace_bytes<T>(r.size(), width, cuda::Reduce::sum)});
    const cuda::SpmmArgBackwardArguments<T> arguments = {g.data(),  k.data(), v.data(), p.data(), r.data(),    t.data(),
                                                         dx.data(), cols,     width,    r.size(), dy.shape(0), spans};
    check(cuda::launch_spmm_arg_backward(arguments, workspace.data() - misalignment(), nullptr));
    return dx.numpy();
  });
}

// y = x[n - 1] through an x of n rows whose n * width passes 2^32: only the pages that are touched exist.
py::array spmm_far_row(int64_t width) {
  const int64_t n = (int64_t{1} << 32) / width + 3, bytes = n * width * static_cast<int64_t>(sizeof(bf16));
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("no address space for a large array");
  auto* x = static_cast<bf16*>(p);
  for (int64_t j = 0; j < width; ++j) x[(n - 1) * width + j] = cuda::from_acc<bf16>(static_cast<float>(j + 1));
  Array<int32_t> crow({2}), col({1});
  crow.data()[0] = 0, crow.data()[1] = 1, col.data()[0] = static_cast<int32_t>(n - 1);
  Array<bf16> y({1, width});
  const emulator::Allocation allocation(p, bytes);
  cuda::SpmmArguments<bf16> a = {};
  a.x = x, a.crow = crow.data(), a.col = col.data(), a.y = y.data(), a.rows = 1, a.width = width, a.edges = 1;
  const cudaError_t error = cuda::launch_spmm(a, cuda::Reduce::sum, nullptr, nullptr);
  munmap(p, bytes);
  check(error);
  return y.numpy();
}

}  // namespace

SG_BINDINGS(m) {
  m.def("spmm_far_row", &spmm_far_row);
  m.def("spmm", &spmm, py::arg("x"), py::arg("crow"), py::arg("col"), py::arg("val") = py::none(),
        py::arg("row_scale") = py::none(), py::arg("col_scale") = py::none(), py::arg("diag") = py::none(),
        py::arg("reduce") = "sum", py::arg("spans") = py::none());
  m.def("segment_lanes", [](int64_t rows, int64_t width, int64_t edges, int64_t table, int64_t bytes, int V) {
    cuda::RowSegments s{nullptr, rows, width, edges};
    s.table = table, s.bytes = bytes;
    return cuda::segment_lanes(s, V);
  });
  m.def("segment_window", &cuda::segment_window);
  m.def("spmm_arg_backward", &spmm_arg_backward, py::arg("dy"), py::arg("arg"), py::arg("val"), py::arg("ccol"),
        py::arg("row"), py::arg("perm"), py::arg("cspans") = py::none());
}

}  // namespace sparsegnn::emulated
