// Which tiling a sparse_linear call uses: one policy for every shape and sparsity.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "sparse_linear.h"

namespace sparsegnn {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline SparseLinearPlan tiling(int vectors, int64_t l1, int64_t l2, int64_t samples, int64_t inputs, int64_t outputs,
                               int64_t nnz, int64_t element) {
  SparseLinearPlan p;
  p.vectors = vectors;
  p.tile = vectors * SG_PICK(sparse_linear_lanes)(int(element));
  const int64_t row = p.tile * element;
  int64_t block = std::max<int64_t>(16, l1 / row);
  // Shorter rows of a block than about 4 entries cost more than a tile that spills.
  block = std::max(block, round_up(4 * inputs * outputs / std::max<int64_t>(1, nnz), 16));
  const int64_t blocks = (inputs + block - 1) / block;
  p.block = int32_t(std::max<int64_t>(1, std::min(inputs, round_up((inputs + blocks - 1) / blocks, 16))));
  int64_t panel = std::max<int64_t>(64, round_up(l2 / row, 16));
  if (blocks == 1) panel = 64;
  p.panel = int32_t(std::max<int64_t>(1, std::min(outputs, panel)));
  p.window = p.panel;
  const int64_t tiles = (samples + p.tile - 1) / p.tile;
  p.chunk_tiles = std::max<int64_t>(1, tiles / 64);
  return p;
}

#if defined(SG_TUNE)
inline void override_plan(const char* variable, SparseLinearPlan& p, int64_t element) {
  if (const char* s = std::getenv(variable)) {
    int v = p.vectors, b = p.block, n = p.panel, w = p.window, st = p.stream;
    long long c = p.chunk_tiles;
    std::sscanf(s, "%d,%d,%d,%d,%d,%lld", &v, &b, &n, &w, &st, &c);
    p.vectors = v, p.block = b, p.panel = n, p.window = w, p.stream = st, p.chunk_tiles = c;
    p.tile = p.vectors * SG_PICK(sparse_linear_lanes)(int(element));
  }
}
#else
inline void override_plan(const char*, SparseLinearPlan&, int64_t) {}
#endif

inline SparseLinearPlan choose_forward(int64_t samples, int64_t inputs, int64_t outputs, int64_t nnz, int64_t element,
                                       int64_t stored) {
  const int64_t lanes = SG_PICK(sparse_linear_lanes)(int(element));
  int vectors = samples <= lanes ? 1 : samples <= 2 * lanes ? 2 : 4;
  auto p = tiling(vectors, 32 << 10, 512 << 10, samples, inputs, outputs, nnz, element);
  p.stream = (inputs + outputs) * samples * stored > (24 << 20) && outputs * stored % 64 == 0;
  override_plan("SG_FWD", p, element);
  return p;
}

inline SparseLinearPlan choose_backward(int64_t samples, int64_t inputs, int64_t outputs, int64_t nnz, int64_t element,
                                        int64_t stored) {
  const int64_t lanes = SG_PICK(sparse_linear_lanes)(int(element));
  int vectors = samples <= 2 * lanes ? 2 : 4;
  auto p = tiling(vectors, 32 << 10, 256 << 10, samples, outputs, inputs, nnz, element);
  p.stream = (2 * inputs + outputs) * samples * stored > (24 << 20) && inputs * stored % 64 == 0;
  const int64_t tiles = (samples + p.tile - 1) / p.tile;
  p.chunk_tiles = std::max<int64_t>(1, (tiles + 15) / 16);
  override_plan("SG_BWD", p, element);
  return p;
}

}  // namespace sparsegnn
