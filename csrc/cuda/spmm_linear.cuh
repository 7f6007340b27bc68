// spmm_linear / cuda: a graph convolution with a sparse weight in one kernel
//
//   y[r, m] = epilogue(bias[m] + sum over the nonzeros e of row m of W:  values[e] * (L x)[r, col[e]])
//   L as in spmm.cuh: row_scale, val, col_scale, diag
//
// layout     the graph as in spmm.cuh, W as in sparse_linear.cuh; x[N, K], y[R, M] row-major
// work       2*E*K + 2*R*nnz flop; L x is never written: 2*R*K*s bytes less than spmm and sparse_linear
// schedule   a block of 8 warps aggregates 32*NL rows into a tile of shared memory (spmm_linear_gather.cuh), then
//            multiplies it as sparse_linear does, 64 outputs at a time. Two blocks share an SM, so that one gathers
//            from L2 while the other multiplies from shared memory. All of K must fit the tile
// numerics   L x is rounded to T as spmm's output is; the sums of the product as in sparse_linear.cuh
// backward   spmm_linear_backward.cuh
// see        sparsegnn/ops/spmm_linear.py, tests/csrc/test_spmm_linear.py
#pragma once
#include "spmm_linear_gather.cuh"

namespace sparsegnn::cuda {

// The plan of the product; per_lane is 0 where a tile of x does not fit.
inline LinearPlan spmm_linear_plan(int64_t rows, int64_t inputs, int64_t outputs, int64_t element_size) {
  const auto row = [&](int n) { return linear_stride(n, element_size) * element_size; };
  const auto fits = [&](int n) { return gather_bytes(n, element_size) + (inputs + 1) * row(n) <= kLinearShared; };
  if (!fits(1)) return {0, 0, 0, 1, outputs};
  int n = linear_widest(element_size);
  while (n > 1 && (!fits(n) || ceil_div(rows, kWarp * n) < kLinearBlocks)) n /= 2;
  return {n, linear_stride(n, element_size), static_cast<int>(inputs), 1, outputs};
}

template <typename T, int NL>
__global__ void __launch_bounds__(kLinearThreads, 2)
    spmm_linear_kernel(RowGather<T> gather, SparseLinearArguments<T> a, LinearPlan plan, bool vector_stores,
                       LinearPacked<T> packed) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(unsigned char, scratch);
  T* tile = reinterpret_cast<T*>(scratch + gather_bytes(NL, sizeof(T)));
  const int64_t sample = int64_t{blockIdx.x} * Tile::kSamples;
  for (int n = threadIdx.x; n < Tile::kStride; n += kLinearThreads) tile[plan.chunk * Tile::kStride + n] = T{};
  gather_tile<T, NL>(gather, tile, scratch, sample);
  const int64_t groups = ceil_div(a.outputs, kLinearOutputs);
  for (int64_t first = 0, back = 0; first < groups; first += kLinearWarps, back ^= 1) {
    const int64_t m = linear_group(packed, a.outputs, first, back != 0);
    LinearSums<T, NL> sum = {};
    linear_product<T, NL>(tile, plan, packed, m, a.outputs, 0, sum);
    linear_store<T, NL>(a, reinterpret_cast<T*>(scratch), sample, m, a.outputs, vector_stores, sum);
  }
}

// Bytes of the packed weight, then of the long rows.
template <typename T>
int64_t spmm_linear_workspace_bytes(const LinearPlan& plan, int64_t outputs, int64_t entries, int64_t edges,
                                    int64_t width, int64_t window) {
  return sparse_linear_workspace_bytes<T>(plan, outputs, entries) + long_rows_workspace_bytes<T>(edges, width, window);
}

// graph: x is that of the product, y is not used. a.x is not used, a.batch is the number of rows.
// workspace: spmm_linear_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_spmm_linear(const SpmmArguments<T>& graph, const SparseLinearArguments<T>& a, const LinearPlan& plan,
                               int64_t window, void* workspace, cudaStream_t stream) {
  if (a.batch == 0 || a.outputs == 0) return cudaSuccess;
  if (plan.per_lane == 0) return cudaErrorInvalidValue;
  const LinearPacked<T> packed =
      linear_packed<T>(plan, a.outputs, linear_entry_bytes(plan, a.outputs, a.entries, sizeof(T)), workspace);
  cudaError_t error = launch_linear_pack(a, plan, packed, stream);
  if (error != cudaSuccess) return error;
  RowGather<T> gather = row_gather(graph, window);
  void* rest = static_cast<char*>(workspace) + sparse_linear_workspace_bytes<T>(plan, a.outputs, a.entries);
  error = launch_long_rows(gather, rest, stream);
  if (error != cudaSuccess) return error;
  const bool vector_stores = can_vectorise(kVector<T>, a.outputs, a.y);
  const auto run = [&](auto kernel) {
    const auto blocks = static_cast<unsigned>(ceil_div(a.batch, kWarp * plan.per_lane));
    const size_t shared = gather_bytes(plan.per_lane, sizeof(T)) + size_t(plan.chunk + 1) * plan.stride * sizeof(T);
    return launch(kernel, blocks, kLinearThreads, shared, stream, gather, a, plan, vector_stores, packed);
  };
  return linear_tiles<T>(plan.per_lane, [&](auto n) { return run(spmm_linear_kernel<T, n>); });
}

}  // namespace sparsegnn::cuda
