// sddmm / cuda: checks, output, dtype, stream. The arithmetic is in sddmm.cuh.
#include "sddmm.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

Tensor sddmm(const Tensor& a_in, const Tensor& b_in, const Tensor& crow, const Tensor& col,
             const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
             const std::optional<Tensor>& /*perm*/) {
  const OnDevice device(a_in);
  check_index_on("sddmm", "crow", crow, a_in);
  check_index_on("sddmm", "col", col, a_in);
  check_device("sddmm", "b", b_in, a_in);
  STD_TORCH_CHECK(a_in.dim() == 2 && b_in.dim() == 2 && a_in.size(1) == b_in.size(1),
                  "sddmm: a and b must have shapes [M, K] and [N, K]");
  STD_TORCH_CHECK(a_in.scalar_type() == b_in.scalar_type(), "sddmm: b must have the dtype of a");
  STD_TORCH_CHECK(crow.numel() == a_in.size(0) + 1, "sddmm: crow must have M + 1 elements");
  const Tensor a = as_contiguous(a_in), b = as_contiguous(b_in);
  Tensor out = torch::stable::new_empty(a, {col.numel()});
  dispatch("sddmm", a.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SddmmArguments<T> arguments{data<T>(a),         data<T>(b), data<int32_t>(crow),
                                      data<int32_t>(col), nullptr,    mutable_data<T>(out),
                                      a.size(0),          a.size(1),  col.numel()};
    STD_CUDA_CHECK(launch_sddmm(arguments, device.stream));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) { m.impl("sddmm", TORCH_BOX(&sddmm)); }

}  // namespace sparsegnn::cuda
