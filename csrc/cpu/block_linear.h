// Arguments of the block_linear kernels; see block_linear.kernel.cpp and block_linear_grouped.kernel.cpp.
#pragma once
#include "isa.h"

namespace sparsegnn {

// A weight [rows, cols] of dense blocks [height, width], their positions as CSR over blocks.
template <typename A>
struct BlockLinearWeight {
  const int32_t *crow, *col;  // [rows / height + 1], [blocks]
  const int32_t* slot;        // [blocks]: index of the block in `value`, or null: in order
  const A* value;             // [blocks][height * width]
  int64_t rows, cols, blocks;
  int32_t height, width;
};

// y[n, :] = bias + W x[n, :]. Square blocks must be stored transposed: [width][height].
template <typename T, typename A>
struct BlockLinearArgs {
  BlockLinearWeight<A> w;
  const T* x;     // [samples, w.cols]
  const A* bias;  // [w.rows] or null
  T* y;           // [samples, w.rows]
  int64_t samples;
  bool stream;  // write y past the caches
};

// A chunk is `chunk_tiles` tiles of `parts` batch tiles each.
template <typename T, typename A>
struct BlockLinearBackwardArgs {
  BlockLinearWeight<A> w;            // blocks row by row
  const int32_t *ccol, *row, *perm;  // and column by column (square blocks)
  const int32_t* starts;  // grouped: [cols / block + 1][rows / height] first entry of a group in a block of inputs
  const T *dy, *x;
  T* dx;             // or null
  A* value_partial;  // [chunks, value_stride], or null
  A* bias_partial;   // [chunks, w.rows], or null
  int64_t value_stride, samples, chunk_tiles;
  int32_t parts;  // batch tiles that are in memory together
  int32_t block;  // grouped: inputs of a block
  bool stream;    // write dx past the caches
};

// Samples of a batch tile.
SG_DECLARE(int block_linear_tile(int element_size, int height, int width))
// Batch tiles [begin, end). The workspace holds a tile of x and, for width 1, 64 rows of a tile of y.
SG_DECLARE(template <typename T, typename A>
           void block_linear_square(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace))
SG_DECLARE(template <typename T, typename A>
           void block_linear_grouped(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace))
// Chunk `chunk` owns its tiles and its row of the partials. The workspace holds `parts` tiles of dy and of x (grouped:
// of a block of x, and one of a block of dx).
SG_DECLARE(template <typename T, typename A>
           void block_linear_square_backward(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace))
SG_DECLARE(template <typename T, typename A>
           void block_linear_grouped_backward(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace))
// out[b] = in[b] for blocks [begin, end) of [height, width], transposed if asked.
SG_DECLARE(template <typename T, typename A> void block_linear_pack(const T* in, A* out, int64_t begin, int64_t end,
                                                                    int height, int width, bool transposed))
// out[i] = sum over chunks, in order, of partial[chunk, i] for i in [begin, end)
SG_DECLARE(template <typename T, typename A>
           void block_linear_sum(const A* partial, int64_t stride, int64_t chunks, T* out, int64_t begin, int64_t end))

}  // namespace sparsegnn
