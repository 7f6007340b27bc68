// gatv2 / cpu: checks, outputs, dtype, threads. The arithmetic is in gatv2.kernel.cpp and gatv2_backward.kernel.cpp.
#include "gatv2.h"

#include "gat_entry.h"

namespace sparsegnn {
namespace {

struct Inputs {  // checked and contiguous, att in the accumulator type
  Tensor x_src, x_dst, att;
  std::optional<Tensor> edge;
};

Inputs check_inputs(const char* op, const Tensor& x_src, const Tensor& x_dst, const Tensor& att,
                    const std::optional<Tensor>& edge, int64_t edges) {
  STD_TORCH_CHECK(x_src.dim() == 3, op, ": x_src must have shape [N, H, D], got ", x_src.dim(), " dimension(s)");
  const int64_t h = x_src.size(1), d = x_src.size(2);
  STD_TORCH_CHECK(x_dst.dim() == 3 && x_dst.size(1) == h && x_dst.size(2) == d, op,
                  ": x_dst must have shape [M, H, D]");
  STD_TORCH_CHECK(att.dim() == 2 && att.size(0) == h && att.size(1) == d, op, ": att must have shape [H, D]");
  check_same_dtype(op, "x_dst", x_dst, x_src);
  if (edge) {
    STD_TORCH_CHECK(edge->dim() == 3 && edge->size(0) == edges && edge->size(1) == h && edge->size(2) == d, op,
                    ": edge must have shape [E, H, D]");
    check_same_dtype(op, "edge", *edge, x_src);
  }
  return {as_contiguous(x_src), as_contiguous(x_dst), *as_scale(att, x_src), as_contiguous(edge)};
}

template <typename T, typename A>
Gatv2Edges<T, A> make_edges(const char* op, const Inputs& in, const Tensor& offsets, const Tensor& index,
                            const int32_t* slot, double negative_slope, double dropout,
                            const std::optional<Tensor>& seed) {
  return {gat_edges<A>(op, in.x_src, offsets, index, in.edge || dropout > 0 ? slot : nullptr, negative_slope, dropout,
                       seed),
          data<T>(in.x_src), data<T>(in.x_dst), data<T>(in.edge), data<A>(in.att)};
}

std::tuple<Tensor, Tensor> gatv2(const Tensor& x_src, const Tensor& x_dst, const Tensor& att,
                                 const std::optional<Tensor>& edge, const Tensor& crow, const Tensor& col,
                                 const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
                                 const std::optional<Tensor>& /*perm*/, double negative_slope, double dropout,
                                 const std::optional<Tensor>& seed, bool save, const std::optional<Tensor>& /*spans*/,
                                 const std::optional<Tensor>& /*cspans*/) {
  check_index("gatv2", "crow", crow);
  check_index("gatv2", "col", col);
  const Inputs in = check_inputs("gatv2", x_src, x_dst, att, edge, col.numel());
  const int64_t m = x_dst.size(0), h = x_src.size(1), d = x_src.size(2);
  STD_TORCH_CHECK(crow.numel() == m + 1, "gatv2: crow must have M + 1 elements");
  Tensor y = new_output(in.x_src, {m, h, d});
  Tensor lse = new_output(in.x_src, {save ? m : 0, save ? h : 0}, accumulator(x_src.scalar_type()));
  const auto bounds = balanced_rows(data<int32_t>(crow), m, gat_chunk_cost);
  dispatch("gatv2", x_src.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const Gatv2Args<T, A> args{make_edges<T, A>("gatv2", in, crow, col, nullptr, negative_slope, dropout, seed),
                               mutable_data<T>(y), save ? mutable_data<A>(lse) : nullptr};
    const auto tiles = gat_tiles(h, d, SG_PICK(gat_tile_heads<A>()));
    const auto kernel = SG_PICK(gatv2_rows<T, A>);
    for_each_chunk(int64_t(bounds.size()) - 1,
                   [&](int64_t c) { kernel(args, tiles.data(), tiles.size(), bounds[c], bounds[c + 1]); });
  });
  return {y, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gatv2_backward(
    const Tensor& dy_in, const Tensor& x_src, const Tensor& x_dst, const Tensor& att, const std::optional<Tensor>& edge,
    const Tensor& y_in, const Tensor& lse_in, const Tensor& crow, const Tensor& col, const Tensor& ccol,
    const Tensor& row, const Tensor& perm, double negative_slope, double dropout, const std::optional<Tensor>& seed,
    bool need_edge, const std::optional<Tensor>& /*spans*/, const std::optional<Tensor>& /*cspans*/) {
  const char* op = "gatv2_backward";
  check_index(op, "crow", crow);
  check_index(op, "col", col);
  check_index(op, "ccol", ccol);
  check_index(op, "row", row);
  check_index(op, "perm", perm);
  const Inputs in = check_inputs(op, x_src, x_dst, att, edge, col.numel());
  const Tensor dy = as_contiguous(dy_in), y = as_contiguous(y_in), lse = as_contiguous(lse_in);
  const int64_t n = x_src.size(0), m = x_dst.size(0), h = x_src.size(1), d = x_src.size(2);
  const auto features = [&](const char* name, const Tensor& t) {
    check_same_dtype(op, name, t, x_src);
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == m && t.size(1) == h && t.size(2) == d, op, ": ", name,
                    " must have shape [M, H, D]");
  };
  features("dy", dy);
  features("y", y);
  check_same_dtype(op, "lse", lse, in.att);
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == m && lse.size(1) == h, op, ": lse must have shape [M, H]");
  STD_TORCH_CHECK(
      crow.numel() == m + 1 && ccol.numel() == n + 1 && row.numel() == col.numel() && perm.numel() == row.numel(), op,
      ": crow, col, ccol, row, perm must be a pattern and its transpose");
  STD_TORCH_CHECK(!need_edge || edge, op, ": edge must be given when its gradient is asked for");

  const ScalarType wide = accumulator(x_src.scalar_type());
  Tensor dx_src = new_output(in.x_src, {n, h, d}), dx_dst = new_output(in.x_src, {m, h, d});
  Tensor dedge = new_output(in.x_src, {need_edge ? col.numel() : 0, need_edge ? h : 0, need_edge ? d : 0});
  Tensor datt = new_output(in.x_src, {h, d}, wide), node = new_output(in.x_src, {m, 2, h}, wide);
  const auto bounds = balanced_rows(data<int32_t>(crow), m, gat_chunk_cost);
  const auto source_bounds = balanced_rows(data<int32_t>(ccol), n, gat_chunk_cost);
  const int64_t chunks = int64_t(bounds.size()) - 1;
  Tensor parts = new_output(in.x_src, {chunks, h, d}, wide);
  dispatch(op, x_src.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    Gatv2BackwardArgs<T, A> args{make_edges<T, A>(op, in, crow, col, nullptr, negative_slope, dropout, seed),
                                 data<T>(dy),
                                 data<T>(y),
                                 data<A>(lse),
                                 mutable_data<A>(node),
                                 mutable_data<T>(dx_src),
                                 mutable_data<T>(dx_dst),
                                 need_edge ? mutable_data<T>(dedge) : nullptr};
    const auto tiles = gat_tiles(h, d, SG_PICK(gat_tile_heads<A>()));
    const auto rows = SG_PICK(gatv2_backward_rows<T, A>);
    const auto sources = SG_PICK(gatv2_backward_sources<T, A>);
    A *part = mutable_data<A>(parts), *sum = mutable_data<A>(datt);
    for_each_chunk(
        chunks, [&](int64_t c) { rows(args, tiles.data(), tiles.size(), bounds[c], bounds[c + 1], part + c * h * d); });
    sum_parts<A>(sum, part, chunks, h * d, h * d);
    static_cast<Gatv2Edges<T, A>&>(args) =
        make_edges<T, A>(op, in, ccol, row, data<int32_t>(perm), negative_slope, dropout, seed);
    for_each_chunk(int64_t(source_bounds.size()) - 1, [&](int64_t c) {
      sources(args, tiles.data(), tiles.size(), source_bounds[c], source_bounds[c + 1]);
    });
  });
  return {dx_src, dx_dst, datt, dedge};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("gatv2", TORCH_BOX(&gatv2));
  m.impl("gatv2_backward", TORCH_BOX(&gatv2_backward));
}

}  // namespace sparsegnn
