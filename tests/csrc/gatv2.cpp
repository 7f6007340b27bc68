#include "cuda/gatv2_backward.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

template <typename T>
struct Inputs {
  using A = acc_t<T>;
  int64_t heads, width;
  Array<T> x_src, x_dst;
  Array<A> att;
  Optional<T> edge;
  Optional<int64_t> seed;

  Inputs(const py::array& src, const py::array& dst, const py::array& a, const py::object& e, const py::object& s)
      : heads(src.shape(1)), width(src.shape(2)), x_src(src), x_dst(dst), att(a), edge(e), seed(s) {}
  cuda::Gatv2Edges<T> edges(int64_t rows, int64_t cols, int64_t count, double slope, double dropout) {
    const cuda::GatScores<A> scores = {nullptr, nullptr, nullptr, heads, width, A(slope), dropout, seed.data()};
    return {scores, x_src.data(), x_dst.data(), edge.data(), att.data(), rows, cols, count};
  }
};

py::object gatv2(const py::array& x_src, const py::array& x_dst, const py::array& att, const py::object& edge,
                 const py::array& crow, const py::array& col, double negative_slope, double dropout,
                 const py::object& seed, bool save, const py::object& list) {
  return by_dtype(x_src, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const int64_t rows = x_dst.shape(0);
    Inputs<T> in(x_src, x_dst, att, edge, seed);
    Array<T> y({rows, in.heads, in.width});
    Array<A> lse({save ? rows : 0, in.heads});
    Array<int32_t> p(crow), c(col);
    Spans spans(list);
    const cuda::Gatv2Arguments<T> arguments = {in.edges(rows, x_src.shape(0), c.size(), negative_slope, dropout),
                                               p.data(),
                                               c.data(),
                                               y.data(),
                                               save ? lse.data() : nullptr,
                                               spans};
    Array<char> workspace({cuda::gatv2_workspace_bytes(arguments)});
    check(cuda::launch_gatv2(arguments, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(y.numpy(), lse.numpy());
  });
}

py::object gatv2_backward(const py::array& dy, const py::array& x_src, const py::array& x_dst, const py::array& att,
                          const py::object& edge, const py::array& y, const py::array& lse, const py::array& crow,
                          const py::array& col, const py::array& ccol, const py::array& row, const py::array& perm,
                          double negative_slope, double dropout, const py::object& seed, bool need_edge,
                          const py::object& list, const py::object& clist) {
  return by_dtype(x_src, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const int64_t rows = x_dst.shape(0), cols = x_src.shape(0);
    Inputs<T> in(x_src, x_dst, att, edge, seed);
    Array<T> g(dy), out(y), dx_src({cols, in.heads, in.width}), dx_dst({rows, in.heads, in.width});
    Array<T> dedge({need_edge ? col.size() : 0, in.heads, in.width});
    Array<A> l(lse), datt({in.heads, in.width});
    Array<int32_t> p(crow), c(col), q(ccol), r(row), s(perm);
    Spans spans(list), cspans(clist);
    const cuda::Gatv2BackwardArguments<T> arguments = {in.edges(rows, cols, c.size(), negative_slope, dropout),
                                                       p.data(),
                                                       c.data(),
                                                       q.data(),
                                                       r.data(),
                                                       s.data(),
                                                       g.data(),
                                                       out.data(),
                                                       l.data(),
                                                       dx_src.data(),
                                                       dx_dst.data(),
                                                       need_edge ? dedge.data() : nullptr,
                                                       datt.data(),
                                                       spans,
                                                       cspans};
    Array<char> workspace({cuda::gatv2_backward_workspace_bytes(arguments)});
    check(cuda::launch_gatv2_backward(arguments, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(dx_src.numpy(), dx_dst.numpy(), datt.numpy(), dedge.numpy());
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("gatv2", &gatv2, py::arg("x_src"), py::arg("x_dst"), py::arg("att"), py::arg("edge"), py::arg("crow"),
        py::arg("col"), py::arg("negative_slope") = 0.2, py::arg("dropout") = 0.0, py::arg("seed") = py::none(),
        py::arg("save") = true, py::arg("spans") = py::none());
  m.def("gatv2_backward", &gatv2_backward, py::arg("dy"), py::arg("x_src"), py::arg("x_dst"), py::arg("att"),
        py::arg("edge"), py::arg("y"), py::arg("lse"), py::arg("crow"), py::arg("col"), py::arg("ccol"), py::arg("row"),
        py::arg("perm"), py::arg("negative_slope") = 0.2, py::arg("dropout") = 0.0, py::arg("seed") = py::none(),
        py::arg("need_edge") = false, py::arg("spans") = py::none(), py::arg("cspans") = py::none());
}

}  // namespace sparsegnn::emulated
