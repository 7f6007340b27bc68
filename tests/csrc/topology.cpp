#include "cuda/topology.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// (crow, col, source) after the update; the arguments stay as they are.
py::object topology(const py::array& crow, const py::array& col, const py::array& drop_score,
                    const py::array& grow_score, int64_t n) {
  Array<int32_t> p(crow), c(col), source({col.size()});
  Array<int64_t> count({1});
  *count.data() = n;
  const cuda::TopologyArguments a = {
      p.data(), c.data(), source.data(), count.data(), grow_score.shape(0), grow_score.shape(1), int64_t(c.size())};
  Array<char> workspace({cuda::TopologyWorkspace(a, nullptr).bytes});
  check(cuda::launch_topology_begin(a, workspace.data(), nullptr));
  by_dtype(drop_score, [&](auto scalar) {
    Array<decltype(scalar)> score(drop_score);
    check(cuda::launch_topology_drop(a, score.data(), workspace.data(), nullptr));
  });
  by_dtype(grow_score, [&](auto scalar) {
    Array<decltype(scalar)> score(grow_score);
    check(cuda::launch_topology_grow(a, score.data(), workspace.data(), nullptr));
  });
  return py::make_tuple(p.numpy(), c.numpy(), source.numpy());
}

}  // namespace

SG_BINDINGS(m) { m.def("topology", &topology); }

}  // namespace sparsegnn::emulated
