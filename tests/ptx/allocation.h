// allocation.h: what the bindings of tests/csrc see of the PTX machine; emulator.h includes it in the module
// sparsegnn_ptx.
#pragma once
#include <cstddef>
#include <vector>

#include "machine.h"

namespace sparsegnn::ptx {

// While it lives, kernels may touch these bytes; no others.
class Allocation {
 public:
  Allocation(const void* p, size_t bytes);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

 private:
  unsigned long begin_;
};

struct Argument {
  const void* value;
  size_t bytes;
};

// Runs the PTX of a kernel that the bindings name by its address.
cudaError_t launch(const void* kernel, const std::vector<Argument>& arguments, dim3 grid, dim3 block,
                   size_t shared_bytes);

// The name of the kernel at an address: said by the file that tests/ptx/CMakeLists.txt makes.
bool name_kernel(const void* kernel, const char* name);

}  // namespace sparsegnn::ptx
