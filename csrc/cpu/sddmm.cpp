// sddmm / cpu: checks, output, dtype, threads. The arithmetic is in sddmm.kernel.cpp.
#include "sddmm.h"

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_cost = 4096;  // edges and rows; as spmm

Tensor sddmm(const Tensor& a_in, const Tensor& b_in, const Tensor& crow, const Tensor& col,
             const std::optional<Tensor>& /*ccol*/, const std::optional<Tensor>& /*row*/,
             const std::optional<Tensor>& /*perm*/) {
  check_index("sddmm", "crow", crow);
  check_index("sddmm", "col", col);
  STD_TORCH_CHECK(a_in.dim() == 2 && b_in.dim() == 2 && a_in.size(1) == b_in.size(1),
                  "sddmm: a and b must have shapes [M, K] and [N, K]");
  STD_TORCH_CHECK(a_in.size(0) == crow.numel() - 1, "sddmm: a must have one row per row of the pattern");
  check_same_dtype("sddmm", "b", b_in, a_in);
  const Tensor a = as_contiguous(a_in), b = as_contiguous(b_in);
  Tensor out = new_output(a, {col.numel()});
  const auto bounds = balanced_rows(data<int32_t>(crow), a.size(0), chunk_cost);
  dispatch("sddmm", a.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const SddmmArgs<T> args{data<int32_t>(crow), data<int32_t>(col),   data<T>(a),
                            data<T>(b),          mutable_data<T>(out), a.size(1)};
    const auto kernel = SG_PICK(sddmm_rows<T>);
    for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) { kernel(args, bounds[c], bounds[c + 1]); });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) { m.impl("sddmm", TORCH_BOX(&sddmm)); }

}  // namespace sparsegnn
