// kernels.h: the kernels whose PTX is loaded. Each is decoded when it is first run.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "allocation.h"
#include "program.h"

namespace sparsegnn::ptx {

class Kernels {
 public:
  void load(const std::string& text);  // the kernels of a file, in place of others of their names
  const Program& decoded(const std::string& name);
  void run(const std::string& name, const std::vector<Argument>& arguments, dim3 grid, dim3 block, size_t shared_bytes);
  std::vector<std::string> names(bool ran) const;  // all, or those that have been run

  std::map<const void*, std::string> addresses;  // what the bindings call a kernel by

 private:
  struct Kernel {
    Entry entry;
    std::unique_ptr<Program> program;
    bool ran = false;
  };
  Kernel& find(const std::string& name);

  std::map<std::string, Kernel> kernels_;
};

Kernels& kernels();

}  // namespace sparsegnn::ptx
