// csr / cuda: checks, outputs, dtype, stream. The arithmetic is in csr.cuh.
//
// Both builders read one flag back (is every index in range?) and so wait for the device: graphs are built outside
// captured regions. csr_transpose of a pattern that is known to be right is told so, and does not wait.
#include "csr.cuh"

#include "dispatch.h"

namespace sparsegnn::cuda {
namespace {

using Csr = std::tuple<Tensor, Tensor, Tensor>;

void check_size(const char* op, int64_t rows, int64_t cols, int64_t edges) {
  constexpr int64_t limit = INT32_MAX;
  STD_TORCH_CHECK(rows >= 0 && cols >= 0 && rows < limit && cols < limit && edges < limit, op,
                  ": rows, columns and edges must be below 2^31 - 1");
}

Tensor int_output(const Tensor& like, int64_t n) { return torch::stable::new_empty(like, {n}, ScalarType::Int); }

bool read_flag(const Tensor& flag, cudaStream_t stream) {
  int32_t value = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&value, flag.const_data_ptr(), sizeof(value), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return value != 0;
}

Csr csr_from_edges(const Tensor& target_in, const Tensor& source_in, int64_t num_rows, int64_t num_cols) {
  const char* op = "csr_from_edges";
  const OnDevice device(target_in);
  const auto dtype = target_in.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": target must be int32 or int64");
  STD_TORCH_CHECK(source_in.scalar_type() == dtype, op, ": source must have the dtype of target");
  STD_TORCH_CHECK(target_in.dim() == 1 && source_in.dim() == 1 && target_in.numel() == source_in.numel(), op,
                  ": target and source must have one dimension and the same length");
  check_device(op, "source", source_in, target_in);
  const Tensor target = as_contiguous(target_in), source = as_contiguous(source_in);
  const int64_t edges = target.numel();
  check_size(op, num_rows, num_cols, edges);
  Tensor crow = int_output(target, num_rows + 1), col = int_output(target, edges), perm = int_output(target, edges);
  Tensor bad = torch::stable::new_zeros(target, {1}, ScalarType::Int);
  Tensor space = workspace(target, csr_workspace_bytes(edges));
  const auto run = [&](auto index) {
    using Index = decltype(index);
    STD_CUDA_CHECK(launch_csr_from_edges(data<Index>(target), data<Index>(source), num_rows, num_cols, edges,
                                         mutable_data<int32_t>(crow), mutable_data<int32_t>(col),
                                         mutable_data<int32_t>(perm), mutable_data<int32_t>(bad),
                                         space.mutable_data_ptr(), device.stream));
  };
  dtype == ScalarType::Int ? run(int32_t{}) : run(int64_t{});
  STD_TORCH_CHECK(!read_flag(bad, device.stream), op, ": indices must be in [0, ", num_rows, ") and [0, ", num_cols,
                  ")");
  return {crow, col, perm};
}

Csr csr_transpose(const Tensor& crow, const Tensor& col, int64_t num_cols, bool check) {
  const char* op = "csr_transpose";
  const OnDevice device(crow);
  check_index_on(op, "crow", crow, crow);
  check_index_on(op, "col", col, crow);
  STD_TORCH_CHECK(crow.numel() >= 1, op, ": crow must have at least one element");
  const int64_t rows = crow.numel() - 1, edges = col.numel();
  check_size(op, rows, num_cols, edges);
  Tensor ccol = int_output(col, num_cols + 1), row = int_output(col, edges), perm = int_output(col, edges);
  Tensor bad = torch::stable::new_zeros(col, {1}, ScalarType::Int);
  Tensor space = workspace(col, csr_workspace_bytes(edges));
  STD_CUDA_CHECK(launch_csr_transpose(data<int32_t>(crow), data<int32_t>(col), rows, num_cols, edges,
                                      mutable_data<int32_t>(ccol), mutable_data<int32_t>(row),
                                      mutable_data<int32_t>(perm), mutable_data<int32_t>(bad), space.mutable_data_ptr(),
                                      device.stream));
  STD_TORCH_CHECK(!check || !read_flag(bad, device.stream), op, ": col must be in [0, ", num_cols, ")");
  return {ccol, row, perm};
}

Tensor csr_degrees(const Tensor& crow, const std::optional<Tensor>& val_in) {
  const OnDevice device(crow);
  check_index_on("csr_degrees", "crow", crow, crow);
  check_device("csr_degrees", "val", val_in, crow);
  STD_TORCH_CHECK(crow.numel() >= 1, "csr_degrees: crow must have at least one element");
  const int64_t rows = crow.numel() - 1;
  const auto val = as_contiguous(val_in);
  const ScalarType dtype = val ? val->scalar_type() : ScalarType::Float;
  Tensor out = torch::stable::new_empty(crow, {rows}, sparsegnn::accumulator(dtype));
  dispatch("csr_degrees", dtype, [&](auto zero) {
    using T = decltype(zero);
    STD_CUDA_CHECK(
        launch_csr_degrees(data<int32_t>(crow), data<T>(val), rows, mutable_data<acc_t<T>>(out), device.stream));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CUDA, m) {
  m.impl("csr_from_edges", TORCH_BOX(&csr_from_edges));
  m.impl("csr_transpose", TORCH_BOX(&csr_transpose));
  m.impl("csr_degrees", TORCH_BOX(&csr_degrees));
}

}  // namespace sparsegnn::cuda
