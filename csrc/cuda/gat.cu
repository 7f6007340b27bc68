// gat / cuda: checks, outputs, dtype, stream. The arithmetic is in gat.cuh and gat_backward.cuh.
#include "dispatch.h"
#include "gat_backward.cuh"

namespace sparsegnn::cuda {
namespace {

struct Scores {  // checked, contiguous, in the accumulator type
  Tensor a_src, a_dst;
  std::optional<Tensor> a_edge;
};

Scores check_scores(const char* op, const Tensor& x, const Tensor& a_src, const Tensor& a_dst,
                    const std::optional<Tensor>& a_edge, int64_t edges, double dropout,
                    const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(x.dim() == 3, op, ": x must have shape [N, H, D], got ", x.dim(), " dimension(s)");
  const auto ok = [&](const Tensor& t, int64_t size) {
    return t.dim() == 2 && t.size(0) == size && t.size(1) == x.size(1);
  };
  STD_TORCH_CHECK(ok(a_src, x.size(0)), op, ": a_src must have shape [N, H]");
  STD_TORCH_CHECK(a_dst.dim() == 2 && ok(a_dst, a_dst.size(0)), op, ": a_dst must have shape [M, H]");
  STD_TORCH_CHECK(!a_edge || ok(*a_edge, edges), op, ": a_edge must have shape [E, H]");
  check_dropout(op, dropout, seed, x);
  check_device(op, "a_src", a_src, x);
  check_device(op, "a_dst", a_dst, x);
  check_device(op, "a_edge", a_edge, x);
  return {*as_scale(a_src, x), *as_scale(a_dst, x), as_scale(a_edge, x)};
}

std::optional<Tensor> check_vector(const char* op, const char* name, const std::optional<Tensor>& t, const Tensor& x) {
  STD_TORCH_CHECK(!t || t->numel() == x.size(1) * x.size(2), op, ": ", name, " must have H * D elements");
  check_device(op, name, t, x);
  return as_scale(t, x);
}

// The scores [2, N, H] of all nodes: <x, att_src> and <x, att_dst>.
Tensor fold_scores(const Tensor& x, const Tensor& a_src, const Tensor& a_dst, cudaStream_t stream) {
  const Tensor src = *check_vector("gat", "a_src", a_src, x), dst = *check_vector("gat", "a_dst", a_dst, x);
  Tensor scores = torch::stable::new_empty(x, {2, x.size(0), x.size(1)}, sparsegnn::accumulator(x.scalar_type()));
  dispatch("gat", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    STD_CUDA_CHECK(launch_gat_scores(data<T>(x), data<A>(src), data<A>(dst), x.size(0), x.size(1), x.size(2),
                                     mutable_data<A>(scores), stream));
  });
  return scores;
}

template <typename A>
GatScores<A> make_scores(const Scores& s, const Tensor& x, double negative_slope, double dropout,
                         const std::optional<Tensor>& seed) {
  return {data<A>(s.a_src), data<A>(s.a_dst),  data<A>(s.a_edge), x.size(1),
          x.size(2),        A(negative_slope), dropout,           dropout > 0 ? data<int64_t>(seed) : nullptr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gat(const Tensor& x_in, const Tensor& a_src, const Tensor& a_dst,
                                               const std::optional<Tensor>& a_edge, const Tensor& crow,
                                               const Tensor& col, const std::optional<Tensor>& /*ccol*/,
                                               const std::optional<Tensor>& /*row*/,
                                               const std::optional<Tensor>& /*perm*/, double negative_slope,
                                               double dropout, const std::optional<Tensor>& seed, bool save,
                                               const std::optional<Tensor>& bias_in, const std::optional<Tensor>& spans,
                                               const std::optional<Tensor>& /*cspans*/) {
  const OnDevice device(x_in);
  check_index_on("gat", "crow", crow, x_in);
  check_index_on("gat", "col", col, x_in);
  STD_TORCH_CHECK(x_in.dim() == 3, "gat: x must have shape [N, H, D], got ", x_in.dim(), " dimension(s)");
  const Tensor x = as_contiguous(x_in);
  const bool folded = a_src.dim() == 3;
  Tensor nodes = folded ? fold_scores(x, a_src, a_dst, device.stream)
                        : torch::stable::new_empty(x, {0, 0, 0}, sparsegnn::accumulator(x.scalar_type()));
  const Scores scores =
      check_scores("gat", x, folded ? torch::stable::select(nodes, 0, 0) : a_src,
                   folded ? torch::stable::select(nodes, 0, 1) : a_dst, a_edge, col.numel(), dropout, seed);
  const auto bias = check_vector("gat", "bias", bias_in, x);
  STD_TORCH_CHECK(crow.numel() == scores.a_dst.size(0) + 1, "gat: crow must have M + 1 elements");
  const int64_t m = scores.a_dst.size(0), h = x.size(1), d = x.size(2), edges = col.numel();
  Tensor y = torch::stable::new_empty(x, {m, h, d});
  Tensor lse = torch::stable::new_empty(x, {save ? m : 0, save ? h : 0}, sparsegnn::accumulator(x.scalar_type()));
  Tensor tilt = torch::stable::new_empty(x, {save ? m : 0, save ? h : 0, save ? d : 0});
  dispatch("gat", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    Tensor pieces = workspace(x, gat_workspace_bytes<T>(edges, h * d, save));
    const GatArguments<T> a{make_scores<A>(scores, x, negative_slope, dropout, seed),
                            data<T>(x),
                            data<A>(bias),
                            data<int32_t>(crow),
                            data<int32_t>(col),
                            mutable_data<T>(y),
                            save ? mutable_data<A>(lse) : nullptr,
                            save ? mutable_data<T>(tilt) : nullptr,
                            m,
                            edges,
                            check_spans("gat", "spans", spans, m, edges, x),
                            x.size(0)};
    STD_CUDA_CHECK(launch_gat(a, save, pieces.mutable_data_ptr(), device.stream));
  });
  return {y, lse, tilt, nodes};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gat_backward(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& a_src, const Tensor& a_dst,
    const std::optional<Tensor>& a_edge, const Tensor& y_in, const Tensor& lse_in, const Tensor& tilt_in,
    const Tensor& ccol, const Tensor& row, const Tensor& perm, double negative_slope, double dropout,
    const std::optional<Tensor>& seed, bool need_edge, const std::optional<Tensor>& att_src,
    const std::optional<Tensor>& att_dst, const std::optional<Tensor>& bias_in, bool need_bias,
    const std::optional<Tensor>& cspans) {
  const char* op = "gat_backward";
  const OnDevice device(x_in);
  check_index_on(op, "ccol", ccol, x_in);
  check_index_on(op, "row", row, x_in);
  check_index_on(op, "perm", perm, x_in);
  const Scores scores = check_scores(op, x_in, a_src, a_dst, a_edge, row.numel(), dropout, seed);
  const Tensor x = as_contiguous(x_in), dy = as_contiguous(dy_in), y = as_contiguous(y_in);
  const Tensor lse = as_contiguous(lse_in), tilt = as_contiguous(tilt_in);
  const int64_t n = x.size(0), m = a_dst.size(0), h = x.size(1), d = x.size(2), edges = row.numel();
  const auto features = [&](const char* name, const Tensor& t) {
    check_device(op, name, t, x);
    check_same_dtype(op, name, t, x);
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == m && t.size(1) == h && t.size(2) == d, op, ": ", name,
                    " must have shape [M, H, D]");
  };
  features("dy", dy);
  features("y", y);
  features("tilt", tilt);
  check_device(op, "lse", lse, x);
  check_same_dtype(op, "lse", lse, scores.a_src);
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == m && lse.size(1) == h, op, ": lse must have shape [M, H]");
  STD_TORCH_CHECK(ccol.numel() == n + 1 && perm.numel() == edges, op, ": ccol, row, perm must be a transpose");

  const auto bias = check_vector(op, "bias", bias_in, x);
  const auto src = check_vector(op, "att_src", att_src, x), dst = check_vector(op, "att_dst", att_dst, x);
  const bool folded = src && dst;
  STD_TORCH_CHECK(!folded || m == n, op, ": att_src and att_dst need as many rows as columns");

  const ScalarType wide = sparsegnn::accumulator(x.scalar_type());
  Tensor dx = torch::stable::new_empty(x, {n, h, d}), da_src = torch::stable::new_empty(x, {n, h}, wide);
  Tensor da_dst = torch::stable::new_empty(x, {m, h}, wide);
  Tensor da_edge = torch::stable::new_empty(x, {need_edge ? edges : 0, need_edge ? h : 0}, wide);
  if (need_edge) torch::stable::zero_(da_edge);  // an edge that perm does not name is not written
  Tensor datt_src = torch::stable::new_empty(x, {folded ? 1 : 0, h, d}, wide);
  Tensor datt_dst = torch::stable::new_empty(x, {folded ? 1 : 0, h, d}, wide);
  Tensor dbias = torch::stable::new_empty(x, {need_bias ? h * d : 0}, wide);
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = acc_t<T>;
    const GatBackwardArguments<T> a{make_scores<A>(scores, x, negative_slope, dropout, seed),
                                    data<T>(dy),
                                    data<T>(x),
                                    data<T>(y),
                                    data<T>(tilt),
                                    data<A>(lse),
                                    data<A>(bias),
                                    data<A>(src),
                                    data<A>(dst),
                                    data<int32_t>(ccol),
                                    data<int32_t>(row),
                                    data<int32_t>(perm),
                                    mutable_data<T>(dx),
                                    mutable_data<A>(da_src),
                                    mutable_data<A>(da_dst),
                                    need_edge ? mutable_data<A>(da_edge) : nullptr,
                                    folded ? mutable_data<A>(datt_src) : nullptr,
                                    folded ? mutable_data<A>(datt_dst) : nullptr,
                                    need_bias ? mutable_data<A>(dbias) : nullptr,
                                    m,
                                    n,
                                    edges,
                                    check_spans(op, "cspans", cspans, n, edges, x)};
    Tensor space = workspace(x, GatBackwardWorkspace<T>(a).bytes());
    STD_CUDA_CHECK(launch_gat_backward(a, space.mutable_data_ptr(), device.stream));
  });
  return {dx, folded ? datt_src : da_src, folded ? datt_dst : da_dst, da_edge, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("gat", TORCH_BOX(&gat));
  m.impl("gat_backward", TORCH_BOX(&gat_backward));
}

}  // namespace sparsegnn::cuda
