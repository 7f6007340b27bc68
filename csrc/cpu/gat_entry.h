// What the entries of gat and gatv2 share: chunks, tiles, and the arguments that both have.
#pragma once
#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "gat.h"
#include "output.h"

namespace sparsegnn {

// Edges and rows of one chunk: small enough to balance hubs, large enough to make the queue free.
constexpr int64_t gat_chunk_cost = 4096;

inline std::vector<GatTile> gat_tiles(int64_t heads, int64_t width, int most) {
  std::vector<GatTile> tiles;
  const int64_t step = width == 0 ? most : std::clamp<int64_t>(gat_tile_columns / width, 1, most);
  for (int64_t h = 0; h < heads; h += step) {
    const int64_t n = std::min(step, heads - h);
    for (int64_t c = 0; c == 0 || c < n * width; c += gat_tile_columns)
      tiles.push_back({h, h * width + c, int(n), int(std::min<int64_t>(n * width - c, gat_tile_columns)), c == 0});
  }
  return tiles;
}

// `slot` is null where neither edge scores nor dropout ask for it.
template <typename A>
GatEdges<A> gat_edges(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& index, const int32_t* slot,
                      double negative_slope, double dropout, const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, op, ": dropout must be in [0, 1], got ", dropout);
  STD_TORCH_CHECK(dropout == 0 || (seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long), op,
                  ": dropout needs a seed of dtype int64 and shape [1]");
  return {data<int32_t>(offsets),
          data<int32_t>(index),
          slot,
          x.size(1),
          x.size(2),
          A(negative_slope),
          dropout > 0,
          random_key(dropout > 0 ? *data<int64_t>(*seed) : 0),
          random_threshold(dropout),
          A(random_scale(dropout))};
}

// out[0 .. n) = the sum of `count` parts, each `stride` behind the one before, in order.
template <typename A>
void sum_parts(A* out, const A* parts, int64_t count, int64_t n, int64_t stride) {
  std::fill(out, out + n, A{0});
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < n; ++k) out[k] += parts[p * stride + k];
}

}  // namespace sparsegnn
