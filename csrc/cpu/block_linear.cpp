// block_linear / cpu: checks, plans, outputs, threads. The arithmetic is in the .kernel.cpp files of this stem.
#include "block_linear.h"

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"
#include "workspace.h"

namespace sparsegnn {
namespace {

constexpr const char* name = "block_linear";

struct Sizes {
  int64_t samples, outputs, inputs, blocks, height, width;
  bool grouped() const { return width == 1; }
  bool empty() const { return samples == 0 || outputs == 0 || inputs == 0; }
};

// One side of a pattern over blocks: offsets from 0 to `blocks`, indices below `limit`.
void check_side(const char* pointer, const char* index, const Tensor& crow, const Tensor& col, int64_t limit) {
  check_index(name, pointer, crow);
  check_index(name, index, col);
  const int32_t *p = data<int32_t>(crow), *i = data<int32_t>(col);
  const int64_t rows = crow.numel() - 1, blocks = col.numel();
  STD_TORCH_CHECK(rows >= 0, "block_linear: ", pointer, " must have elements");
  bool ascends = p[0] == 0 && p[rows] == blocks;
  for (int64_t r = 0; r < rows; ++r) ascends &= p[r] <= p[r + 1];
  STD_TORCH_CHECK(ascends, "block_linear: ", pointer, " must ascend from 0 to the number of blocks");
  uint32_t largest = 0;
  for (int64_t e = 0; e < blocks; ++e) largest = std::max(largest, uint32_t(i[e]));
  STD_TORCH_CHECK(blocks == 0 || largest < limit, "block_linear: ", index, " must be in [0, ", limit, ")");
}

Sizes check(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& ccol,
            int64_t height, int64_t width) {
  const bool grouped = width == 1 && (height == 4 || height == 8 || height == 16);
  STD_TORCH_CHECK(grouped || (height == width && (width == 16 || width == 32)),
                  "block_linear: blocks must be 4x1, 8x1, 16x1, 16x16 or 32x32, got ", height, "x", width);
  STD_TORCH_CHECK(x.dim() == 2, "block_linear: x must have shape [N, K], got ", x.dim(), " dimension(s)");
  const Sizes s{x.size(0), (crow.numel() - 1) * height, x.size(1), col.numel(), height, width};
  STD_TORCH_CHECK(s.inputs == (ccol.numel() - 1) * width, "block_linear: x must have ", (ccol.numel() - 1) * width,
                  " columns, got ", s.inputs);
  check_side("crow", "col", crow, col, s.inputs / width);
  check_same_dtype(name, "values", values, x);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == s.blocks * height * width,
                  "block_linear: values must have one element per position of a block");
  return s;
}

// The blocks in the accumulator type, transposed for the forward of square blocks; `values` themselves where they do.
template <typename T, typename A = accumulate<T>>
const A* packed(const T* values, const Sizes& s, bool transposed, Workspace& memory) {
  if constexpr (std::is_same_v<T, A>)
    if (!transposed) return values;
  A* out = memory.get<A>(s.blocks * s.height * s.width);
  const int64_t step = std::max<int64_t>(1, 65536 / (s.height * s.width));
  const auto kernel = SG_PICK(block_linear_pack<T, A>);
  for_each_chunk((s.blocks + step - 1) / step, [&](int64_t c) {
    kernel(values, out, c * step, std::min(s.blocks, (c + 1) * step), int(s.height), int(s.width), transposed);
  });
  return out;
}

// Stores past the caches gain from 12 MB of traffic on (measured for sparse_linear) and need aligned rows.
bool stream_output(int64_t bytes, int64_t row_bytes) { return bytes > (int64_t{12} << 20) && row_bytes % 64 == 0; }

template <typename T, typename A>
void multiply(const BlockLinearWeight<A>& w, const T* x, const A* bias, T* y, int64_t samples) {
  const int64_t tile = SG_PICK(block_linear_tile)(sizeof(A), w.height, w.width);
  const bool stream = stream_output((w.rows + w.cols) * samples * int64_t(sizeof(T)), w.rows * int64_t(sizeof(T)));
  const BlockLinearArgs<T, A> args{w, x, bias, y, samples, stream};
  const int64_t tiles = (samples + tile - 1) / tile, step = std::max<int64_t>(1, tiles / 64);
  const int64_t size = tile * (w.cols + (w.width == 1 ? 64 : 0));
  const auto kernel = w.width == 1 ? SG_PICK(block_linear_grouped<T, A>) : SG_PICK(block_linear_square<T, A>);
  for_each_chunk((tiles + step - 1) / step, [&](int64_t c) {
    thread_local Workspace memory;
    kernel(args, c * step, std::min(tiles, (c + 1) * step), memory.get<A>(size));
  });
}

Tensor block_linear(const Tensor& x_in, const Tensor& values_in, const std::optional<Tensor>& bias_in,
                    const Tensor& crow, const Tensor& col, const Tensor& ccol, const Tensor& /*row*/,
                    const Tensor& /*perm*/, int64_t height, int64_t width, bool /*tf32*/) {
  const Sizes s = check(x_in, values_in, crow, col, ccol, height, width);
  if (bias_in) {
    check_same_dtype(name, "bias", *bias_in, x_in);
    STD_TORCH_CHECK(bias_in->dim() == 1 && bias_in->numel() == s.outputs, "block_linear: bias must have ", s.outputs,
                    " elements");
  }
  const Tensor x = as_contiguous(x_in), values = as_contiguous(values_in);
  const auto bias = as_scale(bias_in, x);
  Tensor y = new_output(x, {s.samples, s.outputs});
  if (y.numel() == 0) return y;
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    thread_local Workspace memory;
    const A* value = packed(data<T>(values), s, /*transposed=*/!s.grouped(), memory);
    const BlockLinearWeight<A> w{data<int32_t>(crow), data<int32_t>(col), nullptr, value, s.outputs, s.inputs, s.blocks,
                                 int32_t(height),     int32_t(width)};
    multiply<T, A>(w, data<T>(x), data<A>(bias), mutable_data<T>(y), s.samples);
  });
  return y;
}

// How the backward is cut; shapes alone decide.
struct Plan {
  int64_t parts, block, tiles, chunk_tiles, chunks, workspace;
};

Plan choose_backward(const Sizes& s, int64_t tile, int64_t element) {
  constexpr int64_t l1 = 24 << 10, l2 = 512 << 10, entries = 8;
  const int64_t affordable = (int64_t{64} << 20) / ((s.blocks * s.height * s.width + s.outputs) * element + 1);
  const int64_t chunks = std::clamp<int64_t>(affordable, 4, 16);
  const auto round_up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
  Plan p{};
  const int64_t wide = s.outputs + s.inputs;
  // Groups: dy is read in order, so it may leave L2; fewer parts cost more in sums over lanes (1024 wide: 4 %).
  p.parts = s.grouped() ? 4 : std::clamp<int64_t>(l2 / (wide * tile * element), 2, 8);
  p.parts = std::clamp<int64_t>(s.samples / 4 / tile, 1, p.parts);
  if (s.grouped()) {  // a block of dx in L1, unless a group would meet it with a few entries only; 32: cache lines
    const int64_t few = entries * s.inputs * (s.outputs / s.height) / std::max<int64_t>(1, s.blocks);
    const int64_t block = round_up(std::max(l1 / (tile * element), few), 32);
    p.block = std::min(s.inputs, block);
  }
  p.tiles = (s.samples + p.parts * tile - 1) / (p.parts * tile);
  p.chunk_tiles = (p.tiles + chunks - 1) / chunks;
  p.chunks = (p.tiles + p.chunk_tiles - 1) / p.chunk_tiles;
  p.workspace = p.parts * tile * (s.outputs + (s.grouped() ? p.block : s.inputs)) + tile * p.block;
  return p;
}

// starts[b * groups + g]: first entry of group g in the block of inputs from b * block on; columns must ascend.
std::vector<int32_t> find_starts(const Sizes& s, const int32_t* crow, const int32_t* col, int64_t block) {
  const int64_t groups = s.outputs / s.height, blocks = (s.inputs + block - 1) / block;
  std::vector<int32_t> starts((blocks + 1) * groups);
  bool ascends = true;
  for (int64_t g = 0; g < groups; ++g) {
    int32_t e = crow[g];
    for (int64_t b = 0; b < blocks; ++b) {
      starts[b * groups + g] = e;
      for (; e < crow[g + 1] && col[e] < (b + 1) * block; ++e) ascends &= col[e] >= b * block;
    }
    ascends &= e == crow[g + 1];
    starts[blocks * groups + g] = e;
  }
  STD_TORCH_CHECK(ascends, "block_linear: col must ascend within rows");
  return starts;
}

std::tuple<Tensor, Tensor, Tensor> block_linear_backward(const Tensor& dy_in, const Tensor& x_in,
                                                         const Tensor& values_in, const Tensor& crow, const Tensor& col,
                                                         const Tensor& ccol, const Tensor& row, const Tensor& perm,
                                                         int64_t height, int64_t width, bool need_dx, bool need_dvalues,
                                                         bool need_dbias, bool tf32) {
  const Sizes s = check(x_in, values_in, crow, col, ccol, height, width);
  check_side("ccol", "row", ccol, row, s.outputs / height);
  check_side("ccol", "perm", ccol, perm, s.blocks);
  STD_TORCH_CHECK(dy_in.dim() == 2 && dy_in.size(0) == s.samples && dy_in.size(1) == s.outputs,
                  "block_linear: dy must have the shape of y");
  check_same_dtype(name, "dy", dy_in, x_in);
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in), values = as_contiguous(values_in);
  Tensor dx = need_dx ? new_output(x, {s.samples, s.inputs}) : new_output(x, {0});
  Tensor dvalues = new_output(x, {need_dvalues ? values.numel() : 0});
  Tensor dbias = new_output(x, {need_dbias ? s.outputs : 0});
  if (s.inputs == 0 && need_dbias && !(s.samples == 0 || s.outputs == 0)) {
    const Tensor none = torch::stable::new_zeros(dy, {s.samples, width}), offsets = torch::stable::new_zeros(crow, {2});
    dbias = std::get<2>(block_linear_backward(dy, none, values, crow, col, offsets, row, perm, height, width, false,
                                              false, true, tf32));
    return {dx, dvalues, dbias};
  }
  if (s.empty()) {
    for (Tensor* t : {&dx, &dvalues, &dbias}) torch::stable::zero_(*t);
    return {dx, dvalues, dbias};
  }
  dispatch(name, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const int64_t tile = SG_PICK(block_linear_tile)(sizeof(A), int(height), int(width));
    const Plan plan = choose_backward(s, tile, sizeof(A));
    const auto starts =
        s.grouped() ? find_starts(s, data<int32_t>(crow), data<int32_t>(col), plan.block) : std::vector<int32_t>();
    thread_local Workspace memory, partials;
    const int64_t stride = (values.numel() + 15) / 16 * 16;
    A* value_partial = partials.get<A>(plan.chunks * (stride + s.outputs));
    A* bias_partial = value_partial + plan.chunks * stride;
    BlockLinearBackwardArgs<T, A> a{};
    a.w = {data<int32_t>(crow), data<int32_t>(col), nullptr,  packed(data<T>(values), s, false, memory),
           s.outputs,           s.inputs,           s.blocks, int32_t(height),
           int32_t(width)};
    a.ccol = data<int32_t>(ccol), a.row = data<int32_t>(row), a.perm = data<int32_t>(perm), a.starts = starts.data();
    a.dy = data<T>(dy), a.x = data<T>(x), a.dx = need_dx ? mutable_data<T>(dx) : nullptr;
    a.value_partial = need_dvalues ? value_partial : nullptr, a.bias_partial = need_dbias ? bias_partial : nullptr;
    a.value_stride = stride, a.samples = s.samples, a.chunk_tiles = plan.chunk_tiles;
    a.parts = int32_t(plan.parts), a.block = int32_t(plan.block);
    a.stream =
        stream_output((2 * s.inputs + s.outputs) * s.samples * int64_t(sizeof(T)), s.inputs * int64_t(sizeof(T)));
    const auto kernel =
        s.grouped() ? SG_PICK(block_linear_grouped_backward<T, A>) : SG_PICK(block_linear_square_backward<T, A>);
    for_each_chunk(plan.chunks, [&](int64_t c) {
      thread_local Workspace tiles;
      kernel(a, c, tiles.get<A>(plan.workspace));
    });
    const auto sum = SG_PICK(block_linear_sum<T, A>);
    constexpr int64_t step = 16384;
    if (need_dvalues) {
      T* out = mutable_data<T>(dvalues);
      for_each_chunk((dvalues.numel() + step - 1) / step, [&](int64_t c) {
        sum(value_partial, stride, plan.chunks, out, c * step, std::min(dvalues.numel(), (c + 1) * step));
      });
    }
    if (need_dbias) sum(bias_partial, s.outputs, plan.chunks, mutable_data<T>(dbias), 0, s.outputs);
    partials.trim();
  });
  return {dx, dvalues, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("block_linear", TORCH_BOX(&block_linear));
  m.impl("block_linear_backward", TORCH_BOX(&block_linear_backward));
}

}  // namespace sparsegnn
