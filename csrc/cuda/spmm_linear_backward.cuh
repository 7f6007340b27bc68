// spmm_linear, gradients of x and values / cuda
//
//   g = L^T dy        dx[n, k] = sum over the nonzeros e of column k of W:  values[e] * g[n, row(e)]
//                     dvalues[e] = sum over n of g[n, row(e)] * x[n, col[e]]
//
// layout     the transposed graph and the transposed pattern of W, as in spmm_linear.cuh; dy[R, M], x, dx[N, K]
// row-major,
//            dy masked by what followed the sums (sparse_linear_epilogue.cuh); dbias: sparse_linear_backward.cuh
// work       2*E*M + 4*N*nnz flop. The rows of dy are gathered once for both gradients, and g is never written
// schedule   a block walks a span of tiles of 32*NL nodes: it gathers g into shared memory (spmm_linear_gather.cuh),
//            multiplies it by the columns of W, and then brings panels of columns of x, transposed, to where the gather
//            had its pieces: the nonzeros of a panel are one range of the transposed pattern, and are summed as in
//            sparse_linear_backward.cuh with x and g in each other's place. All of M must fit the tile; K need not
// numerics   g is rounded to T as spmm's output is; partials per span, added in order by a second kernel
// see        sparsegnn/ops/spmm_linear_backward.py, tests/csrc/test_spmm_linear.py
#pragma once
#include "sparse_linear_backward.cuh"
#include "spmm_linear.cuh"

namespace sparsegnn::cuda {

// Device pointers; dx or dvalues is null where it is not wanted. ccol, row, perm: the transposed pattern of W.
template <typename T>
struct SpmmLinearBackwardArguments {
  const T *x, *values;
  const int32_t *ccol, *row, *perm;
  T *dx, *dvalues;
  int64_t nodes, inputs, outputs, entries;
};

struct SpmmLinearBackwardPlan {
  LinearPlan product;          // of dx; per_lane is 0 where a tile of g does not fit
  LinearBackwardPlan weights;  // panel: columns of x at a time
  int64_t before;              // bytes of shared memory before the tile
};

inline SpmmLinearBackwardPlan spmm_linear_backward_plan(int64_t nodes, int64_t inputs, int64_t outputs,
                                                        int64_t element_size) {
  const auto row = [&](int n) { return linear_stride(n, element_size) * element_size; };
  const auto room = [&](int n) { return kLinearShared - (outputs + 1) * row(n); };
  const auto columns = [&](int n) { return room(n) / row(n); };
  const auto fits = [&](int n) {
    return room(n) >= gather_bytes(n, element_size) && columns(n) >= min<int64_t>(inputs, kWarp);
  };
  if (!fits(1)) return {{0, 0, 0, 1, inputs}, {0, 0, 0, 1, 0, 0, 1, 0}, 0};
  int n = linear_widest(element_size);
  while (n > 1 && (!fits(n) || ceil_div(nodes, kWarp * n) < kLinearBlocks)) n /= 2;
  const LinearPlan product = {n, linear_stride(n, element_size), static_cast<int>(outputs), 1, inputs};
  LinearBackwardPlan weights = {n, linear_stride(n, element_size), static_cast<int>(outputs), 1, 0, 1, 1, 0};
  const int64_t most = max<int64_t>(1, columns(n) < inputs ? columns(n) / 8 * 8 : inputs);
  weights.panels = static_cast<int>(max<int64_t>(1, ceil_div(inputs, most)));
  const int64_t panel = ceil_div(inputs, weights.panels);
  weights.panel = static_cast<int>(weights.panels == 1 ? inputs : ceil_div(panel, 8) * 8);
  const int64_t tiles = ceil_div(nodes, kWarp * n);
  weights.span = max<int64_t>(1, ceil_div(tiles, 2 * kLinearBlocks));
  weights.spans = ceil_div(tiles, weights.span);
  return {product, weights, max(gather_bytes(n, element_size), weights.panel * row(n))};
}

// Packs the columns of W for the product, and says where the nonzeros' rows are in the tiles.
template <typename T>
struct SpmmLinearBackwardPack {
  LinearPack<T> values;
  LinearPositions positions;

  __device__ void operator()(int64_t s, int64_t r, int c, int32_t begin, int32_t end, int lane) const {
    values(s, r, c, begin, end, lane);
    positions(s, r, c, begin, end, lane);
  }
};

// product: as sparse_linear's arguments for dx from g. partial[span, t], t in the order of the transposed pattern.
template <typename T, int NL>
__global__ void __launch_bounds__(kLinearThreads, 2)
    spmm_linear_backward_kernel(RowGather<T> gather, SparseLinearArguments<T> product, const T* x,
                                SpmmLinearBackwardPlan plan, bool vectors, bool vector_stores, LinearPacked<T> packed,
                                const LinearPosition* position, acc_t<T>* partial) {
  using Tile = LinearTile<T, NL>;
  SG_SHARED(unsigned char, scratch);
  T *x_tile = reinterpret_cast<T*>(scratch), *tile = reinterpret_cast<T*>(scratch + plan.before);
  const int64_t inputs = product.outputs;
  for (int n = threadIdx.x; n < Tile::kStride; n += kLinearThreads) tile[plan.product.chunk * Tile::kStride + n] = T{};
  if (partial) partial += blockIdx.x * product.entries;

  for (int64_t t = 0; t < plan.weights.span; ++t) {
    const int64_t sample = (blockIdx.x * plan.weights.span + t) * Tile::kSamples;
    if (sample >= product.batch) return;
    __syncthreads();
    gather_tile<T, NL>(gather, tile, scratch, sample);
    if (product.y)
      for (int64_t n = 0, back = 0; n < ceil_div(inputs, kLinearOutputs); n += kLinearWarps, back ^= 1) {
        const int64_t m = linear_group(packed, inputs, n, back != 0);
        LinearSums<T, NL> sum = {};
        linear_product<T, NL>(tile, plan.product, packed, m, inputs, 0, sum);
        linear_store<T, NL>(product, x_tile, sample, m, inputs, vector_stores, sum);
      }
    for (int p = 0; p < (partial ? plan.weights.panels : 0); ++p) {
      const int64_t first = int64_t{p} * plan.weights.panel, last = min(first + plan.weights.panel, inputs);
      __syncthreads();
      Tile::load(x_tile, x, product.batch, inputs, sample, first, int(last - first), vectors);
      __syncthreads();
      LinearProducts<T, NL> products(scratch, tile, x_tile);
      products.add_shared(position, product.crow[first], product.crow[last], t == 0, partial);
    }
  }
}

// ---- launchers

// The parts of a workspace, in bytes from its start.
template <typename T>
struct SpmmLinearBackwardWorkspace {
  int64_t partial, position, packed, long_rows, bytes;

  SpmmLinearBackwardWorkspace(const SpmmLinearBackwardPlan& plan, int64_t inputs, int64_t outputs, int64_t entries,
                              int64_t edges, int64_t window) {
    const auto aligned = [](int64_t n) { return ceil_div(n, 16) * 16; };
    partial = 0;
    position = aligned(plan.weights.spans * entries * sizeof(acc_t<T>));
    packed = position + linear_position_bytes(entries);
    long_rows = packed + sparse_linear_workspace_bytes<T>(plan.product, inputs, entries);
    bytes = long_rows + long_rows_workspace_bytes<T>(edges, outputs, window);
  }
};

// graph: the transposed one; its x is dy. workspace: SpmmLinearBackwardWorkspace<T>(...).bytes, aligned to 16 bytes.
template <typename T>
cudaError_t launch_spmm_linear_backward(const SpmmArguments<T>& graph, const SpmmLinearBackwardArguments<T>& a,
                                        const SpmmLinearBackwardPlan& plan, int64_t window, void* workspace,
                                        cudaStream_t stream) {
  const bool need_dvalues = a.dvalues && a.entries > 0;
  if (plan.product.per_lane == 0) return cudaErrorInvalidValue;
  const SpmmLinearBackwardWorkspace<T> parts(plan, a.inputs, a.outputs, a.entries, graph.edges, window);
  char* bytes = static_cast<char*>(workspace);
  auto* partial = reinterpret_cast<acc_t<T>*>(bytes + parts.partial);
  auto* position = reinterpret_cast<LinearPosition*>(bytes + parts.position);
  if (a.nodes > 0 && a.inputs > 0 && (a.dx || need_dvalues)) {
    const int64_t entry_bytes = linear_entry_bytes(plan.product, a.inputs, a.entries, sizeof(T));
    const LinearPacked<T> packed = linear_packed<T>(plan.product, a.inputs, entry_bytes, bytes + parts.packed);
    const int units = static_cast<int>(plan.weights.stride * sizeof(T)) / kLinearUnit;
    const SpmmLinearBackwardPack<T> pack = {{a.ccol, a.row, a.perm, a.values, a.inputs, plan.product, packed},
                                            {a.row, plan.weights, a.entries, units, position}};
    cudaError_t error = launch(linear_segments_kernel<SpmmLinearBackwardPack<T>>,
                               static_cast<unsigned>(ceil_div(a.inputs, kLinearWarps)), kLinearThreads, 0, stream, pack,
                               a.ccol, a.row, a.inputs, plan.product.chunk, 1, packed.cut);
    if (error != cudaSuccess) return error;
    RowGather<T> gather = row_gather(graph, window);
    error = launch_long_rows(gather, bytes + parts.long_rows, stream);
    if (error != cudaSuccess) return error;
    const SparseLinearArguments<T> product = {nullptr, a.values, nullptr,   a.ccol,   a.row,    a.perm,
                                              a.dx,    a.nodes,  a.outputs, a.inputs, a.entries};
    const bool vectors = can_vectorise(kVector<T>, a.inputs, a.x);
    const bool vector_stores = can_vectorise(kVector<T>, a.inputs, a.dx);
    const auto run = [&](auto kernel) {
      const size_t shared = plan.before + size_t(plan.product.chunk + 1) * plan.product.stride * sizeof(T);
      return launch(kernel, static_cast<unsigned>(plan.weights.spans), kLinearThreads, shared, stream, gather, product,
                    a.x, plan, vectors, vector_stores, packed, position, need_dvalues ? partial : nullptr);
    };
    error = linear_tiles<T>(plan.product.per_lane, [&](auto n) { return run(spmm_linear_backward_kernel<T, n>); });
    if (error != cudaSuccess) return error;
  }
  if (!need_dvalues) return cudaSuccess;
  return launch_sparse_linear_partials(partial, plan.weights.spans, a.entries, a.dvalues, stream, a.perm);
}

}  // namespace sparsegnn::cuda
