// What every torch entry needs: the Tensor alias, argument checks, dtype dispatch, outputs.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "stable.h"

namespace sparsegnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(as_contiguous(*t)) : std::nullopt;
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

// An index tensor: int32, contiguous, 1-D.
inline void check_index(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 1 && t.scalar_type() == ScalarType::Int && t.is_contiguous(), op, ": ", name,
                  " must be a contiguous int32 tensor of one dimension");
}

inline void check_same_dtype(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " must have the dtype of x");
}

// fp32 for 16-bit and 32-bit types, fp64 for fp64: the type kernels accumulate in.
inline ScalarType accumulator(ScalarType t) { return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

// A scale vector in the accumulator type, contiguous.
inline std::optional<Tensor> as_scale(const std::optional<Tensor>& t, const Tensor& x) {
  if (!t.has_value()) return std::nullopt;
  return as_contiguous(torch::stable::to(*t, accumulator(x.scalar_type())));
}

}  // namespace sparsegnn
