// block_linear, gradient of the values / cuda
//
//   dvalues[e][i, k] = sum over n:  dy[n, rh + i] * x[n, col[e] w + k]         for the blocks e of every block row r
//
// layout     as block_linear.cuh; dy[B, M] row-major
// work       2*B*nnz flop; x is read once for every panel of outputs, dy once for every chunk of inputs
// schedule   a block owns a panel of block rows by a chunk of inputs and walks its span of the samples; tiles of x and
//            dy lie transposed in shared memory, 64 bytes of samples to a column. A unit is 16 columns of the entries
//            of a block row by its H outputs; a warp keeps the sums of up to 12 units in registers, 40 a lane or so,
//            from the first sample of its span to the last. More units than fit take further passes over the span
// numerics   partials per span, in order of the samples; spans depend on the shape and the number of blocks alone, and
//            sparse_linear's kernel of partial sums adds them in order
// see        sparsegnn/ops/block_linear.py, tests/csrc/test_block_linear.py
#pragma once
#include "block_linear_tile.cuh"

namespace sparsegnn::cuda {

constexpr int kUnitColumns = 16, kPanelRows = 64;
constexpr int kUnitSums = 40, kMostUnits = 12;  // registers of a thread that hold sums, units that they are of

template <typename T>
struct BlockLinearBackwardArguments {
  const T *dy, *x;
  const int32_t *crow, *col;
  acc_t<T>* partial;  // [spans, blocks * height * width]
  int64_t batch, inputs, outputs, blocks;
  int height, width;
  bool x_vectors = false, dy_vectors = false;  // set by the launcher
};

struct BlockBackwardPlan {
  bool mma;
  int chunk, chunks;    // inputs of a block
  int rows, panels;     // block rows of a block
  int64_t span, spans;  // samples of a block
};

// Samples of a tile: 64 bytes of a column.
template <typename T>
constexpr int kTileSamples = 64 / int(sizeof(T));

template <typename T>
using UnitTile = BlockTile<T, kTileSamples<T>, kTileSamples<T>, 1, sizeof(T) == 4 ? 2 : 4>;

constexpr int block_units(int height, int64_t size) {
  return height == 32 && size < 8 ? 3 : max(1, min(kMostUnits, int(kUnitSums / (height / 2 * (size == 8 ? 2 : 1)))));
}

// A unit's sums are D[16 columns, H outputs]; a lane's are those of column g + 8 half(q) and output(q).
template <typename T, int H>
struct BlockValuesMmaOp {
  using Scalar = T;
  static constexpr int kHeight = H, kSums = H / 2, kUnits = block_units(H, 4);
  static constexpr bool kRound = sizeof(T) == 4;

  static constexpr __host__ __device__ int half(int q) { return q % 4 / 2; }
  static __device__ __forceinline__ int output(int q) { return q / 4 * 8 + threadIdx.x % 4 * 2 + q % 2; }

  // first, second: the tile's columns g and g + 8 of the unit; r: its block row in the tile dy. A lane takes words 4t
  // to 4t + 3: which samples it calls k is its own affair.
  static __device__ __forceinline__ void add(float (&sum)[kSums], const T* first, const T* second, const T* dy, int r) {
    const int g = threadIdx.x % kWarp / 4, own = threadIdx.x % 4 * 4;
    const auto words = [&](const T* p) { return shared_vec<4>(reinterpret_cast<const uint32_t*>(p) + own); };
    const vec<uint32_t, 4> x = words(first), y = words(second);
#pragma unroll
    for (int j = 0; j < H / 8; ++j) {
      const vec<uint32_t, 4> b = words(dy + UnitTile<T>::row(r * H + 8 * j + g) * kTileSamples<T>);
      float d[4] = {sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]};
#pragma unroll
      for (int s = 0; s < 4; s += 2) mma<T>(d, {x[s], y[s], x[s + 1], y[s + 1]}, {b[s], b[s + 1]});
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[4 * j + i] = d[i];
    }
  }
};

template <typename T, int H>
struct BlockValuesFmaOp {
  using Scalar = T;
  using A = acc_t<T>;
  static constexpr int kHeight = H, kSums = H / 2, kUnits = block_units(H, sizeof(A));
  static constexpr bool kRound = false;

  static constexpr __host__ __device__ int half(int q) { return q % 2; }
  static __device__ __forceinline__ int output(int q) { return threadIdx.x % 4 + q / 2 * 4; }

  // Lanes begin with different vectors of samples, so that those of eight columns lie in different banks.
  static __device__ __forceinline__ void add(A (&sum)[kSums], const T* first, const T* second, const T* dy, int r) {
    constexpr int V = kVector<T>;
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      const int at = (j + g / 2) % 4 * V;
      const vec<T, V> x = shared_vec<V>(first + at), y = shared_vec<V>(second + at);
#pragma unroll
      for (int o = 0; o < H / 4; ++o) {
        const vec<T, V> b = shared_vec<V>(dy + UnitTile<T>::row(r * H + t + 4 * o) * kTileSamples<T> + at);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          sum[2 * o] += to_acc(x[i]) * to_acc(b[i]);
          sum[2 * o + 1] += to_acc(y[i]) * to_acc(b[i]);
        }
      }
    }
  }
};

// Which units a block has: of block row r those from start[r] on, columns of the entries from first[r] on. And of those
// of a pass, for each g, the rows of column g, of column g + 8 and of dy in their tiles: 11, 11 and 10 bits.
struct BlockUnits {
  int32_t first[kPanelRows], columns[kPanelRows], start[kPanelRows + 1];
  uint32_t place[kBlockWarps * kMostUnits * 8];
};

// Block (chunk, span, panel), the panel first; partial[span, e].
template <typename Op>
__global__ void __launch_bounds__(kBlockThreads, 2)
    block_linear_values_kernel(BlockLinearBackwardArguments<typename Op::Scalar> a, BlockBackwardPlan plan) {
  using T = typename Op::Scalar;
  using A = acc_t<T>;
  constexpr int H = Op::kHeight, kSamples = kTileSamples<T>, kUnits = Op::kUnits;
  using Tile = UnitTile<T>;
  SG_SHARED(T, x_tile);  // [tile_rows(chunk)][kSamples]; dy [rows * H][kSamples]; BlockUnits
  T* dy_tile = x_tile + tile_rows(plan.chunk) * kSamples;
  BlockUnits& units = *reinterpret_cast<BlockUnits*>(dy_tile + plan.rows * H * kSamples);
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4;
  const int shift = a.width == 1 ? 0 : a.width == 16 ? 4 : 5;
  const int64_t panel = blockIdx.x % plan.panels, others = blockIdx.x / plan.panels;
  const int64_t span = others % plan.spans, chunk = others / plan.spans;
  const int64_t begin = span * plan.span, end = min(begin + plan.span, a.batch);
  const int64_t row = panel * plan.rows, first = chunk * plan.chunk;
  const int rows = int(min<int64_t>(plan.rows, a.outputs / H - row));
  const int inputs = int(min<int64_t>(plan.chunk, a.inputs - first)), zeros = tile_rows(plan.chunk) - 1;

  if (threadIdx.x < kSamples) x_tile[zeros * kSamples + threadIdx.x] = T{};
  for (int r = threadIdx.x; r < rows; r += kBlockThreads) {
    const int32_t from = entry_at_column(a.crow, a.col, row + r, first >> shift);
    const int32_t to = chunk + 1 == plan.chunks
                           ? a.crow[row + r + 1]
                           : entry_at_column(a.crow, a.col, row + r, (first + plan.chunk) >> shift);
    units.first[r] = from, units.columns[r] = (to - from) << shift;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    units.start[0] = 0;
    for (int r = 0; r < rows; ++r)
      units.start[r + 1] = units.start[r] + (units.columns[r] + kUnitColumns - 1) / kUnitColumns;
  }
  __syncthreads();

  const int total = units.start[rows];
  for (int pass = 0; pass < total; pass += kBlockWarps * kUnits) {
    const int here = min(total - pass, kBlockWarps * kUnits), mine = (here - warp + kBlockWarps - 1) / kBlockWarps;
    __syncthreads();
    for (int i = threadIdx.x; i < here * 8; i += kBlockThreads) {
      int r = 0;
      while (units.start[r + 1] <= pass + i / 8) ++r;
      uint32_t place = r;
      for (int half = 0; half < 2; ++half) {
        const int v = (pass + i / 8 - units.start[r]) * kUnitColumns + i % 8 + 8 * half;
        int at = zeros;
        if (v < units.columns[r]) {
          const int64_t k = (int64_t{a.col[units.first[r] + (v >> shift)]} << shift) + (v & (a.width - 1));
          at = Tile::row(static_cast<int>(k - first));
        }
        place |= uint32_t(at) << (half ? 21 : 10);
      }
      units.place[i] = place;
    }
    A sum[kUnits][Op::kSums] = {};
    for (int64_t n = begin; n < end; n += kSamples) {
      __syncthreads();
      const int64_t samples = min<int64_t>(kSamples, end - n);
      Tile::template load<Op::kRound>(x_tile, a.x + n * a.inputs + first, samples, a.inputs, inputs, a.x_vectors);
      Tile::template load<Op::kRound>(dy_tile, a.dy + n * a.outputs + row * H, samples, a.outputs, rows * H,
                                      a.dy_vectors);
      __syncthreads();
#pragma unroll
      for (int q = 0; q < kUnits; ++q) {
        if (q >= mine) continue;
        const uint32_t place = units.place[(q * kBlockWarps + warp) * 8 + g];
        Op::add(sum[q], x_tile + (place >> 10 & 2047) * kSamples, x_tile + (place >> 21) * kSamples, dy_tile,
                place & 1023);
      }
    }
#pragma unroll
    for (int q = 0; q < kUnits; ++q) {
      if (q >= mine) continue;
      const int u = q * kBlockWarps + warp, r = units.place[u * 8] & 1023;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int v = (pass + u - units.start[r]) * kUnitColumns + g + 8 * half;
        if (v >= units.columns[r]) continue;
        const int64_t e = span * a.blocks + units.first[r] + (v >> shift);
        A* partial = a.partial + ((e * H) << shift) + (v & (a.width - 1));
#pragma unroll
        for (int i = 0; i < Op::kSums; ++i)
          if (Op::half(i) == half) partial[Op::output(i) << shift] = sum[q][i];
      }
    }
  }
}

// ---- launcher

// The cut of W that reads least of x and dy, where units fill the registers of a block, but not more.
inline BlockBackwardPlan choose_block_linear_values(int64_t batch, int64_t inputs, int64_t outputs, int64_t blocks,
                                                    int height, int width, int64_t element_size, bool allow_tf32) {
  const bool mma = block_linear_mma(height, element_size, allow_tf32);
  const int64_t samples = 64 / element_size, all = outputs / max(1, height);
  const int64_t room = (kBlockShared - int64_t{sizeof(BlockUnits)}) / 64 - 8;  // columns of both tiles
  const int64_t units = kBlockWarps * block_units(height, element_size);
  BlockBackwardPlan best = {};
  int64_t lowest = -1;
  for (int64_t chunks = 1; chunks == 1 || (chunks - 1) * 32 < inputs; chunks *= 2) {
    const int64_t chunk = chunks == 1 ? inputs : ceil_div(ceil_div(inputs, chunks), 32) * 32;
    if (chunk + height > room) continue;
    // Of a block row in a chunk, expected: its columns, and half a unit that is not full.
    const int64_t columns = blocks * width * chunk / max<int64_t>(1, all * inputs) + kUnitColumns / 2;
    const int64_t fit = min(units * kUnitColumns / columns, (room - chunk) / height);
    const int64_t rows = max<int64_t>(1, min(min<int64_t>(fit, kPanelRows), all));
    const int64_t panels = max<int64_t>(1, ceil_div(all, rows));
    const int64_t passes = max<int64_t>(1, ceil_div(rows * columns, units * kUnitColumns));
    const int64_t cost = (inputs * panels + outputs * chunks) * passes;
    if (lowest >= 0 && cost >= lowest) continue;
    lowest = cost;
    best.chunk = static_cast<int>(chunk), best.chunks = chunk > 0 ? static_cast<int>(ceil_div(inputs, chunk)) : 1;
    best.rows = static_cast<int>(ceil_div(all, panels)), best.panels = static_cast<int>(panels);
  }
  best.mma = mma;
  // Spans enough for every SM, and short enough that sums in fp32 stay accurate.
  const int64_t wanted = max(ceil_div(kBlockGrid, int64_t{best.panels} * best.chunks), ceil_div(batch, 65536));
  best.span = ceil_div(max<int64_t>(256, ceil_div(batch, wanted)), samples) * samples;
  best.spans = ceil_div(batch, best.span);
  return best;
}

// Fills a.partial; nothing to do without samples.
template <typename T>
cudaError_t launch_block_linear_values(BlockLinearBackwardArguments<T> a, const BlockBackwardPlan& plan,
                                       cudaStream_t stream) {
  if (plan.spans == 0 || a.blocks == 0) return cudaSuccess;
  a.x_vectors = can_vectorise(kVector<T>, a.inputs, a.x) && plan.chunk % kVector<T> == 0;
  a.dy_vectors = can_vectorise(kVector<T>, a.outputs, a.dy);
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(plan.panels * plan.spans * plan.chunks));
    const size_t columns = size_t(tile_rows(plan.chunk)) + size_t(plan.rows) * a.height;
    return launch(kernel, grid, kBlockThreads, columns * 64 + sizeof(BlockUnits), stream, a, plan);
  };
  if (a.height == 4) return run(block_linear_values_kernel<BlockValuesFmaOp<T, 4>>);
  if constexpr (sizeof(T) <= 4)
    if (plan.mma) {
      if (a.height == 8) return run(block_linear_values_kernel<BlockValuesMmaOp<T, 8>>);
      return a.height == 16 ? run(block_linear_values_kernel<BlockValuesMmaOp<T, 16>>)
                            : run(block_linear_values_kernel<BlockValuesMmaOp<T, 32>>);
    }
  if constexpr (sizeof(T) >= 4) {
    if (a.height == 8) return run(block_linear_values_kernel<BlockValuesFmaOp<T, 8>>);
    return a.height == 16 ? run(block_linear_values_kernel<BlockValuesFmaOp<T, 16>>)
                          : run(block_linear_values_kernel<BlockValuesFmaOp<T, 32>>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsegnn::cuda
