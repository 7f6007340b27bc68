// sparse_linear, sums over samples for dvalues / cuda
//
// layout     tiles of X and dY, transposed in shared memory (sparse_linear_pack.cuh); positions: 4 bytes for each
// nonzero work       of a nonzero, for each of two tiles: a word of shared memory a sample; dY once while its row stays
// the same see        sparse_linear_backward.cuh, spmm_linear_backward.cuh, tests/csrc/test_sparse_linear.py
#pragma once
#include "sparse_linear_pack.cuh"

namespace sparsegnn::cuda {

struct LinearBackwardPlan {
  int per_lane, stride;  // as LinearPlan
  int chunk, chunks;     // inputs of a block
  int panel, panels;     // outputs of a block
  int64_t span, spans;   // tiles of samples of a block
};

// Blocks of so much shared memory that run at once on an H100; three find registers.
inline int64_t linear_resident(int64_t shared) {
  return 132 * max<int64_t>(1, min<int64_t>(3, 227 * 1024 / (shared + 1024)));
}

inline LinearBackwardPlan linear_backward_plan(int64_t batch, int64_t inputs, int64_t outputs, int64_t element_size) {
  const auto row = [&](int n) { return linear_stride(n, element_size) * element_size; };
  const auto room = [&](int n) { return kLinearShared / row(n); };
  const int64_t least = min<int64_t>(outputs, 64);  // a panel of fewer outputs would reload X too often
  // The wide tile where it does not bring more columns again than there are.
  const auto wide = [&](int n) {
    return inputs + least <= room(n) && ceil_div(batch, kWarp * n) >= kLinearBlocks &&
           ceil_div(outputs, max<int64_t>(1, room(n) - inputs)) * inputs <= inputs + outputs;
  };
  int n = linear_widest(element_size);
  while (n > 1 && !wide(n)) n /= 2;
  LinearBackwardPlan plan = {n, linear_stride(n, element_size), 0, 1, 0, 1, 0, 0};
  plan.chunks = static_cast<int>(max<int64_t>(1, ceil_div(inputs, (room(n) - least) / 8 * 8)));
  plan.chunk = static_cast<int>(plan.chunks == 1 ? inputs : ceil_div(ceil_div(inputs, plan.chunks), 8) * 8);
  plan.panels = static_cast<int>(max<int64_t>(1, ceil_div(outputs, max<int64_t>(8, (room(n) - plan.chunk) / 8 * 8))));
  plan.panel = static_cast<int>(plan.panels == 1 ? outputs : ceil_div(ceil_div(outputs, plan.panels), 8) * 8);
  const int64_t tiles = ceil_div(batch, kWarp * n), blocks = int64_t{plan.panels} * plan.chunks;
  const int64_t resident = linear_resident((plan.chunk + plan.panel) * row(n));
  plan.span = max<int64_t>(1, ceil_div(tiles, max<int64_t>(1, resident / blocks)));
  plan.spans = ceil_div(tiles, plan.span);
  return plan;
}

// Of a nonzero: where the row of its input begins in the tile of X, in units of 16 bytes, and which row of the tile of
// dY is that of its output, 13 bits each: input << 19 | output, so that one shift leaves the bytes of the input.
using LinearPosition = uint32_t;
constexpr LinearPosition kOutputPosition = (1 << 13) - 1;

// Positions that there must be behind the last one.
constexpr int64_t kPositionsBehind = kLinearLanes;
constexpr int64_t linear_position_bytes(int64_t entries) {
  return ceil_div((entries + kPositionsBehind) * sizeof(LinearPosition), 16) * 16;
}

struct LinearPositions {
  const int32_t* col;
  LinearBackwardPlan plan;
  int64_t entries;
  int units;  // of a row of a tile
  LinearPosition* position;

  __device__ void operator()(int64_t, int64_t r, int c, int32_t begin, int32_t end, int lane) const {
    for (int32_t e = begin + lane; e < end; e += kWarp)
      position[e] = LinearPosition((col[e] - c * plan.chunk) * units) << 19 | LinearPosition(r % plan.panel);
    if (begin < end && end == entries && lane < kPositionsBehind) position[end + lane] = 0;
  }
};

// Sums over the samples of a tile, by eight lanes for eight nonzeros at a time.
template <typename T, int NL>
struct LinearProducts {
  using A = acc_t<T>;
  using Tile = LinearTile<T, NL>;
  using Run = vec<T, Tile::kRun>;
  const char* shared;  // of the block, from its start
  uint32_t x, dy;      // the lane's samples in the tiles, in bytes
  uint32_t row = ~0u;  // of the dY that is held
  A held[Tile::kRuns][Tile::kRun];

  __device__ __forceinline__ LinearProducts(const void* start, const T* x_tile, const T* dy_tile)
      : shared(static_cast<const char*>(start)), x(offset(x_tile)), dy(offset(dy_tile)) {}

  __device__ __forceinline__ uint32_t offset(const T* tile) const {
    const T* lane = tile + threadIdx.x % kLinearLanes * Tile::kRun;
    return static_cast<uint32_t>(reinterpret_cast<const char*>(lane) - shared);
  }
  __device__ __forceinline__ const Run& run(uint32_t first, int r) const {
    return *reinterpret_cast<const Run*>(shared + first + r * Tile::kAcross * sizeof(T));
  }

  __device__ __forceinline__ A product(LinearPosition p) {
    const uint32_t own = dy + (p & kOutputPosition) * (Tile::kUnits * kLinearUnit);
    if (own != row)
      for (int r = 0; r < Tile::kRuns; ++r) {
        const Run v = run(own, r);
        for (int l = 0; l < Tile::kRun; ++l) held[r][l] = to_acc(v[l]);
      }
    row = own;
    A s = 0;
    for (int r = 0; r < Tile::kRuns; ++r) {
      const Run v = run(x + (p >> 15), r);
      for (int l = 0; l < Tile::kRun; ++l) s = r + l == 0 ? held[0][0] * to_acc(v[0]) : s + held[r][l] * to_acc(v[l]);
    }
    return s;
  }

  // Of two sums over groups of lanes, one over pairs of groups: `first` where the lane's bit is 0, else `second`.
  static __device__ __forceinline__ A merge(A first, A second, int bit) {
    const bool upper = threadIdx.x & bit;
    return (upper ? second : first) + __shfl_xor_sync(kFullMask, upper ? first : second, bit);
  }

  // The sum over all samples for nonzero p[lane % 8].
  __device__ __forceinline__ A sums(const vec<LinearPosition, kLinearLanes>& p) {
    A s[kLinearLanes];
#pragma unroll
    for (int i = 0; i < kLinearLanes; ++i) s[i] = product(p[i]);
#pragma unroll
    for (int bit = kLinearLanes / 2; bit > 0; bit /= 2)
#pragma unroll
      for (int i = 0; i < bit; ++i) s[i] = merge(s[i], s[i + bit], bit);
    return s[0];
  }

  // Adds the sums of the nonzeros [begin, end) to partial[], or writes them there if they are the first: of those from
  // `from`, a multiple of 4, the quarter takes eight in every kStep. All lanes of the warp must come.
  template <uint32_t kStep>
  __device__ __forceinline__ void add(const LinearPosition* position, uint32_t begin, uint32_t end, uint32_t from,
                                      bool first, A* partial) {
    const int times = warp_max(from < end ? static_cast<int>((end - from + kStep - 1) / kStep) : 0);
    uint32_t e = from + threadIdx.x % kLinearLanes;
    A* place = partial + e;
#pragma unroll 1
    for (int i = 0; i < times; ++i, from += kStep, e += kStep, place += kStep) {
      const bool own = begin <= e && e < end;
      const A before = own && !first ? *place : A(0);
      const A sum = sums(load<kLinearLanes>(position + (from < end ? from : begin / 4 * 4)));
      if (own) *place = before + sum;
    }
  }

  // The nonzeros [begin, end) shared by the quarters of the block.
  __device__ __forceinline__ void add_shared(const LinearPosition* position, uint32_t begin, uint32_t end, bool first,
                                             A* partial) {
    const uint32_t from = begin / 4 * 4 + threadIdx.x / kLinearLanes * kLinearLanes;
    add<kLinearThreads>(position, begin, end, from, first, partial);
  }
};

}  // namespace sparsegnn::cuda
