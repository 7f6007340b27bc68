// What the kernels of gatv2 share: per edge and head, the dot products that its scores and their gradients are made of.
#pragma once
#include "gat_tile.h"
#include "gatv2.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Edges per chunk: their rows, of `tables` arrays, stay in the first-level cache between the passes over a chunk.
template <typename T>
SG_INLINE int gatv2_chunk(const GatTile& t, int tables) {
  const int fit = 16384 / (t.columns * int(sizeof(T)) * tables + 1);
  return fit < 16 ? 16 : fit > chunk_edges ? chunk_edges : fit;
}

// Of the W vectors at p, each the sums of its blocks of W lanes: lane g * W + k is that of block g of vector k. Every
// step halves the vectors: a lane keeps one of two, and adds what its partner has of the same.
template <int W, int S, typename A>
SG_INLINE vec<A> sum_blocks(const A* p) {
  if constexpr (S >= W) {
    return load(p);
  } else {
    const vec<A> u = sum_blocks<W, 2 * S>(p), v = sum_blocks<W, 2 * S>(p + S * lanes<A>);
    const ivec<A> mine = lane_index<A>() & S;
    const vec<A> kept = mine == 0 ? u : v, given = mine == 0 ? v : u;
    return kept + permute<A>(given, lane_index<A>() ^ S);
  }
}

// The same with the lanes in order of (vector, block).
template <int W, typename A>
SG_NOINLINE vec<A> ordered_blocks(const A* p) {
  constexpr int blocks = lanes<A> / W;
  ivec<A> order{};
  for (int i = 0; i < lanes<A>; ++i) order[i] = i % blocks * W + i / blocks;
  return permute<A>(sum_blocks<W, 1>(p), order);
}

// out[q * P + h] = sum over the columns c of head h of term(q, c, m), c relative to the first head, m <= lanes columns
// at once. Heads that a vector holds several of are summed as they come, others first into one vector.
template <typename A, typename F>
SG_INLINE void edge_dots(A* out, int n, int P, int heads, int width, const F& term) {
  constexpr int L = lanes<A>, quarter = L >= 4 ? L / 4 : 1;
  alignas(64) A parts[L * L];
  const bool packed = heads == P && (width == L / 2 || width == quarter) && P * width >= L;
  const int used = packed ? width : L;
  for (int q = 0; q < n; q += L / P) {
    A* part = parts;
    for (int u = q; u < q + L / P && u < n; ++u) {  // what is left of the last vectors belongs to no edge
      if (packed) {
        for (int c = 0; c < P * width; c += L, part += L) store(part, term(u, c, L));
        continue;
      }
      for (int h = 0; h < P; ++h, part += L) {
        vec<A> total{};
        int c = 0;
        for (; h < heads && c + L <= width; c += L) total += term(u, h * width + c, L);
        if (h < heads && c < width) total += term(u, h * width + c, width - c);
        store(part, total);
      }
    }
    for (; part < parts + used * L; part += L) store(part, vec<A>{});
    const A* from = parts;
    store(out + q * P, used == L       ? ordered_blocks<L>(from)
                       : used == L / 2 ? ordered_blocks<L / 2>(from)
                                       : ordered_blocks<quarter>(from));
  }
}

template <typename T>
SG_INLINE void prefetch_row(const T* row, int columns) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int b = 0; b < columns * int(sizeof(T)); b += 64) __builtin_prefetch(p + b);
}

// out[q * P + h] = sum_c att[h, c] leaky(z), z = table[index[e + q], h, c] + own[h, c] + edge[slot, h, c], for the n
// edges from e on; `own` and `table` are whole rows.
template <typename T, typename A>
SG_NOINLINE void edge_scores(A* out, const Gatv2Edges<T, A>& a, const GatTile& t, const T* own, const T* table,
                             int64_t e, int n, int P, const int32_t* last) {
  const int64_t stride = a.heads * a.width, first = t.head * a.width;
  const int32_t* index = a.index + e;
  const A *att = a.att + first, slope = a.slope;
  const int width = int(a.width), columns = t.heads * width;
  own += first, table += first;
  for (int q = 0; q < n; ++q) {
    const int32_t* ahead = index + q + prefetch_distance;
    prefetch_row(table + *(ahead < last ? ahead : last) * stride, columns);
  }
  const auto product = [&](vec<A> z, int c, int m) { return (z > 0 ? z : z * slope) * load_up_to(att + c, m); };
  if (a.edge == nullptr) {
    return edge_dots(out, n, P, t.heads, width, [&](int q, int c, int m) {
      return product(load_up_to(table + index[q] * stride + c, m) + load_up_to(own + c, m), c, m);
    });
  }
  edge_dots(out, n, P, t.heads, width, [&](int q, int c, int m) {
    const T* edge = a.edge + (a.slot != nullptr ? a.slot[e + q] : e + q) * stride + first;
    const vec<A> z = load_up_to(table + index[q] * stride + c, m) + load_up_to(own + c, m);
    return product(z + load_up_to(edge + c, m), c, m);
  });
}

// out[q * P + h] = <table[index[e + q], h], own[h]>; later rows are prefetched unless `last` is null.
template <typename T, typename A>
SG_NOINLINE void edge_products(A* out, const Gatv2Edges<T, A>& a, const GatTile& t, const T* own, const T* table,
                               int64_t e, int n, int P, const int32_t* last) {
  const int64_t stride = a.heads * a.width, first = t.head * a.width;
  const int32_t* index = a.index + e;
  const int width = int(a.width), columns = t.heads * width;
  own += first, table += first;
  for (int q = 0; last != nullptr && q < n; ++q) {
    const int32_t* ahead = index + q + prefetch_distance;
    prefetch_row(table + *(ahead < last ? ahead : last) * stride, columns);
  }
  edge_dots(out, n, P, t.heads, width,
            [&](int q, int c, int m) { return load_up_to(table + index[q] * stride + c, m) * load_up_to(own + c, m); });
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
