// sparse_linear, gradients of values and bias / cuda
//
//   dvalues[e] = sum over n of dy[n, row(e)] * x[n, col[e]]          dbias[m] = sum over n of dy[n, m]
//
// layout     as sparse_linear.cuh; dy[B, M] row-major
// work       2*B*nnz flop
// schedule   a block holds tiles of X and dY transposed in shared memory and walks its span of the samples. Eight lanes
//            take a nonzero, each the samples of one or two 128-bit words: any row of a tile is all banks, once. A warp
//            takes 32 nonzeros at a time, eight for each quarter, which keeps the row of dY while it stays the same;
//            seven shuffles add over the eight lanes and leave the sum of nonzero l with lane l, which adds it to the
//            block's partial. Outputs are cut into panels and inputs into chunks where the tiles do not fit
// numerics   partials per span of samples, added in order by a second kernel; the spans depend on the shape alone
// see        sparsegnn/ops/sparse_linear.py, tests/csrc/test_sparse_linear.py
#pragma once
#include "sparse_linear.cuh"
#include "sparse_linear_sums.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct SparseLinearBackwardArguments {
  const T *dy, *x;
  const int32_t *crow, *col;
  T* dvalues;
  int64_t batch, inputs, outputs, entries;
};

// Block (panel and chunk, span); partial[span, e].
template <typename T, int NL>
__global__ void __launch_bounds__(kLinearThreads, 3)
    sparse_linear_dvalues_kernel(SparseLinearBackwardArguments<T> a, LinearBackwardPlan plan, bool x_vectors,
                                 bool dy_vectors, const int32_t* cut, const LinearPosition* position,
                                 acc_t<T>* partial) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(T, x_tile);
  T* dy_tile = x_tile + plan.chunk * Tile::kStride;
  const unsigned c = blockIdx.x % static_cast<unsigned>(plan.chunks);
  const int64_t m = int64_t{blockIdx.x / static_cast<unsigned>(plan.chunks)} * plan.panel, k = int64_t{c} * plan.chunk;
  const int outputs = int(min<int64_t>(plan.panel, a.outputs - m)),
            inputs = int(min<int64_t>(plan.chunk, a.inputs - k));
  partial += blockIdx.y * a.entries;

  for (int64_t t = 0; t < plan.span; ++t) {
    const int64_t sample = (blockIdx.y * plan.span + t) * Tile::kSamples;
    if (sample >= a.batch) return;
    __syncthreads();
    Tile::load(x_tile, a.x, a.batch, a.inputs, sample, k, inputs, x_vectors);
    Tile::load(dy_tile, a.dy, a.batch, a.outputs, sample, m, outputs, dy_vectors);
    __syncthreads();
    LinearProducts<T, NL> products(x_tile, x_tile, dy_tile);
    // With one chunk the nonzeros of the panel are one range; else each row has its own, and a quarter.
    if (plan.chunks == 1) {
      products.add_shared(position, cut[m], cut[m + outputs], t == 0, partial);
    } else {
      for (int first = 0; first < outputs; first += kLinearThreads / kLinearLanes) {
        const int i = min(outputs - 1, first + static_cast<int>(threadIdx.x) / kLinearLanes);
        const int64_t s = (m + i) * plan.chunks + c;
        const int64_t begin = cut[s],
                      end = first + static_cast<int>(threadIdx.x) / kLinearLanes == i ? cut[s + 1] : begin;
        products.template add<kLinearLanes>(position, begin, end, begin / 4 * 4, t == 0, partial);
      }
    }
  }
}

// partial[span, m]: the sum of the samples of a span, for 32 outputs a block.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    sparse_linear_dbias_kernel(const T* dy, int64_t batch, int64_t outputs, int64_t span, acc_t<T>* partial) {
  SG_SHARED(acc_t<T>, sums);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t m = int64_t{blockIdx.x} * kWarp + lane, begin = blockIdx.y * span, end = min(begin + span, batch);
  acc_t<T> sum = 0;
  if (m < outputs)
#pragma unroll 4
    for (int64_t n = begin + warp; n < end; n += kLinearWarps) sum += to_acc(dy[n * outputs + m]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || m >= outputs) return;
  for (int w = 1; w < kLinearWarps; ++w) sum += sums[w * kWarp + lane];
  partial[blockIdx.y * outputs + m] = sum;
}

// out[i] = sum over the spans, in order, of partial[span, i]; where `place` is given it says where in out i is.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    sparse_linear_partials_kernel(const acc_t<T>* partial, int64_t spans, int64_t count, T* out, const int32_t* place) {
  const int64_t i = int64_t{blockIdx.x} * kLinearThreads + threadIdx.x;
  if (i >= count) return;
  acc_t<T> sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < spans; ++s) sum += partial[s * count + i];
  out[place ? place[i] : i] = from_acc<T>(sum);
}

template <typename T>
cudaError_t launch_sparse_linear_partials(const acc_t<T>* partial, int64_t spans, int64_t count, T* out,
                                          cudaStream_t stream, const int32_t* place = nullptr) {
  return launch(sparse_linear_partials_kernel<T>, static_cast<unsigned>(ceil_div(count, kLinearThreads)),
                kLinearThreads, 0, stream, partial, spans, count, out, place);
}

// ---- launchers

template <typename T>
int64_t sparse_linear_dvalues_workspace_bytes(const LinearBackwardPlan& plan, int64_t outputs, int64_t entries) {
  return linear_position_bytes(entries) + plan.spans * entries * sizeof(acc_t<T>) +
         (outputs * plan.chunks + 1) * sizeof(int32_t);
}

// workspace: sparse_linear_dvalues_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_sparse_linear_dvalues(const SparseLinearBackwardArguments<T>& a, const LinearBackwardPlan& plan,
                                         void* workspace, cudaStream_t stream) {
  if (a.entries == 0) return cudaSuccess;
  auto* position = static_cast<LinearPosition*>(workspace);
  auto* partial = reinterpret_cast<acc_t<T>*>(static_cast<char*>(workspace) + linear_position_bytes(a.entries));
  auto* cut = reinterpret_cast<int32_t*>(partial + plan.spans * a.entries);
  const int64_t blocks = int64_t{plan.panels} * plan.chunks;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (plan.spans > 0) {
    const int units = static_cast<int>(plan.stride * sizeof(T)) / kLinearUnit;
    const LinearPositions pack = {a.col, plan, a.entries, units, position};
    cudaError_t error = launch(linear_segments_kernel<LinearPositions>,
                               static_cast<unsigned>(ceil_div(a.outputs * plan.chunks, kLinearWarps)), kLinearThreads,
                               0, stream, pack, a.crow, a.col, a.outputs, plan.chunk, plan.chunks, cut);
    if (error != cudaSuccess) return error;
    const bool x_vectors = can_vectorise(kVector<T>, a.inputs, a.x);
    const bool dy_vectors = can_vectorise(kVector<T>, a.outputs, a.dy);
    const auto run = [&](auto kernel) {
      const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.spans));
      const size_t shared = size_t(plan.chunk + plan.panel) * plan.stride * sizeof(T);
      return launch(kernel, grid, kLinearThreads, shared, stream, a, plan, x_vectors, dy_vectors, cut, position,
                    partial);
    };
    error = linear_tiles<T>(plan.per_lane, [&](auto n) { return run(sparse_linear_dvalues_kernel<T, n>); });
    if (error != cudaSuccess) return error;
  }
  return launch_sparse_linear_partials(partial, plan.spans, a.entries, a.dvalues, stream);
}

// Samples of a span of dbias; there are at most kLinearBlocks spans.
inline int64_t linear_dbias_span(int64_t batch) { return max<int64_t>(256, ceil_div(batch, kLinearBlocks)); }

template <typename T>
int64_t sparse_linear_dbias_workspace_bytes(int64_t batch, int64_t outputs) {
  return ceil_div(batch, linear_dbias_span(batch)) * outputs * sizeof(acc_t<T>);
}

template <typename T>
cudaError_t launch_sparse_linear_dbias(const T* dy, int64_t batch, int64_t outputs, T* dbias, void* workspace,
                                       cudaStream_t stream) {
  if (outputs == 0) return cudaSuccess;
  auto* partial = static_cast<acc_t<T>*>(workspace);
  const int64_t span = linear_dbias_span(batch), spans = ceil_div(batch, span);
  if (spans > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(outputs, kWarp)), static_cast<unsigned>(spans));
    const cudaError_t error = launch(sparse_linear_dbias_kernel<T>, grid, kLinearThreads,
                                     kLinearThreads * sizeof(acc_t<T>), stream, dy, batch, outputs, span, partial);
    if (error != cudaSuccess) return error;
  }
  return launch_sparse_linear_partials(partial, spans, outputs, dbias, stream);
}

}  // namespace sparsegnn::cuda
