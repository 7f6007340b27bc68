// features_linear / cuda
//
//   y[n, m]  = bias[m] + sum over nonzeros (n, k) of x and (m, k) of W:  x[n, k] W[m, k]
//   dW[m, k] = sum over nonzeros (n, k) of x:  x[n, k] dy[n, m]          at the nonzeros of W only
//
// layout     x: CSR for y, its transpose for dW; W: blocks [height, width] at (ccol, row), values where perm says; y,
// dy
//            row-major
// work       2 flop for each pair of nonzeros that meet, for y and for dW
// schedule   y: a warp a row, whose sums are in shared memory, `tile` outputs at once; its lanes share the column of W
// of
//            one nonzero after another, which has no output twice, so no two meet. dW: a thread a value, in the order
//            of columns, so that the lanes of a warp read one sample together; a column of many samples is not cut
// numerics   sums in acc_t<T>, in the order of the nonzeros; nothing is atomic
// see        sparsegnn/ops/features_linear.py, tests/csrc/test_features_linear.py,
// benchmarks/ops/bench_features_linear.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct FeaturesLinearArguments {  // device pointers; x by rows for y, by columns for dW
  const int32_t *x_offset, *x_index;
  const T* x_val;
  const int32_t *ccol, *row, *perm;
  const T *values, *bias, *dy;  // bias may be null; dy for dW, the others for y
  T* out;                       // y [samples, outputs] or dW [blocks, height, width]
  int64_t samples, columns, blocks, outputs;
  int height, width;
};

constexpr int kFeaturesThreads = 128, kFeaturesWarps = kFeaturesThreads / kWarp;
constexpr int kFeaturesTile = 2048;  // outputs of a warp at once, at most: 32 KiB of sums a block in fp32

template <typename T>
__global__ void __launch_bounds__(kFeaturesThreads) features_linear_kernel(FeaturesLinearArguments<T> a, int tile) {
  using A = acc_t<T>;
  SG_SHARED(A, shared);
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.x} * kFeaturesWarps + threadIdx.x / kWarp;
  if (n >= a.samples) return;
  A* sum = shared + (threadIdx.x / kWarp) * tile;
  const int64_t first = int64_t{blockIdx.y} * tile, size = min<int64_t>(tile, a.outputs - first);
  for (int64_t i = lane; i < size; i += kWarp) sum[i] = a.bias ? to_acc(a.bias[first + i]) : A(0);
  __syncwarp();
  for (int64_t e = a.x_offset[n]; e < a.x_offset[n + 1]; ++e) {
    const int64_t k = a.x_index[e], column = k / a.width, at = k % a.width;
    const int64_t begin = a.ccol[column], values = (a.ccol[column + 1] - begin) * a.height;
    const A scale = to_acc(a.x_val[e]);
    for (int64_t i = lane; i < values; i += kWarp) {
      const int64_t j = begin + i / a.height, r = i % a.height, m = int64_t{a.row[j]} * a.height + r - first;
      if (m < 0 || m >= size) continue;
      sum[m] += scale * to_acc(a.values[(int64_t{a.perm[j]} * a.height + r) * a.width + at]);
    }
    __syncwarp();
  }
  for (int64_t i = lane; i < size; i += kWarp) a.out[n * a.outputs + first + i] = from_acc<T>(sum[i]);
}

template <typename T>
__global__ void __launch_bounds__(kFeaturesThreads) features_values_kernel(FeaturesLinearArguments<T> a) {
  using A = acc_t<T>;
  const int64_t size = int64_t{a.height} * a.width, q = int64_t{blockIdx.x} * kFeaturesThreads + threadIdx.x;
  if (q >= a.blocks * size) return;
  const int64_t j = q / size, at = q % size / a.height, r = q % a.height;
  const int64_t k = row_of_edge(a.ccol, a.columns, j) * a.width + at;
  const T* dy = a.dy + int64_t{a.row[j]} * a.height + r;
  A sum = 0;
  for (int64_t e = a.x_offset[k]; e < a.x_offset[k + 1]; ++e)
    sum += to_acc(a.x_val[e]) * to_acc(dy[int64_t{a.x_index[e]} * a.outputs]);
  a.out[(int64_t{a.perm[j]} * a.height + r) * a.width + at] = from_acc<T>(sum);
}

template <typename T>
cudaError_t launch_features_linear(const FeaturesLinearArguments<T>& a, cudaStream_t stream) {
  if (a.samples == 0 || a.outputs == 0) return cudaSuccess;
  const int tile = int(min<int64_t>(a.outputs, kFeaturesTile));
  const dim3 grid(static_cast<unsigned>(ceil_div(a.samples, kFeaturesWarps)),
                  static_cast<unsigned>(ceil_div(a.outputs, tile)));
  const size_t shared = size_t(kFeaturesWarps) * tile * sizeof(acc_t<T>);
  return launch(features_linear_kernel<T>, grid, kFeaturesThreads, shared, stream, a, tile);
}

template <typename T>
cudaError_t launch_features_values(const FeaturesLinearArguments<T>& a, cudaStream_t stream) {
  const int64_t values = a.blocks * a.height * a.width;
  if (values == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(values, kFeaturesThreads)));
  return launch(features_values_kernel<T>, grid, kFeaturesThreads, 0, stream, a);
}

}  // namespace sparsegnn::cuda
