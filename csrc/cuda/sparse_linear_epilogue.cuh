// sparse_linear, what follows the sums / cuda
//
//   y[n, m] = dropout(relu(sum))      in the registers of the product kernel, before the store
//   g[n, m] = dy * scale where y is not <= 0 (torch's threshold_backward: a NaN lets the gradient through); without
//             ReLU dy * scale where the bits of (seed, n, m) keep the output (common/random.h)
//
// layout     dy, y, g[B, M] row-major
// work       g is written once, 3*B*M*s bytes, and read by the kernels of dx, dvalues and dbias: as many bytes as if
//            each of the three read y beside dy, and none of them needs more registers
// see        sparse_linear.cuh, sparse_linear_backward.cuh, tests/csrc/test_sparse_linear.py
#pragma once
#include "../common/gpu.cuh"
#include "../common/random.h"

namespace sparsegnn::cuda {

// seed: on the device, null without dropout.
template <typename A>
struct LinearEpilogue {
  bool relu = false;
  uint32_t threshold = 0;
  A scale = 1;
  const int64_t* seed = nullptr;

  __device__ __forceinline__ bool keeps(int64_t n, int64_t m) const {
    const RandomKey key = random_key(*seed);
    const uint32_t row = random_edge(key, static_cast<uint32_t>(n)), head = random_head(key, static_cast<uint32_t>(m));
    return random_bits(row, head) >= threshold;
  }
  __device__ __forceinline__ A dropped(A v, int64_t n, int64_t m) const { return keeps(n, m) ? v * scale : A(0); }
};

template <typename A>
LinearEpilogue<A> linear_epilogue(bool relu, double dropout, const int64_t* seed) {
  if (dropout == 0) return {relu};
  return {relu, random_threshold(dropout), static_cast<A>(random_scale(dropout)), seed};
}

constexpr int kLinearMaskThreads = 256;

// y is null where the outputs did not go through ReLU.
template <typename T>
__global__ void __launch_bounds__(kLinearMaskThreads)
    sparse_linear_mask_kernel(const T* dy, const T* y, int64_t batch, int64_t outputs, LinearEpilogue<acc_t<T>> how,
                              T* g) {
  const int64_t step = int64_t{gridDim.x} * kLinearMaskThreads;
  for (int64_t i = int64_t{blockIdx.x} * kLinearMaskThreads + threadIdx.x; i < batch * outputs; i += step) {
    const bool passes = y ? !(to_acc(y[i]) <= 0) : how.keeps(i / outputs, i % outputs);
    g[i] = passes ? from_acc<T>(to_acc(dy[i]) * how.scale) : T{};
  }
}

template <typename T>
cudaError_t launch_sparse_linear_mask(const T* dy, const T* y, int64_t batch, int64_t outputs,
                                      const LinearEpilogue<acc_t<T>>& how, T* g, cudaStream_t stream) {
  if (batch * outputs == 0) return cudaSuccess;
  const int64_t blocks = ceil_div(batch * outputs, kLinearMaskThreads);
  return launch(sparse_linear_mask_kernel<T>, static_cast<unsigned>(min<int64_t>(blocks, int64_t{1} << 20)),
                kLinearMaskThreads, 0, stream, dy, y, batch, outputs, how, g);
}

}  // namespace sparsegnn::cuda
