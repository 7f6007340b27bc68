// gatv2 / cuda: checks, outputs, dtype, stream. The arithmetic is in gatv2.cuh and gatv2_backward.cuh.
#include "dispatch.h"
#include "gatv2_backward.cuh"

namespace sparsegnn::cuda {
namespace {

struct Inputs {  // checked and contiguous, att in the accumulator type
  Tensor x_src, x_dst, att;
  std::optional<Tensor> edge;
};

Inputs check_inputs(const char* op, const Tensor& x_src, const Tensor& x_dst, const Tensor& att,
                    const std::optional<Tensor>& edge, int64_t edges, double dropout,
                    const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(x_src.dim() == 3, op, ": x_src must have shape [N, H, D], got ", x_src.dim(), " dimension(s)");
  const int64_t h = x_src.size(1), d = x_src.size(2);
  STD_TORCH_CHECK(x_dst.dim() == 3 && x_dst.size(1) == h && x_dst.size(2) == d, op,
                  ": x_dst must have shape [M, H, D]");
  STD_TORCH_CHECK(att.dim() == 2 && att.size(0) == h && att.size(1) == d, op, ": att must have shape [H, D]");
  check_dropout(op, dropout, seed, x_src);
  check_same_dtype(op, "x_dst", x_dst, x_src);
  check_device(op, "x_dst", x_dst, x_src);
  check_device(op, "att", att, x_src);
  check_device(op, "edge", edge, x_src);
  if (edge) {
    STD_TORCH_CHECK(edge->dim() == 3 && edge->size(0) == edges && edge->size(1) == h && edge->size(2) == d, op,
                    ": edge must have shape [E, H, D]");
    check_same_dtype(op, "edge", *edge, x_src);
  }
  return {as_contiguous(x_src), as_contiguous(x_dst), *as_scale(att, x_src), as_contiguous(edge)};
}

template <typename T>
Gatv2Edges<T> make_edges(const Inputs& in, int64_t edges, double negative_slope, double dropout,
                         const std::optional<Tensor>& seed) {
  using A = acc_t<T>;
  const GatScores<A> scores{nullptr,          nullptr,           nullptr, in.x_src.size(1),
                            in.x_src.size(2), A(negative_slope), dropout, dropout > 0 ? data<int64_t>(seed) : nullptr};
  return {scores,          data<T>(in.x_src), data<T>(in.x_dst), data<T>(in.edge),
          data<A>(in.att), in.x_dst.size(0),  in.x_src.size(0),  edges};
}

std::tuple<Tensor, Tensor> gatv2(const Tensor& x_src, const Tensor& x_dst, const Tensor& att,
                                 const std::optional<Tensor>& edge, const Tensor& crow, const Tensor& col,
                                 const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
                                 const std::optional<Tensor>& /*perm*/, double negative_slope, double dropout,
                                 const std::optional<Tensor>& seed, bool save, const std::optional<Tensor>& spans,
                                 const std::optional<Tensor>& /*cspans*/) {
  const OnDevice device(x_src);
  check_index_on("gatv2", "crow", crow, x_src);
  check_index_on("gatv2", "col", col, x_src);
  const Inputs in = check_inputs("gatv2", x_src, x_dst, att, edge, col.numel(), dropout, seed);
  const int64_t m = x_dst.size(0), h = x_src.size(1), d = x_src.size(2);
  STD_TORCH_CHECK(crow.numel() == m + 1, "gatv2: crow must have M + 1 elements");
  Tensor y = torch::stable::new_empty(in.x_src, {m, h, d});
  Tensor lse =
      torch::stable::new_empty(in.x_src, {save ? m : 0, save ? h : 0}, sparsegnn::accumulator(x_src.scalar_type()));
  dispatch("gatv2", x_src.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const Gatv2Arguments<T> a{make_edges<T>(in, col.numel(), negative_slope, dropout, seed),
                              data<int32_t>(crow),
                              data<int32_t>(col),
                              mutable_data<T>(y),
                              save ? mutable_data<A>(lse) : nullptr,
                              check_spans("gatv2", "spans", spans, m, col.numel(), x_src)};
    Tensor pieces = workspace(in.x_src, gatv2_workspace_bytes(a));
    STD_CUDA_CHECK(launch_gatv2(a, pieces.mutable_data_ptr(), device.stream));
  });
  return {y, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gatv2_backward(
    const Tensor& dy_in, const Tensor& x_src, const Tensor& x_dst, const Tensor& att, const std::optional<Tensor>& edge,
    const Tensor& y_in, const Tensor& lse_in, const Tensor& crow, const Tensor& col, const Tensor& ccol,
    const Tensor& row, const Tensor& perm, double negative_slope, double dropout, const std::optional<Tensor>& seed,
    bool need_edge, const std::optional<Tensor>& spans, const std::optional<Tensor>& cspans) {
  const char* op = "gatv2_backward";
  const OnDevice device(x_src);
  check_index_on(op, "crow", crow, x_src);
  check_index_on(op, "col", col, x_src);
  check_index_on(op, "ccol", ccol, x_src);
  check_index_on(op, "row", row, x_src);
  check_index_on(op, "perm", perm, x_src);
  const Inputs in = check_inputs(op, x_src, x_dst, att, edge, col.numel(), dropout, seed);
  const Tensor dy = as_contiguous(dy_in), y = as_contiguous(y_in), lse = as_contiguous(lse_in);
  const int64_t n = x_src.size(0), m = x_dst.size(0), h = x_src.size(1), d = x_src.size(2), edges = col.numel();
  const auto features = [&](const char* name, const Tensor& t) {
    check_device(op, name, t, x_src);
    check_same_dtype(op, name, t, x_src);
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == m && t.size(1) == h && t.size(2) == d, op, ": ", name,
                    " must have shape [M, H, D]");
  };
  features("dy", dy);
  features("y", y);
  check_device(op, "lse", lse, x_src);
  check_same_dtype(op, "lse", lse, in.att);
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == m && lse.size(1) == h, op, ": lse must have shape [M, H]");
  STD_TORCH_CHECK(crow.numel() == m + 1 && ccol.numel() == n + 1 && row.numel() == edges && perm.numel() == edges, op,
                  ": crow, col, ccol, row, perm must be a pattern and its transpose");
  STD_TORCH_CHECK(!need_edge || edge, op, ": edge must be given when its gradient is asked for");
  Tensor dx_src = torch::stable::new_empty(in.x_src, {n, h, d}), dx_dst = torch::stable::new_empty(in.x_src, {m, h, d});
  Tensor dedge = torch::stable::new_empty(in.x_src, {need_edge ? edges : 0, need_edge ? h : 0, need_edge ? d : 0});
  Tensor datt = torch::stable::new_empty(in.x_src, {h, d}, sparsegnn::accumulator(x_src.scalar_type()));
  dispatch(op, x_src.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const Gatv2BackwardArguments<T> a{make_edges<T>(in, edges, negative_slope, dropout, seed),
                                      data<int32_t>(crow),
                                      data<int32_t>(col),
                                      data<int32_t>(ccol),
                                      data<int32_t>(row),
                                      data<int32_t>(perm),
                                      data<T>(dy),
                                      data<T>(y),
                                      data<A>(lse),
                                      mutable_data<T>(dx_src),
                                      mutable_data<T>(dx_dst),
                                      need_edge ? mutable_data<T>(dedge) : nullptr,
                                      mutable_data<A>(datt),
                                      check_spans(op, "spans", spans, m, edges, x_src),
                                      check_spans(op, "cspans", cspans, n, edges, x_src)};
    Tensor space = workspace(in.x_src, gatv2_backward_workspace_bytes(a));
    STD_CUDA_CHECK(launch_gatv2_backward(a, space.mutable_data_ptr(), device.stream));
  });
  return {dx_src, dx_dst, datt, dedge};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("gatv2", TORCH_BOX(&gatv2));
  m.impl("gatv2_backward", TORCH_BOX(&gatv2_backward));
}

}  // namespace sparsegnn::cuda
