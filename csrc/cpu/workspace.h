// Memory that a thread keeps for its next call.
#pragma once
#include <cstdlib>
#include <memory>

#include "../common/stable.h"

namespace sparsegnn {

// Grows when needed, never shrinks below `keep`, aligned to a cache line; contents are lost when it grows.
class Workspace {
 public:
  template <typename T>
  T* get(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64 + 64;
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(std::aligned_alloc(64, bytes));
      size_ = memory_ ? bytes : 0;
      STD_TORCH_CHECK(memory_ != nullptr, "sparsegnn: out of memory for a workspace of ", bytes, " bytes");
    }
    return static_cast<T*>(memory_.get());
  }
  // Gives large memory back.
  void trim(size_t keep = size_t{64} << 20) {
    if (size_ > keep) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

}  // namespace sparsegnn
