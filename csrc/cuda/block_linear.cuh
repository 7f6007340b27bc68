// block_linear / cuda
//
//   y[n, rh + i]  = bias + sum over blocks e of block row r, k < w:  values[e][i, k] * x[n, col[e] w + k]
//   dvalues[e][i, k] = sum over n:  dy[n, rh + i] * x[n, col[e] w + k]
//
// layout     CSR over blocks [h, w]: crow[M / h + 1], col[blocks]; values[blocks][h][w]; x[B, K], y[B, M] row-major
// work       2*B*nnz flop each; every block row reads its columns of x again
// schedule   y: a block owns 128 samples by the H outputs of a block row, one sample a thread, H sums in registers; 16
//            columns at a time (a square block's, or those of 16 entries of a group) are staged in shared memory.
//            dvalues: a block owns H by 16 weights at a time and walks its span of the samples, 32 staged together
// numerics   sums in acc_t<T>, in the order of the entries; dvalues per span of samples, whose number depends on the
//            shape alone, added in order by sparse_linear's kernel of partial sums
// backward   dx: this kernel on the transposed pattern, blocks through perm, H = w
// see        sparsegnn/ops/block_linear.py, tests/csrc/test_block_linear.py, benchmarks/ops/bench_block_linear.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

constexpr int kBlockThreads = 128;  // of y: one a sample
constexpr int kBlockColumns = 16, kBlockSamples = 32;
constexpr int kBlockPitch = kBlockColumns + 1;  // no bank conflicts

template <typename T>
struct BlockLinearArguments {
  const T *x, *values;
  const acc_t<T>* bias;  // or null
  const int32_t *crow, *col;
  const int32_t* perm;  // which block of `values` an entry is, or null
  T* y;
  int64_t batch, inputs, outputs;
  int width;                        // inputs of a block
  int output_stride, input_stride;  // in `values`
};

template <typename T>
struct BlockLinearBackwardArguments {
  const T *dy, *x;
  const int32_t *crow, *col;
  acc_t<T>* partial;  // [spans, blocks * height * width]
  int64_t batch, inputs, outputs, values, span, spans;
  int width;
};

// Samples of a span of dvalues.
inline int64_t block_linear_span(int64_t batch) { return ceil_div(max<int64_t>(1024, ceil_div(batch, 32)), 32) * 32; }

// Of the width of a block, a power of two up to 32.
__device__ __forceinline__ int log2_of(int width) {
  int shift = 0;
  while (width >> shift > 1) ++shift;
  return shift;
}

template <typename T, int H>
__global__ void __launch_bounds__(kBlockThreads) block_linear_kernel(BlockLinearArguments<T> a) {
  using A = acc_t<T>;
  SG_SHARED(A, x_tile);                              // [kBlockThreads][kBlockPitch]
  A* w_tile = x_tile + kBlockThreads * kBlockPitch;  // [kBlockColumns][H]
  const int64_t first = int64_t{blockIdx.x} * kBlockThreads, n = first + threadIdx.x;
  const int samples = int(min<int64_t>(kBlockThreads, a.batch - first)), c = threadIdx.x % kBlockColumns;
  const int shift = log2_of(a.width), mask = a.width - 1;
  for (int64_t r = blockIdx.y; r < a.outputs / H; r += gridDim.y) {
    A sum[H];
    for (int i = 0; i < H; ++i) sum[i] = a.bias ? a.bias[r * H + i] : A(0);
    const int64_t begin = int64_t{a.crow[r]} * a.width, end = int64_t{a.crow[r + 1]} * a.width;
    for (int64_t v = begin; v < end; v += kBlockColumns) {
      const int here = int(min<int64_t>(kBlockColumns, end - v));
      __syncthreads();
      if (c < here) {
        const T* column = a.x + int64_t{a.col[(v + c) >> shift]} * a.width + ((v + c) & mask);
#pragma unroll 4
        for (int s = threadIdx.x / kBlockColumns; s < samples; s += kBlockThreads / kBlockColumns)
          x_tile[s * kBlockPitch + c] = to_acc(column[(first + s) * a.inputs]);
      }
      for (int j = threadIdx.x; j < here * H; j += kBlockThreads) {
        const int64_t e = (v + j / H) >> shift, k = (v + j / H) & mask, slot = a.perm ? a.perm[e] : e;
        w_tile[j] = to_acc(a.values[slot * H * a.width + j % H * a.output_stride + k * a.input_stride]);
      }
      __syncthreads();
      if (n >= a.batch) continue;
      for (int j = 0; j < here; ++j) {
        const A value = x_tile[threadIdx.x * kBlockPitch + j];
#pragma unroll
        for (int i = 0; i < H; ++i) sum[i] += w_tile[j * H + i] * value;
      }
    }
    if (n >= a.batch) continue;
#pragma unroll
    for (int i = 0; i < H; ++i) a.y[n * a.outputs + r * H + i] = from_acc<T>(sum[i]);
  }
}

template <typename T, int H>
__global__ void __launch_bounds__(kBlockThreads) block_linear_dvalues_kernel(BlockLinearBackwardArguments<T> a) {
  using A = acc_t<T>;
  SG_SHARED(A, x_tile);                                 // [kBlockSamples][kBlockColumns]
  A* dy_tile = x_tile + kBlockSamples * kBlockColumns;  // [kBlockSamples][H]
  constexpr int kOwned = (H * kBlockColumns + kBlockThreads - 1) / kBlockThreads;
  const int64_t begin = blockIdx.x * a.span, end = min(begin + a.span, a.batch);
  const int shift = log2_of(a.width), mask = a.width - 1;
  for (int64_t r = blockIdx.y; r < a.outputs / H; r += gridDim.y) {
    const int64_t stop = int64_t{a.crow[r + 1]} * a.width;
    for (int64_t v = int64_t{a.crow[r]} * a.width; v < stop; v += kBlockColumns) {
      A sum[kOwned] = {};
      for (int64_t first = begin; first < end; first += kBlockSamples) {
        __syncthreads();
        for (int j = threadIdx.x; j < kBlockSamples * kBlockColumns; j += kBlockThreads) {
          const int64_t n = first + j / kBlockColumns, at = v + j % kBlockColumns;
          x_tile[j] = A(0);
          if (n >= end || at >= stop) continue;
          x_tile[j] = to_acc(a.x[n * a.inputs + int64_t{a.col[at >> shift]} * a.width + (at & mask)]);
        }
        for (int j = threadIdx.x; j < kBlockSamples * H; j += kBlockThreads) {
          const int64_t n = first + j / H;
          dy_tile[j] = n < end ? to_acc(a.dy[n * a.outputs + r * H + j % H]) : A(0);
        }
        __syncthreads();
        for (int q = 0; q < kOwned; ++q) {
          const int j = threadIdx.x + q * kBlockThreads, i = j % H, c = j / H;
          if (c >= kBlockColumns) break;
#pragma unroll 8
          for (int s = 0; s < kBlockSamples; ++s) sum[q] += dy_tile[s * H + i] * x_tile[s * kBlockColumns + c];
        }
      }
      for (int q = 0; q < kOwned; ++q) {
        const int j = threadIdx.x + q * kBlockThreads;
        const int64_t at = v + j / H;
        if (j / H >= kBlockColumns || at >= stop) break;
        a.partial[blockIdx.x * a.values + (((at >> shift) * H + j % H) << shift) + (at & mask)] = sum[q];
      }
    }
  }
}

// ---- launchers

inline dim3 block_linear_grid(int64_t x, int64_t rows) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(min<int64_t>(rows, 65535)));
}

// `height`: outputs of a block, 1, 4, 8, 16 or 32.
template <typename T>
cudaError_t launch_block_linear(const BlockLinearArguments<T>& a, int height, cudaStream_t stream) {
  if (a.batch == 0 || a.outputs == 0) return cudaSuccess;
  const size_t shared = (kBlockThreads * kBlockPitch + kBlockColumns * height) * sizeof(acc_t<T>);
  const dim3 grid = block_linear_grid(ceil_div(a.batch, kBlockThreads), a.outputs / height);
  const auto run = [&](auto kernel) { return launch(kernel, grid, kBlockThreads, shared, stream, a); };
  if (height == 1) return run(block_linear_kernel<T, 1>);
  if (height == 4) return run(block_linear_kernel<T, 4>);
  if (height == 8) return run(block_linear_kernel<T, 8>);
  return height == 16 ? run(block_linear_kernel<T, 16>) : run(block_linear_kernel<T, 32>);
}

// Fills a.partial; nothing to do without samples.
template <typename T>
cudaError_t launch_block_linear_dvalues(const BlockLinearBackwardArguments<T>& a, int height, cudaStream_t stream) {
  if (a.spans == 0 || a.values == 0) return cudaSuccess;
  const size_t shared = kBlockSamples * (kBlockColumns + height) * sizeof(acc_t<T>);
  const dim3 grid = block_linear_grid(a.spans, a.outputs / height);
  const auto run = [&](auto kernel) { return launch(kernel, grid, kBlockThreads, shared, stream, a); };
  if (height == 4) return run(block_linear_dvalues_kernel<T, 4>);
  if (height == 8) return run(block_linear_dvalues_kernel<T, 8>);
  return height == 16 ? run(block_linear_dvalues_kernel<T, 16>) : run(block_linear_dvalues_kernel<T, 32>);
}

}  // namespace sparsegnn::cuda
