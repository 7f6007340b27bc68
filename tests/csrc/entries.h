// entries.h: what the entries csrc/cuda/*.cu need of CUDA and of torch's CUDA build, for running them under the
// emulator. csrc/cuda/dispatch.h includes it when nvcc is not the compiler. The entries then register for CPU tensors:
// the library takes the place of libsparsegnn_cpu.so, and the tests of the ops run CUDA entries and kernels alike.
#pragma once
#include <torch/headeronly/util/Exception.h>

#include <cstring>

#include "common/tensor.h"
#include "emulator.h"

#define CUDA CPU  // the dispatch key of STABLE_TORCH_LIBRARY_IMPL
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(...)                                                          \
  do {                                                                               \
    const cudaError_t status = __VA_ARGS__;                                          \
    STD_TORCH_CHECK(status == cudaSuccess, "CUDA error ", static_cast<int>(status)); \
  } while (false)

constexpr int cudaMemcpyDeviceToHost = 2;
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

namespace sparsegnn::cuda {

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream = nullptr;
};

inline void check_device(const char*, const char*, const Tensor&, const Tensor&) {}

}  // namespace sparsegnn::cuda
