// block_linear / cpu, groups of G = 4, 8 or 16 consecutive outputs that share their inputs (blocks [G, 1])
//
//   y[n, gG + i]  = bias + sum over entries e of group g:  w[e, i] * x[n, col[e]]
//   dx[n, k]      = sum over entries e with col[e] = k, i < G:  w[e, i] * dy[n, gG + i]
//   dw[e, i]      = sum over n:  dy[n, gG + i] * x[n, col[e]]
//
// layout     batch tiles as in sparse_linear_tile.h: x[k][B], dy[m][B], so that lanes are samples
// work       2*N*nnz flop each
// blocking   R outputs by Z vectors of samples sit in registers. y: Z loads of x and R broadcasts of w feed R*Z FMAs, a
//            whole row long. dx: R*Z vectors of dy stay, each entry loads, updates and stores the Z vectors of its
//            input in a block of dx in L1. dw: lanes / R entries at a time against the dy of their group, `parts` batch
//            tiles long, before the lanes are added up in one shuffle tree
// parallel   y: over tiles. Gradients: over chunks of tiles, whose number depends on the shape only; their partials are
//            summed in order, so the thread count does not change a bit
// see        sparsegnn/ops/block_linear.py, tests/ops/test_block_linear.py, benchmarks/ops/bench_block_linear.py
#include "block_linear.h"
#include "sparse_linear_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

constexpr int panel = 64;  // outputs that leave together: their tile stays in L1

// Registers: R * Z + Z + 1 of 32 (AVX-512) or 16.
template <int G>
constexpr int rows_of = vector_bytes == 64 && G >= 8 ? 8 : 4;
template <int G>
constexpr int tile_vectors = vector_bytes == 64 ? (G >= 8 ? 3 : 4) : 2;

// sum[i][z] += w[e, i] * x[col[e]][z] over `count` entries.
template <int G, int R, int Z, typename A>
SG_INLINE void add_entries(vec<A> (&sum)[R][Z], const A* tile, const int32_t* col, const A* w, int64_t count,
                           Prefetch& prefetch) {
  constexpr int L = lanes<A>;
  for (int64_t e = 0; e < count; ++e, w += G) {
    prefetch.step();
    const A* p = tile + int64_t{col[e]} * (Z * L);
    vec<A> x[Z];
#pragma GCC unroll 4
    for (int z = 0; z < Z; ++z) x[z] = in_register(load(p + z * L));
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vec<A> value = splat(w[i]);
#pragma GCC unroll 4
      for (int z = 0; z < Z; ++z) sum[i][z] += value * x[z];
    }
  }
}

template <int G, typename T, typename A>
void tiles(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  constexpr int R = rows_of<G>, Z = tile_vectors<G>, L = lanes<A>, B = Z * L;
  const auto& w = a.w;
  A* x = workspace;
  A* y = x + w.cols * B;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t * B, samples = a.samples - n < B ? a.samples - n : B;
    const int64_t left = t + 1 < end ? a.samples - n - B : 0;
    tile_in<Z>(a.x, Place{n, 0, w.cols}, samples, w.cols, x);
    Prefetch ahead = prefetch_tile(a.x + (n + B) * w.cols, w.cols, left < B ? left : B, w.cols, w.blocks);
    for (int64_t first = 0; first < w.rows; first += panel) {
      const int64_t outputs = w.rows - first < panel ? w.rows - first : panel;
      for (int64_t m = 0; m < outputs; m += G) {
        const int64_t from = w.crow[(first + m) / G], count = w.crow[(first + m) / G + 1] - from;
        for (int half = 0; half < G; half += R) {
          vec<A> sum[R][Z];
          A* out = y + (m + half) * B;
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
            for (int z = 0; z < Z; ++z) sum[i][z] = a.bias != nullptr ? splat(a.bias[first + m + half + i]) : vec<A>{};
          add_entries<G>(sum, static_cast<const A*>(x), w.col + from, w.value + from * G + half, count, ahead);
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
            for (int z = 0; z < Z; ++z) store(out + i * B + z * L, sum[i][z]);
        }
      }
      tile_out<Z>(static_cast<const A*>(y), a.y, Place{n, first, w.rows}, samples, outputs, a.stream);
    }
  }
  if (a.stream) stores_done();
}

// dx[col[e] - first] += sum over i of w[e, i] * dy[i] for `count` entries, of R outputs.
template <int G, int R, int Z, typename A>
SG_INLINE void scatter(const A* dy, A* dx, int64_t first, const int32_t* col, const A* w, int64_t count) {
  constexpr int L = lanes<A>;
  vec<A> g[R][Z];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int z = 0; z < Z; ++z) g[i][z] = in_register(load(dy + (i * Z + z) * L));
  for (int64_t e = 0; e < count; ++e, w += G) {
    A* p = dx + (col[e] - first) * (Z * L);
    vec<A> sum[Z];
#pragma GCC unroll 4
    for (int z = 0; z < Z; ++z) sum[z] = load(p + z * L);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vec<A> value = splat(w[i]);
#pragma GCC unroll 4
      for (int z = 0; z < Z; ++z) sum[z] += value * g[i][z];
    }
#pragma GCC unroll 4
    for (int z = 0; z < Z; ++z) store(p + z * L, sum[z]);
  }
}

// partial[e * G + i] += sum over n of dy[i][n] * x[col[e] - first][n], over `parts` tiles.
template <int G, int Z, typename A>
SG_INLINE void weight_gradients(const A* dy, int64_t dy_part, const A* x, int64_t x_part, int64_t parts, int64_t first,
                                const int32_t* col, int64_t count, A* partial) {
  constexpr int L = lanes<A>, R = G < L ? G : L, E = L / R, B = Z * L;
  for (int64_t e = 0; e < count; e += E) {
    const A* from[E];
    for (int j = 0; j < E; ++j) from[j] = x + (col[e + j < count ? e + j : count - 1] - first) * B;
    for (int half = 0; half < G; half += R) {
      vec<A> sum[L] = {};
      for (int64_t q = 0; q < parts; ++q)
#pragma GCC unroll 4
        for (int z = 0; z < Z; ++z) {
          vec<A> value[E];
#pragma GCC unroll 4
          for (int j = 0; j < E; ++j) value[j] = in_register(load(from[j] + q * x_part + z * L));
#pragma GCC unroll 16
          for (int i = 0; i < R; ++i) {
            const vec<A> g = load(dy + q * dy_part + (half + i) * B + z * L);
            const vec<A> pinned = E > 1 ? in_register(g) : g;
#pragma GCC unroll 4
            for (int j = 0; j < E; ++j) sum[j * R + i] += pinned * value[j];
          }
        }
      A* p = partial + e * G + half;
      if (e + E <= count) {
        store(p, load(p) + lane_sums<A>(sum));
      } else {
        const int n = int(count - e) * R;
        store_n(p, load_n(p, n) + lane_sums<A>(sum), n);
      }
    }
  }
}

template <int G, typename T, typename A>
void backward_chunk(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  constexpr int R = rows_of<G>, Z = tile_vectors<G>, L = lanes<A>, B = Z * L;
  const auto& w = a.w;
  const int64_t rows = int64_t{a.parts} * B, groups = w.rows / G, blocks = (w.cols + a.block - 1) / a.block;
  const int64_t dy_part = w.rows * B, x_part = int64_t{a.block} * B;
  A* dy = workspace;
  A* x = dy + a.parts * dy_part;
  A* dx = x + a.parts * x_part;
  A* partial = a.value_partial != nullptr ? a.value_partial + chunk * a.value_stride : nullptr;
  A* bias = a.bias_partial != nullptr ? a.bias_partial + chunk * w.rows : nullptr;
  for (int64_t i = 0; partial != nullptr && i < a.value_stride; ++i) partial[i] = 0;
  for (int64_t i = 0; bias != nullptr && i < w.rows; ++i) bias[i] = 0;
  int64_t begin = chunk * a.chunk_tiles * rows, end = begin + a.chunk_tiles * rows;
  if (end > a.samples) end = a.samples;
  for (int64_t n = begin; n < end; n += rows) {
    const int64_t samples = end - n < rows ? end - n : rows, parts = (samples + B - 1) / B;
    for (int64_t q = 0; q < parts; ++q) {
      const Place at{n + q * B, 0, w.rows};
      const int64_t here = samples - q * B < B ? samples - q * B : B;
      if (bias != nullptr) {
        tile_in<Z, true>(a.dy, at, here, w.rows, dy + q * dy_part, {}, bias);
      } else {
        tile_in<Z>(a.dy, at, here, w.rows, dy + q * dy_part);
      }
    }
    const int64_t left = end - n - rows, next = left < 0 ? 0 : left < rows ? left : rows;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * a.block, width = w.cols - first < a.block ? w.cols - first : a.block;
      const int32_t* from = a.starts + b * groups;
      const int32_t* to = from + groups;
      if (partial != nullptr) {
        for (int64_t q = 0; q < parts; ++q)
          tile_in<Z>(a.x, Place{n + q * B, first, w.cols}, samples - q * B < B ? samples - q * B : B, width,
                     x + q * x_part);
        const bool last = b + 1 == blocks;  // then ask for the first block of the next tile
        const int64_t other = last ? 0 : first + a.block, row = last ? n + rows : n;
        Prefetch ahead = prefetch_tile(a.x + row * w.cols + other, w.cols, last ? next : samples,
                                       w.cols - other < a.block ? w.cols - other : a.block, groups);
        for (int64_t g = 0; g < groups; ++g) {
          weight_gradients<G, Z>(static_cast<const A*>(dy) + g * (G * B), dy_part, static_cast<const A*>(x), x_part,
                                 parts, first, w.col + from[g], to[g] - from[g], partial + int64_t{from[g]} * G);
          ahead.step();
        }
      }
      if (a.dx == nullptr) continue;
      const int64_t share = next * b / blocks, upto = next * (b + 1) / blocks;  // of the dy to come
      Prefetch ahead = prefetch_tile(a.dy + (n + rows + share) * w.rows, w.rows, upto - share, w.rows, parts * groups);
      for (int64_t q = 0; q < parts; ++q) {
        for (int64_t i = 0; i < width * B; i += L) store(dx + i, vec<A>{});
        for (int64_t g = 0; g < groups; ++g) {
          for (int half = 0; half < G; half += R)
            scatter<G, R, Z>(static_cast<const A*>(dy) + q * dy_part + (g * G + half) * B, dx, first, w.col + from[g],
                             w.value + int64_t{from[g]} * G + half, to[g] - from[g]);
          ahead.step();
        }
        tile_out<Z>(static_cast<const A*>(dx), a.dx, Place{n + q * B, first, w.cols},
                    samples - q * B < B ? samples - q * B : B, width, a.stream);
      }
    }
  }
  if (a.dx != nullptr && a.stream) stores_done();
}

}  // namespace

template <typename T, typename A>
void block_linear_grouped(const BlockLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  if (a.w.height == 4) return tiles<4>(a, begin, end, workspace);
  if (a.w.height == 8) return tiles<8>(a, begin, end, workspace);
  tiles<16>(a, begin, end, workspace);
}

template <typename T, typename A>
void block_linear_grouped_backward(const BlockLinearBackwardArgs<T, A>& a, int64_t chunk, A* workspace) {
  if (a.w.height == 4) return backward_chunk<4>(a, chunk, workspace);
  if (a.w.height == 8) return backward_chunk<8>(a, chunk, workspace);
  backward_chunk<16>(a, chunk, workspace);
}

#define SG_INSTANTIATE(T, A)                                                                    \
  template void block_linear_grouped<T, A>(const BlockLinearArgs<T, A>&, int64_t, int64_t, A*); \
  template void block_linear_grouped_backward<T, A>(const BlockLinearBackwardArgs<T, A>&, int64_t, A*);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
