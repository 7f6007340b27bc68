#include "cuda/block_linear.cuh"

#include "cuda/block_linear_backward.cuh"
#include "cuda/block_linear_scatter.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// Arrays made in its life are aligned, whatever the test says: those that entries allocate or copy.
struct Aligned {
  const int64_t before = std::exchange(misalignment(), 0);
  ~Aligned() { misalignment() = before; }
};

// Plans that a test asks for, so that small shapes reach every path: chunk, panel.
cuda::BlockPlan plan_of(const py::object& given, cuda::BlockPlan plan, int64_t inputs) {
  if (given.is_none()) return plan;
  const auto [chunk, panel] = given.cast<std::tuple<int, int64_t>>();
  return {plan.mma, chunk, int(cuda::ceil_div(inputs, chunk)), panel};
}

// One product: height outputs by width inputs a block; with perm by the transposed weight.
py::object block_linear(const py::array& x, const py::array& values, const py::object& bias, const py::array& crow,
                        const py::array& col, const py::object& perm, int height, int width, bool tf32,
                        const py::object& given) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), rows = crow.size() - 1, outputs = rows * height;
    Array<T> a(x);
    const Aligned aligned;
    Array<T> v(values), y({batch, outputs});
    Optional<acc_t<T>> b(bias);
    Array<int32_t> p(crow), c(col);
    Optional<int32_t> t(perm);
    const cuda::BlockPlan plan =
        plan_of(given, cuda::choose_block_linear(batch, inputs, outputs, height, sizeof(T), tf32), inputs);
    const cuda::BlockLinearArguments<T> arguments = {a.data(), v.data(), b.data(), p.data(), c.data(),
                                                     t.data(), y.data(), batch,    inputs,   outputs,
                                                     c.size(), height,   width};
    Array<char> workspace({cuda::block_linear_workspace_bytes(arguments, plan)});
    check(cuda::launch_block_linear(arguments, plan, workspace.data(), nullptr));
    return y.numpy();
  });
}

// dx of groups of `height` outputs; given: columns of a chunk.
py::object block_linear_scatter(const py::array& dy, const py::array& values, const py::array& crow,
                                const py::array& col, int height, int64_t inputs, bool tf32, const py::object& given) {
  return by_dtype(dy, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = dy.shape(0), rows = crow.size() - 1;
    Array<T> g(dy), dx({batch, inputs});
    const Aligned aligned;
    Array<T> v(values);
    Array<int32_t> p(crow), c(col);
    cuda::BlockScatterPlan plan = cuda::choose_block_linear_scatter(inputs, height, sizeof(T), tf32);
    if (!given.is_none()) plan.chunk = given.cast<int>(), plan.chunks = int(cuda::ceil_div(inputs, plan.chunk));
    Array<char> workspace({cuda::block_linear_cut_bytes(plan.chunks, rows)});
    const cuda::BlockScatterArguments<T> arguments = {g.data(), v.data(), p.data(),      c.data(), dx.data(),
                                                      batch,    inputs,   rows * height, height};
    check(cuda::launch_block_linear_scatter(arguments, plan, workspace.data(), nullptr));
    return dx.numpy();
  });
}

// Partial sums [spans, values]; given: chunk, block rows and samples of a block.
py::object block_linear_values(const py::array& dy, const py::array& x, const py::array& crow, const py::array& col,
                               int height, int width, bool tf32, const py::object& given) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t batch = x.shape(0), inputs = x.shape(1), rows = crow.size() - 1, outputs = rows * height;
    Array<int32_t> p(crow), c(col);
    auto plan = cuda::choose_block_linear_values(batch, inputs, outputs, c.size(), height, width, sizeof(T), tf32);
    if (!given.is_none()) {
      std::tie(plan.chunk, plan.rows, plan.span) = given.cast<std::tuple<int, int, int64_t>>();
      plan.chunks = int(cuda::ceil_div(inputs, plan.chunk)), plan.panels = int(cuda::ceil_div(rows, plan.rows));
      plan.spans = cuda::ceil_div(batch, plan.span);
    }
    Array<T> g(dy), a(x);
    Array<acc_t<T>> partial({plan.spans, c.size() * height * width});
    const cuda::BlockLinearBackwardArguments<T> arguments = {
        g.data(), a.data(), p.data(), c.data(), partial.data(), batch, inputs, outputs, c.size(), height, width};
    check(cuda::launch_block_linear_values(arguments, plan, nullptr));
    return partial.numpy();
  });
}

// The plans of a shape, for tests of the policies.
py::dict block_linear_plans(int64_t batch, int64_t inputs, int64_t outputs, int64_t blocks, int height, int width,
                            int64_t element_size, bool tf32) {
  const auto y = cuda::choose_block_linear(batch, inputs, outputs, height, element_size, tf32);
  const auto v = cuda::choose_block_linear_values(batch, inputs, outputs, blocks, height, width, element_size, tf32);
  const auto s = cuda::choose_block_linear_scatter(inputs, height, element_size, tf32);
  py::dict d;
  d["mma"] = y.mma && v.mma && s.mma;
  d["y"] = std::make_tuple(y.chunk, y.chunks, y.panel);
  d["values"] = std::make_tuple(v.chunk, v.chunks, v.rows, v.panels, v.span, v.spans);
  d["dx"] = std::make_tuple(s.chunk, s.chunks);
  d["shared"] =
      std::make_tuple(cuda::tile_rows(y.chunk) * cuda::block_stride(y.mma, element_size) * element_size,
                      (cuda::tile_rows(v.chunk) + v.rows * height) * 64 + int64_t(sizeof(cuda::BlockUnits)),
                      cuda::kScatterWarps * (s.chunk + 4) * cuda::kScatterPitch * std::max<int64_t>(4, element_size));
  return d;
}

}  // namespace

SG_BINDINGS(m) {
  m.def("block_linear", &block_linear, py::arg("x"), py::arg("values"), py::arg("bias"), py::arg("crow"),
        py::arg("col"), py::arg("perm"), py::arg("height"), py::arg("width"), py::arg("tf32") = false,
        py::arg("plan") = py::none());
  m.def("block_linear_scatter", &block_linear_scatter, py::arg("dy"), py::arg("values"), py::arg("crow"),
        py::arg("col"), py::arg("height"), py::arg("inputs"), py::arg("tf32") = false, py::arg("chunk") = py::none());
  m.def("block_linear_values", &block_linear_values, py::arg("dy"), py::arg("x"), py::arg("crow"), py::arg("col"),
        py::arg("height"), py::arg("width"), py::arg("tf32") = false, py::arg("plan") = py::none());
  m.def("block_linear_plans", &block_linear_plans);
}

}  // namespace sparsegnn::emulated
