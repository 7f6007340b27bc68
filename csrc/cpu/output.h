// Outputs of CPU ops: small ones from torch, large ones from the pool.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <string_view>

#include "../common/tensor.h"
#include "pool.h"

// In torch since 2.11; without it, large outputs come from torch too.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* deleter_context);

namespace sparsegnn {

// Outputs of at least this size come from the pool: below, malloc reuses its memory by itself.
constexpr size_t pool_from = size_t{4} << 20;

// SPARSEGNN_POOL=0 switches the pool off; so does the address sanitizer, which finds more in fresh memory. Read as the
// library is loaded: a fork never finds it half read.
#if defined(__SANITIZE_ADDRESS__)
inline const bool pool_enabled = false;
#else
inline const bool pool_enabled = [] {
  const char* value = std::getenv("SPARSEGNN_POOL");
  return torch_from_blob != nullptr && (value == nullptr || std::string_view(value) != "0");
}();
#endif

inline size_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
    case ScalarType::Short:
      return 2;
    default:
      return 1;
  }
}

// Whether every row of a matrix is whole cache lines: what stores past the caches need. An `out=` may begin anywhere.
inline bool rows_are_lines(const Tensor& y) {
  return y.size(1) * int64_t(element_size(y.scalar_type())) % 64 == 0 &&
         reinterpret_cast<uintptr_t>(y.const_data_ptr()) % 64 == 0;
}

// An uninitialised CPU tensor, with the dtype of `like` unless another is given.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape,
                         std::optional<ScalarType> dtype_in = std::nullopt) {
  const ScalarType dtype = dtype_in.value_or(like.scalar_type());
  std::array<int64_t, 8> strides{};
  STD_TORCH_CHECK(shape.size() <= strides.size(), "an output has at most 8 dimensions");
  size_t bytes = element_size(dtype);
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    const int64_t n = shape.begin()[i];
    strides[i] = stride;
    stride *= std::max<int64_t>(n, 1);
    bytes *= size_t(n);
  }
  const auto code = [](auto value) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(value)); };
  const auto cpu = code(torch::headeronly::DeviceType::CPU);
  const int64_t ndim = int64_t(shape.size());
  AtenTensorHandle handle = nullptr;
  if (bytes < pool_from || !pool_enabled) {  // half the time of aten::new_empty, which goes through the dispatcher
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(ndim, shape.begin(), strides.data(), code(dtype), cpu, -1, &handle));
    return Tensor(handle);
  }
  size_t size = 0;
  void* p = pool_allocate(bytes, &size);
  STD_TORCH_CHECK(p != nullptr, "out of memory: cannot allocate an output of ", bytes, " bytes");
  const auto error = torch_from_blob(
      p, ndim, shape.begin(), strides.data(), 0, code(dtype), cpu, -1, &handle,
      code(torch::headeronly::Layout::Strided), nullptr, 0,
      [](void* data, void* context) { pool_free(data, reinterpret_cast<size_t>(context)); },
      reinterpret_cast<void*>(size));
  if (error != 0) pool_free(p, size);
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}

}  // namespace sparsegnn
