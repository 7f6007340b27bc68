// csr / cuda
//
//   from_edges: crow, col = the edges sorted by (target, source), stable; perm[e] = input position of edge e
//   transpose:  ccol, row, perm = the edges of a CSR pattern sorted by column, stable
//   degrees:    out[r] = sum over the edges e of row r of val[e], or their number
//
// layout     crow[M+1], col[E], perm[E] int32; targets and sources int32 or int64
// work       a sort pass reads E positions and E keys (at random) and writes E positions; one pass for every 4 bits
// schedule   least significant digit first: count, scan, scatter. A thread owns 16 consecutive positions, a block 4096;
//            256 threads and 16 KB of shared memory count digits per thread, so that equal digits keep their order
// numerics   integers; degrees in acc_t<T>: a warp a row, lanes stride the edges, summed by shuffles
// see        sparsegnn/ops/csr.py, tests/csrc/test_csr.py, benchmarks/ops/bench_csr.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

constexpr int kCsrThreads = 256, kCsrScanThreads = 1024;
constexpr int kItems = 16, kTile = kCsrThreads * kItems;
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;
constexpr int kDigitBytes = kDigits * kCsrThreads * static_cast<int>(sizeof(int32_t));

// ---- stable sort of positions by key

// counts[d * threads + t] = how often digit d is among the keys of thread t's positions.
__device__ inline void count_digits(const int32_t* key, const int32_t* order, int64_t edges, int shift,
                                    int32_t* counts) {
  const int t = threadIdx.x;
  for (int d = 0; d < kDigits; ++d) counts[d * kCsrThreads + t] = 0;
  const int64_t begin = int64_t{blockIdx.x} * kTile + t * kItems, end = min(begin + kItems, edges);
  for (int64_t i = begin; i < end; ++i) ++counts[(key[order[i]] >> shift & (kDigits - 1)) * kCsrThreads + t];
  __syncthreads();
}

// totals[d * blocks + block] = how often digit d is in the block: in this order their running sum is where each goes.
__global__ void __launch_bounds__(kCsrThreads)
    csr_count_kernel(const int32_t* key, const int32_t* order, int64_t edges, int shift, int32_t* totals) {
  SG_SHARED(int32_t, counts);
  count_digits(key, order, edges, shift, counts);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int d = warp; d < kDigits; d += kCsrThreads / kWarp) {
    int32_t sum = 0;
    for (int i = lane; i < kCsrThreads; i += kWarp) sum += counts[d * kCsrThreads + i];
    sum = warp_sum(sum);
    if (lane == 0) totals[int64_t{d} * gridDim.x + blockIdx.x] = sum;
  }
}

// The sum of x over the lower lanes of the warp.
__device__ inline int32_t warp_exclusive_sum(int32_t x) {
  const int lane = threadIdx.x % kWarp;
  int32_t sum = x;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int32_t below = __shfl_up_sync(kFullMask, sum, offset);
    if (lane >= offset) sum += below;
  }
  return sum - x;
}

// totals[i] = totals[0] + ... + totals[i - 1]; one block, a stretch for each thread.
__global__ void __launch_bounds__(kCsrScanThreads) csr_scan_kernel(int32_t* totals, int64_t n) {
  SG_SHARED(int32_t, warps);
  const int64_t stretch = ceil_div(n, kCsrScanThreads);
  const int64_t begin = min<int64_t>(n, threadIdx.x * stretch), end = min(n, begin + stretch);
  int32_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += totals[i];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int32_t before = warp_exclusive_sum(sum);
  if (lane == kWarp - 1) warps[warp] = before + sum;
  __syncthreads();
  if (warp == 0) {
    const int32_t below = warp_exclusive_sum(warps[lane]);
    __syncwarp();
    warps[lane] = below;
  }
  __syncthreads();
  int32_t running = warps[warp] + before;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t count = totals[i];
    totals[i] = running;
    running += count;
  }
}

__global__ void __launch_bounds__(kCsrThreads)
    csr_scatter_kernel(const int32_t* key, const int32_t* order, int64_t edges, int shift, const int32_t* totals,
                       int32_t* sorted) {
  SG_SHARED(int32_t, place);
  count_digits(key, order, edges, shift, place);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr int stretch = kCsrThreads / kWarp;  // threads whose counts one lane runs over
  for (int d = warp; d < kDigits; d += kCsrThreads / kWarp) {
    int32_t* mine = place + d * kCsrThreads + lane * stretch;
    int32_t sum = 0;
    for (int i = 0; i < stretch; ++i) sum += mine[i];
    int32_t running = totals[int64_t{d} * gridDim.x + blockIdx.x] + warp_exclusive_sum(sum);
    for (int i = 0; i < stretch; ++i) {
      const int32_t count = mine[i];
      mine[i] = running;
      running += count;
    }
  }
  __syncthreads();
  const int64_t begin = int64_t{blockIdx.x} * kTile + threadIdx.x * kItems, end = min(begin + kItems, edges);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t e = order[i];
    sorted[place[(key[e] >> shift & (kDigits - 1)) * kCsrThreads + threadIdx.x]++] = e;
  }
}

// ---- around the sort

// Keys as int32, and the identity. *bad becomes 1 for a key outside [0, size); 0 takes its place.
template <typename Index>
__global__ void __launch_bounds__(kCsrThreads)
    csr_keys_kernel(const Index* in, int64_t edges, int64_t size, int32_t* key, int32_t* order, int32_t* bad) {
  const int64_t e = int64_t{blockIdx.x} * kCsrThreads + threadIdx.x;
  if (e >= edges) return;
  const int64_t x = in[e];
  const bool ok = 0 <= x && x < size;
  if (!ok) atomicOr(bad, 1);
  key[e] = ok ? static_cast<int32_t>(x) : 0;
  order[e] = static_cast<int32_t>(e);
}

// offsets[r] = the first place whose key is at least r.
__global__ void __launch_bounds__(kCsrThreads)
    csr_offsets_kernel(const int32_t* key, const int32_t* order, int64_t edges, int64_t rows, int32_t* offsets) {
  const int64_t r = int64_t{blockIdx.x} * kCsrThreads + threadIdx.x;
  if (r > rows) return;
  int64_t low = 0, high = edges;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (key[order[middle]] < r) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  offsets[r] = static_cast<int32_t>(low);
}

__global__ void __launch_bounds__(kCsrThreads)
    csr_gather_kernel(const int32_t* from, const int32_t* order, int64_t edges, int32_t* to) {
  const int64_t e = int64_t{blockIdx.x} * kCsrThreads + threadIdx.x;
  if (e < edges) to[e] = from[order[e]];
}

__global__ void __launch_bounds__(kCsrThreads)
    csr_rows_kernel(const int32_t* crow, int64_t rows, const int32_t* order, int64_t edges, int32_t* row) {
  const int64_t e = int64_t{blockIdx.x} * kCsrThreads + threadIdx.x;
  if (e < edges) row[e] = static_cast<int32_t>(row_of_edge(crow, rows, order[e]));
}

template <typename T>
__global__ void __launch_bounds__(kCsrThreads)
    csr_degrees_kernel(const int32_t* crow, const T* val, int64_t rows, acc_t<T>* out) {
  const int64_t r = (int64_t{blockIdx.x} * kCsrThreads + threadIdx.x) / kWarp;
  if (r >= rows) return;  // the whole warp
  const int64_t begin = crow[r], end = crow[r + 1];
  acc_t<T> sum = val ? acc_t<T>(0) : acc_t<T>(end - begin);
  if (val) {
    for (int64_t e = begin + threadIdx.x % kWarp; e < end; e += kWarp) sum += to_acc(val[e]);
    sum = warp_sum(sum);
  }
  if (threadIdx.x % kWarp == 0) out[r] = sum;
}

// ---- launchers

// Two keys, a second order, and a total of every digit for every block.
inline int64_t csr_workspace_bytes(int64_t edges) {
  return static_cast<int64_t>(sizeof(int32_t)) * (3 * edges + kDigits * ceil_div(edges, kTile));
}

inline dim3 csr_grid(int64_t n) { return dim3(static_cast<unsigned>(ceil_div(n, kCsrThreads))); }

inline int digit_passes(int64_t size) {
  int passes = 0;
  while (size > 1 && (size - 1) >> (passes * kDigitBits)) ++passes;
  return passes;
}

// Sorts order[E] by a key below `size`, using spare[E]; afterwards `order` names the array that holds the result.
inline cudaError_t launch_sort(const int32_t* key, int64_t size, int64_t edges, int32_t*& order, int32_t*& spare,
                               int32_t* totals, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(edges, kTile)));
  cudaError_t error = cudaSuccess;
  for (int pass = 0; pass < digit_passes(size) && error == cudaSuccess; ++pass) {
    const int shift = pass * kDigitBits;
    const int64_t n = int64_t{kDigits} * blocks.x;
    error = launch(csr_count_kernel, blocks, kCsrThreads, kDigitBytes, stream, key, order, edges, shift, totals);
    if (error == cudaSuccess)
      error = launch(csr_scan_kernel, 1, kCsrScanThreads, kWarp * sizeof(int32_t), stream, totals, n);
    if (error == cudaSuccess)
      error =
          launch(csr_scatter_kernel, blocks, kCsrThreads, kDigitBytes, stream, key, order, edges, shift, totals, spare);
    std::swap(order, spare);
  }
  return error;
}

// *bad (zero before) becomes 1 when an index is out of range; the outputs are then meaningless but in bounds.
template <typename Index>
cudaError_t launch_csr_from_edges(const Index* target, const Index* source, int64_t rows, int64_t cols, int64_t edges,
                                  int32_t* crow, int32_t* col, int32_t* perm, int32_t* bad, void* workspace,
                                  cudaStream_t stream) {
  int32_t *targets = static_cast<int32_t*>(workspace), *sources = targets + edges;
  int32_t *order = perm, *spare = sources + edges, *totals = spare + edges;
  if ((digit_passes(rows) + digit_passes(cols)) % 2) std::swap(order, spare);  // the last pass ends in perm
  cudaError_t error = cudaSuccess;
  const auto then = [&](auto kernel, dim3 grid, auto... arguments) {
    if (error == cudaSuccess) error = launch(kernel, grid, kCsrThreads, 0, stream, arguments...);
  };
  if (edges > 0) {
    then(csr_keys_kernel<Index>, csr_grid(edges), target, edges, rows, targets, order, bad);
    then(csr_keys_kernel<Index>, csr_grid(edges), source, edges, cols, sources, order, bad);
    if (error == cudaSuccess) error = launch_sort(sources, cols, edges, order, spare, totals, stream);
    if (error == cudaSuccess) error = launch_sort(targets, rows, edges, order, spare, totals, stream);
    then(csr_gather_kernel, csr_grid(edges), sources, perm, edges, col);
  }
  then(csr_offsets_kernel, csr_grid(rows + 1), targets, perm, edges, rows, crow);
  return error;
}

// *bad as above, for col.
inline cudaError_t launch_csr_transpose(const int32_t* crow, const int32_t* col, int64_t rows, int64_t cols,
                                        int64_t edges, int32_t* ccol, int32_t* row, int32_t* perm, int32_t* bad,
                                        void* workspace, cudaStream_t stream) {
  int32_t* keys = static_cast<int32_t*>(workspace);
  int32_t *order = perm, *spare = keys + edges, *totals = spare + edges;
  if (digit_passes(cols) % 2) std::swap(order, spare);
  cudaError_t error = cudaSuccess;
  const auto then = [&](auto kernel, dim3 grid, auto... arguments) {
    if (error == cudaSuccess) error = launch(kernel, grid, kCsrThreads, 0, stream, arguments...);
  };
  if (edges > 0) {
    then(csr_keys_kernel<int32_t>, csr_grid(edges), col, edges, cols, keys, order, bad);
    if (error == cudaSuccess) error = launch_sort(keys, cols, edges, order, spare, totals, stream);
    then(csr_rows_kernel, csr_grid(edges), crow, rows, perm, edges, row);
  }
  then(csr_offsets_kernel, csr_grid(cols + 1), keys, perm, edges, cols, ccol);
  return error;
}

// val null: the number of edges.
template <typename T>
cudaError_t launch_csr_degrees(const int32_t* crow, const T* val, int64_t rows, acc_t<T>* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return launch(csr_degrees_kernel<T>, csr_grid(rows * kWarp), kCsrThreads, 0, stream, crow, val, rows, out);
}

}  // namespace sparsegnn::cuda
