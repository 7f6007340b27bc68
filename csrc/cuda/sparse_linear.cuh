// sparse_linear / cuda
//
//   y[n, m] = epilogue(bias[m] + sum over the nonzeros e of row m of W:  values[e] * x[n, col[e]])
//
// layout     W: CSR crow[M+1], col[nnz] int32, values[nnz] in T; x[B, K], y[B, M] row-major; bias[M] in acc_t<T>
// work       2*B*nnz flop; B*(K + M)*s bytes. One word of shared memory for each multiply-add is the limit in fp32
// schedule   first W is packed: (offset in the tile, value) pairs, rows padded to even lengths, so that two nonzeros
// come
//            in one 128-bit broadcast. A block of 8 warps then takes 32*NL samples: a tile of X lies transposed in
//            shared memory, [inputs][samples]; a lane owns NL samples, a warp 8 consecutive outputs. K that does not
//            fit is cut into chunks, which are reloaded for every 64 outputs
// numerics   sums in acc_t<T>, each output by one lane in the order of its nonzeros: the same bits in every run
// backward   dx: this kernel on the transposed pattern, values through perm; the rest: sparse_linear_backward.cuh,
//            sparse_linear_epilogue.cuh
// see        sparsegnn/ops/sparse_linear.py, tests/csrc/test_sparse_linear.py, benchmarks/ops/bench_sparse_linear.py
#pragma once
#include "sparse_linear_epilogue.cuh"

namespace sparsegnn::cuda {

constexpr int kLinearThreads = 256, kLinearWarps = kLinearThreads / kWarp;
constexpr int kLinearOutputs = 8;                            // of a warp: 32 B of fp32 in a row of y
constexpr int kLinearRound = kLinearWarps * kLinearOutputs;  // of a block
constexpr int64_t kLinearShared = 96 * 1024;  // two blocks on an SM with 228 KiB; fits where 99 KiB is all
constexpr int64_t kLinearBlocks = 2 * 132;    // two for every SM of an H100

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

// ---- a tile of a row-major matrix in shared memory, transposed: column k of sample n is at k * kStride + n

template <typename T, int NL>
struct LinearTile {
  static constexpr int kSamples = kWarp * NL;
  // Rows stay aligned to the NL elements of a lane, and of a transposing store at most two lanes meet in a bank.
  static constexpr int kStride = kSamples + (NL == 4 ? 4 : 2);

  // Columns [first, first + count) of the samples from `sample` on; zeros past the batch.
  static __device__ void load(T* tile, const T* x, int64_t batch, int64_t width, int64_t sample, int64_t first,
                              int count, bool vectors) {
    if (vectors)
      load_vectors<kVector<T>, 8>(tile, x + first, batch, width, sample, count);
    else
      load_vectors<1, 2>(tile, x + first, batch, width, sample, count);
  }

 private:
  // A warp reads kLines samples at a time, 32 / kLines vectors of each.
  template <int V, int kLines>
  static __device__ void load_vectors(T* tile, const T* x, int64_t batch, int64_t width, int64_t sample, int count) {
    constexpr int kAcross = kWarp / kLines, kBlocks = kSamples / kLines;
    constexpr int kParts = kBlocks < kLinearWarps ? kLinearWarps / kBlocks : 1;  // warps that share a line
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int block = warp / kParts; block < kBlocks; block += kLinearWarps / kParts) {
      const int n = block * kLines + lane % kLines;
      const bool inside = sample + n < batch;
      const T* line = x + (sample + n) * width;
#pragma unroll 4
      for (int k = (warp % kParts * kAcross + lane / kLines) * V; k < count; k += kParts * kAcross * V) {
        vec<T, V> v = {};
        if (inside) v = cuda::load<V>(line + k);
        for (int i = 0; i < V; ++i) tile[(k + i) * kStride + n] = v[i];
      }
    }
  }
};

// ---- the plan: depends on the shape alone

struct LinearPlan {
  int per_lane;       // samples of a lane: NL
  int stride;         // LinearTile::kStride
  int chunk, chunks;  // inputs in a tile, and tiles that cover them
  int64_t panel;      // outputs of a block
};

inline LinearPlan linear_plan(int64_t batch, int64_t inputs, int64_t outputs, int64_t element_size) {
  const int widest = element_size == 8 ? 2 : 4;
  const auto stride = [](int n) { return kWarp * n + (n == 4 ? 4 : 2); };
  const auto room = [&](int n) { return kLinearShared / (stride(n) * element_size) - 1; };  // one row of zeros
  int n = widest;
  while (n > 1 && ceil_div(batch, kWarp * n) < kLinearBlocks) n /= 2;  // few samples: more, smaller blocks
  // A tile that holds every input is loaded once for all outputs; where one round takes them all that gains nothing.
  if (outputs > kLinearRound && inputs <= room(1))
    while (inputs > room(n)) n /= 2;
  LinearPlan plan = {n, stride(n), 0, 1, outputs};
  plan.chunks = static_cast<int>(max<int64_t>(1, ceil_div(inputs, room(n) / 8 * 8)));
  plan.chunk = static_cast<int>(plan.chunks == 1 ? inputs : ceil_div(ceil_div(inputs, plan.chunks), 8) * 8);
  const int64_t blocks = max<int64_t>(1, ceil_div(batch, kWarp * n)), rounds = ceil_div(outputs, kLinearRound);
  const int64_t panels = min(rounds, ceil_div(kLinearBlocks, blocks));
  if (panels > 1) plan.panel = ceil_div(rounds, panels) * kLinearRound;
  return plan;
}

// ---- packing: one warp for each segment, the nonzeros of one row in one chunk

// The first entry of row r at or after column `column`.
__device__ __forceinline__ int32_t linear_cut(const int32_t* crow, const int32_t* col, int64_t r, int64_t column) {
  int32_t low = crow[r], high = crow[r + 1];
  if (column == 0) return low;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (col[middle] < column)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// cut[s]: first entry of segment s = row * chunks + chunk. pack(s, begin, end, lane) writes the entries.
template <typename Pack>
__global__ void __launch_bounds__(kLinearThreads)
    linear_segments_kernel(Pack pack, const int32_t* crow, const int32_t* col, int64_t rows, int chunk, int chunks,
                           int32_t* cut) {
  const int64_t s = int64_t{blockIdx.x} * kLinearWarps + threadIdx.x / kWarp, r = s / chunks;
  const int c = static_cast<int>(s % chunks), lane = threadIdx.x % kWarp;
  if (r >= rows) return;
  const int32_t begin = linear_cut(crow, col, r, int64_t{c} * chunk);
  const int32_t end = c + 1 == chunks ? crow[r + 1] : linear_cut(crow, col, r, int64_t{c + 1} * chunk);
  if (lane == 0) cut[s] = begin;
  if (lane == 0 && s + 1 == rows * chunks) cut[s + 1] = end;
  pack(s, r, c, begin, end, lane);
}

template <typename A>
struct alignas(2 * sizeof(A)) LinearEntry {
  int32_t offset;  // of the input's row in the tile, in elements
  A value;
};

// A packed matrix: cut[s] is the first entry of segment s in the pattern, entry[linear_place(s, cut[s])] its packed
// one.
template <typename A>
struct LinearPacked {
  LinearEntry<A>* entry;
  int32_t* cut;
};

// Where the entries of a segment begin: at an even place, at least as far on as the segment is long.
__device__ __forceinline__ int64_t linear_place(int64_t s, int32_t begin) { return (begin + s) / 2 * 2; }

template <typename T>
struct LinearPack {
  const int32_t *col, *perm;
  const T* values;
  LinearPlan plan;
  LinearEntry<acc_t<T>>* entry;

  __device__ void operator()(int64_t s, int64_t, int c, int32_t begin, int32_t end, int lane) const {
    const int count = (end - begin + 1) / 2 * 2;
    for (int i = lane; i < count; i += kWarp) {
      LinearEntry<acc_t<T>> e = {plan.chunk * plan.stride, 0};  // padding reads the row of zeros
      const int32_t t = begin + i;
      if (t < end) e = {(col[t] - c * plan.chunk) * plan.stride, to_acc(values[perm ? perm[t] : t])};
      entry[linear_place(s, begin) + i] = e;
    }
  }
};

// ---- the product

// sum[i][l] += the entries of output m + i in chunk c times the lane's samples in `tile`, for the outputs before `end`.
template <typename T, int NL>
__device__ __forceinline__ void linear_product(const T* tile, const LinearPlan& plan,
                                               const LinearPacked<acc_t<T>>& packed, int64_t m, int64_t end, int c,
                                               acc_t<T> (&sum)[kLinearOutputs][NL]) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < kLinearOutputs; ++i) {
    if (m + i >= end) continue;
    const int64_t s = (m + i) * plan.chunks + c;
    const int32_t from = packed.cut[s];
    const int count = packed.cut[s + 1] - from;
    const LinearEntry<A>* e = packed.entry + linear_place(s, from);
#pragma unroll 2
    for (int q = 0; q < count; q += 2) {
      const vec<LinearEntry<A>, 2> w = load<2>(e + q);
      for (int u = 0; u < 2; ++u) {
        const auto x = *reinterpret_cast<const vec<T, NL>*>(tile + w[u].offset + lane * NL);
        for (int l = 0; l < NL; ++l) sum[i][l] += w[u].value * to_acc(x[l]);
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

template <typename T, int NL>
__global__ void __launch_bounds__(kLinearThreads, 2)
    sparse_linear_kernel(SparseLinearArguments<T> a, LinearPlan plan, bool vectors, bool vector_stores,
                         LinearPacked<acc_t<T>> packed) {
  using A = acc_t<T>;
  using Tile = LinearTile<T, NL>;
  SG_SHARED(T, tile);
  const int warp = threadIdx.x / kWarp;
  const int64_t sample = int64_t{blockIdx.x} * Tile::kSamples;
  const int64_t begin = blockIdx.y * plan.panel, end = min(begin + plan.panel, a.outputs);
  for (int n = threadIdx.x; n < Tile::kStride; n += kLinearThreads) tile[plan.chunk * Tile::kStride + n] = T{};

  for (int64_t first = begin; first < end; first += kLinearRound) {
    const int64_t m = first + warp * kLinearOutputs;
    A sum[kLinearOutputs][NL] = {};
    for (int c = 0; c < plan.chunks; ++c) {
      if (plan.chunks > 1 || first == begin) {
        __syncthreads();
        const int64_t k = int64_t{c} * plan.chunk;
        Tile::load(tile, a.x, a.batch, a.inputs, sample, k, int(min<int64_t>(plan.chunk, a.inputs - k)), vectors);
        __syncthreads();
      }
      linear_product<T, NL>(tile, plan, packed, m, end, c, sum);
    }
    linear_store<T, NL>(a, sample, m, end, vector_stores, sum);
  }
}

// ---- launchers

template <typename T>
int64_t sparse_linear_workspace_bytes(const LinearPlan& plan, int64_t outputs, int64_t entries) {
  const int64_t segments = outputs * plan.chunks;
  return (entries + segments + 2) * sizeof(LinearEntry<acc_t<T>>) + (segments + 1) * sizeof(int32_t);
}

// The parts of a workspace of sparse_linear_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename A>
LinearPacked<A> linear_packed(const LinearPlan& plan, int64_t outputs, int64_t entries, void* workspace) {
  auto* entry = static_cast<LinearEntry<A>*>(workspace);
  return {entry, reinterpret_cast<int32_t*>(entry + entries + outputs * plan.chunks + 2)};
}

template <typename T>
cudaError_t launch_linear_pack(const SparseLinearArguments<T>& a, const LinearPlan& plan,
                               const LinearPacked<acc_t<T>>& packed, cudaStream_t stream) {
  const LinearPack<T> pack = {a.col, a.perm, a.values, plan, packed.entry};
  return launch(linear_segments_kernel<LinearPack<T>>,
                static_cast<unsigned>(ceil_div(a.outputs * plan.chunks, kLinearWarps)), kLinearThreads, 0, stream, pack,
                a.crow, a.col, a.outputs, plan.chunk, plan.chunks, packed.cut);
}

// workspace: sparse_linear_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_sparse_linear(const SparseLinearArguments<T>& a, const LinearPlan& plan, void* workspace,
                                 cudaStream_t stream) {
  if (a.batch == 0 || a.outputs == 0) return cudaSuccess;
  const LinearPacked<acc_t<T>> packed = linear_packed<acc_t<T>>(plan, a.outputs, a.entries, workspace);
  const cudaError_t error = launch_linear_pack(a, plan, packed, stream);
  if (error != cudaSuccess) return error;
  const bool vectors = can_vectorise(kVector<T>, a.inputs, a.x);
  const bool vector_stores = can_vectorise(kLinearOutputs, a.outputs, a.y);
  const auto run = [&](auto kernel) {
    const dim3 grid(static_cast<unsigned>(ceil_div(a.batch, kWarp * plan.per_lane)),
                    static_cast<unsigned>(ceil_div(a.outputs, plan.panel)));
    const size_t shared = size_t(plan.chunk + 1) * plan.stride * sizeof(T);
    return launch(kernel, grid, kLinearThreads, shared, stream, a, plan, vectors, vector_stores, packed);
  };
  if constexpr (sizeof(T) < 8)
    if (plan.per_lane == 4) return run(sparse_linear_kernel<T, 4>);
  return plan.per_lane == 2 ? run(sparse_linear_kernel<T, 2>) : run(sparse_linear_kernel<T, 1>);
}

}  // namespace sparsegnn::cuda
