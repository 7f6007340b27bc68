// What the entries of sparse_linear and act_dropout share.
#pragma once
#include "../common/tensor.h"
#include "sparse_linear.h"

namespace sparsegnn {

// ReLU and dropout, as kernels take them.
template <typename A>
SparseLinearEpilogue<A> make_epilogue(const char* op, bool relu, double dropout, const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, op, ": dropout must be in [0, 1], got ", dropout);
  if (dropout == 0) return {relu, 0, {}, A{1}};
  STD_TORCH_CHECK(seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long, op,
                  ": dropout needs a seed of dtype int64 and shape [1]");
  return {relu, random_threshold(dropout), random_key(*data<int64_t>(*seed)), A(random_scale(dropout))};
}

}  // namespace sparsegnn
