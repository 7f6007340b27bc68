// sparse_linear / cuda
//
//   y[n, m] = epilogue(bias[m] + sum over the nonzeros e of row m of W:  values[e] * x[n, col[e]])
//
// layout     W: CSR crow[M+1], col[nnz] int32, values[nnz] in T; x[B, K], y[B, M] row-major; bias[M] in acc_t<T>
// work       2*B*nnz flop; B*(K + M)*s bytes. One word of shared memory for each multiply-add is the limit in fp32
// schedule   first W is packed: (offset in the tile, value) pairs of 8 bytes in fp32, 4 in 16 bits, rows padded so that
//            one 128-bit load brings two or four nonzeros; and groups of 8 outputs are ordered by their number of
//            nonzeros. A block of 8 warps then takes 32*NL samples: a tile of X lies transposed in shared memory,
//            [inputs][samples]. A warp takes one group at a time, a quarter of it one output: its eight lanes read all
//            samples of an input in one or two 128-bit words each, whose banks are all banks, whatever the input. What
//            is done goes through shared memory, from where 16 rows of y get a whole sector of 32 bytes at a time. The
//            longest groups go first, dealt to panels and warps back and forth, so that all get the same work. K that
//            does not fit is cut into chunks, which are reloaded for every 64 outputs. A small W is kept in shared
//            memory by blocks that walk many tiles; any other comes through the L1
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

// A lane's samples of the outputs that its quarter of the warp makes, one after the other.
template <typename T, int NL>
using LinearSums = acc_t<T>[kLinearOutputs / kLinearQuarters][LinearTile<T, NL>::kRuns][LinearTile<T, NL>::kRun];

// sum[i] += the entries of output m + 4 i + quarter in chunk c times the lane's samples in `tile`, for the outputs
// before `end`. kStaged: `packed` is in shared memory.
template <typename T, int NL, bool kStaged = false>
__device__ __forceinline__ void linear_product(const T* tile, const LinearPlan& plan, const LinearPacked<T>& packed,
                                               int64_t m, int64_t end, int c, LinearSums<T, NL>& sum) {
  using Tile = LinearTile<T, NL>;
  constexpr int kTogether = linear_together(sizeof(T));
  using Entries = vec<LinearEntry<T>, kTogether>;
  const int quarter = threadIdx.x % kWarp / kLinearLanes;
  const char* samples = reinterpret_cast<const char*>(tile + threadIdx.x % kLinearLanes * Tile::kRun);
#pragma unroll
  for (int i = 0; i < kLinearOutputs / kLinearQuarters; ++i) {
    const int64_t output = m + i * kLinearQuarters + quarter;
    if (output >= end) continue;
    const int64_t s = output * plan.chunks + c;
    const int32_t from = packed.cut[s];
    const LinearEntry<T>* e = packed.entry + linear_place<T>(s, from);
#pragma unroll(sizeof(T) == 4 ? 2 : 1)  // as far as registers reach
    for (int left = packed.cut[s + 1] - from; left > 0; left -= kTogether, e += kTogether) {
      Entries w;
      if constexpr (kStaged)
        w = *reinterpret_cast<const Entries*>(e);
      else
        w = load<kTogether>(e);
      for (int u = 0; u < kTogether; ++u)
        for (int r = 0; r < Tile::kRuns; ++r) {
          const auto x = *reinterpret_cast<const vec<T, Tile::kRun>*>(samples + uint32_t(w[u].offset) * kLinearUnit +
                                                                      r * Tile::kAcross * sizeof(T));
          for (int l = 0; l < Tile::kRun; ++l) sum[i][r][l] += to_acc(w[u].value) * to_acc(x[l]);
        }
    }
  }
}

// Writes the outputs [m, end) of a warp for the samples of the tile that begins at `sample`, by way of the warp's part
// of `staging`, linear_outputs_bytes(NL, sizeof(T)) of shared memory for the block, aligned to 16 bytes.
template <typename T, int NL>
__device__ __forceinline__ void linear_store(const SparseLinearArguments<T>& a, T* staging, int64_t sample, int64_t m,
                                             int64_t end, bool vector_stores, const LinearSums<T, NL>& sum) {
  using Tile = LinearTile<T, NL>;
  // [samples][outputs], 16 bytes more after the samples of every lane: eight lanes write to different banks.
  constexpr int kLane = Tile::kRun * kLinearOutputs + kLinearUnit / int(sizeof(T));
  constexpr int V = kVector<T>, kPieces = kLinearOutputs / V;  // of a row of y
  using A = acc_t<T>;
  const int lane = threadIdx.x % kWarp, quarter = lane / kLinearLanes;
  T* own = staging + threadIdx.x / kWarp * kLinearLanes * kLane;
  // Of sample n, and of those that the lane writes.
  const auto place = [&](int n) { return own + n / Tile::kRun * kLane + n % Tile::kRun * kLinearOutputs; };
  const A low = a.epilogue.relu ? A(0) : -A(INFINITY);
  int rows = static_cast<int>(min<int64_t>(a.batch - sample, Tile::kSamples));
#pragma unroll
  for (int r = 0; r < Tile::kRuns; ++r, sample += Tile::kAcross, rows -= Tile::kAcross) {
    __syncwarp();
    const auto put = [&](const auto& last) {
#pragma unroll
      for (int i = 0; i < kLinearOutputs / kLinearQuarters; ++i) {
        const int64_t output = m + i * kLinearQuarters + quarter;
        const A bias = a.bias && output < end ? a.bias[output] : A(-0.0);  // which changes nothing
        T* y = own + lane % kLinearLanes * kLane + i * kLinearQuarters + quarter;
#pragma unroll
        for (int l = 0; l < Tile::kRun; ++l) {
          const A v = sum[i][r][l] + bias;
          y[l * kLinearOutputs] = from_acc<T>(last(v < low ? A(0) : v, lane % kLinearLanes * Tile::kRun + l, output));
        }
      }
    };
    if (a.epilogue.seed)
      put([&](A v, int n, int64_t output) { return a.epilogue.dropped(v, sample + n, output); });
    else
      put([&](A v, int, int64_t) { return v; });
    __syncwarp();
    if (vector_stores) {
      const int i = lane % kPieces * V;
      T* y = a.y + (sample + lane / kPieces) * a.outputs + m + i;
#pragma unroll
      for (int n = lane / kPieces; n < Tile::kAcross; n += kWarp / kPieces, y += kWarp / kPieces * a.outputs)
        if (n < rows && m + i < end) store(y, *reinterpret_cast<const vec<T, V>*>(place(n) + i));
    } else {
      const int i = lane % kLinearOutputs;
      T* y = a.y + (sample + lane / kLinearOutputs) * a.outputs + m + i;
      for (int n = lane / kLinearOutputs; n < Tile::kAcross;
           n += kWarp / kLinearOutputs, y += kWarp / kLinearOutputs * a.outputs)
        if (n < rows && m + i < end) *y = place(n)[i];
    }
  }
}

// Block (share of the tiles, panel). bytes: of the packed matrix in `workspace`, and of its entries.
template <typename T, int NL, bool kStaged>
__global__ void __launch_bounds__(kLinearThreads, (kStaged && sizeof(T) == 4) || sizeof(T) == 8 ? 2 : 3)
    sparse_linear_kernel(SparseLinearArguments<T> a, LinearPlan plan, bool vectors, bool vector_stores, void* workspace,
                         int64_t bytes, int64_t entry_bytes, int64_t tile_bytes) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(T, staging);
  T* tile = staging + linear_outputs_bytes(NL, sizeof(T)) / sizeof(T);
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
      LinearSums<T, NL> sum = {};
      for (int c = 0; c < plan.chunks; ++c) {
        if (plan.chunks > 1 || first == blockIdx.y) {
          __syncthreads();
          const int64_t k = int64_t{c} * plan.chunk;
          Tile::load(tile, a.x, a.batch, a.inputs, sample, k, int(min<int64_t>(plan.chunk, a.inputs - k)), vectors);
          __syncthreads();
        }
        linear_product<T, NL, kStaged>(tile, plan, packed, m, a.outputs, c, sum);
      }
      linear_store<T, NL>(a, staging, sample, m, a.outputs, vector_stores, sum);
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
  const bool vector_stores = can_vectorise(kVector<T>, a.outputs, a.y);
  const int64_t bytes = sparse_linear_workspace_bytes<T>(plan, a.outputs, a.entries);
  const int64_t tile_bytes = linear_tile_bytes(plan, sizeof(T)), tiles = ceil_div(a.batch, kWarp * plan.per_lane);
  const bool staged = plan.staged > 0 && linear_stages(plan.per_lane, sizeof(T));
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(staged ? min(tiles, plan.staged) : tiles),
                    static_cast<unsigned>(ceil_div(a.outputs, plan.panel)));
    const size_t shared = linear_outputs_bytes(plan.per_lane, sizeof(T)) + tile_bytes + (staged ? bytes : 0);
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
