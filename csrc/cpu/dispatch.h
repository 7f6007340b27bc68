// The one list of element types of CPU kernels.
#pragma once
#include <type_traits>

#include "../common/tensor.h"
#include "isa.h"

namespace sparsegnn {

// The type a kernel accumulates T in.
template <typename T>
using accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f(T{}) with the kernel's element type for `dtype`.
template <typename F>
void dispatch(const char* op, ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bf16{});
    case ScalarType::Half:
      return f(f16{});
    default:
      STD_TORCH_CHECK(false, op, ": x must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace sparsegnn
