// gat / cpu: checks, outputs, dtype, threads. The arithmetic is in gat.kernel.cpp and gat_backward.kernel.cpp.
#include "gat_entry.h"

namespace sparsegnn {
namespace {

struct Scores {  // checked, contiguous, in the accumulator type
  Tensor a_src, a_dst;
  std::optional<Tensor> a_edge;
};

// Nodes of a chunk of the passes that walk nodes, not edges.
constexpr int64_t node_chunk = 1024;

std::optional<Tensor> check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& x) {
  STD_TORCH_CHECK(!bias || bias->numel() == x.size(1) * x.size(2), op, ": bias must have H * D elements");
  return as_scale(bias, x);
}

// The scores [2, N, H] of all nodes: <x, att_src> and <x, att_dst>.
Tensor fold_scores(const Tensor& x, const Tensor& att_src, const Tensor& att_dst) {
  const int64_t n = x.size(0), h = x.size(1), d = x.size(2);
  const auto ok = [&](const Tensor& t) { return t.dim() == 3 && t.size(0) == 1 && t.size(1) == h && t.size(2) == d; };
  STD_TORCH_CHECK(ok(att_src) && ok(att_dst), "gat: a_src and a_dst must have shape [1, H, D] both");
  const Tensor src = *as_scale(att_src, x), dst = *as_scale(att_dst, x);
  Tensor scores = new_output(x, {2, n, h}, accumulator(x.scalar_type()));
  dispatch("gat", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const auto kernel = SG_PICK(gat_scores<T, A>);
    for_each_chunk((n + node_chunk - 1) / node_chunk, [&](int64_t c) {
      kernel(data<T>(x), data<A>(src), data<A>(dst), mutable_data<A>(scores), n, h, d, c * node_chunk,
             std::min(n, (c + 1) * node_chunk));
    });
  });
  return scores;
}

Scores check_scores(const char* op, const Tensor& x, const Tensor& a_src, const Tensor& a_dst,
                    const std::optional<Tensor>& a_edge, int64_t edges) {
  STD_TORCH_CHECK(x.dim() == 3, op, ": x must have shape [N, H, D], got ", x.dim(), " dimension(s)");
  const auto ok = [&](const Tensor& t, int64_t size) {
    return t.dim() == 2 && t.size(0) == size && t.size(1) == x.size(1);
  };
  STD_TORCH_CHECK(ok(a_src, x.size(0)), op, ": a_src must have shape [N, H]");
  STD_TORCH_CHECK(a_dst.dim() == 2 && ok(a_dst, a_dst.size(0)), op, ": a_dst must have shape [M, H]");
  STD_TORCH_CHECK(!a_edge || ok(*a_edge, edges), op, ": a_edge must have shape [E, H]");
  return {*as_scale(a_src, x), *as_scale(a_dst, x), as_scale(a_edge, x)};
}

template <typename A>
GatScores<A> make_scores(const char* op, const Scores& s, const Tensor& x, const Tensor& offsets, const Tensor& index,
                         const int32_t* slot, double negative_slope, double dropout,
                         const std::optional<Tensor>& seed) {
  return {gat_edges<A>(op, x, offsets, index, s.a_edge || dropout > 0 ? slot : nullptr, negative_slope, dropout, seed),
          data<A>(s.a_src), data<A>(s.a_dst), data<A>(s.a_edge)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gat(
    const Tensor& x_in, const Tensor& a_src, const Tensor& a_dst, const std::optional<Tensor>& a_edge,
    const Tensor& crow, const Tensor& col, const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
    const std::optional<Tensor>& /*perm*/, double negative_slope, double dropout, const std::optional<Tensor>& seed,
    bool save, const std::optional<Tensor>& bias_in, const std::optional<Tensor>& /*spans*/,
    const std::optional<Tensor>& /*cspans*/) {
  check_index("gat", "crow", crow);
  check_index("gat", "col", col);
  STD_TORCH_CHECK(x_in.dim() == 3, "gat: x must have shape [N, H, D], got ", x_in.dim(), " dimension(s)");
  const Tensor x = as_contiguous(x_in);
  const bool folded = a_src.dim() == 3;
  Tensor nodes = folded ? fold_scores(x, a_src, a_dst) : new_output(x, {0, 0, 0}, accumulator(x.scalar_type()));
  const Scores scores = folded ? check_scores("gat", x, torch::stable::select(nodes, 0, 0),
                                              torch::stable::select(nodes, 0, 1), a_edge, col.numel())
                               : check_scores("gat", x, a_src, a_dst, a_edge, col.numel());
  const auto bias = check_bias("gat", bias_in, x);
  const int64_t m = scores.a_dst.size(0), h = x.size(1), d = x.size(2);
  STD_TORCH_CHECK(crow.numel() == m + 1, "gat: crow must have M + 1 elements");
  Tensor y = new_output(x, {m, h, d});
  Tensor lse = new_output(x, {save ? m : 0, save ? h : 0}, accumulator(x.scalar_type()));
  Tensor tilt = new_output(x, {save ? m : 0, save ? h : 0, save ? d : 0});
  const auto bounds = balanced_rows(data<int32_t>(crow), m, gat_chunk_cost);
  dispatch("gat", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const GatArgs<T, A> args{make_scores<A>("gat", scores, x, crow, col, nullptr, negative_slope, dropout, seed),
                             data<T>(x),
                             data<A>(bias),
                             mutable_data<T>(y),
                             save ? mutable_data<A>(lse) : nullptr,
                             mutable_data<T>(tilt)};
    const auto tiles = gat_tiles(h, d, SG_PICK(gat_tile_heads<A>()));
    const auto kernel = SG_PICK(gat_rows<T, A>);
    for_each_chunk(int64_t(bounds.size()) - 1,
                   [&](int64_t c) { kernel(args, tiles.data(), tiles.size(), bounds[c], bounds[c + 1]); });
  });
  return {y, lse, tilt, nodes};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gat_backward(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& a_src, const Tensor& a_dst,
    const std::optional<Tensor>& a_edge, const Tensor& y_in, const Tensor& lse_in, const Tensor& tilt_in,
    const Tensor& ccol, const Tensor& row, const Tensor& perm, double negative_slope, double dropout,
    const std::optional<Tensor>& seed, bool need_edge, const std::optional<Tensor>& att_src,
    const std::optional<Tensor>& att_dst, const std::optional<Tensor>& bias_in, bool need_bias,
    const std::optional<Tensor>& /*cspans*/) {
  const char* op = "gat_backward";
  check_index(op, "ccol", ccol);
  check_index(op, "row", row);
  check_index(op, "perm", perm);
  const Scores scores = check_scores(op, x_in, a_src, a_dst, a_edge, row.numel());
  const Tensor x = as_contiguous(x_in), dy = as_contiguous(dy_in), y = as_contiguous(y_in);
  const Tensor lse = as_contiguous(lse_in), tilt = as_contiguous(tilt_in);
  const int64_t n = x.size(0), m = a_dst.size(0), h = x.size(1), d = x.size(2);
  const auto features = [&](const char* name, const Tensor& t) {
    check_same_dtype(op, name, t, x);
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == m && t.size(1) == h && t.size(2) == d, op, ": ", name,
                    " must have shape [M, H, D]");
  };
  features("dy", dy);
  features("y", y);
  features("tilt", tilt);
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == m && lse.size(1) == h, op, ": lse must have shape [M, H]");
  STD_TORCH_CHECK(ccol.numel() == n + 1 && perm.numel() == row.numel(), op, ": ccol, row, perm must be a transpose");

  const auto bias = check_bias(op, bias_in, x);
  const bool folded = att_src && att_dst;
  STD_TORCH_CHECK(!folded || (att_src->numel() == h * d && att_dst->numel() == h * d && m == n), op,
                  ": att_src and att_dst must have shape [1, H, D]");
  const auto src = as_scale(att_src, x), dst = as_scale(att_dst, x);

  const ScalarType wide = accumulator(x.scalar_type());
  check_same_dtype(op, "lse", lse, scores.a_src);
  Tensor dx = new_output(x, {n, h, d}), da_src = new_output(x, {n, h}, wide), da_dst = new_output(x, {m, h}, wide);
  Tensor da_edge = new_output(x, {need_edge ? row.numel() : 0, need_edge ? h : 0}, wide);
  if (need_edge) torch::stable::zero_(da_edge);  // an edge that perm does not name is not written
  Tensor node = new_output(x, {m, 3, h}, wide);
  const auto bounds = balanced_rows(data<int32_t>(ccol), n, gat_chunk_cost);
  const int64_t node_chunks = (m + node_chunk - 1) / node_chunk, chunks = int64_t(bounds.size()) - 1;
  Tensor datt_src = new_output(x, {folded ? 1 : 0, h, d}, wide), datt_dst = new_output(x, {folded ? 1 : 0, h, d}, wide);
  Tensor dbias = new_output(x, {need_bias ? h * d : 0}, wide);
  Tensor att_parts = new_output(x, {folded ? chunks : 0, 2, h, d}, wide);
  Tensor bias_parts = new_output(x, {need_bias ? node_chunks : 0, h * d}, wide);
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    GatBackwardArgs<T, A> args{
        make_scores<A>(op, scores, x, ccol, row, data<int32_t>(perm), negative_slope, dropout, seed),
        data<T>(x),
        data<T>(dy),
        data<T>(y),
        data<T>(tilt),
        data<A>(lse),
        mutable_data<A>(node),
        data<A>(bias),
        mutable_data<T>(dx),
        mutable_data<A>(da_src),
        mutable_data<A>(da_dst),
        need_edge ? mutable_data<A>(da_edge) : nullptr,
        data<A>(src),
        data<A>(dst)};
    if (need_edge) args.slot = data<int32_t>(perm);
    const auto tiles = gat_tiles(h, d, SG_PICK(gat_tile_heads<A>()));
    const auto nodes = SG_PICK(gat_backward_nodes<T, A>);
    const auto rows = SG_PICK(gat_backward_rows<T, A>);
    A *bias_part = mutable_data<A>(bias_parts), *att_part = mutable_data<A>(att_parts);
    for_each_chunk(node_chunks, [&](int64_t c) {
      nodes(args, c * node_chunk, std::min(m, (c + 1) * node_chunk), need_bias ? bias_part + c * h * d : nullptr);
    });
    for_each_chunk(chunks, [&](int64_t c) {
      rows(args, tiles.data(), tiles.size(), bounds[c], bounds[c + 1], att_part + c * 2 * h * d);
    });
    if (folded) {
      sum_parts(mutable_data<A>(datt_src), att_part, chunks, h * d, 2 * h * d);
      sum_parts(mutable_data<A>(datt_dst), att_part + h * d, chunks, h * d, 2 * h * d);
    }
    if (need_bias) sum_parts(mutable_data<A>(dbias), bias_part, node_chunks, h * d, h * d);
  });
  return {dx, folded ? datt_src : da_src, folded ? datt_dst : da_dst, da_edge, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("gat", TORCH_BOX(&gat));
  m.impl("gat_backward", TORCH_BOX(&gat_backward));
}

}  // namespace sparsegnn
