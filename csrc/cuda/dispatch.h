// What the CUDA entries share: the list of element types, the current stream, what CUDA's errors say, workspaces.
#pragma once
#include "../common/segments.cuh"
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
// Throws unless `status` is cudaSuccess; where this build has no code for the GPU it says how to make some.
inline void check_status(cudaError_t status, const char* file, const char* function, uint32_t line) {
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    STD_TORCH_CHECK(major >= 8, "sparsegnn: compute capability ", major, ".", minor,
                    " is too old, the kernels need 8.0 (A100) or newer: use the CPU");
    STD_TORCH_CHECK(false, "sparsegnn: this build has no kernels for compute capability ", major, ".", minor,
                    "; to rebuild: TORCH_CUDA_ARCH_LIST=", major, ".", minor, " pip install --no-build-isolation .");
  }
  STD_TORCH_CHECK(status != cudaErrorInvalidConfiguration,
                  "sparsegnn: the tensors are too wide for one launch: split their columns (", function, ")");
  char* message = nullptr;
  torch_c10_cuda_check_msg(static_cast<int32_t>(status), file, function, line, true, &message);
  if (message == nullptr) return;
  const std::string text(message);
  torch_c10_cuda_free_error_msg(message);
  throw std::runtime_error(text);
}
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(...) ::sparsegnn::cuda::check_status(__VA_ARGS__, __FILE__, __func__, __LINE__)

// The GPU of a tensor. An op runs here as soon as one of its tensors is on a GPU, so the first may be elsewhere.
inline int32_t gpu_of(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(),
                  "sparsegnn: all tensors of an op must be on one device, got some on a GPU, and the first "
                  "is not; move it with .to(device)");
  return t.get_device_index();
}

// Makes the device of a tensor the current one for the life of this object; `stream` is torch's current stream there.
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(gpu_of(t)) {
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

// Calls f(T{}) with the kernel's element type for `dtype`; SG_NO_FP16 is for the emulated entries of the tests.
template <typename F>
void dispatch(const char* op, ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bf16{});
#if !defined(SG_NO_FP16)
    case ScalarType::Half:
      return f(fp16{});
#endif
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

// The spans of a pattern with as many rows and edges, on the device of `like`; empty where there are none.
inline SpanList check_spans(const char* op, const char* name, const std::optional<Tensor>& spans, int64_t rows,
                            int64_t edges, const Tensor& like) {
  if (!spans) return {};
  check_device(op, name, *spans, like);
  STD_TORCH_CHECK(spans->dim() == 2 && spans->size(1) == 2 && spans->scalar_type() == ScalarType::Int &&
                      spans->is_contiguous() && spans->size(0) >= rows &&
                      spans->size(0) <= rows + segment_pieces(edges),
                  op, ": ", name, " must be the spans of the graph, int32 of shape [S, 2]");
  return {data<int32_t>(*spans), spans->size(0)};
}

// The seed of a dropout, on the device of `like`; null where there is none.
inline const int64_t* check_dropout(const char* op, double dropout, const std::optional<Tensor>& seed,
                                    const Tensor& like) {
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, op, ": dropout must be in [0, 1], got ", dropout);
  if (dropout == 0) return nullptr;
  STD_TORCH_CHECK(seed && seed->numel() == 1 && seed->scalar_type() == ScalarType::Long, op,
                  ": dropout needs a seed of dtype int64 and shape [1]");
  check_device(op, "seed", seed, like);
  return data<int64_t>(seed);
}

// Uninitialised bytes on the device of `like`, from torch's caching allocator.
inline Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

}  // namespace sparsegnn::cuda
