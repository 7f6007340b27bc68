#include "cuda/sparse_linear_backward.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// Plans that a test asks for, so that small shapes reach every path.
template <typename T>
cuda::LinearPlan forward_plan(std::tuple<int, int, int, int> given, int64_t inputs) {
  const auto [n, chunk, panel, staged] = given;
  return {n, cuda::linear_stride(n, sizeof(T)), chunk, int(cuda::ceil_div(inputs, chunk)), panel, staged};
}
template <typename T>
cuda::LinearBackwardPlan backward_plan(std::tuple<int, int, int, int> given, int64_t batch, int64_t inputs,
                                       int64_t outputs) {
  const auto [n, chunk, panel, span] = given;
  return {n,     cuda::linear_stride(n, sizeof(T)),   chunk, int(cuda::ceil_div(inputs, chunk)),
          panel, int(cuda::ceil_div(outputs, panel)), span,  cuda::ceil_div(batch, 32 * n * span)};
}

py::object sparse_linear(const py::array& x, const py::array& values, const py::object& bias, const py::array& crow,
                         const py::array& col, const py::object& perm, const py::object& given, bool relu,
                         double dropout, int64_t seed) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), outputs = crow.size() - 1;
    Array<T> a(x), v(values), y({batch, outputs});
    Optional<acc_t<T>> b(bias);
    Array<int32_t> p(crow), c(col);
    Optional<int32_t> t(perm);
    cuda::LinearPlan plan = cuda::linear_plan(batch, inputs, outputs, sizeof(T));
    if (!given.is_none()) plan = forward_plan<T>(given.cast<std::tuple<int, int, int, int>>(), inputs);
    Array<char> workspace({cuda::sparse_linear_workspace_bytes<T>(plan, outputs, c.size())});
    Array<int64_t> seed_there = on_device(seed);
    const auto how = cuda::linear_epilogue<acc_t<T>>(relu, dropout, seed_there.data());
    const cuda::SparseLinearArguments<T> arguments = {a.data(), v.data(), b.data(), p.data(), c.data(), t.data(),
                                                      y.data(), batch,    inputs,   outputs,  c.size(), how};
    check(cuda::launch_sparse_linear(arguments, plan, workspace.data() - misalignment(), nullptr));
    return y.numpy();
  });
}

py::object sparse_linear_dvalues(const py::array& dy, const py::array& x, const py::array& crow, const py::array& col,
                                 const py::object& given) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), outputs = crow.size() - 1;
    Array<T> g(dy), a(x), dvalues({col.size()});
    Array<int32_t> p(crow), c(col);
    cuda::LinearBackwardPlan plan = cuda::linear_backward_plan(batch, inputs, outputs, sizeof(T));
    if (!given.is_none()) plan = backward_plan<T>(given.cast<std::tuple<int, int, int, int>>(), batch, inputs, outputs);
    Array<char> workspace({cuda::sparse_linear_dvalues_workspace_bytes<T>(plan, outputs, c.size())});
    const cuda::SparseLinearBackwardArguments<T> arguments = {g.data(), a.data(), p.data(), c.data(), dvalues.data(),
                                                              batch,    inputs,   outputs,  c.size()};
    check(cuda::launch_sparse_linear_dvalues(arguments, plan, workspace.data() - misalignment(), nullptr));
    return dvalues.numpy();
  });
}

py::object sparse_linear_dbias(const py::array& dy) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = dy.shape(0), outputs = dy.shape(1);
    Array<T> g(dy), dbias({outputs});
    Array<char> workspace({cuda::sparse_linear_dbias_workspace_bytes<T>(batch, outputs)});
    check(cuda::launch_sparse_linear_dbias(g.data(), batch, outputs, dbias.data(), workspace.data() - misalignment(),
                                           nullptr));
    return dbias.numpy();
  });
}

py::object sparse_linear_mask(const py::array& dy, const py::object& y, double dropout, int64_t seed) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = dy.shape(0), outputs = dy.shape(1);
    Array<T> g(dy), out({batch, outputs});
    Optional<T> result(y);
    Array<int64_t> seed_there = on_device(seed);
    const auto how = cuda::linear_epilogue<acc_t<T>>(!y.is_none(), dropout, seed_there.data());
    check(cuda::launch_sparse_linear_mask<T>(g.data(), result.data(), batch, outputs, how, out.data(), nullptr));
    return out.numpy();
  });
}

// The packed matrix, chunk after chunk of each row: (columns, values) with padding as column -1; and the order of the
// groups of outputs.
py::object sparse_linear_pack(const py::array& values, const py::array& crow, const py::array& col, int64_t inputs,
                              int chunk) {
  return by_dtype(values, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t outputs = crow.size() - 1, entries = col.size();
    Array<T> v(values);
    Array<int32_t> p(crow), c(col);
    const cuda::LinearPlan plan = forward_plan<T>({2, chunk, int(outputs), 0}, inputs);
    Array<char> workspace({cuda::sparse_linear_workspace_bytes<T>(plan, outputs, entries)});
    cuda::SparseLinearArguments<T> a = {};
    a.values = v.data(), a.crow = p.data(), a.col = c.data(), a.outputs = outputs, a.entries = entries;
    const auto packed = cuda::linear_packed<T>(
        plan, outputs, cuda::linear_entry_bytes(plan, outputs, entries, sizeof(T)), workspace.data());
    check(cuda::launch_linear_pack(a, plan, packed, nullptr));
    const int64_t together = cuda::linear_together(sizeof(T));
    std::vector<int64_t> column, length;
    std::vector<double> value;
    for (int64_t s = 0; s < outputs * plan.chunks; ++s) {
      const int count = packed.cut[s + 1] - packed.cut[s];
      length.push_back(cuda::ceil_div(count, together) * together);
      for (int64_t i = 0; i < length.back(); ++i) {
        const auto e = packed.entry[cuda::linear_place<T>(s, packed.cut[s]) + i];
        const int units = plan.stride * int(sizeof(T)) / cuda::kLinearUnit;
        column.push_back(e.offset == plan.chunk * units ? -1 : s % plan.chunks * chunk + e.offset / units);
        value.push_back(static_cast<double>(cuda::to_acc(e.value)));
      }
    }
    return py::make_tuple(column, value, length, sizeof(cuda::LinearEntry<T>),
                          std::vector<int>(packed.order, packed.order + cuda::ceil_div(outputs, 8)));
  });
}

// The plans of a shape: (samples of a lane, inputs of a chunk, outputs of a panel), and the same and tiles of a span;
// and the shared memory of the forward, and whether W is kept there.
py::object sparse_linear_plans(int64_t batch, int64_t inputs, int64_t outputs, int64_t element_size, int64_t entries) {
  const cuda::LinearPlan f = cuda::linear_plan(batch, inputs, outputs, element_size, entries);
  const int64_t packed = f.staged ? cuda::linear_packed_bytes(f, outputs, entries, element_size) : 0;
  const cuda::LinearBackwardPlan b = cuda::linear_backward_plan(batch, inputs, outputs, element_size);
  return py::make_tuple(
      py::make_tuple(f.per_lane, f.chunk, f.panel), py::make_tuple(b.per_lane, b.chunk, b.panel, b.span),
      cuda::linear_outputs_bytes(f.per_lane, element_size) + cuda::linear_tile_bytes(f, element_size) + packed,
      f.staged > 0);
}

}  // namespace

SG_BINDINGS(m) {
  m.def("sparse_linear", &sparse_linear, py::arg("x"), py::arg("values"), py::arg("bias"), py::arg("crow"),
        py::arg("col"), py::arg("perm") = py::none(), py::arg("plan") = py::none(), py::arg("relu") = false,
        py::arg("dropout") = 0.0, py::arg("seed") = 0);
  m.def("sparse_linear_mask", &sparse_linear_mask, py::arg("dy"), py::arg("y"), py::arg("dropout") = 0.0,
        py::arg("seed") = 0);
  m.def("sparse_linear_dvalues", &sparse_linear_dvalues, py::arg("dy"), py::arg("x"), py::arg("crow"), py::arg("col"),
        py::arg("plan") = py::none());
  m.def("sparse_linear_dbias", &sparse_linear_dbias);
  m.def("sparse_linear_plans", &sparse_linear_plans, py::arg("batch"), py::arg("inputs"), py::arg("outputs"),
        py::arg("element_size"), py::arg("entries") = -1);
  m.def("sparse_linear_pack", &sparse_linear_pack);
}

}  // namespace sparsegnn::emulated
