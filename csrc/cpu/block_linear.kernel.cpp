// block_linear / cpu, square blocks of 16 or 32
//
//   y[n, m]      = bias[m] + sum over blocks b of the block row of m, k in b:  w[b][m, k] * x[n, k]
//   dx[n, k]     = sum over blocks b of the block column of k, m in b:  w[b][m, k] * dy[n, m]
//   dw[b][m, k]  = sum over n:  dy[n, m] * x[n, k]
//
// layout     lanes are outputs of a product (y: outputs of the layer, dx: its inputs; dw: inputs), so nothing is
//            transposed but the blocks themselves, once per call, for y
// work       2*N*nnz flop each
// blocking   S samples by V vectors of outputs sit in registers for a whole block row: V loads of w and S broadcasts of
//            x feed S*V FMAs. x is copied into a tile [block column][sample][W] first: rows that are a multiple of
//            4 KiB apart would share a few sets of L1
// dw         R rows by V vectors of a block sit in registers over the samples of a tile
// parallel   y: over tiles. Gradients: over chunks of tiles, whose number depends on the shape only; their partials are
//            summed in order, so the thread count does not change a bit
// see        sparsegnn/ops/block_linear.py, tests/ops/test_block_linear.py, benchmarks/ops/bench_block_linear.py
#include "block_linear.h"
#include "sparse_linear_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// S * V + V + 1 registers of 32 (AVX-512) or 16.
template <typename A, int W>
constexpr int vectors = W / lanes<A> < 2 ? 1 : 2;
template <typename A, int W>
constexpr int strip_samples = (vector_bytes == 64   ? 24
                               : vector_bytes == 32 ? 12
                                                    : 8) /
                              vectors<A, W>;
template <typename A, int W>
constexpr int gradient_rows = (vector_bytes == 64 ? 16 : 8) / vectors<A, W>;

// tile[c][n][k] = src[n, c * W + k] for n < samples, 0 from there to `rows`. column_sum[k] += the sum over n.
template <int W, typename T, typename A>
SG_NOINLINE void pack_tile(const T* src, int64_t columns, int64_t samples, int64_t rows, A* tile, A* column_sum) {
  constexpr int L = lanes<A>;
  for (int64_t n = 0; n < samples; ++n) {
    const T* p = src + n * columns;
    A* out = tile + n * W;
    for (int64_t c = 0; c < columns; c += W, out += rows * W)
#pragma GCC unroll 16
      for (int i = 0; i < W; i += L) {
        const vec<A> v = load(p + c + i);
        store(out + i, v);
        if (column_sum != nullptr) store(column_sum + c + i, load(column_sum + c + i) + v);
      }
  }
  for (int64_t n = samples; n < rows; ++n)
    for (int64_t c = 0; c < columns; c += W)
      for (int i = 0; i < W; i += L) store(tile + (c * rows) + n * W + i, vec<A>{});
}

// `samples` <= S rows of y at outputs r * W + first and on. `tile` has `stride` elements per block column.
template <int S, int V, int W, typename T, typename A>
SG_INLINE void strip(const BlockLinearWeight<A>& w, const A* bias, const A* tile, int64_t stride, int64_t r, int first,
                     T* y, int64_t samples, bool stream, Prefetch& prefetch) {
  constexpr int L = lanes<A>;
  vec<A> sum[S][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const vec<A> start = bias != nullptr ? load(bias + r * W + first + v * L) : vec<A>{};
#pragma GCC unroll 32
    for (int s = 0; s < S; ++s) sum[s][v] = start;
  }
  for (int64_t e = w.crow[r]; e < w.crow[r + 1]; ++e) {
    const A* x = tile + w.col[e] * stride;
    const A* b = w.value + (w.slot != nullptr ? int64_t{w.slot[e]} : e) * (W * W) + first;
    prefetch.step();
    const int64_t next = e + 1 < w.blocks ? e + 1 : e;  // maybe of the next block row
    const A* x_next = tile + w.col[next] * stride;
    const A* b_next = w.value + (w.slot != nullptr ? int64_t{w.slot[next]} : next) * (W * W) + first;
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      vec<A> row[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) row[v] = load(b + k * W + v * L);
#pragma GCC unroll 32
      for (int s = 0; s < S; ++s) {
        const vec<A> value = splat(x[s * W + k]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[s][v] += value * row[v];
      }
#pragma GCC unroll 4
      for (int s = k * S / W; s < (k + 1) * S / W; ++s) __builtin_prefetch(x_next + s * W);
      __builtin_prefetch(b_next + k * W);
    }
  }
  y += r * W + first;
#pragma GCC unroll 32
  for (int s = 0; s < S; ++s) {
    if (s >= samples) return;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (stream) {
        store_past_caches(y + s * w.rows + v * L, sum[s][v]);
      } else {
        store(y + s * w.rows + v * L, sum[s][v]);
      }
    }
  }
}

// All block rows for `samples` samples of a tile of `rows`.
template <int W, typename T, typename A>
SG_NOINLINE void multiply(const BlockLinearWeight<A>& w, const A* bias, const A* tile, int64_t rows, T* y,
                          int64_t samples, bool stream, Prefetch& prefetch) {
  constexpr int V = vectors<A, W>, S = strip_samples<A, W>;
  for (int64_t n = 0; n < samples; n += S)
    for (int64_t r = 0; r < w.rows / W; ++r) {
      for (int first = 0; first < W; first += V * lanes<A>)
        strip<S, V, W>(w, bias, tile + n * W, rows * W, r, first, y + n * w.rows, samples - n, stream, prefetch);
    }
}

template <int W, typename T, typename A>
void tiles(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* tile) {
  constexpr int S = strip_samples<A, W>;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t * S, samples = a.samples - n < S ? a.samples - n : S;
    const int64_t left = t + 1 < end ? a.samples - n - S : 0;
    pack_tile<W>(a.x + n * a.w.cols, a.w.cols, samples, S, tile, static_cast<A*>(nullptr));
    Prefetch ahead = prefetch_tile(a.x + (n + S) * a.w.cols, a.w.cols, left < S ? left : S, a.w.cols, a.w.blocks);
    multiply<W>(a.w, a.bias, tile, S, a.y + n * a.w.rows, samples, a.stream, ahead);
  }
  if (a.stream) stores_done();
}

// partial[m, k] += sum over samples of dy[n, m] * x[n, k] for one block; x and dy are columns of packed tiles.
template <int W, typename A>
SG_INLINE void block_gradient(const A* dy, const A* x, int64_t samples, A* partial) {
  constexpr int L = lanes<A>, V = vectors<A, W>, R = gradient_rows<A, W>;
  for (int k = 0; k < W; k += V * L)
    for (int m = 0; m < W; m += R) {
      vec<A> sum[R][V] = {};
#pragma GCC unroll 2
      for (int64_t n = 0; n < samples; ++n) {
        vec<A> row[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) row[v] = load(x + n * W + k + v * L);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const vec<A> g = splat(dy[n * W + m + i]);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sum[i][v] += g * row[v];
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          A* p = partial + (m + i) * W + k + v * L;
          store(p, load(p) + sum[i][v]);
        }
    }
}

template <int W, typename T, typename A>
void backward_chunk(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  const auto& w = a.w;
  const int64_t rows = strip_samples<A, W> * a.parts;
  A* dy = workspace;
  A* x = dy + rows * w.rows;
  A* partial = a.value_partial != nullptr ? a.value_partial + chunk * a.value_stride : nullptr;
  A* bias = a.bias_partial != nullptr ? a.bias_partial + chunk * w.rows : nullptr;
  for (int64_t i = 0; partial != nullptr && i < w.blocks * W * W; ++i) partial[i] = 0;
  for (int64_t i = 0; bias != nullptr && i < w.rows; ++i) bias[i] = 0;
  const BlockLinearWeight<A> transpose{a.ccol, a.row, a.perm, w.value, w.cols, w.rows, w.blocks, W, W};
  int64_t begin = chunk * a.chunk_tiles * rows, end = begin + a.chunk_tiles * rows;
  if (end > a.samples) end = a.samples;
  for (int64_t n = begin; n < end; n += rows) {
    const int64_t samples = end - n < rows ? end - n : rows;
    pack_tile<W>(a.dy + n * w.rows, w.rows, samples, rows, dy, bias);
    const int64_t left = end - n - rows, next = left < 0 ? 0 : left < rows ? left : rows;
    if (partial != nullptr) {
      pack_tile<W>(a.x + n * w.cols, w.cols, samples, rows, x, static_cast<A*>(nullptr));
      Prefetch ahead = prefetch_tile(a.x + (n + rows) * w.cols, w.cols, next, w.cols, w.blocks);
      for (int64_t r = 0; r < w.rows / W; ++r)
        for (int64_t e = w.crow[r]; e < w.crow[r + 1]; ++e) {
          block_gradient<W>(dy + r * rows * W, x + w.col[e] * rows * W, samples, partial + e * (W * W));
          ahead.step();
        }
    }
    if (a.dx != nullptr) {
      const int64_t steps = w.blocks * ((samples + strip_samples<A, W> - 1) / strip_samples<A, W>);
      Prefetch ahead = prefetch_tile(a.dy + (n + rows) * w.rows, w.rows, next, w.rows, steps);
      multiply<W>(transpose, static_cast<A*>(nullptr), dy, rows, a.dx + n * w.cols, samples, a.stream, ahead);
    }
  }
  if (a.dx != nullptr && a.stream) stores_done();
}

}  // namespace

template <typename T, typename A>
void block_linear_square(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  if (a.w.width == 16) return tiles<16>(a, begin, end, workspace);
  tiles<32>(a, begin, end, workspace);
}

template <typename T, typename A>
void block_linear_square_backward(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  if (a.w.width == 16) return backward_chunk<16>(a, chunk, workspace);
  backward_chunk<32>(a, chunk, workspace);
}

int block_linear_tile(int element_size, int height, int width) {
  const auto tile = [&](auto zero) {
    using A = decltype(zero);
    if (width == 16) return strip_samples<A, 16>;
    if (width == 32) return strip_samples<A, 32>;
    return (vector_bytes < 64 ? 2 : height >= 8 ? 3 : 4) * lanes<A>;
  };
  return element_size == 8 ? tile(double{}) : tile(float{});
}

template <typename T, typename A>
void block_linear_pack(const T* in, A* out, int64_t begin, int64_t end, int height, int width, bool transposed) {
  constexpr int L = lanes<A>;
  const int64_t size = int64_t{height} * width;
  if (!transposed) {  // sizes of blocks are multiples of 4
    int64_t i = begin * size;
    for (; i + L <= end * size; i += L) store(out + i, load(in + i));
    if (i < end * size) store_n(out + i, load_n(in + i, int(end * size - i)), int(end * size - i));
    return;
  }
  for (int64_t b = begin; b < end; ++b)
    for (int m = 0; m < height; m += L)
      for (int k = 0; k < width; k += L) {
        vec<A> r[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) r[i] = load(in + b * size + (m + i) * width + k);
        transpose<A>(r);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(out + b * size + (k + i) * height + m, r[i]);
      }
}

template <typename T, typename A>
void block_linear_sum(const A* partial, int64_t stride, int64_t chunks, T* out, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  for (int64_t i = begin; i < end; i += L) {
    const int left = end - i < L ? int(end - i) : L;
    vec<A> sum{};
    for (int64_t c = 0; c < chunks; ++c) sum += load_n(partial + c * stride + i, left);
    store_up_to(out + i, sum, left);
  }
}

#define SG_INSTANTIATE(T, A)                                                                           \
  template void block_linear_square<T, A>(const BlockLinearArgs<T, A>&, int64_t, int64_t, A*);         \
  template void block_linear_square_backward<T, A>(const BlockLinearBackwardArgs<T, A>&, int64_t, A*); \
  template void block_linear_pack<T, A>(const T*, A*, int64_t, int64_t, int, int, bool);               \
  template void block_linear_sum<T, A>(const A*, int64_t, int64_t, T*, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
