// Arguments of the sparse_linear kernels; see sparse_linear.kernel.cpp for the formulas.
#pragma once
#include "../common/random.h"
#include "isa.h"

namespace sparsegnn {

// How one matmul is cut. All of it depends on shapes and counts alone, never on the number of threads.
struct SparseLinearPlan {
  int32_t vectors = 0;      // samples of a batch tile, in vectors: 1 (not in the backward), 2, 4, or 8
  int32_t tile = 0;         // the same in samples
  int32_t block = 0;        // inputs of a block: block * tile elements stay in L1
  int32_t panel = 0;        // outputs of a panel: panel * tile elements stay in L2
  int32_t pad = 1;          // a row of a block takes a multiple of so many places
  int32_t window = 0;       // rows among which equal counts are brought together
  bool stream = false;      // write the output past the caches
  int64_t chunk_tiles = 1;  // tiles that one thread takes at a time
};

// `rows` packed rows of `count` entries each.
struct SparseLinearRun {
  int32_t count, rows;
};

// The nonzeros of a matrix [rows, cols], panel by panel, block by block, rows of equal counts together. A part is one
// block of one panel; rows without entries are left out of all parts but the first of their panel.
template <typename A>
struct SparseLinearPacked {
  int64_t rows, cols;
  SparseLinearPlan plan;
  const int32_t *first_run, *first_row, *first_entry;  // [parts + 1]
  const SparseLinearRun* runs;
  const int32_t* order;    // row within its panel
  const uint32_t* offset;  // byte offset of the input's row in the block's tile
  const A* value;
};

enum class SparseLinearPackError { none, crow, col, perm };

// The pattern [out->rows, out->cols] and where its packed form goes; entry t holds values[perm[t]], or values[t].
// With perm it is the transpose of (turned_crow, turned_col), whose entry perm[t] is entry t.
template <typename T, typename A>
struct SparseLinearPackArgs {
  const int32_t *crow, *col, *perm, *turned_crow, *turned_col;
  const T* values;
  int64_t nnz;
  const SparseLinearPacked<A>* out;  // sizes and plan
  int32_t *first_run, *first_row, *first_entry;
  SparseLinearRun* runs;
  int32_t* order;
  uint32_t* offset;
  A* value;
  int32_t* slot;    // index into values of every place, -1 where a row is padded; null without perm
  int32_t* starts;  // scratch, [(blocks + 1) * rows]
};

// What follows the sum: ReLU, then dropout. scale is 1 without dropout.
template <typename A>
struct SparseLinearEpilogue {
  bool relu = false;
  uint32_t threshold = 0;  // an output whose random bits are below it is dropped
  RandomKey key{};
  A scale = 1;
};

// What the outputs went through whose gradient comes in.
template <typename T, typename A>
struct SparseLinearMask {
  const T* y = nullptr;  // the outputs, when they went through ReLU
  SparseLinearEpilogue<A> how;
};

// y[n, :] = epilogue(bias + sum of value * x[n, col]); with the packed transpose of W: dx from dy, masked on its way
// in.
template <typename T, typename A>
struct SparseLinearArgs {
  SparseLinearPacked<A> w;
  const T* x;     // [samples, w.cols]
  const A* bias;  // [w.rows] or null
  T* y;           // [samples, w.rows]
  int64_t samples;
  SparseLinearEpilogue<A> epilogue;
  SparseLinearMask<T, A> mask;  // of x
};

// The same without packing, for a handful of samples.
template <typename T, typename A>
struct SparseLinearDirectArgs {
  const int32_t *crow, *col;
  const T *values, *x;
  const A* bias;
  T* y;
  int64_t rows, cols, samples, nnz;
  SparseLinearEpilogue<A> epilogue;
};

// w is the packed transpose of W, so its rows are the inputs of the layer and its cols the outputs.
template <typename T, typename A>
struct SparseLinearBackwardArgs {
  SparseLinearPacked<A> w;
  const T *dy, *x;
  T* dx;             // or null
  A* value_partial;  // [chunks, value_stride] in packed order, or null
  A* bias_partial;   // [chunks, w.cols], or null
  int64_t value_stride, samples;
  SparseLinearMask<T, A> mask;  // of dy
};

SG_DECLARE(template <typename T, typename A>
           SparseLinearPackError sparse_linear_pack(const SparseLinearPackArgs<T, A>& a))
// Tiles [begin, end); `workspace` has room for a block and a panel of tile rows and is aligned to 64 bytes.
SG_DECLARE(template <typename T, typename A>
           void sparse_linear_tiles(const SparseLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace))
// Outputs [begin, end); false if the pattern there is not one.
SG_DECLARE(template <typename T, typename A>
           bool sparse_linear_rows(const SparseLinearDirectArgs<T, A>& a, int64_t begin, int64_t end))
// Chunk `chunk` owns the tiles [chunk, chunk + 1) * chunk_tiles and its row of the partials; `workspace` has room for
// the scratch, a block and two panels.
SG_DECLARE(template <typename T, typename A>
           void sparse_linear_backward_chunk(const SparseLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace))
// dvalues[slot[p]] = sum over chunks, in order, of value_partial[chunk, p] for p in [begin, end) with slot[p] >= 0
SG_DECLARE(template <typename T, typename A> void sparse_linear_sum_partials(const A* partial, int64_t stride,
                                                                             int64_t chunks, const int32_t* slot,
                                                                             T* out, int64_t begin, int64_t end))
// Elements of scratch before the tiles of the backward.
SG_DECLARE(int64_t sparse_linear_backward_scratch(int element_size))
// Elements of a vector, and vectors of the widest tile of the forward.
SG_DECLARE(int sparse_linear_lanes(int element_size))
SG_DECLARE(int sparse_linear_widest())

}  // namespace sparsegnn
