// segments.cuh: a reduction over the edges of every row of a CSR pattern, long rows shared by many warps. Torch-free.
//
// A group of 1..256 lanes owns a slice of lanes*V columns of one row; segment_lanes() says how many, and all rows of a
// slice come before the next slice. A row longer than `window` edges is left to the windows: fixed spans of `window`
// consecutive edges, one group each. Such a row is cut at window borders; its pieces go to a workspace, at most two a
// window, and a second kernel merges them in edge order. The cuts depend on the shape alone and nothing is atomic: the
// same bits in every run.
//
// An Op has: V columns of a lane; State; kLeastBlocks, how many blocks must fit an SM (registers); and
//   State span(r, begin, end, j)     of edges [begin, end) of row r, for the columns from j on
//   void merge(State&, State next)   of two neighbouring spans of a row
//   void finish(r, j, degree, state) writes the row
#pragma once
#include "gpu.cuh"

namespace sparsegnn::cuda {

constexpr int kSegmentThreads = 256;

// A CSR pattern and how its edges are cut: the blocks before `window_blocks` walk windows, the others rows.
struct RowSegments {
  const int32_t* crow;
  int64_t rows, width, edges;
  int64_t window = 0, windows = 0, window_blocks = 0;
  int lanes = 0, groups = 0;  // lanes in a group, groups in a block
  int64_t first = 0;          // slice of columns that blockIdx.y counts from: a grid has 65535 rows of blocks at most
  int64_t table = 0, bytes = 0;  // rows that the edges gather from, bytes gathered for one column; 0: slices of a warp
};

// Edges in a window: 256, or more where that would make over 16384 windows.
inline int64_t segment_window(int64_t edges) {
  int64_t window = 256;  // short enough that a hub of a small graph feeds many warps
  while (window * 16384 < edges) window *= 2;
  return window;
}

// Pieces of a slice of one lane's columns: none where no row can be longer than a window.
inline int64_t segment_pieces(int64_t edges) {
  const int64_t window = segment_window(edges);
  return edges > window ? 2 * ceil_div(edges, window) : 0;
}

constexpr int64_t kSegmentSlice = 128;  // least bytes of a slice of a row: a line of the L2

// Lanes of a group, which make a slice of lanes * V columns.
//
// What the L2 keeps of a gathered table is 3/5 of its size: 36 MB of an H200's 60, whose halves each hold their own
// copy of what they read. A table that fits is gathered in whole rows, as far as a block goes, for then the warps of a
// row share its indices. One that does not is gathered in slices of 512, 256 or 128 bytes, the widest of which all rows
// fit. In bytes from memory: of the gathers that would miss, E*K*b * (1 - kept / table), slices save 1 - 4.3/9.7 = 5/9
// (TB/s of memory and of the L2 of an H200); they cost the table once, and for each further slice 8 bytes an edge
// (index and value) and 4 a row. Slices are taken where that pays; where none fits, whole rows. sparsegnn/ops/_fused.py
// reckons with the same rule.
inline int segment_lanes(const RowSegments& s, int V) {
  const int64_t columns = s.width / V, vector = V * s.bytes, kept = l2_bytes() * 3 / 5;
  int lanes = group_lanes(columns);
  if (s.table == 0) return lanes;
  const double table = double(s.table) * double(s.width * s.bytes), gathered = double(s.edges) * (s.width * s.bytes);
  if (table > kept) {
    int slice = lanes;
    while (slice * vector > kSegmentSlice && s.table * slice * vector > kept) slice /= 2;
    const bool fits = slice * vector >= kSegmentSlice && s.table * slice * vector <= kept;
    const double again = double(ceil_div(columns, slice) - 1) * double(8 * s.edges + 4 * s.rows);
    if (fits && gathered * (1 - kept / table) * 5 / 9 > table + again) return slice;
  }
  while (lanes >= kWarp && lanes < kSegmentThreads && columns % (2 * lanes) == 0) lanes *= 2;
  return lanes;
}

template <typename Op>
__global__ void __launch_bounds__(kSegmentThreads, Op::kLeastBlocks)
    segments_kernel(Op op, RowSegments s, typename Op::State* piece) {
  const int64_t j = ((s.first + blockIdx.y) * s.lanes + threadIdx.x % s.lanes) * Op::V;
  if (j >= s.width) return;
  const int64_t group = int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes;
  const bool rows = blockIdx.x >= s.window_blocks;
  if (!rows && group >= s.windows) return;
  int64_t r = group - s.window_blocks * s.groups, begin = 0, end = 0;
  if (rows) {
    if (r >= s.rows) return;
    begin = s.crow[r], end = s.crow[r + 1];
    if (end - begin > s.window) return;
  } else {
    begin = group * s.window, end = min(begin + s.window, s.edges);
    r = row_of_edge(s.crow, s.rows, begin);
  }
  for (int side = 0; side < 2; ++side) {  // in a window: the row at its first edge, then the one at its last
    const int64_t first = s.crow[r], last = s.crow[r + 1], to = min(end, last);
    if (rows || last - first > s.window) {
      const typename Op::State state = op.span(r, max(begin, first), to, j);
      if (rows)
        op.finish(r, j, end - begin, state);
      else
        piece[(2 * group + side) * (s.width / Op::V) + j / Op::V] = state;
    }
    if (to == end) return;
    r = row_of_edge(s.crow, s.rows, end - 1);
  }
}

// Merges the pieces of the row that begins in each window and is longer than one.
template <typename Op>
__global__ void __launch_bounds__(kSegmentThreads, Op::kLeastBlocks)
    segments_merge_kernel(Op op, RowSegments s, const typename Op::State* piece) {
  const int64_t j = ((s.first + blockIdx.y) * s.lanes + threadIdx.x % s.lanes) * Op::V;
  const int64_t w = int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes;
  if (j >= s.width || w >= s.windows) return;
  const int64_t r = row_of_edge(s.crow, s.rows, min((w + 1) * s.window, s.edges) - 1);
  const int64_t begin = s.crow[r], end = s.crow[r + 1];
  if (end - begin <= s.window || begin < w * s.window) return;
  const int64_t columns = s.width / Op::V;
  piece += j / Op::V;
  typename Op::State state = piece[(2 * w + (begin > w * s.window)) * columns];
  for (int64_t u = w + 1; u * s.window < end; ++u) op.merge(state, piece[2 * u * columns]);
  op.finish(r, j, end - begin, state);
}

// workspace: segment_pieces(edges) * width / Op::V states, aligned to 16 bytes.
template <typename Op>
cudaError_t launch_segments(Op op, RowSegments s, void* workspace, cudaStream_t stream) {
  if (s.rows == 0 || s.width == 0) return cudaSuccess;
  const int64_t columns = s.width / Op::V;
  s.lanes = segment_lanes(s, Op::V);
  s.groups = kSegmentThreads / s.lanes;
  s.window = segment_window(s.edges);
  s.windows = segment_pieces(s.edges) / 2;
  s.window_blocks = ceil_div(s.windows, s.groups);
  auto* piece = static_cast<typename Op::State*>(workspace);
  const int64_t slices = ceil_div(columns, s.lanes);
  cudaError_t error = cudaSuccess;
  for (; s.first < slices && error == cudaSuccess; s.first += grid_rows()) {
    const unsigned here = static_cast<unsigned>(min(slices - s.first, grid_rows()));
    const dim3 grid(static_cast<unsigned>(s.window_blocks + ceil_div(s.rows, s.groups)), here);
    error = launch(segments_kernel<Op>, grid, kSegmentThreads, 0, stream, op, s, piece);
    if (error == cudaSuccess && s.windows > 0)
      error = launch(segments_merge_kernel<Op>, dim3(static_cast<unsigned>(s.window_blocks), here), kSegmentThreads, 0,
                     stream, op, s, piece);
  }
  return error;
}

}  // namespace sparsegnn::cuda
