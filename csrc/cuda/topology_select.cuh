// topology, the selection / cuda
//
//   of the scores of all candidates: the key of the k-th highest, and how many of those equal to it are among the first
//   k
//
// schedule   radix selection: histograms of one byte of the ordered keys, most significant first, narrow down to the
// key
//            of the last one chosen. Then tiles of 4096 positions count what is chosen and one block adds up the tiles
// numerics   integers only; NaN is lowest, -0 equals 0; among equals the lower position comes first
// see        topology.cuh
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

struct TopologyArguments {
  int32_t *crow, *col, *source;
  const int64_t* n;  // on the device; below 0 it counts as 0, above `entries` as `entries`
  int64_t rows, cols, entries;
};

// Unsigned integers in the order of the scores.
__device__ __forceinline__ uint64_t topology_key(float x) {
  if (x != x) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 + 0 is 0
  return bits >> 31 ? uint32_t(~bits) : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t topology_key(double x) {
  if (x != x) return 0;
  x += 0.0;
  const uint64_t bits = *reinterpret_cast<const uint64_t*>(&x);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}
template <typename T>
constexpr int kTopologyKeyBits = sizeof(T) == 8 ? 64 : 32;

// Of the candidates, those whose key is above `key` are chosen, and the first `left` of those that have it. While the
// selection runs, `mask` has the bits of `key` that are settled and `left` is how many are to come from those alike.
struct TopologySelection {
  uint64_t key, mask;
  int64_t left;
  unsigned long long bins[256];
};

struct TopologyTile {
  int64_t above, equal;  // in this tile; after the scan: before it
};

constexpr int kTopologyThreads = 256, kTopologyWarps = kTopologyThreads / kWarp;
constexpr int kTopologySteps = 16, kTopologyTile = kTopologyThreads * kTopologySteps;

struct TopologyWorkspace {
  TopologySelection* selection;  // of the drop, then of the growth
  TopologyTile* tile;
  int32_t* map;
  int64_t positions, tiles, bytes;

  TopologyWorkspace(const TopologyArguments& a, void* memory)
      : positions(a.rows * a.cols), tiles(ceil_div(positions, kTopologyTile)) {
    selection = static_cast<TopologySelection*>(memory);
    tile = reinterpret_cast<TopologyTile*>(selection + 2);
    map = reinterpret_cast<int32_t*>(tile + tiles);
    bytes = 2 * sizeof(TopologySelection) + tiles * sizeof(TopologyTile) + positions * sizeof(int32_t);
  }
};

// ---- who competes

// The entries, for staying.
template <typename T>
struct TopologyDrop {
  const T* score;
  __device__ bool chosen(int32_t) const { return false; }
  __device__ bool candidate(int32_t mark, int64_t, uint64_t& key) const {
    if (mark > 0) key = topology_key(to_acc(score[mark - 1]));
    return mark > 0;
  }
};

// The positions that are not kept, for being added.
template <typename T>
struct TopologyGrow {
  const T* score;
  __device__ bool chosen(int32_t mark) const { return mark < 0; }
  __device__ bool candidate(int32_t mark, int64_t position, uint64_t& key) const {
    if (mark >= 0) key = topology_key(to_acc(score[position]));
    return mark >= 0;
  }
};

// ---- kernels

// Counts the candidates whose settled bits are those of the selection, by their next byte.
template <typename Who>
__global__ void __launch_bounds__(kTopologyThreads)
    topology_histogram_kernel(Who who, TopologyWorkspace w, TopologySelection* selection, int shift) {
  SG_SHARED(unsigned, bins);
  bins[threadIdx.x] = 0;
  __syncthreads();
  const uint64_t prefix = selection->key, mask = selection->mask;
  const int64_t first = int64_t{blockIdx.x} * kTopologyTile + threadIdx.x;
#pragma unroll 4
  for (int i = 0; i < kTopologySteps; ++i) {
    const int64_t p = first + i * kTopologyThreads;
    uint64_t key = 0;
    if (p < w.positions && who.candidate(w.map[p], p, key) && ((key ^ prefix) & mask) == 0)
      atomicAdd(&bins[key >> shift & 255], 1u);
  }
  __syncthreads();
  const unsigned count = bins[threadIdx.x];
  if (count > 0) atomicAdd(&selection->bins[threadIdx.x], static_cast<unsigned long long>(count));
}

// Settles the next byte: the highest at or above which there are `left` candidates. One block.
__global__ void __launch_bounds__(kTopologyThreads) topology_pick_kernel(TopologySelection* selection, int shift) {
  SG_SHARED(int64_t, sum);  // of the bins from each one up
  const int bin = threadIdx.x;
  const int64_t left = selection->left;
  sum[bin] = static_cast<int64_t>(selection->bins[bin]);
  selection->bins[bin] = 0;
  for (int distance = 1; distance < kTopologyThreads; distance *= 2) {
    __syncthreads();
    const int64_t above = bin + distance < kTopologyThreads ? sum[bin + distance] : 0;
    __syncthreads();
    sum[bin] += above;
  }
  __syncthreads();
  const int64_t above = bin + 1 < kTopologyThreads ? sum[bin + 1] : 0;
  const bool reached = sum[bin] >= left, highest = bin + 1 == kTopologyThreads || above < left;
  if (!(reached && highest) && !(bin == 0 && !reached)) return;  // bin 0: there are fewer candidates than places
  selection->key |= uint64_t(bin) << shift;
  selection->mask |= uint64_t{255} << shift;
  selection->left = left - above;
}

// 0: not chosen; 1: chosen; 2: equal to the last chosen, so it depends on how many of them came before.
template <typename Who>
__device__ __forceinline__ int topology_class(const Who& who, const TopologyWorkspace& w, uint64_t last, int64_t p) {
  if (p >= w.positions) return 0;
  const int32_t mark = w.map[p];
  uint64_t key = 0;
  if (who.chosen(mark)) return 1;
  if (!who.candidate(mark, p, key) || key < last) return 0;
  return key > last ? 1 : 2;
}

// Positions of a tile, 512 in a row for each warp. body(p, chosen, rank): rank counts the chosen before p.
template <typename Who, typename Body>
__device__ __forceinline__ void topology_visit(const Who& who, const TopologyWorkspace& w,
                                               const TopologySelection* selection, TopologyTile before, int* totals,
                                               Body body) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = int64_t{blockIdx.x} * kTopologyTile + warp * (kTopologySteps * kWarp) + lane;
  const uint64_t last = selection->key;
  const int64_t left = selection->left;
  unsigned above[kTopologySteps], equal[kTopologySteps];
  int above_count = 0, equal_count = 0;
#pragma unroll
  for (int i = 0; i < kTopologySteps; ++i) {
    const int c = topology_class(who, w, last, first + i * kWarp);
    above[i] = __ballot_sync(kFullMask, c == 1);
    equal[i] = __ballot_sync(kFullMask, c == 2);
    above_count += __popc(above[i]), equal_count += __popc(equal[i]);
  }
  if (lane == 0) totals[2 * warp] = above_count, totals[2 * warp + 1] = equal_count;
  __syncthreads();
  for (int u = 0; u < warp; ++u) before.above += totals[2 * u], before.equal += totals[2 * u + 1];
  const unsigned below = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < kTopologySteps; ++i) {
    const int64_t ahead = before.above + __popc(above[i] & below), alike = before.equal + __popc(equal[i] & below);
    const bool chosen = (above[i] >> lane & 1) || ((equal[i] >> lane & 1) && alike < left);
    if (first + i * kWarp < w.positions) body(first + i * kWarp, chosen, ahead + min(alike, left));
    before.above += __popc(above[i]), before.equal += __popc(equal[i]);
  }
}

template <typename Who>
__global__ void __launch_bounds__(kTopologyThreads)
    topology_count_kernel(Who who, TopologyWorkspace w, const TopologySelection* selection) {
  SG_SHARED(int, totals);
  const int64_t first = int64_t{blockIdx.x} * kTopologyTile + threadIdx.x;
  int above = 0, equal = 0;
#pragma unroll 4
  for (int i = 0; i < kTopologySteps; ++i) {
    const int c = topology_class(who, w, selection->key, first + i * kTopologyThreads);
    above += c == 1, equal += c == 2;
  }
  above = warp_sum(above), equal = warp_sum(equal);
  if (threadIdx.x % kWarp == 0) totals[threadIdx.x / kWarp * 2] = above, totals[threadIdx.x / kWarp * 2 + 1] = equal;
  __syncthreads();
  if (threadIdx.x > 0) return;
  TopologyTile sum = {};
  for (int u = 0; u < kTopologyWarps; ++u) sum.above += totals[2 * u], sum.equal += totals[2 * u + 1];
  w.tile[blockIdx.x] = sum;
}

// Counts of the tiles become counts before the tiles. One block; a thread owns a run of tiles.
__global__ void __launch_bounds__(kTopologyThreads) topology_scan_kernel(TopologyWorkspace w) {
  SG_SHARED(TopologyTile, sum);
  const int64_t run = ceil_div(w.tiles, kTopologyThreads);
  const int64_t begin = min(threadIdx.x * run, w.tiles), end = min(begin + run, w.tiles);
  TopologyTile before = {};
  for (int64_t t = begin; t < end; ++t) before.above += w.tile[t].above, before.equal += w.tile[t].equal;
  sum[threadIdx.x] = before;
  __syncthreads();
  before = {};
  for (unsigned u = 0; u < threadIdx.x; ++u) before.above += sum[u].above, before.equal += sum[u].equal;
  for (int64_t t = begin; t < end; ++t) {
    const TopologyTile count = w.tile[t];
    w.tile[t] = before;
    before.above += count.above, before.equal += count.equal;
  }
}

// ---- launchers

template <typename... P, typename... A>
cudaError_t launch_topology(int64_t blocks, size_t shared, cudaStream_t stream, void (*kernel)(P...), A... arguments) {
  if (blocks == 0) return cudaSuccess;
  return launch(kernel, static_cast<unsigned>(blocks), kTopologyThreads, shared, stream, arguments...);
}

// Finds the last one chosen, and counts the chosen of all tiles.
template <typename T, typename Who>
cudaError_t launch_topology_selection(const Who& who, const TopologyWorkspace& w, TopologySelection* selection,
                                      cudaStream_t stream) {
  if (w.positions == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  for (int shift = kTopologyKeyBits<T> - 8; shift >= 0 && error == cudaSuccess; shift -= 8) {
    error = launch_topology(w.tiles, 256 * sizeof(unsigned), stream, topology_histogram_kernel<Who>, who, w, selection,
                            shift);
    if (error == cudaSuccess)
      error = launch_topology(1, 256 * sizeof(int64_t), stream, topology_pick_kernel, selection, shift);
  }
  if (error == cudaSuccess)
    error = launch_topology(w.tiles, 2 * kTopologyWarps * sizeof(int), stream, topology_count_kernel<Who>, who, w,
                            selection);
  if (error == cudaSuccess)
    error = launch_topology(1, kTopologyThreads * sizeof(TopologyTile), stream, topology_scan_kernel, w);
  return error;
}

}  // namespace sparsegnn::cuda
