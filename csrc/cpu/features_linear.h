// Arguments of the features_linear kernels; see features_linear.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

constexpr int64_t features_linear_spare = 256;  // elements behind sums, written to and never read
constexpr int64_t features_linear_ahead = 4;    // blocks behind the last one that are read: rows in range, any values

// Whether a column of so many single weights is held with its zeros: vectors are faster than entries one by one, though
// not by their number, as its lines come from further away. Static: each instruction set's own.
static inline bool is_whole(int64_t entries, int64_t outputs) { return 4 * entries >= outputs; }

// A weight of blocks [height, width], column by column. The columns of single weights (1x1) begin at `start`, and those
// with many entries are held with their zeros.
template <typename A>
struct FeaturesWeight {
  const int32_t *ccol, *row;  // [inputs / width + 1], [blocks + ahead]
  const int64_t* start;       // [inputs], of single weights
  const A* value;             // [blocks + ahead][width][height], in this order; of single weights by `start`
  int64_t outputs;
  int32_t height, width;
  bool few;  // blocks in a column, on average
};

template <typename T, typename A>
struct FeaturesLinearArgs {
  FeaturesWeight<A> w;
  const int32_t *crow, *col;  // of x
  const T* val;
  const A* bias;  // [outputs] or null
  T* y;           // [samples, outputs]
  bool stream;    // y past the caches
};

// Each chunk of samples has sums of its own, of the values in columns of W.
template <typename T, typename A>
struct FeaturesValuesArgs {
  FeaturesWeight<A> w;        // without value
  const int32_t *crow, *col;  // of x
  const T *val, *dy;          // dy [samples, outputs]
  int64_t spare;              // where spare places are, seen from the sums
};

// value[j] = values[perm[j]], its block transposed, for blocks j in [begin, end).
SG_DECLARE(template <typename T, typename A> void features_linear_pack(const T* values, const int32_t* perm, A* value,
                                                                       int64_t begin, int64_t end, int height,
                                                                       int width))
// The same for single weights of the columns [begin, end).
SG_DECLARE(template <typename T, typename A>
           void features_linear_pack_columns(const T* values, const FeaturesWeight<A>& w, const int32_t* perm, A* value,
                                             int64_t begin, int64_t end))
// Rows [begin, end) of y. The workspace holds a row of y and spare places.
SG_DECLARE(template <typename T, typename A>
           void features_linear_rows(const FeaturesLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace))
// Adds the samples [begin, end) to sums [blocks][width][height] and bias [outputs], or null. The workspace holds a row
// of dy.
SG_DECLARE(template <typename T, typename A> void features_linear_values(const FeaturesValuesArgs<T, A>& a,
                                                                         int64_t begin, int64_t end, A* sums, A* bias,
                                                                         A* workspace))
// dvalues[perm[j]] = the sums of all chunks, in order, of blocks j in [begin, end), which are transposed; perm null:
// in order.
SG_DECLARE(template <typename T, typename A> void features_linear_unpack(const A* sums, int64_t chunks, int64_t stride,
                                                                         const int32_t* perm, T* dvalues, int64_t begin,
                                                                         int64_t end, int height, int width))
// The same for single weights of the columns [begin, end).
SG_DECLARE(template <typename T, typename A>
           void features_linear_unpack_columns(const A* sums, int64_t chunks, int64_t stride,
                                               const FeaturesWeight<A>& w, const int32_t* perm, T* dvalues,
                                               int64_t begin, int64_t end))

}  // namespace sparsegnn
