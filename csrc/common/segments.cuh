// segments.cuh: a reduction over the edges of every row of a CSR pattern, long rows shared by many warps. Torch-free.
//
// A group of 1..256 lanes owns a slice of lanes*V columns of one span of edges; segment_lanes() says how many, and all
// spans of a slice come before the next slice. A row of up to a window of edges is one span. A longer one is cut into
// the fewest pieces of at most a window, of equal length: their states go to a workspace, and a second kernel merges
// them in order. The cuts depend on the shape alone and nothing is atomic: the same bits in every run.
//
// With a list of spans, longest first (row_spans of sparsegnn/graph_spans.py), neighbouring groups walk equally many
// edges, and the lanes of a warp and the warps of a block end together. Without, rows come as they are, and before them
// every half of a window of edges is a unit of work: at most one piece begins in it, for pieces are no shorter. The
// cuts are the same, and so are the bits.
//
// An Op has: V columns of a lane; State; kLeastBlocks, how many blocks must fit an SM (registers); and
//   State span(r, begin, end, j)     of edges [begin, end) of row r, for the columns from j on
//   void merge(State&, State next)   of two neighbouring spans of a row
//   void finish(r, j, degree, state) writes the row
#pragma once
#include <type_traits>

#include "gpu.cuh"

namespace sparsegnn::cuda {

constexpr int kSegmentThreads = 256;

// Whether the bytes of a row of `width` elements are a number of 32 bits, as row_at() takes it.
template <typename T>
bool fits_pitch(int64_t width) {
  return width < (int64_t{1} << 31) / int64_t(max(sizeof(T), sizeof(int32_t)));
}

// Row c of a matrix with rows of `pitch` bytes, for a width that fits_pitch() allows: unsigned, so that the compiler
// sees one multiplication of 32 bits.
template <typename T>
__device__ __forceinline__ const T* row_at(const T* x, int32_t c, uint32_t pitch) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + uint64_t{static_cast<uint32_t>(c)} * pitch);
}

// Spans of a pattern, [count][2] int32: row and number of the piece.
struct SpanList {
  const int32_t* data = nullptr;
  int64_t count = 0;
};

// A CSR pattern and how its edges are cut.
struct RowSegments {
  const int32_t* crow;
  int64_t rows, width, edges;
  SpanList spans = {};            // longest first; without data: rows as they come
  int64_t table = 0, bytes = 0;   // rows that the edges gather from, bytes gathered for one column; 0: slices of a warp
  int64_t units = 0, halves = 0;  // of work; halves of windows, in each of which a piece may begin
  int bits = 0;                   // a window has 2 << bits edges
  int lanes = 0, groups = 0;      // lanes in a group, groups in a block
  int64_t first = 0;  // slice of columns that blockIdx.y counts from: a grid has 65535 rows of blocks at most
};

// Edges of the longest span: 256, so that a hub of a small graph feeds many warps; more where that would make over
// 16384 windows, whose pieces are memory, but at most 1024: a group walks a span alone.
inline int64_t segment_window(int64_t edges) {
  int64_t window = 256;
  while (window < 1024 && window * 16384 < edges) window *= 2;
  return window;
}

// None where no row can be longer than a window.
inline int64_t segment_halves(int64_t edges, int64_t window) {
  return edges > window ? ceil_div(edges, window / 2) : 0;
}

// Pieces of a slice of one lane's columns, at most.
inline int64_t segment_pieces(int64_t edges) { return segment_halves(edges, segment_window(edges)); }

// Sets the units of work, for a window that is a power of two.
inline void cut_segments(RowSegments& s, int64_t window) {
  s.halves = segment_halves(s.edges, window);
  for (s.bits = 0; 2 << s.bits < window;) ++s.bits;
  s.units = s.spans.data ? s.spans.count : s.halves + s.rows;
}

// The units that may have a piece of a row that is cut come first, and there are no more of them than halves.
inline int64_t merged_units(const RowSegments& s) {
  if (!s.spans.data) return s.halves;
  return s.spans.count == s.rows ? 0 : min(s.spans.count, s.halves);
}

// How a row is cut: into `pieces` of `length` edges, the first `rest` of which have one more.
struct RowCut {
  int32_t first, degree, pieces, length, rest;

  __device__ __forceinline__ RowCut(const RowSegments& s, int64_t r)
      : first(s.crow[r]), degree(s.crow[r + 1] - first), pieces(1), length(degree), rest(0) {
    if (degree <= 2 << s.bits) return;
    pieces = static_cast<int32_t>((static_cast<uint32_t>(degree) + (2u << s.bits) - 1) >> (s.bits + 1));
    length = degree / pieces, rest = degree % pieces;
  }
  __device__ __forceinline__ int32_t begin(int32_t number) const { return first + number * length + min(number, rest); }
  // The first piece that begins at edge e or behind it.
  __device__ __forceinline__ int32_t at(int64_t e) const {
    const auto offset = static_cast<uint32_t>(max<int64_t>(e - first, 0));
    const uint32_t longer = static_cast<uint32_t>(rest) * (length + 1);
    if (offset <= longer) return static_cast<int32_t>((offset + length) / (length + 1));
    return rest + static_cast<int32_t>((offset - longer + length - 1) / length);
  }
};

struct RowSpan {
  int64_t row;
  int32_t begin, end, number, pieces;
};

// The span of a unit of work; false where there is none.
__device__ __forceinline__ bool segment_span(const RowSegments& s, int64_t unit, RowSpan& span) {
  if (unit >= s.units) return false;
  int64_t r = unit - s.halves;
  int32_t number = 0;
  const bool half = !s.spans.data && r < 0;
  if (s.spans.data) r = s.spans.data[2 * unit], number = s.spans.data[2 * unit + 1];
  if (half) {
    const int64_t begin = unit << s.bits, last = min((unit + 1) << s.bits, s.edges) - 1;
    r = row_of_edge(s.crow, s.rows, begin);
    const RowCut cut(s, r);
    number = cut.pieces > 1 ? cut.at(begin) : cut.pieces;
    if (number == cut.pieces || cut.begin(number) > last) {
      r = row_of_edge(s.crow, s.rows, last), number = 0;
      if (s.crow[r] < begin) return false;
    }
  }
  const RowCut cut(s, r);
  span = {r, cut.begin(number), cut.begin(number + 1), number, cut.pieces};
  return s.spans.data || half == (cut.pieces > 1);
}

// Where the state of a piece is kept: that of the half of a window in which it begins.
__device__ __forceinline__ int64_t piece_place(const RowSegments& s, int32_t begin) { return begin >> s.bits; }

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
inline int segment_slice(const RowSegments& s, int V) {  // lanes of such a slice, 0: none is taken
  const int64_t columns = s.width / V, vector = V * s.bytes, kept = l2_bytes() * 3 / 5;
  const double table = double(s.table) * double(s.width * s.bytes), gathered = double(s.edges) * (s.width * s.bytes);
  if (s.table == 0 || table <= kept) return 0;
  int slice = group_lanes(columns);
  while (slice * vector > kSegmentSlice && s.table * slice * vector > kept) slice /= 2;
  const bool fits = slice * vector >= kSegmentSlice && s.table * slice * vector <= kept;
  const double again = double(ceil_div(columns, slice) - 1) * double(8 * s.edges + 4 * s.rows);
  return fits && gathered * (1 - kept / table) * 5 / 9 > table + again ? slice : 0;
}

inline int segment_lanes(const RowSegments& s, int V) {
  const int64_t columns = s.width / V;
  int lanes = group_lanes(columns);
  if (s.table == 0) return lanes;
  if (const int slice = segment_slice(s, V)) return slice;
  while (lanes >= kWarp && lanes < kSegmentThreads && columns % (2 * lanes) == 0) lanes *= 2;
  return lanes;
}

// Whether the lanes of a warp walk their spans together: Op has `kByWarps`, and span() is called by all of them, with
// the lanes of a group in a warp as its last argument; a lane whose columns are none, or that has no span, gets none to
// finish.
template <typename Op, typename = void>
struct spans_by_warps : std::false_type {};
template <typename Op>
struct spans_by_warps<Op, std::enable_if_t<Op::kByWarps>> : std::true_type {};

template <typename Op>
__global__ void __launch_bounds__(kSegmentThreads, Op::kLeastBlocks)
    segments_kernel(Op op, RowSegments s, typename Op::State* piece) {
  const int64_t j = ((s.first + blockIdx.y) * s.lanes + threadIdx.x % s.lanes) * Op::V;
  RowSpan span = {};
  const bool found = segment_span(s, int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes, span);
  typename Op::State state;
  if constexpr (spans_by_warps<Op>::value) {
    if (!found) span = {};
    state = op.span(span.row, span.begin, span.end, j, min(s.lanes, kWarp));
    if (!found || j >= s.width) return;
  } else {
    if (!found || j >= s.width) return;
    state = op.span(span.row, span.begin, span.end, j);
  }
  if (span.pieces == 1)
    op.finish(span.row, j, span.end - span.begin, state);
  else
    piece[piece_place(s, span.begin) * (s.width / Op::V) + j / Op::V] = state;
}

// Merges the pieces of every row that is cut, by the group of the first of them.
template <typename Op>
__global__ void __launch_bounds__(kSegmentThreads, Op::kLeastBlocks)
    segments_merge_kernel(Op op, RowSegments s, const typename Op::State* piece) {
  const int64_t j = ((s.first + blockIdx.y) * s.lanes + threadIdx.x % s.lanes) * Op::V;
  RowSpan span;
  if (j >= s.width || !segment_span(s, int64_t{blockIdx.x} * s.groups + threadIdx.x / s.lanes, span)) return;
  if (span.pieces == 1 || span.number > 0) return;
  const RowCut cut(s, span.row);
  const int64_t columns = s.width / Op::V;
  piece += j / Op::V;
  typename Op::State state = piece[piece_place(s, cut.first) * columns];
  for (int32_t k = 1; k < cut.pieces; ++k) op.merge(state, piece[piece_place(s, cut.begin(k)) * columns]);
  op.finish(span.row, j, cut.degree, state);
}

// Makes the states of all pieces that the units of `s` have, and merges those of rows that are cut: as Merging, which
// Op is, so that kinds of it may share the kernel.
template <typename Merging, typename Op>
cudaError_t launch_units(const Op& op, RowSegments s, int64_t merged, void* workspace, cudaStream_t stream) {
  auto* piece = static_cast<typename Op::State*>(workspace);
  const int64_t slices = ceil_div(s.width / Op::V, s.lanes), units = s.units;
  s.groups = kSegmentThreads / s.lanes;
  cudaError_t error = cudaSuccess;
  for (; s.first < slices && error == cudaSuccess; s.first += grid_rows()) {
    dim3 grid(static_cast<unsigned>(ceil_div(units, s.groups)),
              static_cast<unsigned>(min(slices - s.first, grid_rows())));
    s.units = units;
    if (units > 0) error = launch(segments_kernel<Op>, grid, kSegmentThreads, 0, stream, op, s, piece);
    grid.x = static_cast<unsigned>(ceil_div(merged, s.groups)), s.units = merged;
    if (error == cudaSuccess && merged > 0)
      error = launch(segments_merge_kernel<Merging>, grid, kSegmentThreads, 0, stream, static_cast<const Merging&>(op),
                     s, piece);
  }
  return error;
}

// workspace: segment_pieces(edges) * width / Op::V states, aligned to 16 bytes.
template <typename Merging, typename Op>
cudaError_t launch_segments(const Op& op, RowSegments s, void* workspace, cudaStream_t stream) {
  if (s.rows == 0 || s.width == 0) return cudaSuccess;
  s.lanes = segment_lanes(s, Op::V);
  cut_segments(s, segment_window(s.edges));
  return launch_units<Merging>(op, s, merged_units(s), workspace, stream);
}
template <typename Op>
cudaError_t launch_segments(const Op& op, const RowSegments& s, void* workspace, cudaStream_t stream) {
  return launch_segments<Op, Op>(op, s, workspace, stream);
}

}  // namespace sparsegnn::cuda
