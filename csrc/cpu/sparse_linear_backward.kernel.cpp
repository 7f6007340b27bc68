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
// dvalues    leaves each entry as one vector; lanes of them are reduced together in one shuffle tree and added to the
//            partial of the chunk, in packed order
// parallel   over chunks of batch tiles, whose number depends on the shape only; their partials are summed in order, so
//            the thread count does not change a bit
// see        sparsegnn/ops/sparse_linear.py, tests/ops/test_sparse_linear.py
#include "sparse_linear.h"

#include "sparse_linear_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Vectors that wait for their reduction: flushed by `lanes` at a time, what is left moves to the front now and then.
template <typename A>
struct Waiting {
  static constexpr int L = lanes<A>, capacity = 3 * L + (max_unroll<A> > 16 ? max_unroll<A> : 16);
  A *begin, *first, *last;
  A* partial;

  SG_INLINE void reduce() {
    if (last - first >= L * L) reduce_some();
  }
  SG_NOINLINE void reduce_some() {
    while (last - first >= L * L) {
      store(partial, load(partial) + sums(static_cast<const A*>(first)));
      partial += L;
      first += L * L;
    }
    if (first - begin >= 2 * L * L) {
      A* to = begin;
      for (const A* from = first; from < last; from += L, to += L) store(to, load(from));
      first = begin;
      last = to;
    }
  }
  SG_NOINLINE void finish() {
    if (last > first) {
      for (; last - first < L * L; last += L) store(last, vec<A>{});
      store(partial, load(partial) + sums(static_cast<const A*>(first)));
    }
    first = last = begin;
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

template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_INLINE void add_entries(vec<A> (&dx)[Z], const vec<A> (&x)[Z], Cursor<A>& c, Waiting<A>& waiting) {
  constexpr int L = lanes<A>;
#pragma GCC unroll 32
  for (int i = 0; i < C; ++i) {
    const A* dy = reinterpret_cast<const A*>(reinterpret_cast<const char*>(c.tile) + c.offset[i]);
    const vec<A> w = with_dx ? splat(c.value[i]) : vec<A>{};
    vec<A> dot;
#pragma GCC unroll 8
    for (int z = 0; z < Z; ++z) {
      const vec<A> g = with_dx && with_dvalues ? in_register(load(dy + z * L)) : load(dy + z * L);
      if constexpr (with_dx) dx[z] += w * g;
      if constexpr (with_dvalues) dot = z == 0 ? x[0] * g : x[z] * g + dot;
    }
    if constexpr (with_dvalues) store(waiting.last + i * L, dot);
  }
  c.value += C;
  c.offset += C;
  if constexpr (with_dvalues) waiting.last += C * L;
}

// `rows` rows of `count` entries; count == C unless C is max_unroll, which takes every longer row.
template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_NOINLINE void run_rows(int rows, int count, Cursor<A>& cursor, Waiting<A>& waiting, Prefetch& prefetch_dy,
                          Prefetch& prefetch_x) {
  constexpr int L = lanes<A>;
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
    if constexpr (C < max_unroll<A>) {
      add_entries<with_dx, with_dvalues, Z, C>(dx, x, c, v);
    } else {
      int left = count;
      for (; left >= 8; left -= 8) {
        add_entries<with_dx, with_dvalues, Z, 8>(dx, x, c, v);
        if constexpr (with_dvalues) v.reduce();
      }
      for (; left > 0; --left) add_entries<with_dx, with_dvalues, Z, 1>(dx, x, c, v);
    }
    py.step();
    px.step();
    if constexpr (with_dx)
      for (int z = 0; z < Z; ++z) store(c.dx + at + z * L, dx[z]);
    if constexpr (with_dvalues) v.reduce();  // last: nothing is alive in registers here
  }
  c.order += rows;
  cursor = c;
  waiting = v;
  prefetch_dy = py;
  prefetch_x = px;
}

template <bool with_dx, bool with_dvalues, int Z, int C, typename A>
SG_INLINE void run_any(int rows, int count, Cursor<A>& c, Waiting<A>& v, Prefetch& py, Prefetch& px) {
  if constexpr (C < max_unroll<A>) {
    if (count != C) return run_any<with_dx, with_dvalues, Z, C + 1>(rows, count, c, v, py, px);
  }
  run_rows<with_dx, with_dvalues, Z, C>(rows, count, c, v, py, px);
}

// Elements before the tiles: the vectors that wait.
template <typename A>
constexpr int64_t waiting_size = (Waiting<A>::capacity + lanes<A>)*lanes<A>;

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
    Waiting<A> waiting{scratch, scratch, scratch, partial};
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
    for (int i = 0; i < n; ++i) out[slot != nullptr ? slot[p + i] : p + i] = narrow<T>(each[i]);
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
