#include "kernels.h"

#include "launch.h"

namespace sparsegnn::ptx {

Kernels& kernels() {
  static Kernels k;
  return k;
}

void Kernels::load(const std::string& text) {
  for (Entry& entry : entries_of(text)) {
    Kernel& kernel = kernels_[entry.name];
    kernel.entry = std::move(entry);
    kernel.program.reset();
  }
}

Kernels::Kernel& Kernels::find(const std::string& name) {
  const auto known = kernels_.find(name);
  if (known == kernels_.end()) throw std::invalid_argument("no PTX of kernel " + name + " is loaded");
  return known->second;
}

const Program& Kernels::decoded(const std::string& name) {
  Kernel& kernel = find(name);
  if (!kernel.program) kernel.program = std::make_unique<Program>(decode(kernel.entry));
  return *kernel.program;
}

void Kernels::run(const std::string& name, const std::vector<Argument>& arguments, dim3 grid, dim3 block,
                  size_t shared_bytes) {
  const Program& program = decoded(name);
  find(name).ran = true;
  Launch(program, arguments, grid, block, shared_bytes).run();
}

std::vector<std::string> Kernels::names(bool ran) const {
  std::vector<std::string> found;
  for (const auto& [name, kernel] : kernels_)
    if (kernel.ran || !ran) found.push_back(name);
  return found;
}

// ---- what the bindings of tests/csrc call

bool name_kernel(const void* kernel, const char* name) { return kernels().addresses.emplace(kernel, name).second; }

cudaError_t launch(const void* kernel, const std::vector<Argument>& arguments, dim3 grid, dim3 block,
                   size_t shared_bytes) {
  emulator::Machine& machine = emulator::machine();
  if (!machine.possible(grid, block, shared_bytes)) return cudaErrorInvalidConfiguration;
  const size_t warps = (size_t{block.x} * block.y * block.z + 31) / 32;
  machine.warp_loads.resize(machine.warp_loads.size() + size_t{grid.x} * grid.y * grid.z * warps);
  kernels().run(kernels().addresses.at(kernel), arguments, grid, block, shared_bytes);
  return cudaSuccess;
}

}  // namespace sparsegnn::ptx
