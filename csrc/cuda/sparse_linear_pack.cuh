// sparse_linear, what the product reads: tiles of X and the packed W / cuda
//
// layout     a tile is transposed in shared memory, [inputs][samples]; W: rows of (offset in the tile, value) pairs
// work       packing: nnz entries, one warp for each segment, the nonzeros of one row in one chunk of the inputs
// see        sparse_linear.cuh, tests/csrc/test_sparse_linear.py
#pragma once
#include <type_traits>

#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

constexpr int kLinearThreads = 256, kLinearWarps = kLinearThreads / kWarp;
constexpr int kLinearLanes = 8;                              // that read a row of a tile together: all banks at once
constexpr int kLinearQuarters = kWarp / kLinearLanes;        // nonzeros that a warp takes at once
constexpr int kLinearOutputs = 8;                            // of a warp: 32 B of fp32 in a row of y
constexpr int kLinearRound = kLinearWarps * kLinearOutputs;  // of a block
constexpr int64_t kLinearShared = 96 * 1024;  // two blocks on an SM with 228 KiB; fits where 99 KiB is all
constexpr int64_t kLinearBlocks = 2 * 132;    // two for every SM of an H100
constexpr int64_t kLinearStaged = 48 * 1024;  // largest packed W that is kept in shared memory
constexpr int64_t kLinearSorted = 1024;       // most groups that are ordered: every one looks at all others
constexpr int kLinearUnit = 16;               // bytes: rows of tiles begin at multiples of it
static_assert(kLinearShared / kLinearUnit <= 1 << 13);

// The distance of the rows of a tile of 32 * n samples, in elements: 4 words more than its samples.
__host__ __device__ constexpr int linear_stride(int n, int64_t element_size) {
  return kWarp * n + static_cast<int>(kLinearUnit / element_size);
}

// ---- a tile of a row-major matrix in shared memory, transposed: column k of sample n is at k * kStride + n

template <typename T, int NL>
struct LinearTile {
  static constexpr int kSamples = kWarp * NL, kStride = linear_stride(NL, sizeof(T));
  // Of the lanes that read a row each has kRuns runs of kRun neighbouring samples, every kAcross samples.
  static constexpr int kRun = min(kVector<T>, kSamples / kLinearLanes), kAcross = kRun * kLinearLanes;
  static constexpr int kRuns = kSamples / kAcross;
  static constexpr int kUnits = kStride * int(sizeof(T)) / kLinearUnit;  // of a row

  // Columns [first, first + count) of the samples from `sample` on; zeros past the batch.
  static __device__ void load(T* tile, const T* x, int64_t batch, int64_t width, int64_t sample, int64_t first,
                              int count, bool vectors) {
    if (vectors)
      load_vectors<kVector<T>>(tile, x + first, batch, width, sample, count);
    else
      load_vectors<1>(tile, x + first, batch, width, sample, count);
  }

 private:
  // A warp reads kLines samples at a time, 32 / kLines vectors of each: so many that no two words of a transposing
  // store meet in a bank (in fp64 two).
  template <int V>
  static __device__ void load_vectors(T* tile, const T* x, int64_t batch, int64_t width, int64_t sample, int count) {
    constexpr int kLines = min(kWarp, V * kVector<T>), kBeside = kWarp / kLines, kBlocks = kSamples / kLines;
    constexpr int kParts = kBlocks < kLinearWarps ? kLinearWarps / kBlocks : 1;  // warps that share a line
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int block = warp / kParts; block < kBlocks; block += kLinearWarps / kParts) {
      const int n = block * kLines + lane % kLines;
      const bool inside = sample + n < batch;
      const T* line = x + (sample + n) * width;
#pragma unroll 4
      for (int k = (warp % kParts * kBeside + lane / kLines) * V; k < count; k += kParts * kBeside * V) {
        vec<T, V> v = {};
        if (inside) v = cuda::load<V>(line + k);
        for (int i = 0; i < V; ++i) tile[(k + i) * kStride + n] = v[i];
      }
    }
  }
};

// ---- the plan: depends on the shape alone

struct LinearPlan {
  int per_lane;        // samples of a tile for each lane of a warp: NL
  int stride;          // LinearTile::kStride
  int chunk, chunks;   // inputs in a tile, and tiles that cover them
  int64_t panel;       // outputs of a block
  int64_t staged = 0;  // blocks that walk all tiles with W in shared memory; 0: a block for each tile
};

// Nonzeros that are read together: 128 bits, and at least two.
__host__ __device__ constexpr int linear_together(int64_t element_size) { return element_size == 2 ? 4 : 2; }

// The most samples for each lane: a row of a tile takes 256 bytes.
constexpr int linear_widest(int64_t element_size) { return static_cast<int>(8 / element_size); }

// f of the number NL of the plan, of those that there are kernels for.
template <typename T, typename F>
cudaError_t linear_tiles(int per_lane, const F& f) {
  if constexpr (linear_widest(sizeof(T)) >= 4)
    if (per_lane == 4) return f(std::integral_constant<int, 4>{});
  if constexpr (linear_widest(sizeof(T)) >= 2)
    if (per_lane == 2) return f(std::integral_constant<int, 2>{});
  return f(std::integral_constant<int, 1>{});
}

// Bytes of packed entries, and with cuts and order; both multiples of 16.
inline int64_t linear_entry_bytes(const LinearPlan& plan, int64_t outputs, int64_t entries, int64_t element_size) {
  const int64_t together = linear_together(element_size), segments = outputs * plan.chunks;
  return ceil_div((entries + (together - 1) * segments + together) * 2 * element_size, 16) * 16;
}
inline int64_t linear_packed_bytes(const LinearPlan& plan, int64_t outputs, int64_t entries, int64_t element_size) {
  const int64_t words = outputs * plan.chunks + 1 + ceil_div(outputs, kLinearOutputs);
  return linear_entry_bytes(plan, outputs, entries, element_size) + ceil_div(words, 4) * 16;
}
// Of a tile and its row of zeros; and of the outputs on their way to memory, which come before it.
inline int64_t linear_tile_bytes(const LinearPlan& plan, int64_t element_size) {
  return (plan.chunk + 1) * plan.stride * element_size;
}
__host__ __device__ constexpr int linear_outputs_bytes(int n, int64_t element_size) {
  const int run = min(kLinearUnit, kWarp * n / kLinearLanes * int(element_size));  // bytes
  return kLinearWarps * kLinearLanes * (run * kLinearOutputs + kLinearUnit);
}

// Is there a kernel that keeps W in shared memory for such tiles? Many samples and wide tiles go together.
__host__ __device__ constexpr bool linear_stages(int n, int64_t element_size) {
  return element_size < 8 && n * element_size >= 8;
}

// entries: nonzeros of W; without them W is not staged.
inline LinearPlan linear_plan(int64_t batch, int64_t inputs, int64_t outputs, int64_t element_size,
                              int64_t entries = -1) {
  const auto room = [&](int n) {  // but for one row of zeros
    return (kLinearShared - linear_outputs_bytes(n, element_size)) / (linear_stride(n, element_size) * element_size) -
           1;
  };
  int n = linear_widest(element_size);
  while (n > 1 && ceil_div(batch, kWarp * n) < kLinearBlocks) n /= 2;  // few samples: more, smaller blocks
  // A tile that holds every input is loaded once for all outputs; where one round takes them all that gains nothing.
  if (outputs > kLinearRound && inputs <= room(1))
    while (inputs > room(n)) n /= 2;
  LinearPlan plan = {n, linear_stride(n, element_size), 0, 1, outputs};
  plan.chunks = static_cast<int>(max<int64_t>(1, ceil_div(inputs, room(n) / 8 * 8)));
  plan.chunk = static_cast<int>(plan.chunks == 1 ? inputs : ceil_div(ceil_div(inputs, plan.chunks), 8) * 8);
  const int64_t blocks = max<int64_t>(1, ceil_div(batch, kWarp * n)), rounds = ceil_div(outputs, kLinearRound);
  const int64_t panels = min(rounds, ceil_div(kLinearBlocks, blocks));
  if (panels > 1) plan.panel = ceil_div(rounds, panels) * kLinearRound;
  if (entries >= 0 && blocks >= 4 * kLinearBlocks &&
      linear_stages(n, element_size)) {  // else there is too little that a staged W serves
    const int64_t bytes = linear_packed_bytes(plan, outputs, entries, element_size);
    const int64_t shared = linear_outputs_bytes(n, element_size) + linear_tile_bytes(plan, element_size) + bytes;
    if (bytes <= kLinearStaged && shared <= kLinearShared) plan.staged = kLinearBlocks;
  }
  return plan;
}

// ---- packing: one warp for each segment, the nonzeros of one row in one chunk

// cut[s]: first entry of segment s = row * chunks + chunk. pack(s, r, c, begin, end, lane) writes the entries.
template <typename Pack>
__global__ void __launch_bounds__(kLinearThreads)
    linear_segments_kernel(Pack pack, const int32_t* crow, const int32_t* col, int64_t rows, int chunk, int chunks,
                           int32_t* cut) {
  const int64_t s = int64_t{blockIdx.x} * kLinearWarps + threadIdx.x / kWarp, r = s / chunks;
  const int c = static_cast<int>(s % chunks), lane = threadIdx.x % kWarp;
  if (r >= rows) return;
  const int32_t begin = entry_at_column(crow, col, r, int64_t{c} * chunk);
  const int32_t end = c + 1 == chunks ? crow[r + 1] : entry_at_column(crow, col, r, int64_t{c + 1} * chunk);
  if (lane == 0) cut[s] = begin;
  if (lane == 0 && s + 1 == rows * chunks) cut[s + 1] = end;
  pack(s, r, c, begin, end, lane);
}

// Where the input's row begins in the tile, in units of 16 bytes.
template <typename T>
struct alignas(2 * sizeof(T)) LinearEntry {
  std::conditional_t<sizeof(T) == 2, uint16_t, int32_t> offset;
  T value;
};

// A packed matrix: cut[s] is the first entry of segment s in the pattern, entry[linear_place(s, cut[s])] its packed
// one; order[i] is the group of outputs with the i-th most nonzeros.
template <typename T>
struct LinearPacked {
  LinearEntry<T>* entry;
  int32_t *cut, *order;
};

// Where the entries of a segment begin: at a multiple of those that are read together, at least as far on as the
// segment is long.
template <typename T>
__device__ __forceinline__ int64_t linear_place(int64_t s, int32_t begin) {
  constexpr int kTogether = linear_together(sizeof(T));
  return (begin + (kTogether - 1) * s) / kTogether * kTogether;
}

// The first output of a warp's group, of those that a block takes at once: places first, first + step, ... of the
// order. Every other time the other way round, so that no warp always has the longest. `outputs` where none is left.
template <typename T>
__device__ __forceinline__ int64_t linear_group(const LinearPacked<T>& packed, int64_t outputs, int64_t first,
                                                bool back, int64_t step = 1) {
  const int warp = threadIdx.x / kWarp;
  const int64_t place = first + (back ? kLinearWarps - 1 - warp : warp) * step;
  return place < ceil_div(outputs, kLinearOutputs) ? int64_t{packed.order[place]} * kLinearOutputs : outputs;
}

template <typename T>
struct LinearPack {
  const int32_t *crow, *col, *perm;
  const T* values;
  int64_t outputs;
  LinearPlan plan;
  LinearPacked<T> packed;

  __device__ void operator()(int64_t s, int64_t r, int c, int32_t begin, int32_t end, int lane) const {
    constexpr int kTogether = linear_together(sizeof(T));
    using Offset = decltype(LinearEntry<T>::offset);
    const int count = (end - begin + kTogether - 1) / kTogether * kTogether;
    const int units = plan.stride * int(sizeof(T)) / kLinearUnit;
    for (int i = lane; i < count; i += kWarp) {
      LinearEntry<T> e = {static_cast<Offset>(plan.chunk * units), T{}};  // padding reads the row of zeros
      const int32_t t = begin + i;
      if (t < end) e = {static_cast<Offset>((col[t] - c * plan.chunk) * units), values[perm ? perm[t] : t]};
      packed.entry[linear_place<T>(s, begin) + i] = e;
    }
    if (c == 0 && r % kLinearOutputs == 0) place_group(r / kLinearOutputs, lane);
  }

  __device__ int32_t nonzeros(int64_t group) const {
    const int64_t first = group * kLinearOutputs;
    return crow[min(first + kLinearOutputs, outputs)] - crow[first];
  }
  __device__ void place_group(int64_t group, int lane) const {
    const int64_t groups = ceil_div(outputs, kLinearOutputs);
    int before = 0;  // groups with more nonzeros, or as many and a lower index
    const int32_t mine = nonzeros(group);
    if (groups <= kLinearSorted)
      for (int64_t g = lane; g < groups; g += kWarp) {
        const int32_t other = nonzeros(g);
        before += other > mine || (other == mine && g < group);
      }
    before = warp_sum(before);
    if (lane == 0) packed.order[groups <= kLinearSorted ? before : group] = static_cast<int32_t>(group);
  }
};

// The parts of a workspace of sparse_linear_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
__host__ __device__ LinearPacked<T> linear_packed(const LinearPlan& plan, int64_t outputs, int64_t entry_bytes,
                                                  void* workspace) {
  auto* cut = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + entry_bytes);
  return {static_cast<LinearEntry<T>*>(workspace), cut, cut + outputs * plan.chunks + 1};
}

}  // namespace sparsegnn::cuda
