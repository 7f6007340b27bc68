// block_linear, what its kernels share / cuda: arguments, and columns of a matrix transposed in shared memory
#pragma once
#include "../common/mma.cuh"

namespace sparsegnn::cuda {

constexpr int kBlockThreads = 256, kBlockWarps = kBlockThreads / kWarp;
constexpr int64_t kBlockShared = 96 * 1024;  // two blocks on an SM with 228 KiB; fits where 99 KiB is all
constexpr int64_t kBlockGrid = 2 * 132;      // two blocks for every SM of an H100
constexpr int kBlockSums = 48;               // registers of a thread that hold sums of several block rows

// A product: rows of W are blocks of `height` outputs by `width` inputs. values and y are aligned to 16 bytes.
template <typename T>
struct BlockLinearArguments {
  const T *x, *values;
  const acc_t<T>* bias;  // or null
  const int32_t *crow, *col;
  const int32_t* perm;  // null, or W is the transposed weight and an entry its block `perm[entry]`, turned
  T* y;
  int64_t batch, inputs, outputs, blocks;
  int height, width;
  bool vectors = false;  // set by the launcher: x may be read 128 bits at once
};

// How a product is cut: shapes alone decide.
struct BlockPlan {
  bool mma;           // on tensor cores
  int chunk, chunks;  // inputs in a tile, and tiles that cover them
  int64_t panel;      // outputs of a block
};

// Samples of a tile, and the distance of its rows: 8 words modulo 32 (16 bits: 20 words), or 4 of a lane's own.
constexpr int block_samples(bool mma, int64_t size) { return mma || size == 8 ? kWarp : 2 * kWarp; }
constexpr int block_stride(bool mma, int64_t size) { return block_samples(mma, size) + (mma ? 8 : 4); }
// Registers that hold the sums of one block row: a lane has its share of the samples, fp64 two words for each. And how
// many rows a warp takes at a time.
constexpr int block_registers(bool mma, int height, int64_t size) {
  return height * block_samples(mma, size) / kWarp * (size == 8 ? 2 : 1);
}
constexpr int block_rows(bool mma, int height, int64_t size) {
  return max(1, min(8, kBlockSums / block_registers(mma, height, size)));
}

// Do tensor cores multiply? In 16 bits always, in fp32 where TF32 is allowed; 4 outputs are half a fragment.
inline bool block_linear_mma(int height, int64_t element_size, bool allow_tf32) {
  return height >= 8 && (element_size == 2 || (element_size == 4 && allow_tf32));
}

// cut[r * chunks + c]: first entry of row r in chunk c of `chunk` columns; after the last one the end.
__global__ void __launch_bounds__(kBlockThreads)
    block_linear_cut_kernel(const int32_t* crow, const int32_t* col, int64_t rows, int64_t chunk, int chunks,
                            int32_t* cut) {
  const int64_t s = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (s < rows * chunks) cut[s] = entry_at_column(crow, col, s / chunks, s % chunks * chunk);
  if (s == rows * chunks) cut[s] = crow[rows];
}

// Of the cuts; a multiple of 16.
inline int64_t block_linear_cut_bytes(int chunks, int64_t rows) {
  return chunks > 1 ? ceil_div(rows * chunks + 1, 4) * 16 : 0;
}

// The cuts, in the workspace where there is more than one chunk.
inline cudaError_t launch_block_linear_cut(const int32_t* crow, const int32_t* col, int64_t rows, int64_t chunk,
                                           int chunks, void* workspace, const int32_t** cut, cudaStream_t stream) {
  *cut = crow;
  if (chunks == 1) return cudaSuccess;
  auto* out = static_cast<int32_t*>(workspace);
  *cut = out;
  return launch(block_linear_cut_kernel, static_cast<unsigned>(ceil_div(rows * chunks + 1, kBlockThreads)),
                kBlockThreads, 0, stream, crow, col, rows, chunk, chunks, out);
}

// V elements, at once where they are aligned.
template <int V, typename T>
__device__ __forceinline__ vec<T, V> load_if(bool aligned, const T* p) {
  if (aligned) return load<V>(p);
  vec<T, V> r;
#pragma unroll
  for (int i = 0; i < V; ++i) r[i] = p[i];
  return r;
}

template <int V, typename T>
__device__ __forceinline__ const vec<T, V>& shared_vec(const T* p) {
  return *reinterpret_cast<const vec<T, V>*>(p);
}

// Rows of a tile of so many columns: with those that a flip may reach, and one of zeros, the last.
__host__ __device__ constexpr int tile_rows(int64_t columns) { return static_cast<int>((columns + 7) / 8 * 8 + 1); }

// Sample n of column k is at row(k) * kStride + n. A warp stores 16 words of samples of two columns that are a vector
// apart; kFlip moves every second vector of columns, where that puts the two into different banks.
template <typename T, int kSamples, int kStride, int kFlip, int kLoads = 4>
struct BlockTile {
  static constexpr int kPart = sizeof(T) < 4 ? kWordElements<T> : 1;  // samples in a word

  static __device__ __forceinline__ int row(int k) {
    return k ^ static_cast<int>(unsigned(k) / kVector<T> % 2 * kFlip);
  }

  // `count` columns of a row-major matrix `width` wide; zeros past `samples`. kRound: to TF32, once for all readers.
  template <bool kRound>
  static __device__ void load(T* tile, const T* x, int64_t samples, int64_t width, int count, bool vectors) {
    if (vectors)
      copy<kRound, kVector<T>, min(kSamples / kPart, 16)>(tile, x, samples, width, count);
    else
      copy<kRound, 1, 2>(tile, x, samples, width, count);
  }

 private:
  // A warp reads kLines words of samples at a time, 32 / kLines vectors of each.
  template <bool kRound, int V, int kLines>
  static __device__ void copy(T* tile, const T* x, int64_t samples, int64_t width, int count) {
    constexpr int kAcross = kWarp / kLines, kBlocks = kSamples / kPart / kLines;
    constexpr int kWarps = kBlocks < kBlockWarps ? kBlockWarps / kBlocks : 1;  // that share a line
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int block = warp / kWarps; block < kBlocks; block += kBlockWarps / kWarps) {
      const int n = (block * kLines + lane % kLines) * kPart;
      const T* line = x + n * width;
#pragma unroll(kLoads / kPart)  // vectors of a thread that are on their way at once
      for (int k = (warp % kWarps * kAcross + lane / kLines) * V; k < count; k += kWarps * kAcross * V) {
        vec<T, V> v[kPart] = {};
#pragma unroll
        for (int p = 0; p < kPart; ++p)
          if (n + p < samples) v[p] = cuda::load<V>(line + p * width + k);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          vec<T, kPart> word;
          for (int p = 0; p < kPart; ++p) word[p] = v[p][i];
          if constexpr (kRound) word[0] = __uint_as_float(tf32(word[0]));
          store(tile + row(k + i) * kStride + n, word);
        }
      }
    }
  }
};

}  // namespace sparsegnn::cuda
