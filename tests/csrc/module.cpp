// The module sparsegnn_emulated: every CUDA kernel, run by the host emulator on numpy arrays.
#include "binding.h"

namespace sparsegnn::emulated {

std::vector<Binder>& binders() {
  static std::vector<Binder> list;
  return list;
}

int64_t& misalignment() {
  static int64_t elements = 0;
  return elements;
}

namespace {

void set_schedule(const std::string& name, uint32_t seed) {
  auto& machine = emulator::machine();
  if (name == "forward")
    machine.schedule = emulator::Schedule::forward;
  else if (name == "reversed")
    machine.schedule = emulator::Schedule::reversed;
  else if (name == "shuffled")
    machine.schedule = emulator::Schedule::shuffled;
  else
    throw py::value_error("schedule must be forward, reversed or shuffled, got " + name);
  machine.seed = seed;
}

// Vector loads of each warp since the last call, and forgets them.
py::array take_warp_loads() {
  auto& loads = emulator::machine().warp_loads;
  py::array_t<int64_t> out(static_cast<py::ssize_t>(loads.size()), loads.data());
  loads.clear();
  return out;
}

}  // namespace
}  // namespace sparsegnn::emulated

PYBIND11_MODULE(sparsegnn_emulated, m) {
  using namespace sparsegnn::emulated;
  m.def("set_schedule", &set_schedule, py::arg("name"), py::arg("seed") = 0);
  m.def("set_misalignment", [](int64_t elements) { misalignment() = elements; });
  m.def("set_l2_bytes", [](uint32_t bytes) { sparsegnn::emulator::machine().l2_bytes = bytes; });
  m.def("set_grid_rows", [](uint32_t blocks) { sparsegnn::emulator::machine().grid_rows = blocks; });
  m.def("take_warp_loads", &take_warp_loads);
  for (Binder bind : binders()) bind(m);
}
