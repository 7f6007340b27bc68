// Which tiling a sparse_linear call uses: one policy for every shape and sparsity.
#pragma once
#include <algorithm>

#include "sparse_linear.h"

namespace sparsegnn {

// What tells the two kernels apart for the policy.
struct SparseLinearTuning {
  int min_vectors;        // the narrowest tile that is compiled
  int max_vectors;        // the widest
  int pad;                // places that a row of a block takes are a multiple of it
  int64_t l2;             // bytes that one tile of a panel may take
  int64_t entries;        // a row of a block has about this many entries at least
  int64_t passes_inputs;  // times that the wide side [samples, rows] crosses memory
  int64_t chunks;         // pieces of work over all samples
};

// Measured on a 2-core Zen 4 machine (AVX-512, fp32, one thread, kernels alone; docs/kernels-log.md):
//   tile     4 vectors; 8 gain nothing at 50 % and lose 7 % at 90 %; 2 with twice the block lose 3 to 10 %
//   two FMAs (Emerald Rapids) 8 vectors: forward 20 % and backward 5 to 10 % faster at 50 %, equal at 80 %, 3 % slower
//   at 90 %
//   AVX2     (Zen 3) 8 vectors, 64 samples as there: forward 5 to 25 % faster than 4; backward 10 % at 50 %, equal
//   at 90 %, 10 % slower at 98 %
//   block    32 KiB of tile: 24 KiB loses 4 to 8 % at 90 %
//   entries  fewer per row and block cost more than a tile that spills L1: forward 5, backward 10 (95 %: -11 %, 98 %:
//   -10 %); with two FMAs and their larger caches 20 (forward at 90 % 4 to 9 %, at 98 % up to 20 %; backward 2 to 7 %)
//   window   sorting whole panels; windows of 64 rows lose 7 %, of 16 rows 20 %
//   stream   stores past the caches gain 13 to 20 % from 16 MB of traffic on
inline SparseLinearPlan choose_plan(const SparseLinearTuning& tuning, int64_t samples, int64_t rows, int64_t cols,
                                    int64_t nnz, int64_t element, int64_t stored) {
  constexpr int64_t l1 = 32 << 10, stream_bytes = 12 << 20;
  const auto round_up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
  const int64_t lanes = SG_PICK(sparse_linear_lanes)(int(element));
  SparseLinearPlan p;
  p.vectors = tuning.min_vectors;
  while (p.vectors < tuning.max_vectors && samples > p.vectors * lanes) p.vectors *= 2;
  p.tile = int32_t(p.vectors * lanes);
  const int64_t tile_row = p.tile * element;
  const int64_t sparse_block = round_up(tuning.entries * rows * cols / std::max<int64_t>(1, nnz), 16);
  const int64_t block = std::min(std::max({int64_t{16}, l1 / tile_row, sparse_block}), int64_t{1} << 20);
  const int64_t blocks = std::max<int64_t>(1, (cols + block - 1) / block);
  p.block = int32_t(std::max<int64_t>(1, std::min(cols, round_up((cols + blocks - 1) / blocks, 16))));
  const int64_t panel = std::max<int64_t>(64, round_up(tuning.l2 / tile_row, 16));
  p.panel = int32_t(std::max<int64_t>(1, std::min(rows, panel)));
  p.window = p.panel;
  p.pad = tuning.pad;
  const int64_t bytes = (tuning.passes_inputs * rows + cols) * samples * stored;
  p.stream = bytes > stream_bytes && rows * stored % 64 == 0;
  const int64_t tiles = (samples + p.tile - 1) / p.tile;
  p.chunk_tiles = std::max<int64_t>(1, (tiles + tuning.chunks - 1) / tuning.chunks);
  return p;
}

// The widest tile for a matrix of so many nonzeros.
inline int choose_vectors(int64_t nnz, int64_t rows, int64_t cols, bool backward) {
  const int widest = SG_PICK(sparse_linear_widest)();
  if (isa() != Isa::avx512) return backward && nnz * 12 < rows * cols ? 4 : widest;
  return two_wide_fmas() && nnz * 5 > rows * cols ? widest : 4;
}

inline SparseLinearPlan choose_forward(int64_t samples, int64_t rows, int64_t cols, int64_t nnz, int64_t element,
                                       int64_t stored) {
  const int vectors = choose_vectors(nnz, rows, cols, false);
  const int64_t entries = two_wide_fmas() ? 20 : 5;
  return choose_plan({1, vectors, 1, 512 << 10, entries, 1, 64}, samples, rows, cols, nnz, element, stored);
}

// A chunk has a partial of every gradient: as many as balance threads, within 64 MiB.
inline SparseLinearPlan choose_backward(int64_t samples, int64_t rows, int64_t cols, int64_t nnz, int64_t element,
                                        int64_t stored) {
  const int64_t affordable = (int64_t{64} << 20) / std::max<int64_t>(1, (nnz + cols) * element);
  const int vectors = choose_vectors(nnz, rows, cols, true), pad = int(16 / element);  // a quad of the kernel
  const int64_t entries = two_wide_fmas() ? 20 : 10, chunks = std::clamp<int64_t>(affordable, 4, 16);
  return choose_plan({2, vectors, pad, 256 << 10, entries, 2, chunks}, samples, rows, cols, nnz, element, stored);
}

}  // namespace sparsegnn
