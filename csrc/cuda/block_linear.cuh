// block_linear / cuda
//
//   y[n, rh + i]  = bias + sum over blocks e of block row r, k < w:  values[e][i, k] * x[n, col[e] w + k]
//
// layout     CSR over blocks [h, w]: crow[M / h + 1], col[blocks]; values[blocks][h][w]; x[B, K], y[B, M] row-major
// work       2*B*nnz flop; B*(K + M)*s bytes, and nnz*s of weights through L2 for every tile of samples
// schedule   a block of 8 warps holds a tile of x, transposed, in shared memory: [inputs][32 or 64 samples]. A warp
//            takes block rows, all samples of the tile, sums in up to 64 registers a lane: fragments
//            (block_linear_mma.cuh) or, in strict fp32, fp64 and for groups of 4, NL samples of a lane times H outputs,
//            where an element of x in shared memory feeds H multiply-adds. K that does not fit is cut into chunks,
//            reloaded in every round of rows. Each op knows one layout of square blocks; W, which is small, is copied
//            to it first
// numerics   sums in acc_t<T>, in the order of the entries: the same bits in every run
// backward   dx of square blocks: this kernel on the transposed pattern; of groups:
//            block_linear_scatter.cuh; dvalues: block_linear_backward.cuh
// see        sparsegnn/ops/block_linear.py, tests/csrc/test_block_linear.py, benchmarks/ops/bench_block_linear.py
#pragma once
#include "block_linear_mma.cuh"

namespace sparsegnn::cuda {

// The way of a BlockMmaOp by multiply-adds: a lane owns NL samples and H outputs; square blocks are turned in `values`.
template <typename T, int H, int W>
struct BlockFmaOp {
  using Scalar = T;
  using A = acc_t<T>;
  static constexpr int kHeight = H, kRows = block_rows(false, H, sizeof(T));
  static constexpr int kRegisters = block_registers(false, H, sizeof(T));
  static constexpr int kSamples = block_samples(false, sizeof(T)), kStride = block_stride(false, sizeof(T));
  static constexpr int NL = kSamples / kWarp;
  static constexpr bool kRound = false;
  using Tile = BlockTile<T, kSamples, kStride, 0>;

  A sum[kRows][H][NL] = {};

  __device__ __forceinline__ void add(int row, const BlockLinearArguments<T>& a, const T* tile, int32_t from,
                                      int32_t to, int64_t first, int) {
    constexpr int kPiece = min(H, 8);
    tile += threadIdx.x % kWarp * NL;
#pragma unroll(W > 1 ? 1 : kRegisters >= 16 ? 2 : 4)  // as far as registers reach
    for (int32_t e = from; e < to; ++e) {
      const T* x = tile + static_cast<int>(int64_t{a.col[e]} * W - first) * kStride;
      const T* weight = a.values + e * int64_t{H * W};
#pragma unroll(kRegisters >= 64 ? 1 : 2)
      for (int k = 0; k < W; ++k) {
        const vec<T, NL> values = shared_vec<NL>(x + k * kStride);
#pragma unroll
        for (int i = 0; i < H; i += kPiece) {
          const vec<T, kPiece> w = load<kPiece>(weight + k * H + i);
#pragma unroll
          for (int j = 0; j < kPiece; ++j)
#pragma unroll
            for (int l = 0; l < NL; ++l) sum[row][i + j][l] += to_acc(w[j]) * to_acc(values[l]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(const BlockLinearArguments<T>& a, int64_t sample, int64_t r, int64_t end) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (r + row >= end) continue;
#pragma unroll
      for (int l = 0; l < NL; ++l) {
        const int64_t n = sample + threadIdx.x % kWarp * NL + l, m = (r + row) * H;
        if (n >= a.batch) continue;
        vec<T, H> out;
#pragma unroll
        for (int i = 0; i < H; ++i) out[i] = from_acc<T>(a.bias ? sum[row][i][l] + a.bias[m + i] : sum[row][i][l]);
        cuda::store(a.y + n * a.outputs + m, out);
      }
    }
  }
};

// out[e][k][i] = values[e][i][k], or values[perm[e]] in their order, for square blocks of 2^shift.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    block_linear_turn_kernel(const T* values, const int32_t* perm, int64_t count, int shift, T* out) {
  const int64_t at = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x, e = at >> 2 * shift;
  if (at >= count) return;
  const int within = static_cast<int>(at & ((1 << 2 * shift) - 1)), k = within >> shift,
            i = within & ((1 << shift) - 1);
  out[at] = values[(int64_t{perm ? perm[e] : e} << 2 * shift) + (perm ? within : (i << shift) + k)];
}

// The fragments of B of square blocks of 2^shift: the words of a lane for all outputs of a step of K inputs are
// neighbours. out[e][step][lane][output / 8][word of the fragment]; from values[e], or values[perm[e]] turned.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    block_linear_fragments_kernel(const T* values, const int32_t* perm, int64_t words, int shift, uint32_t* out) {
  constexpr int kPart = kWordElements<T>, kDepth = kPart == 1 ? 3 : 4;  // bits of K
  const int64_t at = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x, e = at >> (2 * shift - (kPart - 1));
  if (at >= words) return;
  const int word = at & 1, j = static_cast<int>(at >> 1) & ((1 << (shift - 3)) - 1);
  const int lane = static_cast<int>(at >> (shift - 2)) % kWarp;
  const int step = static_cast<int>(at >> (shift + 3)) & ((1 << (shift - kDepth)) - 1);
  const int i = 8 * j + lane / 4, k = (step << kDepth) + lane % 4 * kPart + word * 4 * kPart;
  const T* block = values + (int64_t{perm ? perm[e] : e} << 2 * shift);
  const auto value = [&](int p) { return block[perm ? ((k + p) << shift) + i : (i << shift) + k + p]; };
  if constexpr (kPart == 1)
    out[at] = tf32(value(0));
  else
    out[at] = word_of(value(0), value(1));
}

// Block (samples, panel of outputs). cut: first entry of every block row in every chunk.
template <typename Op>
__global__ void __launch_bounds__(kBlockThreads, 2)
    block_linear_kernel(BlockLinearArguments<typename Op::Scalar> a, BlockPlan plan, const int32_t* cut) {
  using T = typename Op::Scalar;
  using Tile = typename Op::Tile;
  SG_SHARED(T, tile);  // [tile_rows(chunk)][kStride]
  const int64_t sample = int64_t{blockIdx.x} * Op::kSamples, rows = a.outputs / Op::kHeight;
  const int zeros = tile_rows(plan.chunk) - 1;
  const int64_t begin = blockIdx.y * (plan.panel / Op::kHeight), end = min(begin + plan.panel / Op::kHeight, rows);
  for (int n = threadIdx.x; n < Op::kStride; n += kBlockThreads) tile[zeros * Op::kStride + n] = T{};
  for (int64_t round = begin; round < end; round += kBlockWarps * Op::kRows) {
    const int64_t r = round + threadIdx.x / kWarp * Op::kRows;
    Op op;
    for (int c = 0; c < plan.chunks; ++c) {
      const int64_t first = int64_t{c} * plan.chunk;
      if (plan.chunks > 1 || round == begin) {
        __syncthreads();
        Tile::template load<Op::kRound>(tile, a.x + sample * a.inputs + first,
                                        min(a.batch - sample, int64_t{Op::kSamples}), a.inputs,
                                        int(min<int64_t>(plan.chunk, a.inputs - first)), a.vectors);
        __syncthreads();
      }
#pragma unroll
      for (int row = 0; row < Op::kRows; ++row) {
        const int64_t s = (r + row) * plan.chunks + c;
        if (r + row < end) op.add(row, a, tile, cut[s], cut[s + 1], first, zeros);
      }
    }
    op.store(a, sample, r, end);
  }
}

// ---- launcher

// Bytes through L2 decide: x, once if a tile holds all inputs, else in every round of rows, and W for every tile.
inline BlockPlan choose_block_linear(int64_t batch, int64_t inputs, int64_t outputs, int height, int64_t element_size,
                                     bool allow_tf32) {
  const bool mma = block_linear_mma(height, element_size, allow_tf32);
  const int64_t room = kBlockShared / (block_stride(mma, element_size) * element_size) - 8;  // columns
  BlockPlan plan = {mma, static_cast<int>(min(inputs, room)), 1, outputs};
  if (inputs > room) {
    plan.chunks = static_cast<int>(ceil_div(inputs, room / 32 * 32));
    plan.chunk = static_cast<int>(ceil_div(ceil_div(inputs, plan.chunks), 32) * 32);
  }
  // Few samples: more blocks, of a part of the outputs each.
  const int64_t round = int64_t{kBlockWarps} * block_rows(mma, height, element_size) * height;
  const int64_t rounds = ceil_div(outputs, round), tiles = ceil_div(batch, block_samples(mma, element_size));
  const int64_t panels = min(rounds, ceil_div(kBlockGrid, max<int64_t>(1, tiles)));
  if (panels > 1) plan.panel = ceil_div(rounds, panels) * round;
  return plan;
}

template <typename T>
int64_t block_linear_workspace_bytes(const BlockLinearArguments<T>& a, const BlockPlan& plan) {
  const int64_t values = a.width > 1 ? a.blocks * a.height * a.width * int64_t(sizeof(T)) : 0;  // as the op reads them
  return block_linear_cut_bytes(plan.chunks, a.outputs / a.height) + values;
}

template <typename Op, typename T>
cudaError_t launch_block_linear_as(const BlockLinearArguments<T>& a, const BlockPlan& plan, const int32_t* cut,
                                   cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(a.batch, Op::kSamples)),
                  static_cast<unsigned>(ceil_div(a.outputs, plan.panel)));  // no more panels than kBlockGrid
  const size_t shared = size_t(tile_rows(plan.chunk)) * Op::kStride * sizeof(T);
  return launch(block_linear_kernel<Op>, grid, kBlockThreads, shared, stream, a, plan, cut);
}

// Groups (width 1) of 4, 8 or 16 outputs, or square blocks of 16 or 32. Fills a.y.
// workspace: block_linear_workspace_bytes(a, plan), aligned to 16 bytes.
template <typename T>
cudaError_t launch_block_linear(BlockLinearArguments<T> a, const BlockPlan& plan, void* workspace,
                                cudaStream_t stream) {
  if (a.batch == 0 || a.outputs == 0) return cudaSuccess;
  if (!can_vectorise(kVector<T>, 0, a.values, a.y)) return cudaErrorInvalidValue;
  const int64_t rows = a.outputs / a.height, count = a.blocks * a.height * a.width;
  const int32_t* cut = nullptr;
  cudaError_t error =
      launch_block_linear_cut(a.crow, a.col, rows, plan.chunk / a.width, plan.chunks, workspace, &cut, stream);
  if (error == cudaSuccess && count > 0 && a.width > 1) {
    char* copy = static_cast<char*>(workspace) + block_linear_cut_bytes(plan.chunks, rows);
    const int shift = a.width == 16 ? 4 : 5;
    const auto run = [&](auto kernel, int64_t items, auto* out) {
      return launch(kernel, static_cast<unsigned>(ceil_div(items, kBlockThreads)), kBlockThreads, 0, stream, a.values,
                    a.perm, items, shift, out);
    };
    if constexpr (sizeof(T) >= 4)  // in 16 bits tensor cores multiply all of them
      if (!plan.mma) error = run(block_linear_turn_kernel<T>, count, reinterpret_cast<T*>(copy));
    if constexpr (sizeof(T) <= 4)
      if (plan.mma)
        error = run(block_linear_fragments_kernel<T>, count / kWordElements<T>, reinterpret_cast<uint32_t*>(copy));
    a.values = reinterpret_cast<T*>(copy);
  }
  if (error != cudaSuccess) return error;
  a.vectors = can_vectorise(kVector<T>, a.inputs, a.x);
  if (a.width == 1 && a.height == 4) return launch_block_linear_as<BlockFmaOp<T, 4, 1>>(a, plan, cut, stream);
  if constexpr (sizeof(T) <= 4)
    if (plan.mma) {
      if (a.width == 1)
        return a.height == 8 ? launch_block_linear_as<BlockMmaOp<T, 8, 1>>(a, plan, cut, stream)
                             : launch_block_linear_as<BlockMmaOp<T, 16, 1>>(a, plan, cut, stream);
      return a.width == 16 ? launch_block_linear_as<BlockMmaOp<T, 16, 16>>(a, plan, cut, stream)
                           : launch_block_linear_as<BlockMmaOp<T, 32, 32>>(a, plan, cut, stream);
    }
  if constexpr (sizeof(T) >= 4) {
    if (a.width == 1)
      return a.height == 8 ? launch_block_linear_as<BlockFmaOp<T, 8, 1>>(a, plan, cut, stream)
                           : launch_block_linear_as<BlockFmaOp<T, 16, 1>>(a, plan, cut, stream);
    return a.width == 16 ? launch_block_linear_as<BlockFmaOp<T, 16, 16>>(a, plan, cut, stream)
                         : launch_block_linear_as<BlockFmaOp<T, 32, 32>>(a, plan, cut, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsegnn::cuda
