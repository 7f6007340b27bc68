// stable.h: PyTorch's stable ABI, with failures that say why. Included before any other header that brings ops.h.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <utility>

// What the last exception inside torch said; from torch 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace sparsegnn {

// A call into torch failed: most often it could not allocate. Torch's own macros name the call and not the reason.
[[noreturn]] inline void torch_failed(const char* call) {
  const char* what = nullptr;
  if (torch_exception_get_what_without_backtrace != nullptr) what = torch_exception_get_what_without_backtrace();
  STD_TORCH_CHECK(what == nullptr || *what == '\0', "sparsegnn: ", what);
  STD_TORCH_CHECK(false, "sparsegnn: torch could not do this, perhaps it is out of memory: ", call);
}

}  // namespace sparsegnn

// Before the headers whose functions use them.
#undef TORCH_ERROR_CODE_CHECK
#undef STABLE_TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call) ((call) == TORCH_SUCCESS ? void() : ::sparsegnn::torch_failed(#call))
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace sparsegnn {

// A string argument of an op. Torch's own conversion to std::string (2.10 to 2.13) leaks one std::string at each call.
struct Text : std::string {
  explicit Text(std::string text) : std::string(std::move(text)) {}
};

}  // namespace sparsegnn

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)
template <>
struct ToImpl<sparsegnn::Text> {
  static sparsegnn::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    sparsegnn::Text text(std::string(data, length));
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
HIDDEN_NAMESPACE_END(torch, stable, detail)
