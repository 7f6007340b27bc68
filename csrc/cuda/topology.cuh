// topology / cuda
//
//   keeps the nnz - n entries of highest drop_score (ties: the lower slot), adds the n other positions of highest
//   grow_score (ties: the lower index), rewrites crow and col in place; source[e] = old slot of entry e, -1 if new
//
// layout     crow[M+1], col[nnz] int32; drop_score[nnz], grow_score[M, K]; n[1] int64, read by the first kernel alone;
//            a map[M, K] int32 in the workspace holds slot + 1 of every entry, its negative once the entry is kept, and
//            0 elsewhere
// work       one pass over the M*K positions for each byte of a key, twice, and four more
// schedule   the entries that stay are selected and marked in the map, then the positions that are added; then every
//            tile writes its part of the new pattern. 24 launches (40 in fp64), no wait for the host, nothing
//            allocated: it can be captured in a CUDA graph, and n may change between its replays
// numerics   integers only; NaN is lowest, -0 equals 0; the same result in every run and as on the CPU
// see        sparsegnn/ops/topology.py, tests/csrc/test_topology.py, benchmarks/ops/bench_topology.py
#pragma once
#include "topology_select.cuh"

namespace sparsegnn::cuda {

// ---- kernels

__global__ void __launch_bounds__(kTopologyThreads) topology_clear_kernel(TopologyArguments a, TopologyWorkspace w) {
  const int64_t i = int64_t{blockIdx.x} * kTopologyThreads + threadIdx.x;
  if (i < w.positions) w.map[i] = 0;
  if (blockIdx.x > 0) return;
  const int64_t n = min(max(*a.n, int64_t{0}), a.entries);
  for (int s = 0; s < 2; ++s) {
    w.selection[s].bins[threadIdx.x] = 0;
    if (threadIdx.x > 0) continue;
    w.selection[s].key = w.selection[s].mask = 0;
    w.selection[s].left = s == 0 ? a.entries - n : n;
  }
}

__global__ void __launch_bounds__(kTopologyThreads) topology_mark_kernel(TopologyArguments a, TopologyWorkspace w) {
  const int64_t e = int64_t{blockIdx.x} * kTopologyThreads + threadIdx.x;
  if (e >= a.entries) return;
  a.source[e] = -1;  // in case a bad pattern leaves it unwritten
  const int64_t c = a.col[e];
  if (c < 0 || c >= a.cols) return;
  int32_t* mark = w.map + row_of_edge(a.crow, a.rows, e) * a.cols + c;
  atomicMax(mark, static_cast<int32_t>(e + 1));  // of entries that a bad pattern has twice the last counts
}

template <typename T>
__global__ void __launch_bounds__(kTopologyThreads) topology_keep_kernel(TopologyDrop<T> who, TopologyWorkspace w) {
  SG_SHARED(int, totals);
  topology_visit(who, w, w.selection, w.tile[blockIdx.x], totals, [&](int64_t p, bool chosen, int64_t) {
    if (chosen) w.map[p] = -w.map[p];
  });
}

template <typename T>
__global__ void __launch_bounds__(kTopologyThreads)
    topology_write_kernel(TopologyGrow<T> who, TopologyArguments a, TopologyWorkspace w) {
  SG_SHARED(int, totals);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.crow[a.rows] = static_cast<int32_t>(a.entries);
  topology_visit(who, w, w.selection + 1, w.tile[blockIdx.x], totals, [&](int64_t p, bool chosen, int64_t rank) {
    const int64_t r = p / a.cols, c = p - r * a.cols;
    if (c == 0) a.crow[r] = static_cast<int32_t>(min(rank, a.entries));
    if (!chosen || rank >= a.entries) return;
    const int32_t mark = w.map[p];
    a.col[rank] = static_cast<int32_t>(c);
    a.source[rank] = (mark < 0 ? -mark : mark) - 1;
  });
}

// ---- launchers: topology_begin, topology_drop, topology_grow, one after the other, with the same workspace

inline cudaError_t launch_topology_begin(const TopologyArguments& a, void* memory, cudaStream_t stream) {
  const TopologyWorkspace w(a, memory);
  const cudaError_t error =
      launch_topology(ceil_div(w.positions, kTopologyThreads), 0, stream, topology_clear_kernel, a, w);
  if (error != cudaSuccess || w.positions == 0) return error;
  return launch_topology(ceil_div(a.entries, kTopologyThreads), 0, stream, topology_mark_kernel, a, w);
}

template <typename T>
cudaError_t launch_topology_drop(const TopologyArguments& a, const T* score, void* memory, cudaStream_t stream) {
  const TopologyWorkspace w(a, memory);
  const TopologyDrop<T> who = {score};
  const cudaError_t error = launch_topology_selection<T>(who, w, w.selection, stream);
  if (error != cudaSuccess) return error;
  return launch_topology(w.tiles, 2 * kTopologyWarps * sizeof(int), stream, topology_keep_kernel<T>, who, w);
}

template <typename T>
cudaError_t launch_topology_grow(const TopologyArguments& a, const T* score, void* memory, cudaStream_t stream) {
  const TopologyWorkspace w(a, memory);
  const TopologyGrow<T> who = {score};
  const cudaError_t error = launch_topology_selection<T>(who, w, w.selection + 1, stream);
  if (error != cudaSuccess) return error;
  return launch_topology(w.tiles, 2 * kTopologyWarps * sizeof(int), stream, topology_write_kernel<T>, who, a, w);
}

}  // namespace sparsegnn::cuda
