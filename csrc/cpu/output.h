// Outputs of CPU ops: allocated by torch, large ones advised to sit on huge pages.
//
// The first touch of a fresh 64 MiB output costs about 23 ms in 4 KiB pages and 6 ms in 2 MiB pages (measured on a
// 2-core Zen 4 machine), more than many of the kernels that fill it.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <initializer_list>

#include "../common/tensor.h"

namespace sparsegnn {

inline void advise_huge_pages(void* p, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

// An uninitialised tensor on the device of `like`, with its dtype unless another is given.
inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> shape,
                         std::optional<ScalarType> dtype = std::nullopt) {
  Tensor out = torch::stable::new_empty(like, shape, dtype);
  const size_t bytes = size_t(out.numel()) * out.element_size();
  if (bytes >= (size_t{4} << 20)) advise_huge_pages(out.mutable_data_ptr(), bytes);
  return out;
}

}  // namespace sparsegnn
