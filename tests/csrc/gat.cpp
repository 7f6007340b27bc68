#include "cuda/gat_backward.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

py::object gat(const py::array& x, const py::array& a_src, const py::array& a_dst, const py::object& a_edge,
               const py::array& crow, const py::array& col, double negative_slope, double dropout,
               const py::object& seed, bool save, const py::object& bias, const py::object& list) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const int64_t rows = crow.size() - 1, heads = x.shape(1), width = x.shape(2);
    Array<T> features(x), y({rows, heads, width}), tilt({save ? rows : 0, heads, width});
    Array<A> src(a_src), dst(a_dst), lse({save ? rows : 0, heads});
    Optional<A> edge(a_edge), b(bias);
    Array<int32_t> p(crow), c(col);
    Optional<int64_t> s(seed);
    Spans spans(list);
    Array<char> workspace({cuda::gat_workspace_bytes<T>(c.size(), heads * width, save)});
    const cuda::GatScores<A> scores = {src.data(), dst.data(),        edge.data(), heads,
                                       width,      A(negative_slope), dropout,     s.data()};
    const cuda::GatArguments<T> arguments = {scores,
                                             features.data(),
                                             b.data(),
                                             p.data(),
                                             c.data(),
                                             y.data(),
                                             save ? lse.data() : nullptr,
                                             save ? tilt.data() : nullptr,
                                             rows,
                                             c.size(),
                                             spans,
                                             x.shape(0)};
    check(cuda::launch_gat(arguments, save, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(y.numpy(), lse.numpy(), tilt.numpy());
  });
}

py::object gat_backward(const py::array& dy, const py::array& x, const py::array& a_src, const py::array& a_dst,
                        const py::object& a_edge, const py::array& y, const py::array& lse, const py::array& tilt,
                        const py::array& ccol, const py::array& row, const py::array& perm, double negative_slope,
                        double dropout, const py::object& seed, bool need_edge, const py::object& att_src,
                        const py::object& att_dst, const py::object& bias, const py::object& list) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    using A = acc_t<T>;
    const int64_t rows = dy.shape(0), cols = x.shape(0), heads = x.shape(1), width = x.shape(2);
    Array<T> g(dy), features(x), out(y), t(tilt), dx({cols, heads, width});
    Array<A> src(a_src), dst(a_dst), l(lse), da_src({cols, heads}), da_dst({rows, heads});
    Array<A> da_edge({need_edge ? row.size() : 0, heads});
    const bool folded = !att_src.is_none(), biased = !bias.is_none();
    Optional<A> edge(a_edge), as(att_src), ad(att_dst), b(bias);
    Array<A> datt_src({folded ? heads : 0, width}), datt_dst({folded ? heads : 0, width});
    Array<A> dbias({biased ? heads : 0, width});
    Array<int32_t> p(ccol), r(row), q(perm);
    Optional<int64_t> s(seed);
    Spans spans(list);
    const cuda::GatScores<A> scores = {src.data(), dst.data(),        edge.data(), heads,
                                       width,      A(negative_slope), dropout,     s.data()};
    const cuda::GatBackwardArguments<T> arguments = {scores,
                                                     g.data(),
                                                     features.data(),
                                                     out.data(),
                                                     t.data(),
                                                     l.data(),
                                                     b.data(),
                                                     as.data(),
                                                     ad.data(),
                                                     p.data(),
                                                     r.data(),
                                                     q.data(),
                                                     dx.data(),
                                                     da_src.data(),
                                                     da_dst.data(),
                                                     need_edge ? da_edge.data() : nullptr,
                                                     folded ? datt_src.data() : nullptr,
                                                     folded ? datt_dst.data() : nullptr,
                                                     biased ? dbias.data() : nullptr,
                                                     rows,
                                                     cols,
                                                     row.size(),
                                                     spans};
    Array<char> workspace({cuda::GatBackwardWorkspace<T>(arguments).bytes()});
    check(cuda::launch_gat_backward(arguments, workspace.data() - misalignment(), nullptr));
    return py::make_tuple(dx.numpy(), da_src.numpy(), da_dst.numpy(), da_edge.numpy(), datt_src.numpy(),
                          datt_dst.numpy(), dbias.numpy());
  });
}

py::object gat_scores(const py::array& x, const py::array& att_src, const py::array& att_dst) {
  return by_dtype(x, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    const int64_t nodes = x.shape(0), heads = x.shape(1), width = x.shape(2);
    Array<T> features(x);
    Array<acc_t<T>> src(att_src), dst(att_dst), scores({2, nodes, heads});
    check(
        cuda::launch_gat_scores(features.data(), src.data(), dst.data(), nodes, heads, width, scores.data(), nullptr));
    return scores.numpy();
  });
}

}  // namespace

SG_BINDINGS(m) {
  m.def("gat", &gat, py::arg("x"), py::arg("a_src"), py::arg("a_dst"), py::arg("a_edge"), py::arg("crow"),
        py::arg("col"), py::arg("negative_slope") = 0.2, py::arg("dropout") = 0.0, py::arg("seed") = py::none(),
        py::arg("save") = true, py::arg("bias") = py::none(), py::arg("spans") = py::none());
  m.def("gat_backward", &gat_backward, py::arg("dy"), py::arg("x"), py::arg("a_src"), py::arg("a_dst"),
        py::arg("a_edge"), py::arg("y"), py::arg("lse"), py::arg("tilt"), py::arg("ccol"), py::arg("row"),
        py::arg("perm"), py::arg("negative_slope") = 0.2, py::arg("dropout") = 0.0, py::arg("seed") = py::none(),
        py::arg("need_edge") = false, py::arg("att_src") = py::none(), py::arg("att_dst") = py::none(),
        py::arg("bias") = py::none(), py::arg("cspans") = py::none());
  m.def("gat_scores", &gat_scores);
}

}  // namespace sparsegnn::emulated
