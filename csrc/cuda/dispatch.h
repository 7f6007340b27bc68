// What the CUDA entries share: the list of element types, the current stream, workspaces.
#pragma once
#include "../common/gpu.cuh"
#include "../common/tensor.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#else
#include "entries.h"  // of the emulator
#endif

namespace sparsegnn::cuda {

#if defined(__CUDACC__)
// Makes the device of a tensor the current one for the life of this object; `stream` is torch's current stream there.
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

// Every tensor of a call must be on the device of the first.
inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == like.get_device_index(), op, ": ", name,
                  " must be on the device of x");
}
#endif

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
      return f(fp16{});
    default:
      STD_TORCH_CHECK(false, op, ": x must be float32, float64, bfloat16 or float16");
  }
}

inline void check_device(const char* op, const char* name, const std::optional<Tensor>& t, const Tensor& like) {
  if (t.has_value()) check_device(op, name, *t, like);
}

// check_index, and that the tensor is on the device of `like`.
inline void check_index_on(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  check_index(op, name, t);
  check_device(op, name, t, like);
}

// Uninitialised bytes on the device of `like`, from torch's caching allocator.
inline Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

}  // namespace sparsegnn::cuda
