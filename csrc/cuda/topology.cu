// topology / cuda: checks, dtype, stream. The arithmetic is in topology.cuh.
//
// Neither indices nor n are validated here, which would need a wait for the device: columns outside the matrix are left
// out, n is held in [0, nnz].
#include "topology.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

Tensor topology(Tensor crow, Tensor col, const Tensor& drop_score_in, const Tensor& grow_score_in, const Tensor& n) {
  const char* op = "topology_";
  const OnDevice device(crow);
  check_index(op, "crow", crow);
  check_index_on(op, "col", col, crow);
  check_device(op, "drop_score", drop_score_in, crow);
  check_device(op, "grow_score", grow_score_in, crow);
  check_device(op, "n", n, crow);
  STD_TORCH_CHECK(grow_score_in.dim() == 2 && grow_score_in.size(0) + 1 == crow.numel(),
                  "topology_: grow_score must have shape [", crow.numel() - 1, ", K]");
  STD_TORCH_CHECK(drop_score_in.dim() == 1 && drop_score_in.numel() == col.numel(),
                  "topology_: drop_score must have shape [", col.numel(), "]");
  STD_TORCH_CHECK(n.numel() == 1 && n.scalar_type() == ScalarType::Long, "topology_: n must be one int64");
  const Tensor drop_score = as_contiguous(drop_score_in), grow_score = as_contiguous(grow_score_in);
  Tensor source = torch::stable::new_empty(col, {col.numel()});
  const TopologyArguments a{mutable_data<int32_t>(crow),
                            mutable_data<int32_t>(col),
                            mutable_data<int32_t>(source),
                            data<int64_t>(n),
                            grow_score.size(0),
                            grow_score.size(1),
                            col.numel()};
  STD_TORCH_CHECK(a.entries <= a.rows * a.cols, "topology_: col must have at most ", a.rows * a.cols, " elements");
  Tensor memory = workspace(crow, TopologyWorkspace(a, nullptr).bytes);
  void* p = memory.mutable_data_ptr();
  STD_CUDA_CHECK(launch_topology_begin(a, p, device.stream));
  dispatch(op, drop_score.scalar_type(), [&](auto zero) {
    STD_CUDA_CHECK(launch_topology_drop(a, data<decltype(zero)>(drop_score), p, device.stream));
  });
  dispatch(op, grow_score.scalar_type(), [&](auto zero) {
    STD_CUDA_CHECK(launch_topology_grow(a, data<decltype(zero)>(grow_score), p, device.stream));
  });
  return source;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) { m.impl("topology_", TORCH_BOX(&topology)); }

}  // namespace sparsegnn::cuda
