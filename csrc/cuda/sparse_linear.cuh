// sparse_linear / cuda
//
//   y[n, m] = epilogue(bias[m] + sum over the nonzeros e of row m of W:  values[e] * x[n, col[e]])
//
// layout     W: CSR crow[M+1], col[nnz] int32, values[nnz] in T; x[B, K], y[B, M] row-major; bias[M] in acc_t<T>
// work       2*B*nnz flop; B*(K + M)*s bytes. One word of shared memory for each multiply-add is the limit in fp32
// schedule   first W is packed: (offset in the tile, value) pairs of 8 bytes in fp32, 4 in 16 bits, rows padded so that
//            one 128-bit broadcast brings two or four nonzeros; and groups of 8 outputs are ordered by their number of
//            nonzeros. A block of 8 warps then takes 32*NL samples: a tile of X lies transposed in shared memory,
//            [inputs][samples]; a lane owns NL samples, a warp one group at a time: 32 bytes of fp32 in a row of y, a
//            sector. The longest groups go first, dealt to panels and warps back and forth, so that all get the same
//            work. K that does not fit is cut into chunks, which are reloaded for every 64 outputs. A small W is kept
//            in shared memory by blocks that walk many tiles; any other comes through the L1
// numerics   sums in acc_t<T>, each output by one lane in the order of its nonzeros: the same bits in every run
// backward   dx: this kernel on the transposed pattern, values through perm; the rest: sparse_linear_backward.cuh,
//            sparse_linear_epilogue.cuh
// see        sparsegnn/ops/sparse_linear.py, tests/csrc/test_sparse_linear.py, benchmarks/ops/bench_sparse_linear.py
#pragma once
#include "sparse_linear_epilogue.cuh"
#include "sparse_linear_pack.cuh"

namespace sparsegnn::cuda {

// Device pointers. perm: where in `values` each entry of the pattern is; null where in order.
template <typename T>
struct SparseLinearArguments {
  const T *x, *values;
  const acc_t<T>* bias;
  const int32_t *crow, *col, *perm;
  T* y;
  int64_t batch, inputs, outputs, entries;
  LinearEpilogue<acc_t<T>> epilogue = {};
};

// ---- the product

// sum[i][l] += the entries of output m + i in chunk c times the lane's samples in `tile`, for the outputs before `end`.
// kStaged: `packed` is in shared memory.
template <typename T, int NL, bool kStaged = false>
__device__ __forceinline__ void linear_product(const T* tile, const LinearPlan& plan, const LinearPacked<T>& packed,
                                               int64_t m, int64_t end, int c, acc_t<T> (&sum)[kLinearOutputs][NL]) {
  constexpr int kTogether = linear_together(sizeof(T));
  using Entries = vec<LinearEntry<T>, kTogether>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kLinearOutputs; ++i) {
    if (m + i >= end) continue;
    const int64_t s = (m + i) * plan.chunks + c;
    const int32_t from = packed.cut[s];
    const int count = packed.cut[s + 1] - from;
    const LinearEntry<T>* e = packed.entry + linear_place<T>(s, from);
#pragma unroll(4 / kTogether)
    for (int q = 0; q < count; q += kTogether) {
      Entries w;
      if constexpr (kStaged)
        w = *reinterpret_cast<const Entries*>(e + q);
      else
        w = load<kTogether>(e + q);
      for (int u = 0; u < kTogether; ++u) {
        const auto x =
            *reinterpret_cast<const vec<T, NL>*>(tile + w[u].offset * (kLinearUnit / int(sizeof(T))) + lane * NL);
        for (int l = 0; l < NL; ++l) sum[i][l] += to_acc(w[u].value) * to_acc(x[l]);
      }
    }
  }
}

// Writes the outputs [m, end) of a warp for the samples of the tile that begins at `sample`.
template <typename T, int NL>
__device__ __forceinline__ void linear_store(const SparseLinearArguments<T>& a, int64_t sample, int64_t m, int64_t end,
                                             bool vector_stores, const acc_t<T> (&sum)[kLinearOutputs][NL]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int l = 0; l < NL; ++l) {
    const int64_t n = sample + lane * NL + l;
    if (n >= a.batch || m >= end) continue;
    T* y = a.y + n * a.outputs + m;
    vec<T, kLinearOutputs> out;
    for (int i = 0; i < kLinearOutputs; ++i)
      out[i] = from_acc<T>(a.epilogue(a.bias && m + i < end ? sum[i][l] + a.bias[m + i] : sum[i][l], n, m + i));
    if (vector_stores)
      store(y, out);
    else
      for (int i = 0; i < kLinearOutputs; ++i)
        if (m + i < end) y[i] = out[i];
  }
}

// Block (share of the tiles, panel). bytes: of the packed matrix in `workspace`, and of its entries.
template <typename T, int NL, bool kStaged>
__global__ void __launch_bounds__(kLinearThreads, 2)
    sparse_linear_kernel(SparseLinearArguments<T> a, LinearPlan plan, bool vectors, bool vector_stores, void* workspace,
                         int64_t bytes, int64_t entry_bytes, int64_t tile_bytes) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(T, tile);
  const int64_t groups = ceil_div(a.outputs, kLinearOutputs), step = int64_t{gridDim.y} * kLinearWarps;
  for (int n = threadIdx.x; n < Tile::kStride; n += kLinearThreads) tile[plan.chunk * Tile::kStride + n] = T{};
  if constexpr (kStaged) {
    auto* copy = reinterpret_cast<int32_t*>(reinterpret_cast<char*>(tile) + tile_bytes);
    for (int64_t i = int64_t{threadIdx.x} * 4; i < bytes / 4; i += kLinearThreads * 4)
      *reinterpret_cast<vec<int32_t, 4>*>(copy + i) = load<4>(static_cast<const int32_t*>(workspace) + i);
    workspace = copy;
    __syncthreads();
  }
  const LinearPacked<T> packed = linear_packed<T>(plan, a.outputs, entry_bytes, workspace);

  for (int64_t sample = int64_t{blockIdx.x} * Tile::kSamples; sample < a.batch;
       sample += int64_t{gridDim.x} * Tile::kSamples)
    for (int64_t first = blockIdx.y, back = 0; first < groups; first += step, back ^= 1) {
      const int64_t m = linear_group(packed, a.outputs, first, back != 0, gridDim.y);
      acc_t<T> sum[kLinearOutputs][NL] = {};
      for (int c = 0; c < plan.chunks; ++c) {
        if (plan.chunks > 1 || first == blockIdx.y) {
          __syncthreads();
          const int64_t k = int64_t{c} * plan.chunk;
          Tile::load(tile, a.x, a.batch, a.inputs, sample, k, int(min<int64_t>(plan.chunk, a.inputs - k)), vectors);
          __syncthreads();
        }
        linear_product<T, NL, kStaged>(tile, plan, packed, m, a.outputs, c, sum);
      }
      linear_store<T, NL>(a, sample, m, a.outputs, vector_stores, sum);
    }
}

// ---- launchers

template <typename T>
int64_t sparse_linear_workspace_bytes(const LinearPlan& plan, int64_t outputs, int64_t entries) {
  return linear_packed_bytes(plan, outputs, entries, sizeof(T));
}

template <typename T>
cudaError_t launch_linear_pack(const SparseLinearArguments<T>& a, const LinearPlan& plan, const LinearPacked<T>& packed,
                               cudaStream_t stream) {
  const LinearPack<T> pack = {a.crow, a.col, a.perm, a.values, a.outputs, plan, packed};
  return launch(linear_segments_kernel<LinearPack<T>>,
                static_cast<unsigned>(ceil_div(a.outputs * plan.chunks, kLinearWarps)), kLinearThreads, 0, stream, pack,
                a.crow, a.col, a.outputs, plan.chunk, plan.chunks, packed.cut);
}

// workspace: sparse_linear_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_sparse_linear(const SparseLinearArguments<T>& a, const LinearPlan& plan, void* workspace,
                                 cudaStream_t stream) {
  if (a.batch == 0 || a.outputs == 0) return cudaSuccess;
  const int64_t entry_bytes = linear_entry_bytes(plan, a.outputs, a.entries, sizeof(T));
  const cudaError_t error =
      launch_linear_pack(a, plan, linear_packed<T>(plan, a.outputs, entry_bytes, workspace), stream);
  if (error != cudaSuccess) return error;
  const bool vectors = can_vectorise(kVector<T>, a.inputs, a.x);
  const bool vector_stores = can_vectorise(kLinearOutputs, a.outputs, a.y);
  const int64_t bytes = sparse_linear_workspace_bytes<T>(plan, a.outputs, a.entries);
  const int64_t tile_bytes = linear_tile_bytes(plan, sizeof(T)), tiles = ceil_div(a.batch, kWarp * plan.per_lane);
  const bool staged = plan.staged > 0 && linear_stages(plan.per_lane, sizeof(T));
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(staged ? min(tiles, plan.staged) : tiles),
                    static_cast<unsigned>(ceil_div(a.outputs, plan.panel)));
    const size_t shared = tile_bytes + (staged ? bytes : 0);
    return launch(kernel, grid, kLinearThreads, shared, stream, a, plan, vectors, vector_stores, workspace, bytes,
                  entry_bytes, tile_bytes);
  };
  return linear_tiles<T>(plan.per_lane, [&](auto n) {
    if constexpr (linear_stages(n, sizeof(T)))
      if (staged) return run(sparse_linear_kernel<T, n, true>);
    return run(sparse_linear_kernel<T, n, false>);
  });
}

}  // namespace sparsegnn::cuda
