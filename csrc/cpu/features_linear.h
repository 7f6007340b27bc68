// Arguments of the features_linear kernels; see features_linear.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

// A weight of blocks [height, width], column by column.
template <typename A>
struct FeaturesWeight {
  const int32_t *ccol, *row;  // [inputs / width + 1], [blocks]
  const A* value;             // [blocks][width][height], in this order
  int64_t outputs;
  int32_t height, width;
};

template <typename T, typename A>
struct FeaturesLinearArgs {
  FeaturesWeight<A> w;
  const int32_t *crow, *col;  // of x
  const T* val;
  const A* bias;  // [outputs] or null
  T* y;           // [samples, outputs]
};

// Each chunk of samples has sums of its own, of the values in columns of W.
template <typename T, typename A>
struct FeaturesValuesArgs {
  FeaturesWeight<A> w;        // without value
  const int32_t *crow, *col;  // of x
  const T *val, *dy;          // dy [samples, outputs]
};

// value[j] = values[perm[j]], its block transposed, for blocks j in [begin, end).
SG_DECLARE(template <typename T, typename A> void features_linear_pack(const T* values, const int32_t* perm, A* value,
                                                                       int64_t begin, int64_t end, int height,
                                                                       int width))
// Rows [begin, end) of y. The workspace holds a row of y.
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

}  // namespace sparsegnn
