// dense_weight / cuda: between the values of a pattern of blocks [H, W] and the matrix with its zeros
//
//   fill:    dense[r H + i, c W + j] = values[e, i, j]  for every entry e = (r, c); the rest is 0 before
//   gather:  values[e, i, j] = dense[r H + i, c W + j]
//
// layout     crow[rows + 1], col[blocks] int32; values[blocks, H, W]; dense row-major
// work       values and positions once; a line of the matrix for every value that is alone in it
// schedule   a thread a value: its row by bisection of crow, whose lines neighbours share; 256 threads, no shared
// memory numerics   copies. An entry outside the matrix is left out (fill), or reads 0 (gather) see
// sparsegnn/ops/dense_weight.py, tests/csrc/test_dense_weight.py, benchmarks/ops/bench_dense_weight.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct DenseWeightArguments {  // device pointers
  const int32_t *crow, *col;
  T *values, *dense;                          // gather writes the first, fill the second
  int64_t rows, cols, blocks, height, width;  // of blocks, of a block
};

constexpr int kDenseWeightThreads = 256;

template <typename T, bool fill>
__global__ void __launch_bounds__(kDenseWeightThreads) dense_weight_kernel(DenseWeightArguments<T> a) {
  const int64_t i = int64_t{blockIdx.x} * kDenseWeightThreads + threadIdx.x, size = a.height * a.width;
  if (i >= a.blocks * size) return;
  const int64_t e = i / size, inside = i % size, column = a.col[e];
  const bool exists = column >= 0 && column < a.cols;
  const int64_t row = row_of_edge(a.crow, a.rows, e) * a.height + inside / a.width;
  const int64_t place = (row * a.cols + column) * a.width + inside % a.width;
  if constexpr (fill) {
    if (exists) a.dense[place] = a.values[i];
  } else {
    a.values[i] = exists ? a.dense[place] : from_acc<T>(acc_t<T>(0));
  }
}

template <bool fill, typename T>
cudaError_t launch_dense_weight(const DenseWeightArguments<T>& a, cudaStream_t stream) {
  const int64_t values = a.blocks * a.height * a.width;
  if (values == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(values, kDenseWeightThreads)));
  return launch(dense_weight_kernel<T, fill>, grid, kDenseWeightThreads, 0, stream, a);
}

}  // namespace sparsegnn::cuda
