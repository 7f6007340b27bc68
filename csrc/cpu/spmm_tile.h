// The loop nest of the spmm kernels: blocks of columns, rows of a chunk, edges of a row, vectors held in registers.
//
// Rows of x arrive in random order, so the caches must be told ahead of time. Two prefetches per cache line: into L2
// far ahead, where more misses can be in flight than L1 can hold, and into L1 shortly before use. Both run through the
// flat array of columns, across the ends of rows, which have a handful of edges.
#pragma once
#include "simd_stream.h"
#include "spmm.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Edges ahead. Measured on a 2-core Zen 4 machine, 170k nodes, 2.3M edges: flat from 48 to 128 and from 12 to 20; a row
// of one vector gains 15 % from 128 instead of 64 and loses as much with the second prefetch. docs/kernels-log.md
template <int V>
constexpr int64_t far_ahead = V == 1 ? 128 : 64;
constexpr int64_t near_ahead = 12;

// V vectors of columns of a table, the last with `n` lanes; `ragged` when that may be less than all.
template <int V, bool ragged>
struct Columns {
  int64_t first;
  int n;
  bool unaligned;  // rows begin within cache lines

  template <typename T>
  SG_INLINE vec<acc<T>> get(const T* row, int v) const {
    const T* p = row + first + v * lanes<acc<T>>;
    return ragged && v == V - 1 ? load_n(p, n) : load(p);
  }

  template <typename A>
  SG_INLINE int count(int v) const {
    return ragged && v == V - 1 ? n : lanes<A>;
  }

  template <typename T>
  SG_INLINE void put(T* row, int v, vec<acc<T>> value, bool past_caches) const {
    T* p = row + first + v * lanes<acc<T>>;
    if (ragged && v == V - 1) return store_n(p, value, n);
    if (past_caches) return store_past_caches(p, value);
    store(p, value);
  }

  // level 3: into L1; 2: into L2
  template <int level, typename T>
  SG_INLINE void prefetch(const T* row) const {
    constexpr int bytes = V * lanes<acc<T>> * int(sizeof(T));
    const char* p = reinterpret_cast<const char*>(row + first);
    for (int b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, level);
    if (unaligned) __builtin_prefetch(p + bytes - 1, 0, level);
  }
};

// Reducer::State<V, ragged> holds the result of one row: edge() takes an edge in, finish() writes.
template <typename Reducer, int V, bool ragged, typename Args>
SG_INLINE void block(const Args& a, int64_t begin, int64_t end, int64_t k, int n, bool unaligned) {
  const Columns<V, ragged> columns{k, n, unaligned};
  const int32_t* const col = a.col;
  int64_t e = a.crow[begin];
  for (int64_t r = begin; r < end; ++r) {
    typename Reducer::template State<V, ragged> state;
    const int64_t stop = a.crow[r + 1];
    state.start(a, columns, r, e, stop);
    const int32_t* const far = col + (stop + far_ahead<V> <= a.edges ? far_ahead<V> : 0);  // 0: the last rows
    const int32_t* const near = col + (stop + near_ahead <= a.edges ? near_ahead : 0);
    for (; e < stop; ++e) {
      Reducer::template prefetch<2>(a, columns, far[e]);
      if (V > 1) Reducer::template prefetch<3>(a, columns, near[e]);
      state.edge(a, columns, e, col[e]);
    }
    state.finish(a, columns, r);
  }
}

template <typename Reducer, bool ragged, typename Args>
void block_of(int vectors, const Args& a, int64_t begin, int64_t end, int64_t k, int n, bool unaligned) {
  const auto run = [&]<int V>() { block<Reducer, V, ragged>(a, begin, end, k, n, unaligned); };
  if constexpr (Reducer::any_width) {
    if (vectors == 3) return run.template operator()<3>();
    if (vectors == 5) return run.template operator()<5>();
    if (vectors == 6) return run.template operator()<6>();
    if (vectors == 7) return run.template operator()<7>();
  }
  if (vectors == 1) return run.template operator()<1>();
  if (vectors == 2) return run.template operator()<2>();
  if (vectors == 4) return run.template operator()<4>();
  run.template operator()<8>();
}

// Rows [begin, end) in blocks of up to 8 vectors of columns. Reducers without any_width have blocks of 1, 2, 4 and 8
// alone, less than half of the code: columns of another number of vectors take several passes over the edges.
template <typename Reducer, typename T, typename Args>
SG_INLINE void reduce_rows(const Args& a, int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t L = lanes<acc<T>>;
  if (begin == end) return;
  const bool unaligned =
      stride * int64_t(sizeof(T)) % 64 != 0 || reinterpret_cast<uintptr_t>(Reducer::table(a)) % 64 != 0;
  for (int64_t k = 0, vectors; k < a.width; k += vectors * L) {
    const int64_t left = a.width - k;
    vectors = left < 8 * L ? (left + L - 1) / L : 8;
    if (!Reducer::any_width) vectors = vectors == 3 ? 2 : vectors > 4 && vectors < 8 ? 4 : vectors;
    const int n = int(left < vectors * L ? left - (vectors - 1) * L : L);
    if (n == L) {
      block_of<Reducer, false>(int(vectors), a, begin, end, k, n, unaligned);
    } else {
      block_of<Reducer, true>(int(vectors), a, begin, end, k, n, unaligned);
    }
  }
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
