#include "cuda/spmm_linear_backward.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// A CSR graph with what may be absent: (crow, col, val, row_scale, col_scale, diag).
template <typename T>
struct Graph {
  Array<int32_t> crow, col;
  Optional<T> val;
  Optional<acc_t<T>> row_scale, col_scale, diag;

  explicit Graph(const py::tuple& g) : crow(g[0]), col(g[1]), val(g[2]), row_scale(g[3]), col_scale(g[4]), diag(g[5]) {}

  cuda::SpmmArguments<T> arguments(const T* x, int64_t width) {
    return {x,       crow.data(), col.data(),      val.data(), row_scale.data(), col_scale.data(), diag.data(),
            nullptr, nullptr,     crow.size() - 1, width,      col.size()};
  }
  int64_t window(const py::object& given) {
    return given.is_none() ? cuda::gather_window(col.size()) : given.cast<int64_t>();
  }
};

py::object spmm_linear(const py::array& x, const py::tuple& graph, const py::array& values, const py::object& bias,
                       const py::array& crow, const py::array& col, const py::object& per_lane,
                       const py::object& window, bool relu, double dropout, int64_t seed) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Graph<T> g(graph);
    const int64_t inputs = x.shape(1), outputs = crow.size() - 1, rows = g.crow.size() - 1;
    Array<T> a(x), v(values), y({rows, outputs});
    Optional<acc_t<T>> b(bias);
    Array<int32_t> p(crow), c(col);
    cuda::LinearPlan plan = cuda::spmm_linear_plan(rows, inputs, outputs, sizeof(T));
    if (!per_lane.is_none())
      plan.per_lane = per_lane.cast<int>(), plan.stride = cuda::linear_stride(plan.per_lane, sizeof(T));
    Array<char> workspace(
        {cuda::spmm_linear_workspace_bytes<T>(plan, outputs, c.size(), g.col.size(), inputs, g.window(window))});
    Array<int64_t> seed_there = on_device(seed);
    const auto how = cuda::linear_epilogue<acc_t<T>>(relu, dropout, seed_there.data());
    const cuda::SparseLinearArguments<T> arguments = {nullptr,  v.data(), b.data(), p.data(), c.data(), nullptr,
                                                      y.data(), rows,     inputs,   outputs,  c.size(), how};
    check(cuda::launch_spmm_linear(g.arguments(a.data(), inputs), arguments, plan, g.window(window),
                                   workspace.data() - misalignment(), nullptr));
    return y.numpy();
  });
}

// graph: the transposed one. panel: columns of x at a time. Returns (dx, dvalues).
py::object spmm_linear_backward(const py::array& dy, const py::array& x, const py::tuple& graph,
                                const py::array& values, const py::array& ccol, const py::array& row,
                                const py::array& perm, const py::object& given, const py::object& window, bool need_dx,
                                bool need_dvalues) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    Graph<T> g(graph);
    const int64_t nodes = x.shape(0), inputs = x.shape(1), outputs = dy.shape(1);
    Array<T> d(dy), a(x), v(values), dx({need_dx ? nodes : 0, inputs}), dvalues({need_dvalues ? values.size() : 0});
    Array<int32_t> p(ccol), r(row), t(perm);
    cuda::SpmmLinearBackwardPlan plan = cuda::spmm_linear_backward_plan(nodes, inputs, outputs, sizeof(T));
    if (!given.is_none()) {
      const auto [n, panel, span] = given.cast<std::tuple<int, int, int>>();
      plan.product.per_lane = plan.weights.per_lane = n;
      plan.product.stride = plan.weights.stride = cuda::linear_stride(n, sizeof(T));
      plan.weights.panel = panel, plan.weights.panels = int(cuda::ceil_div(inputs, panel));
      plan.weights.span = span, plan.weights.spans = cuda::ceil_div(nodes, 32 * n * span);
      plan.before = cuda::max<int64_t>(cuda::gather_bytes(n, sizeof(T)), panel * plan.product.stride * sizeof(T));
    }
    const cuda::SpmmLinearBackwardWorkspace<T> parts(plan, inputs, outputs, r.size(), g.col.size(), g.window(window));
    Array<char> workspace({parts.bytes});
    const cuda::SpmmLinearBackwardArguments<T> arguments = {a.data(),
                                                            v.data(),
                                                            p.data(),
                                                            r.data(),
                                                            t.data(),
                                                            need_dx ? dx.data() : nullptr,
                                                            need_dvalues ? dvalues.data() : nullptr,
                                                            nodes,
                                                            inputs,
                                                            outputs,
                                                            r.size()};
    check(cuda::launch_spmm_linear_backward(g.arguments(d.data(), outputs), arguments, plan, g.window(window),
                                            workspace.data() - misalignment(), nullptr));
    return py::make_tuple(dx.numpy(), dvalues.numpy());
  });
}

// (samples of a lane, bytes of shared memory), and the same, columns of a panel, and tiles of a span of the backward.
py::object spmm_linear_plans(int64_t nodes, int64_t inputs, int64_t outputs, int64_t size) {
  const cuda::LinearPlan f = cuda::spmm_linear_plan(nodes, inputs, outputs, size);
  const cuda::SpmmLinearBackwardPlan b = cuda::spmm_linear_backward_plan(nodes, inputs, outputs, size);
  return py::make_tuple(
      py::make_tuple(f.per_lane, cuda::gather_bytes(f.per_lane, size) + (inputs + 1) * f.stride * size),
      py::make_tuple(b.product.per_lane, b.before + (outputs + 1) * b.product.stride * size, b.weights.panel,
                     b.weights.span));
}

}  // namespace

SG_BINDINGS(m) {
  m.def("spmm_linear", &spmm_linear, py::arg("x"), py::arg("graph"), py::arg("values"), py::arg("bias"),
        py::arg("crow"), py::arg("col"), py::arg("per_lane") = py::none(), py::arg("window") = py::none(),
        py::arg("relu") = false, py::arg("dropout") = 0.0, py::arg("seed") = 0);
  m.def("spmm_linear_backward", &spmm_linear_backward, py::arg("dy"), py::arg("x"), py::arg("graph"), py::arg("values"),
        py::arg("ccol"), py::arg("row"), py::arg("perm"), py::arg("plan") = py::none(), py::arg("window") = py::none(),
        py::arg("need_dx") = true, py::arg("need_dvalues") = true);
  m.def("spmm_linear_plans", &spmm_linear_plans);
}

}  // namespace sparsegnn::emulated
