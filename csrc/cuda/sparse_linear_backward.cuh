// sparse_linear, gradients of values and bias / cuda
//
//   dvalues[e] = sum over n of dy[n, row(e)] * x[n, col[e]]          dbias[m] = sum over n of dy[n, m]
//
// layout     as sparse_linear.cuh; dy[B, M] row-major
// work       2*B*nnz flop
// schedule   a block holds tiles of X and dY transposed in shared memory and walks its span of the samples; a lane owns
//            NL samples. A warp takes 32 nonzeros at a time: every lane multiplies its samples, and 31 shuffles add
//            over the lanes and leave the sum of nonzero l with lane l, which adds it to the block's partial. Outputs
//            are cut into panels and inputs into chunks where the tiles do not fit
// numerics   partials per span of samples, added in order by a second kernel; the spans depend on the shape alone
// see        sparsegnn/ops/sparse_linear.py, tests/csrc/test_sparse_linear.py
#pragma once
#include "sparse_linear.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct SparseLinearBackwardArguments {
  const T *dy, *x;
  const int32_t *crow, *col;
  T* dvalues;
  int64_t batch, inputs, outputs, entries;
};

struct LinearBackwardPlan {
  int per_lane, stride;  // as LinearPlan
  int chunk, chunks;     // inputs of a block
  int panel, panels;     // outputs of a block
  int64_t span, spans;   // tiles of samples of a block
};

inline LinearBackwardPlan linear_backward_plan(int64_t batch, int64_t inputs, int64_t outputs, int64_t element_size) {
  const auto stride = [](int n) { return kWarp * n + (n == 4 ? 4 : 2); };
  const auto room = [&](int n) { return kLinearShared / (stride(n) * element_size); };
  const int64_t least = min<int64_t>(outputs, 64);  // a panel of fewer outputs would reload X too often
  int n = element_size == 8 ? 2 : 4;
  while (n > 1 && (inputs + least > room(n) || ceil_div(batch, kWarp * n) < kLinearBlocks)) n /= 2;
  LinearBackwardPlan plan = {n, stride(n), 0, 1, 0, 1, 0, 0};
  plan.chunks = static_cast<int>(max<int64_t>(1, ceil_div(inputs, (room(n) - least) / 8 * 8)));
  plan.chunk = static_cast<int>(plan.chunks == 1 ? inputs : ceil_div(ceil_div(inputs, plan.chunks), 8) * 8);
  plan.panels = static_cast<int>(max<int64_t>(1, ceil_div(outputs, max<int64_t>(8, (room(n) - plan.chunk) / 8 * 8))));
  plan.panel = static_cast<int>(plan.panels == 1 ? outputs : ceil_div(ceil_div(outputs, plan.panels), 8) * 8);
  const int64_t tiles = ceil_div(batch, kWarp * n), blocks = int64_t{plan.panels} * plan.chunks;
  plan.span = max<int64_t>(1, ceil_div(tiles, max<int64_t>(1, 2 * kLinearBlocks / blocks)));
  plan.spans = ceil_div(tiles, plan.span);
  return plan;
}

// Where the rows of a nonzero's output and input are in the tiles, in elements.
struct alignas(8) LinearPosition {
  int32_t output, input;
};

struct LinearPositions {
  const int32_t* col;
  LinearBackwardPlan plan;
  LinearPosition* position;

  __device__ void operator()(int64_t, int64_t r, int c, int32_t begin, int32_t end, int lane) const {
    for (int32_t e = begin + lane; e < end; e += kWarp)
      position[e] = {static_cast<int32_t>(r % plan.panel) * plan.stride, (col[e] - c * plan.chunk) * plan.stride};
  }
};

// Sums over the samples of a tile, for 32 nonzeros at a time.
template <typename T, int NL>
struct LinearProducts {
  using A = acc_t<T>;
  const T *x, *dy;  // the lane's column of the tiles
  int output = -1;  // whose dy is held
  A held[NL] = {};

  __device__ __forceinline__ A product(LinearPosition p) {
    if (p.output != output) {
      output = p.output;
      const auto v = *reinterpret_cast<const vec<T, NL>*>(dy + output);
      for (int l = 0; l < NL; ++l) held[l] = to_acc(v[l]);
    }
    const auto v = *reinterpret_cast<const vec<T, NL>*>(x + p.input);
    A s = held[0] * to_acc(v[0]);
    for (int l = 1; l < NL; ++l) s += held[l] * to_acc(v[l]);
    return s;
  }

  // Of two sums over groups of lanes, one over pairs of groups: `first` where the lane's bit is 0, else `second`.
  static __device__ __forceinline__ A merge(A first, A second, int bit) {
    const bool upper = threadIdx.x & bit;
    return (upper ? second : first) + __shfl_xor_sync(kFullMask, upper ? first : second, bit);
  }

  // The sum over 2^kLevel lanes for the nonzero position[first + lane % 2^kLevel]; past `last` that of `last`.
  template <int kLevel>
  __device__ __forceinline__ A sum(const LinearPosition* position, int first, int last) {
    if constexpr (kLevel == 0) {
      return product(load<1>(position + min(first, last))[0]);
    } else {
      constexpr int kBit = 1 << (kLevel - 1);
      const A lower = sum<kLevel - 1>(position, first, last);
      return merge(lower, sum<kLevel - 1>(position, first + kBit, last), kBit);
    }
  }

  // The sum over all samples for nonzero position[lane].
  __device__ __forceinline__ A sum_32(const LinearPosition* position, int last) {
    A half[2] = {};
#pragma unroll 1  // or the positions take too many registers
    for (int first = 0; first < kWarp; first += kWarp / 2) {
      half[0] = half[1];
      half[1] = sum<4>(position, first, last);
    }
    return merge(half[0], half[1], kWarp / 2);
  }
};

// Block (panel and chunk, span); partial[span, e]. There are at most 2 * kLinearBlocks spans.
template <typename T, int NL>
__global__ void __launch_bounds__(kLinearThreads, 2)
    sparse_linear_dvalues_kernel(SparseLinearBackwardArguments<T> a, LinearBackwardPlan plan, bool x_vectors,
                                 bool dy_vectors, const int32_t* cut, const LinearPosition* position,
                                 acc_t<T>* partial) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(T, x_tile);
  T* dy_tile = x_tile + plan.chunk * Tile::kStride;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned c = blockIdx.x % static_cast<unsigned>(plan.chunks);
  const int64_t m = int64_t{blockIdx.x / static_cast<unsigned>(plan.chunks)} * plan.panel, k = int64_t{c} * plan.chunk;
  const int outputs = int(min<int64_t>(plan.panel, a.outputs - m)),
            inputs = int(min<int64_t>(plan.chunk, a.inputs - k));
  // With one chunk the nonzeros of the panel are one range, shared by the warps; else each row has its own, and a warp.
  const bool whole = plan.chunks == 1;
  const int step = whole ? kLinearWarps * kWarp : kWarp;
  partial += blockIdx.y * a.entries;

  for (int64_t t = 0; t < plan.span; ++t) {
    const int64_t sample = (blockIdx.y * plan.span + t) * Tile::kSamples;
    if (sample >= a.batch) return;
    __syncthreads();
    Tile::load(x_tile, a.x, a.batch, a.inputs, sample, k, inputs, x_vectors);
    Tile::load(dy_tile, a.dy, a.batch, a.outputs, sample, m, outputs, dy_vectors);
    __syncthreads();
    LinearProducts<T, NL> products = {x_tile + lane * NL, dy_tile + lane * NL};
    for (int i = whole ? 0 : warp; i < (whole ? 1 : outputs); i += kLinearWarps) {
      const int64_t s = (m + i) * plan.chunks + c;
      const int64_t begin = cut[s], end = cut[whole ? m + outputs : s + 1];
      for (int64_t e = begin + (whole ? warp * kWarp : 0); e < end; e += step) {
        const acc_t<T> sum = products.sum_32(position + e, int(min<int64_t>(end - e, kWarp)) - 1);
        if (e + lane < end) partial[e + lane] = t == 0 ? sum : partial[e + lane] + sum;
      }
    }
  }
}

// partial[span, m]: the sum of the samples of a span, for 32 outputs a block.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    sparse_linear_dbias_kernel(const T* dy, int64_t batch, int64_t outputs, int64_t span, acc_t<T>* partial) {
  SG_SHARED(acc_t<T>, sums);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t m = int64_t{blockIdx.x} * kWarp + lane, begin = blockIdx.y * span, end = min(begin + span, batch);
  acc_t<T> sum = 0;
  if (m < outputs)
#pragma unroll 4
    for (int64_t n = begin + warp; n < end; n += kLinearWarps) sum += to_acc(dy[n * outputs + m]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || m >= outputs) return;
  for (int w = 1; w < kLinearWarps; ++w) sum += sums[w * kWarp + lane];
  partial[blockIdx.y * outputs + m] = sum;
}

// out[i] = sum over the spans, in order, of partial[span, i]; where `place` is given it says where in out i is.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    sparse_linear_partials_kernel(const acc_t<T>* partial, int64_t spans, int64_t count, T* out, const int32_t* place) {
  const int64_t i = int64_t{blockIdx.x} * kLinearThreads + threadIdx.x;
  if (i >= count) return;
  acc_t<T> sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < spans; ++s) sum += partial[s * count + i];
  out[place ? place[i] : i] = from_acc<T>(sum);
}

template <typename T>
cudaError_t launch_sparse_linear_partials(const acc_t<T>* partial, int64_t spans, int64_t count, T* out,
                                          cudaStream_t stream, const int32_t* place = nullptr) {
  return launch(sparse_linear_partials_kernel<T>, static_cast<unsigned>(ceil_div(count, kLinearThreads)),
                kLinearThreads, 0, stream, partial, spans, count, out, place);
}

// ---- launchers

template <typename T>
int64_t sparse_linear_dvalues_workspace_bytes(const LinearBackwardPlan& plan, int64_t outputs, int64_t entries) {
  return plan.spans * entries * sizeof(acc_t<T>) + entries * sizeof(LinearPosition) +
         (outputs * plan.chunks + 1) * sizeof(int32_t);
}

// workspace: sparse_linear_dvalues_workspace_bytes<T>(...), aligned to 16 bytes.
template <typename T>
cudaError_t launch_sparse_linear_dvalues(const SparseLinearBackwardArguments<T>& a, const LinearBackwardPlan& plan,
                                         void* workspace, cudaStream_t stream) {
  if (a.entries == 0) return cudaSuccess;
  auto* position = static_cast<LinearPosition*>(workspace);
  auto* partial = reinterpret_cast<acc_t<T>*>(position + a.entries);
  auto* cut = reinterpret_cast<int32_t*>(partial + plan.spans * a.entries);
  const int64_t blocks = int64_t{plan.panels} * plan.chunks;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (plan.spans > 0) {
    const LinearPositions pack = {a.col, plan, position};
    cudaError_t error = launch(linear_segments_kernel<LinearPositions>,
                               static_cast<unsigned>(ceil_div(a.outputs * plan.chunks, kLinearWarps)), kLinearThreads,
                               0, stream, pack, a.crow, a.col, a.outputs, plan.chunk, plan.chunks, cut);
    if (error != cudaSuccess) return error;
    const bool x_vectors = can_vectorise(kVector<T>, a.inputs, a.x);
    const bool dy_vectors = can_vectorise(kVector<T>, a.outputs, a.dy);
    const auto run = [&](auto kernel) {
      const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.spans));
      const size_t shared = size_t(plan.chunk + plan.panel) * plan.stride * sizeof(T);
      return launch(kernel, grid, kLinearThreads, shared, stream, a, plan, x_vectors, dy_vectors, cut, position,
                    partial);
    };
    if (plan.per_lane == 2) error = run(sparse_linear_dvalues_kernel<T, 2>);
    if (plan.per_lane == 1) error = run(sparse_linear_dvalues_kernel<T, 1>);
    if constexpr (sizeof(T) < 8)
      if (plan.per_lane == 4) error = run(sparse_linear_dvalues_kernel<T, 4>);
    if (error != cudaSuccess) return error;
  }
  return launch_sparse_linear_partials(partial, plan.spans, a.entries, a.dvalues, stream);
}

// Samples of a span of dbias; there are at most kLinearBlocks spans.
inline int64_t linear_dbias_span(int64_t batch) { return max<int64_t>(256, ceil_div(batch, kLinearBlocks)); }

template <typename T>
int64_t sparse_linear_dbias_workspace_bytes(int64_t batch, int64_t outputs) {
  return ceil_div(batch, linear_dbias_span(batch)) * outputs * sizeof(acc_t<T>);
}

template <typename T>
cudaError_t launch_sparse_linear_dbias(const T* dy, int64_t batch, int64_t outputs, T* dbias, void* workspace,
                                       cudaStream_t stream) {
  if (outputs == 0) return cudaSuccess;
  auto* partial = static_cast<acc_t<T>*>(workspace);
  const int64_t span = linear_dbias_span(batch), spans = ceil_div(batch, span);
  if (spans > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(outputs, kWarp)), static_cast<unsigned>(spans));
    const cudaError_t error = launch(sparse_linear_dbias_kernel<T>, grid, kLinearThreads,
                                     kLinearThreads * sizeof(acc_t<T>), stream, dy, batch, outputs, span, partial);
    if (error != cudaSuccess) return error;
  }
  return launch_sparse_linear_partials(partial, spans, outputs, dbias, stream);
}

}  // namespace sparsegnn::cuda
