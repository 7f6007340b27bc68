// sparse_linear backward / cpu
//
//   dx[n, k]    = sum over entries e of column k of W:  values[e] * dy[n, row[e]]
//   dvalues[e]  = sum over n:  dy[n, row[e]] * x[n, col[e]]
//   dbias[m]    = sum over n:  dy[n, m]
//
// where dy is masked on its way in, when the outputs went through ReLU or dropout
// layout     the transpose of W packed per call: rows are inputs of the layer, cols its outputs
// work       4*N*nnz flop; (2*N*K + N*M) * s bytes at memory
// blocking   as in sparse_linear.kernel.cpp. Both gradients need dy[:, row[e]] against something of row k, so one pass
//            over a block of dy in L1 serves both: one load, two FMAs (dx in registers, x in registers)
// dvalues    leaves each entry as one vector; four of them become one in registers, and as many of these as there are
//            128-bit lanes become sums, which are added to the partial of the chunk, in packed order
// parallel   over chunks of batch tiles, whose number depends on the shape only; their partials are summed in order, so
//            the thread count does not change a bit
// see        sparsegnn/ops/sparse_linear.py, tests/ops/test_sparse_linear.py
#include "sparse_linear.h"

#include "sparse_linear_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Entries of a row are taken so many at a time: their sums over lanes begin in registers, as one vector. A packed row
// is padded to a multiple of them.
template <typename A>
constexpr int quad = group<A>;
// Of these, so many are multiplied side by side: each is a chain of FMAs, which alone would fill the scheduler. What
// registers allow.
template <typename A>
constexpr int abreast = vector_bytes == 64 ? quad<A> : 2;

// Quads wait until there are as many as 128-bit lanes: then one vector holds the sums of `lanes` entries.
template <typename A>
struct Waiting {
  A *quads, *partial;
  int filled = 0;

  SG_INLINE void push(vec<A> v) {
    constexpr int L = lanes<A>, n = lane_count<A>;
    if (filled < n - 1) return store(quads + filled++ * L, v);
    vec<A> u[n];
#pragma GCC unroll 4
    for (int i = 0; i < n - 1; ++i) u[i] = load(quads + i * L);
    u[n - 1] = v;
    store(partial, load(partial) + sums_of_groups<A>(u));
    partial += L;
    filled = 0;
  }
  void finish() {
    while (filled != 0) push(vec<A>{});
  }
};

template <typename A>
struct Cursor {
  const A *tile, *x;
  A* dx;
  const int32_t* order;
  const uint32_t* offset;
  const A* value;
  bool first;  // block of its panel: dx starts at 0
};

// dx += entries [at, at + E) of the quad; dot[e] = what is to be summed over lanes for entry e.
template <bool with_dx, bool with_dvalues, int Z, int E, typename A>
SG_INLINE void add_entries(vec<A> (&dx)[Z], const vec<A> (&x)[Z], const Cursor<A>& c, int at, vec<A>* dot) {
  const A* dy[E];
  vec<A> w[E];
#pragma GCC unroll 4
  for (int e = 0; e < E; ++e) {
    dy[e] = reinterpret_cast<const A*>(reinterpret_cast<const char*>(c.tile) + c.offset[at + e]);
    if constexpr (with_dx) w[e] = in_register(splat(c.value[at + e]));
  }
#pragma GCC unroll 8
  for (int z = 0; z < Z; ++z)
#pragma GCC unroll 4
    for (int e = 0; e < E; ++e) {
      const vec<A> dy_z = load(dy[e] + z * lanes<A>), g = with_dx && with_dvalues ? in_register(dy_z) : dy_z;
      if constexpr (with_dx) dx[z] += w[e] * g;
      if constexpr (with_dvalues) dot[e] = in_register(z == 0 ? x[0] * g : x[z] * g + dot[e]);
    }
}

// The next quad, of which E entries exist.
template <bool with_dx, bool with_dvalues, int Z, int E, typename A>
SG_INLINE void add_quad(vec<A> (&dx)[Z], const vec<A> (&x)[Z], Cursor<A>& c, Waiting<A>& waiting) {
  constexpr int first = E < abreast<A> ? E : abreast<A>;
  vec<A> dot[quad<A>] = {};
  add_entries<with_dx, with_dvalues, Z, first>(dx, x, c, 0, dot);
  if constexpr (E > first) add_entries<with_dx, with_dvalues, Z, E - first>(dx, x, c, first, dot + first);
  c.value += quad<A>;
  c.offset += quad<A>;
  if constexpr (with_dvalues) waiting.push(sums_in_groups<A>(dot));
}

// The next `count` entries; count == C if C >= 0.
template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_INLINE void add_row(int count, vec<A> (&dx)[Z], const vec<A> (&x)[Z], Cursor<A>& c, Waiting<A>& v) {
  constexpr int Q = quad<A>, tail = C % Q;
#pragma GCC unroll 8
  for (int q = 0; q < C / Q; ++q) add_quad<with_dx, with_dvalues, Z, Q>(dx, x, c, v);
  if constexpr (tail > 0) add_quad<with_dx, with_dvalues, Z, tail>(dx, x, c, v);
  if constexpr (C >= 0) return;
  for (; count >= Q; count -= Q) add_quad<with_dx, with_dvalues, Z, Q>(dx, x, c, v);
  if (count == 1) add_quad<with_dx, with_dvalues, Z, 1>(dx, x, c, v);
  if (count == 2) add_quad<with_dx, with_dvalues, Z, Q - Q / 2>(dx, x, c, v);
  if (count == 3) add_quad<with_dx, with_dvalues, Z, Q - 1>(dx, x, c, v);
}

// Rows of up to this many entries run unrolled code. Few of them without dvalues, as of a weight that is frozen, and in
// tiles of two vectors, for a handful of samples: half of the library's code, for what takes little time.
template <bool with_dvalues, int Z, typename A>
constexpr int unrolled = with_dvalues&& Z > 2 ? max_unroll<A> : 2;

// `rows` rows of `count` entries; count == C unless C is the last unrolled, which takes every longer row.
template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_NOINLINE void run_rows(int rows, int count, Cursor<A>& cursor, Waiting<A>& waiting, Prefetch& prefetch_dy,
                          Prefetch& prefetch_x) {
  constexpr int L = lanes<A>, known = C < unrolled<with_dvalues, Z, A> ? C : -1;
  Cursor<A> c = cursor;
  Waiting<A> v = waiting;
  Prefetch py = prefetch_dy, px = prefetch_x;
  for (int i = 0; i < rows; ++i) {
    const int64_t at = int64_t{c.order[i]} * (Z * L);
    vec<A> dx[Z], x[Z];
    for (int z = 0; z < Z; ++z) {
      if constexpr (with_dx) dx[z] = c.first ? vec<A>{} : load(c.dx + at + z * L);
      if constexpr (with_dvalues) x[z] = load(c.x + at + z * L);
    }
    add_row<with_dx, with_dvalues, Z, known>(count, dx, x, c, v);
    py.step();
    px.step();
    if constexpr (with_dx)
      for (int z = 0; z < Z; ++z) store(c.dx + at + z * L, dx[z]);
  }
  c.order += rows;
  cursor = c;
  waiting = v;
  prefetch_dy = py;
  prefetch_x = px;
}

template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_INLINE void run_any(int rows, int count, Cursor<A>& c, Waiting<A>& v, Prefetch& py, Prefetch& px) {
  if constexpr (C < unrolled<with_dvalues, Z, A>) {
    if (count != C) return run_any<with_dx, with_dvalues, Z, C + 1>(rows, count, c, v, py, px);
  }
  run_rows<with_dx, with_dvalues, Z, C>(rows, count, c, v, py, px);
}

// Elements before the tiles: the quads that wait.
template <typename A>
constexpr int64_t waiting_size = lanes<A>* lane_count<A>;

template <bool with_dx, bool with_dvalues, int Z, typename T, typename A>
void chunk_tiles(const SparseLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  constexpr int B = Z * lanes<A>;
  const auto& w = a.w;
  const int64_t block = w.plan.block, panel = w.plan.panel;
  const int64_t blocks = (w.cols + block - 1) / block, panels = (w.rows + panel - 1) / panel;
  A* partial = with_dvalues ? a.value_partial + chunk * a.value_stride : nullptr;
  A* bias = a.bias_partial != nullptr ? a.bias_partial + chunk * w.cols : nullptr;
  for (int64_t i = 0; with_dvalues && i < a.value_stride; ++i) partial[i] = 0;
  for (int64_t i = 0; bias != nullptr && i < w.cols; ++i) bias[i] = 0;
  A* scratch = workspace;
  A* tile = workspace + waiting_size<A>;
  A* x = tile + block * B;
  A* dx = x + panel * B;
  const int64_t twin = distance(a.dy, a.mask.y);
  // From x to the lines of dx, which are asked for with those of the next x, or each store would wait for its line.
  const int64_t here = w.plan.stream ? 0 : distance(a.x, static_cast<const T*>(a.dx));
  int64_t begin = chunk * w.plan.chunk_tiles * B, end = begin + w.plan.chunk_tiles * B;
  if (end > a.samples) end = a.samples;
  for (int64_t n = begin; n < end; n += B) {
    const int64_t samples = end - n < B ? end - n : B;
    const int64_t left = end - n - B, next_samples = left < 0 ? 0 : left < B ? left : B;
    Waiting<A> waiting{scratch, partial};
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t inputs = w.rows - p * panel < panel ? w.rows - p * panel : panel;
      if constexpr (with_dvalues) tile_in<Z>(a.x, Place{n, p * panel, w.rows}, samples, inputs, x);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t part = p * blocks + b, outputs = w.cols - b * block < block ? w.cols - b * block : block;
        if (p == 0 || blocks > 1) {
          const Place at{n, b * block, w.cols};
          if (bias != nullptr && p == 0) {
            tile_in<Z, true>(a.dy, at, samples, outputs, tile, a.mask, bias + b * block);
          } else {
            tile_in<Z>(a.dy, at, samples, outputs, tile, a.mask);
          }
        }
        const int64_t steps = w.first_row[part + 1] - w.first_row[part];
        Prefetch py, px;
        if (b + 1 < blocks) {
          if (p == 0) {
            const int64_t width = w.cols - (b + 1) * block < block ? w.cols - (b + 1) * block : block;
            py = prefetch_tile(a.dy + n * w.cols + (b + 1) * block, w.cols, samples, width, steps, twin);
          }
        } else if (p + 1 == panels) {
          const int64_t width = w.cols < block ? w.cols : block;
          py = prefetch_tile(a.dy + (n + B) * w.cols, w.cols, next_samples, width, steps, twin);
        }
        if (with_dvalues) {  // this block's share of the next panel of x
          const int64_t from = samples * b / blocks, to = samples * (b + 1) / blocks;
          if (p + 1 < panels) {
            const int64_t width = w.rows - (p + 1) * panel < panel ? w.rows - (p + 1) * panel : panel;
            px = prefetch_tile(a.x + (n + from) * w.rows + (p + 1) * panel, w.rows, to - from, width, steps, here);
          } else if (from < next_samples) {
            px = prefetch_tile(a.x + (n + B + from) * w.rows, w.rows, (to < next_samples ? to : next_samples) - from,
                               w.rows < panel ? w.rows : panel, steps,
                               here == 0 ? 0 : here - B * w.rows * int64_t(sizeof(T)));
          }
        }
        Cursor<A> c{
            tile,  x, dx, w.order + w.first_row[part], w.offset + w.first_entry[part], w.value + w.first_entry[part],
            b == 0};
        if constexpr (!with_dx && !with_dvalues) continue;  // dbias alone
        for (int32_t r = w.first_run[part]; r < w.first_run[part + 1]; ++r)
          run_any<with_dx, with_dvalues, Z, 0>(w.runs[r].rows, w.runs[r].count, c, waiting, py, px);
      }
      if constexpr (with_dx) tile_out<Z>(dx, a.dx, Place{n, p * panel, w.rows}, samples, inputs, w.plan.stream);
    }
    if constexpr (with_dvalues) waiting.finish();
  }
  if (with_dx && w.plan.stream) stores_done();
}

template <int Z, typename T, typename A>
void chunk_of(const SparseLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  if (a.dx != nullptr && a.value_partial != nullptr) return chunk_tiles<true, true, Z>(a, chunk, workspace);
  if (a.value_partial != nullptr) return chunk_tiles<false, true, Z>(a, chunk, workspace);
  if (a.dx != nullptr) return chunk_tiles<true, false, Z>(a, chunk, workspace);
  return chunk_tiles<false, false, Z>(a, chunk, workspace);
}

}  // namespace

template <typename T, typename A>
void sparse_linear_backward_chunk(const SparseLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  if (a.w.plan.vectors == 2) return chunk_of<2>(a, chunk, workspace);
  if (a.w.plan.vectors == 4) return chunk_of<4>(a, chunk, workspace);
  chunk_of<widest>(a, chunk, workspace);
}

template <typename T, typename A>
void sparse_linear_sum_partials(const A* partial, int64_t stride, int64_t chunks, const int32_t* slot, T* out,
                                int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  for (int64_t p = begin; p < end; p += L) {
    const int n = int(end - p < L ? end - p : L);
    vec<A> sum{};
    for (int64_t c = 0; c < chunks; ++c) sum += load_n(partial + c * stride + p, n);
    A each[L];
    store(each, sum);
    for (int i = 0; i < n; ++i) {
      const int64_t to = slot != nullptr ? slot[p + i] : p + i;
      if (to >= 0) out[to] = narrow<T>(each[i]);
    }
  }
}

int64_t sparse_linear_backward_scratch(int element_size) {
  return element_size == 8 ? waiting_size<double> : waiting_size<float>;
}

#define SG_INSTANTIATE(T, A)                                                                            \
  template void sparse_linear_backward_chunk<T, A>(const SparseLinearBackwardArgs<T, A>&, int64_t, A*); \
  template void sparse_linear_sum_partials<T, A>(const A*, int64_t, int64_t, const int32_t*, T*, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
