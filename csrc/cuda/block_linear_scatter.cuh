// block_linear, dx of groups / cuda
//
//   dx[n, col[e]] += sum over i < V:  dy[n, rV + i] * values[e][i]        for the entries e of every group r
//
// layout     as block_linear.cuh with blocks [V, 1]
// work       2*B*nnz flop; dy is read once for every chunk of inputs, dx written once
// schedule   an output of the transposed pattern would share its weights with no other: instead a warp owns 16 samples
//            of dx, up to 303 columns in shared memory, and adds the products [16 samples, 8 entries] of every group,
//            by tensor cores or, in strict fp32, fp64 and for groups of 4, by multiply-adds in the same layout. Warps
//            share nothing
// numerics   sums in acc_t<T>, in the order of the groups; entries of a group that name one column are added in turn
// see        sparsegnn/ops/block_linear.py, tests/csrc/test_block_linear.py
#pragma once
#include "block_linear_tile.cuh"

namespace sparsegnn::cuda {

constexpr int kScatterThreads = 128, kScatterWarps = kScatterThreads / kWarp;
constexpr int kScatterSamples = 16, kScatterPitch = kScatterSamples + 4;

// values are aligned to 16 bytes.
template <typename T>
struct BlockScatterArguments {
  const T *dy, *values;
  const int32_t *crow, *col;
  T* dx;
  int64_t batch, inputs, outputs;
  int height;
  bool vectors = false;  // set by the launcher: dy may be read 128 bits at once
};

struct BlockScatterPlan {
  bool mma;
  int chunk, chunks;  // columns of dx of a warp
};

// D[2 * half + i]: sample 2g + half, entry 2t + i of eight, where the lane is 4 g + t. kTiles: eights at a time; kOwn:
// outputs of a lane.
template <typename T, int V>
struct BlockScatterMmaOp {
  using Scalar = T;
  static constexpr int kHeight = V, kTiles = 2, kOwn = V / 4;
  static constexpr bool kAhead = true;  // is dy of the next group loaded while this one is added?
  static constexpr int kWords = kOwn * int(sizeof(T)) / 4, kSteps = (kWords + 1) / 2;

  struct Weight {
    uint32_t word[2 * kSteps];
  };
  uint32_t a[kSteps][4];

  static __device__ __forceinline__ Weight words(bool aligned, const T* p) {
    Weight w = {};
    if (!p) return w;
    const vec<T, kOwn> v = load_if<kOwn>(aligned, p);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) w.word[i] = tf32(v[i]);
      if constexpr (sizeof(T) == 2) w.word[i] = word_of(v[2 * i], v[2 * i + 1]);
    }
    return w;
  }

  // The group's dy of two samples, null past the batch.
  __device__ __forceinline__ void load_rows(bool aligned, const T* first, const T* second) {
    const int own = threadIdx.x % 4 * kOwn;
    const Weight x = words(aligned, first ? first + own : nullptr), y = words(aligned, second ? second + own : nullptr);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      a[s][0] = x.word[2 * s], a[s][1] = y.word[2 * s];
      a[s][2] = x.word[2 * s + 1], a[s][3] = y.word[2 * s + 1];
    }
  }
  // Of the eight entries from `values` on, of which `count` are there, or fewer than none.
  static __device__ __forceinline__ Weight load_weights(const T* values, int count) {
    return words(true, values + min(int(threadIdx.x % kWarp / 4), count - 1) * V + threadIdx.x % 4 * kOwn);
  }
  __device__ __forceinline__ void multiply(float (&d)[4], const Weight& w) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) mma<T>(d, a[s], {w.word[2 * s], w.word[2 * s + 1]});
  }
};

template <typename T, int V>
struct BlockScatterFmaOp {
  using Scalar = T;
  using A = acc_t<T>;
  static constexpr int kHeight = V, kTiles = V * sizeof(A) > 32 ? 1 : 2;
  static constexpr bool kAhead = V * sizeof(A) <= 64;

  struct Weight {
    const T* entry[2];
  };
  vec<T, V> row[2];

  __device__ __forceinline__ void load_rows(bool aligned, const T* first, const T* second) {
    row[0] = first ? load_if<V>(aligned, first) : vec<T, V>{};
    row[1] = second ? load_if<V>(aligned, second) : vec<T, V>{};
  }
  static __device__ __forceinline__ Weight load_weights(const T* values, int count) {
    const int entry = threadIdx.x % 4 * 2;
    return {values + min(entry, count - 1) * V, values + min(entry + 1, count - 1) * V};
  }
  __device__ __forceinline__ void multiply(A (&d)[4], const Weight& w) const {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const vec<T, 4> entry[2] = {load<4>(w.entry[0] + i), load<4>(w.entry[1] + i)};
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int j = 0; j < 4; ++j) d[j] += to_acc(row[j / 2][i + u]) * to_acc(entry[j % 2][u]);
    }
  }
};

// A group's dy for the samples of a warp, and its entries in the chunk.
template <typename Op>
struct BlockScatterGroup {
  Op op = {};
  int32_t from = 0, to = 0;
};

// Entries of a group that are added together: weights, and places of their columns in the sums.
template <typename Op>
struct BlockScatterPart {
  typename Op::Weight weight[Op::kTiles];
  int place[Op::kTiles][2];
  bool twice;  // does a column follow itself?
};

// Block (64 samples, chunk of columns), the chunk first.
template <typename Op>
__global__ void __launch_bounds__(kScatterThreads)
    block_linear_scatter_kernel(BlockScatterArguments<typename Op::Scalar> a, BlockScatterPlan plan,
                                const int32_t* cut) {
  using T = typename Op::Scalar;
  using A = acc_t<T>;
  constexpr int V = Op::kHeight, kTiles = Op::kTiles, kEntries = 8 * kTiles;
  SG_SHARED(A, shared);  // [kScatterWarps][chunk + 4][kScatterPitch]; lanes t add what is not there to the last rows
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t chunk = blockIdx.x % plan.chunks, first = chunk * plan.chunk, groups = a.outputs / V;
  const int64_t sample = (int64_t{blockIdx.x / plan.chunks} * kScatterWarps + warp) * kScatterSamples;
  const int columns = int(min<int64_t>(plan.chunk, a.inputs - first));
  if (sample >= a.batch) return;
  A* sums = shared + warp * (plan.chunk + 4) * kScatterPitch;
  for (int i = lane; i < (plan.chunk + 4) * kScatterPitch; i += kWarp) sums[i] = 0;

  const auto load_rows = [&](Op& op, int64_t r) {
    const int64_t n = sample + 2 * g;
    const T* dy = a.dy + n * a.outputs + r * V;
    op.load_rows(a.vectors, n < a.batch ? dy : nullptr, n + 1 < a.batch ? dy + a.outputs : nullptr);
  };
  // The first group from r on that has entries here; r is then behind it.
  const auto find = [&](int64_t& r) {
    BlockScatterGroup<Op> group;
    for (; r < groups && group.from == group.to; ++r)
      group.from = cut[r * plan.chunks + chunk], group.to = cut[r * plan.chunks + chunk + 1];
    if (Op::kAhead && group.from < group.to) load_rows(group.op, r - 1);
    return group;
  };
  const auto fetch = [&](int32_t e, int32_t to) {
    BlockScatterPart<Op> part;
    part.twice = false;
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
      const int32_t here = e + 8 * q;
      part.weight[q] = Op::load_weights(a.values + int64_t{here} * V, to - here);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t at = here + 2 * t + i;
        part.place[q][i] = (at < to ? static_cast<int>(a.col[at] - first) : plan.chunk + t) * kScatterPitch + 2 * g;
        part.twice |= at + 1 < to && a.col[at] == a.col[at + 1];
      }
    }
    return part;
  };

  int64_t r = 0;
  BlockScatterGroup<Op> next = find(r);
  BlockScatterPart<Op> part = {};
  if (next.from < next.to) part = fetch(next.from, next.to);
  while (next.from < next.to) {
    BlockScatterGroup<Op> group = next;
    if (!Op::kAhead) load_rows(group.op, r - 1);
    next = find(r);
#pragma unroll 1
    for (int32_t e = group.from; e < group.to; e += kEntries) {
      const BlockScatterPart<Op> now = part;
      if (e + kEntries < group.to)
        part = fetch(e + kEntries, group.to);
      else if (next.from < next.to)
        part = fetch(next.from, next.to);
      __syncwarp();  // what other lanes have written before
      A d[kTiles][4] = {};
      const bool twice = __any_sync(kFullMask, now.twice);
      if (!twice)
#pragma unroll
        for (int j = 0; j < 2 * kTiles; ++j) {
          const vec<A, 2> pair = shared_vec<2>(sums + now.place[j / 2][j % 2]);
          d[j / 2][j % 2] = pair[0], d[j / 2][2 + j % 2] = pair[1];
        }
#pragma unroll
      for (int q = 0; q < kTiles; ++q) group.op.multiply(d[q], now.weight[q]);
#pragma unroll
      for (int j = 0; j < 8 * kTiles; ++j) {
        // Entries one after the other where a column comes twice: each of the eight belongs to other lanes.
        if (!twice && j % 8 >= 2) continue;
        const int q = j / 8, i = j % 2, at = now.place[q][i];
        if (twice) __syncwarp();
        if (twice && t != j % 8 / 2) continue;
        vec<A, 2> pair = {d[q][i], d[q][2 + i]};
        if (twice) pair[0] += sums[at], pair[1] += sums[at + 1];
        store(sums + at, pair);
      }
    }
  }
  __syncwarp();
  for (int n = 0; n < kScatterSamples && sample + n < a.batch; ++n)
    for (int k = lane; k < columns; k += kWarp)
      a.dx[(sample + n) * a.inputs + first + k] = from_acc<T>(sums[k * kScatterPitch + n]);
}

// ---- launcher

inline BlockScatterPlan choose_block_linear_scatter(int64_t inputs, int height, int64_t element_size, bool allow_tf32) {
  const int64_t size = element_size == 8 ? 8 : 4, room = kBlockShared / (kScatterWarps * kScatterPitch * size) - 4;
  const int64_t chunks = max<int64_t>(1, ceil_div(inputs, room));
  return {block_linear_mma(height, element_size, allow_tf32), static_cast<int>(ceil_div(inputs, chunks)),
          static_cast<int>(chunks)};
}

// workspace: block_linear_cut_bytes(plan.chunks, groups), aligned to 4 bytes. Fills a.dx.
template <typename T>
cudaError_t launch_block_linear_scatter(BlockScatterArguments<T> a, const BlockScatterPlan& plan, void* workspace,
                                        cudaStream_t stream) {
  if (a.batch == 0 || a.inputs == 0) return cudaSuccess;
  if (!can_vectorise(kVector<T>, 0, a.values)) return cudaErrorInvalidValue;
  const int32_t* cut = nullptr;
  const cudaError_t error =
      launch_block_linear_cut(a.crow, a.col, a.outputs / a.height, plan.chunk, plan.chunks, workspace, &cut, stream);
  if (error != cudaSuccess) return error;
  a.vectors = can_vectorise(kVector<T>, 0, a.dy);
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.batch, kScatterWarps * kScatterSamples) * plan.chunks));
    const size_t shared = size_t{kScatterWarps} * (plan.chunk + 4) * kScatterPitch * sizeof(acc_t<T>);
    return launch(kernel, grid, kScatterThreads, shared, stream, a, plan, cut);
  };
  if (a.height == 4) return run(block_linear_scatter_kernel<BlockScatterFmaOp<T, 4>>);
  if constexpr (sizeof(T) <= 4)
    if (plan.mma)
      return a.height == 8 ? run(block_linear_scatter_kernel<BlockScatterMmaOp<T, 8>>)
                           : run(block_linear_scatter_kernel<BlockScatterMmaOp<T, 16>>);
  if constexpr (sizeof(T) >= 4)
    return a.height == 8 ? run(block_linear_scatter_kernel<BlockScatterFmaOp<T, 8>>)
                         : run(block_linear_scatter_kernel<BlockScatterFmaOp<T, 16>>);
  return cudaErrorInvalidValue;
}

}  // namespace sparsegnn::cuda
