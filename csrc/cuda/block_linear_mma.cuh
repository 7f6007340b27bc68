// block_linear, sums on tensor cores / cuda: what a warp of block_linear.cuh does with fragments of mma.sync
//
//   D[16 samples, 8 outputs] += A[16 samples, K columns of x] B[K, 8]        K = 8 in TF32, 16 in 16 bits
//
// layout     A: a lane reads columns t, t + 4 (16 bits: 2t, 2t + 1, 2t + 8, 2t + 9) from the transposed tile, wherever
//            they are there, for 4 samples at once: rows g and g + 8 of two fragments. Neighbouring columns have no
//            bank conflicts: of those that lanes t read together each begins 8 words after the one before
//            B: of groups from `values` as they are; of square blocks in the order of fragments, a lane's words of a
//            step side by side. Each word is used for 32 samples; the next step's is on its way meanwhile
// numerics   products of TF32 or 16 bits, sums in fp32; where a row has no entry left the column is one of zeros
// see        block_linear.cuh, tests/csrc/test_block_linear.py
#pragma once
#include "block_linear_tile.cuh"

namespace sparsegnn::cuda {

// Blocks of H outputs by W inputs; square ones as fragments.
template <typename T, int H, int W>
struct BlockMmaOp {
  using Scalar = T;
  static constexpr int kHeight = H, kRows = block_rows(true, H, sizeof(T));
  static constexpr int kSamples = block_samples(true, sizeof(T)), kStride = block_stride(true, sizeof(T));
  static constexpr bool kRound = sizeof(T) == 4;
  using Tile = BlockTile<T, kSamples, kStride, sizeof(T) == 4 ? 2 : 4>;

  static constexpr int kTiles = kSamples / 16;                          // fragments
  static constexpr int kOwn = 2 * kTiles;                               // samples of a lane, neighbours
  static constexpr int kPart = kWordElements<T>, kColumns = 2 * kPart;  // columns that a lane reads for A

  float sum[kRows][kTiles][H / 8][4] = {};

  struct Step {
    int offset[W > 1 ? 2 : kColumns];  // of the columns in the tile; of a square block's those that begin a word
    uint32_t b[H / 8][2];
  };

  // Of the lane's columns q: how far after the first one.
  static constexpr __host__ __device__ int after(int q) { return q / kPart * 4 * kPart + q % kPart; }

  // The columns from `v` on of those that the entries from `from` on stand for, `end` in all.
  static __device__ __forceinline__ Step fetch(const BlockLinearArguments<T>& a, int32_t from, int v, int end,
                                               int64_t first, int zeros) {
    const int g = threadIdx.x % kWarp / 4, k = v + threadIdx.x % 4 * kPart;
    Step s;
    if constexpr (W > 1) {
      const int32_t e = from + v / W;
      const int column = static_cast<int>(int64_t{a.col[e]} * W - first) + k % W;
      for (int i = 0; i < 2; ++i) s.offset[i] = Tile::row(column + after(i * kPart)) * kStride;
      const int64_t step = e * int64_t{W / kMmaDepth<T>} + v % W / kMmaDepth<T>;
      const auto* words = reinterpret_cast<const uint32_t*>(a.values) + (step * kWarp + threadIdx.x % kWarp) * (H / 4);
      const vec<uint32_t, H / 4> b = load<H / 4>(words);
#pragma unroll
      for (int j = 0; j < H / 8; ++j) s.b[j][0] = b[2 * j], s.b[j][1] = b[2 * j + 1];
    } else {
      const T* weight = a.values + (int64_t{from} + k) * H + g;
      const auto value = [&](int j, int q) { return k + after(q) < end ? weight[8 * j + after(q) * H] : T{}; };
#pragma unroll
      for (int q = 0; q < kColumns; ++q) {
        const bool inside = k + after(q) < end;
        s.offset[q] = (inside ? Tile::row(static_cast<int>(a.col[from + k + after(q)] - first)) : zeros) * kStride;
      }
#pragma unroll
      for (int j = 0; j < H / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (kPart == 1)
            s.b[j][i] = tf32(value(j, i));
          else
            s.b[j][i] = word_of(value(j, 2 * i), value(j, 2 * i + 1));
        }
    }
    return s;
  }

  __device__ __forceinline__ void multiply(int row, const T* tile, const Step& s) {
    vec<uint32_t, kOwn / kPart> x[kColumns];
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int at = W > 1 ? s.offset[q / kPart] + q % kPart * kStride : s.offset[W > 1 ? 0 : q];
      x[q] = shared_vec<kOwn / kPart>(reinterpret_cast<const uint32_t*>(tile + at));
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kPart == 1) {
          fragment[2 * i] = x[i][2 * m];
          fragment[2 * i + 1] = x[i][2 * m + 1];
        } else {
          fragment[2 * i] = lower_halves(x[2 * i][m], x[2 * i + 1][m]);
          fragment[2 * i + 1] = upper_halves(x[2 * i][m], x[2 * i + 1][m]);
        }
      }
#pragma unroll
      for (int j = 0; j < H / 8; ++j) mma<T>(sum[row][m][j], fragment, s.b[j]);
    }
  }

  // Adds the entries [from, to) to the sums of a block row; column `first` of x is the first of the tile.
  __device__ __forceinline__ void add(int row, const BlockLinearArguments<T>& a, const T* tile, int32_t from,
                                      int32_t to, int64_t first, int zeros) {
    const int end = (to - from) * W;
    if (end == 0) return;
    tile += threadIdx.x % kWarp / 4 * kOwn;
    Step next = fetch(a, from, 0, end, first, zeros);
#pragma unroll 1
    for (int v = 0; v < end; v += kMmaDepth<T>) {
      const Step s = next;
      if (v + kMmaDepth<T> < end) next = fetch(a, from, v + kMmaDepth<T>, end, first, zeros);
      multiply(row, tile, s);
    }
  }

  // Writes the rows from r on, before `end`.
  __device__ __forceinline__ void store(const BlockLinearArguments<T>& a, int64_t sample, int64_t r, int64_t end) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (r + row >= end) continue;
#pragma unroll
      for (int j = 0; j < H / 8; ++j) {
        const int64_t m = (r + row) * H + 8 * j + 2 * t;
        const float bias[2] = {a.bias ? a.bias[m] : 0, a.bias ? a.bias[m + 1] : 0};
#pragma unroll
        for (int f = 0; f < kOwn; ++f) {  // half a fragment
          const int64_t n = sample + g * kOwn + f;
          if (n >= a.batch) continue;
          vec<T, 2> out;
          for (int i = 0; i < 2; ++i) out[i] = from_acc<T>(sum[row][f / 2][j][f % 2 * 2 + i] + bias[i]);
          cuda::store(a.y + n * a.outputs + m, out);
        }
      }
    }
  }
};

}  // namespace sparsegnn::cuda
