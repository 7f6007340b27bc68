// What the tests see of the PTX machine: loading PTX, running any kernel of it on numpy arrays, and what has run.
#include "binding.h"
#include "kernels.h"

namespace sparsegnn::emulated {
namespace {

dim3 to_dim3(const std::vector<unsigned>& v) {
  return {v.size() > 0 ? v[0] : 1, v.size() > 1 ? v[1] : 1, v.size() > 2 ? v[2] : 1};
}

// Arrays of a dimension or more are device memory, and come back as they are afterwards; others are numbers.
std::vector<py::array> run(const std::string& name, const std::vector<py::array>& given,
                           const std::vector<unsigned>& grid, const std::vector<unsigned>& block, size_t shared_bytes) {
  std::vector<std::unique_ptr<Array<uint8_t>>> memory;
  std::vector<const void*> pointers(given.size());
  std::vector<ptx::Argument> arguments;
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i].ndim() == 0) {
      arguments.push_back({given[i].data(), size_t(given[i].itemsize())});
      memory.push_back(nullptr);
      continue;
    }
    memory.push_back(std::make_unique<Array<uint8_t>>(std::vector<py::ssize_t>{given[i].nbytes()}));
    std::memcpy(memory.back()->data(), given[i].data(), size_t(given[i].nbytes()));
    pointers[i] = memory.back()->data();
    arguments.push_back({&pointers[i], sizeof(void*)});
  }
  ptx::kernels().run(name, arguments, to_dim3(grid), to_dim3(block), shared_bytes);
  std::vector<py::array> out;
  for (size_t i = 0; i < given.size(); ++i) {
    py::array copy(given[i].dtype(), std::vector<py::ssize_t>(given[i].shape(), given[i].shape() + given[i].ndim()));
    std::memcpy(copy.mutable_data(), memory[i] ? memory[i]->data() : given[i].data(), size_t(given[i].nbytes()));
    out.push_back(std::move(copy));
  }
  return out;
}

}  // namespace

SG_BINDINGS(m) {
  m.def("ptx_load", [](const std::string& text) { ptx::kernels().load(text); });
  m.def("ptx_decode", [](const std::string& name) { return ptx::kernels().decoded(name).code.size(); });
  m.def("ptx_kernels", [] { return ptx::kernels().names(false); });
  m.def("ptx_ran", [] { return ptx::kernels().names(true); });
  m.def("ptx_run", &run, py::arg("name"), py::arg("arguments"), py::arg("grid") = std::vector<unsigned>{1},
        py::arg("block") = std::vector<unsigned>{32}, py::arg("shared_bytes") = 0);
}

}  // namespace sparsegnn::emulated
