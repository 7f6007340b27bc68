// Arguments of the dense_weight kernels; see dense_weight.kernel.cpp for what they compute.
#pragma once
#include "isa.h"

namespace sparsegnn {

// Blocks [height, width] of a matrix of `rows` by `cols` blocks, where (crow, col) says.
template <typename T>
struct DenseWeightArgs {
  const int32_t *crow, *col;
  const T* from;
  T* to;
  int64_t rows, cols, blocks, height, width;
};

// Rows of blocks [begin, end); false if the pattern there is not one.
SG_DECLARE(template <typename T> bool dense_weight_fill(const DenseWeightArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> bool dense_weight_gather(const DenseWeightArgs<T>& a, int64_t begin, int64_t end))

}  // namespace sparsegnn
