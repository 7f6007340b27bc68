// sparse_linear / cpu
//
//   y[n, m] = epilogue(bias[m] + sum over entries e of row m of W:  values[e] * x[n, col[e]])
//
// layout     W packed per call (sparse_linear_pack.h): entries panel by panel of outputs, block by block of inputs,
// with
//            byte offsets into the tile; x[N, K], y[N, M] row-major
// work       2*N*nnz flop; (N*K + N*M) * s bytes at memory
// blocking   B samples at a time: a block of x is transposed in registers into an L1 tile [k][B]; one entry is one
//            broadcast and B/lanes FMAs that read the tile; the output tile [m][B] waits in L2 for the next block
// rows       of equal counts stand together and run fully unrolled code: no loop exit to mispredict
// parallel   over batch tiles
// numerics   sums in float (double for double), in the order of the entries
// backward   sparse_linear_backward.kernel.cpp; dx alone is this kernel on the packed transpose
// see        sparsegnn/ops/sparse_linear.py, tests/ops/test_sparse_linear.py, benchmarks/ops/bench_sparse_linear.py
#include "sparse_linear.h"

#include "simd_gather.h"
#include "sparse_linear_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename A>
struct Cursor {
  const A *tile, *bias;
  A* out;
  const int32_t* order;
  const uint32_t* offset;
  const A* value;
  bool first;  // block of its panel: outputs start at the bias
};

// sum[u][z] += the next C entries; U sums per vector keep 4 FMA chains in flight in narrow tiles.
template <int Z, int U, int C, typename A>
SG_INLINE void add_entries(vec<A> (&sum)[U][Z], Cursor<A>& c) {
#pragma GCC unroll 32
  for (int i = 0; i < C; ++i) {
    const vec<A> w = splat(c.value[i]);
    const A* x = reinterpret_cast<const A*>(reinterpret_cast<const char*>(c.tile) + c.offset[i]);
#pragma GCC unroll 8
    for (int z = 0; z < Z; ++z) sum[i % U][z] += w * load(x + z * lanes<A>);
  }
  c.value += C;
  c.offset += C;
}

// Rows of up to this many entries run unrolled code: few of them in narrow tiles, for a handful of samples.
template <int Z, typename A>
constexpr int unrolled = Z > 2 ? max_unroll<A> : 2;

// `rows` rows of `count` entries; count == C unless C is the last unrolled, which takes every longer row.
template <int Z, int C, typename A>
SG_NOINLINE void run_rows(int rows, int count, Cursor<A>& cursor, Prefetch& prefetch, Prefetch& place) {
  constexpr int L = lanes<A>, U = Z >= 4 ? 1 : 4 / Z;
  Cursor<A> c = cursor;
  Prefetch p = prefetch, q = place;
  for (int i = 0; i < rows; ++i) {
    const int64_t row = c.order[i];
    A* y = c.out + row * (Z * L);
    vec<A> sum[U][Z] = {};
    for (int z = 0; z < Z; ++z) sum[0][z] = c.first ? splat(c.bias != nullptr ? c.bias[row] : A{0}) : load(y + z * L);
    if constexpr (C < unrolled<Z, A>) {
      add_entries<Z, U, C>(sum, c);
    } else {
      int left = count;
      for (; left >= 8; left -= 8) add_entries<Z, U, 8>(sum, c);
      for (; left > 0; --left) add_entries<Z, U, 1>(sum, c);
    }
    p.step();
    q.step();
    for (int u = 1; u < U; ++u)
      for (int z = 0; z < Z; ++z) sum[0][z] += sum[u][z];
    for (int z = 0; z < Z; ++z) store(y + z * L, sum[0][z]);
  }
  c.order += rows;
  cursor = c;
  prefetch = p;
  place = q;
}

template <int Z, int C, typename A>
SG_INLINE void run_any(int rows, int count, Cursor<A>& cursor, Prefetch& prefetch, Prefetch& place) {
  if constexpr (C < unrolled<Z, A>) {
    if (count != C) return run_any<Z, C + 1>(rows, count, cursor, prefetch, place);
  }
  run_rows<Z, C>(rows, count, cursor, prefetch, place);
}

template <int Z, typename T, typename A>
void tiles(const SparseLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  constexpr int B = Z * lanes<A>;
  const auto& w = a.w;
  const int64_t block = w.plan.block, panel = w.plan.panel;
  const int64_t blocks = (w.cols + block - 1) / block, panels = (w.rows + panel - 1) / panel;
  A* in = workspace;
  A* out = workspace + block * B;
  const int64_t twin = distance(a.x, a.mask.y);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t * B, samples = a.samples - n < B ? a.samples - n : B;
    const int64_t next_samples = t + 1 < end ? (a.samples - n - B < B ? a.samples - n - B : B) : 0;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t outputs = w.rows - p * panel < panel ? w.rows - p * panel : panel;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t part = p * blocks + b, inputs = w.cols - b * block < block ? w.cols - b * block : block;
        if (p == 0 || blocks > 1) tile_in<Z>(a.x, Place{n, b * block, w.cols}, samples, inputs, in, a.mask);
        // The next block of the last panel's sweep is cold; those of other panels come from L2.
        const int64_t steps = w.first_row[part + 1] - w.first_row[part];
        Prefetch ahead;
        if (b + 1 < blocks) {
          if (p == 0) {
            const int64_t width = w.cols - (b + 1) * block < block ? w.cols - (b + 1) * block : block;
            ahead = prefetch_tile(a.x + n * w.cols + (b + 1) * block, w.cols, samples, width, steps, twin);
          }
        } else if (p + 1 == panels) {
          const int64_t width = w.cols < block ? w.cols : block;
          ahead = prefetch_tile(a.x + (n + B) * w.cols, w.cols, next_samples, width, steps, twin);
        }
        Prefetch place;  // the outputs of this tile, or each of their stores would wait for its line
        if (b + 1 == blocks && !w.plan.stream)
          place = prefetch_tile<T>(a.y + n * w.rows + p * panel, w.rows, samples, outputs, steps);
        Cursor<A> c{in,
                    a.bias != nullptr ? a.bias + p * panel : nullptr,
                    out,
                    w.order + w.first_row[part],
                    w.offset + w.first_entry[part],
                    w.value + w.first_entry[part],
                    b == 0};
        for (int32_t r = w.first_run[part]; r < w.first_run[part + 1]; ++r)
          run_any<Z, 0>(w.runs[r].rows, w.runs[r].count, c, ahead, place);
      }
      tile_out<Z>(out, a.y, Place{n, p * panel, w.rows}, samples, outputs, w.plan.stream, a.epilogue);
    }
  }
  if (w.plan.stream) stores_done();
}

// S samples of one output row, straight from memory.
template <int S, typename T, typename A>
SG_INLINE void direct_row(const SparseLinearDirectArgs<T, A>& a, int64_t r, int64_t n) {
  constexpr int L = lanes<A>;
  const T* x = a.x + n * a.cols;
  vec<A> total[S] = {};
  for (int64_t e = a.crow[r], end = a.crow[r + 1]; e < end; e += L) {
    const int some = end - e < L ? int(end - e) : L;
    const vec<A> w = some == L ? load(a.values + e) : load_n(a.values + e, some);
    for (int s = 0; s < S; ++s) total[s] += w * gather(x + s * a.cols, a.col + e, some);
  }
  for (int s = 0; s < S; ++s) {
    const A y = sum<A>(total[s]) + (a.bias != nullptr ? a.bias[r] : A{0});
    a.y[(n + s) * a.rows + r] = narrow<T>(way_out(y, a.epilogue, n + s, r));
  }
}

}  // namespace

template <typename T, typename A>
void sparse_linear_tiles(const SparseLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  switch (a.w.plan.vectors) {
    case 1:
      return tiles<1>(a, begin, end, workspace);
    case 2:
      return tiles<2>(a, begin, end, workspace);
    case 4:
      return tiles<4>(a, begin, end, workspace);
    default:
      return tiles<widest>(a, begin, end, workspace);
  }
}

template <typename T, typename A>
bool sparse_linear_rows(const SparseLinearDirectArgs<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (a.crow[r] < 0 || a.crow[r + 1] < a.crow[r] || a.crow[r + 1] > a.nnz) return false;
    uint32_t outside = 0;
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) outside |= uint32_t(a.col[e]) >= uint32_t(a.cols);
    if (outside != 0) return false;
    int64_t n = 0;
    for (; n + 4 <= a.samples; n += 4) direct_row<4>(a, r, n);
    for (; n < a.samples; ++n) direct_row<1>(a, r, n);
  }
  return true;
}

int sparse_linear_lanes(int element_size) { return vector_bytes / element_size; }
int sparse_linear_widest() { return widest; }

#define SG_INSTANTIATE(T, A)                                                                    \
  template void sparse_linear_tiles<T, A>(const SparseLinearArgs<T, A>&, int64_t, int64_t, A*); \
  template bool sparse_linear_rows<T, A>(const SparseLinearDirectArgs<T, A>&, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
