// Batch tiles of sparse_linear: [samples, features] in memory, [features][samples] in the tile, so that one weight
// meets a whole vector of samples. Blocks of lanes x lanes elements are transposed in registers on the way in and out.
// Kernel files only.
#pragma once
#include "simd_stream.h"
#include "simd_transpose.h"
#include "sparse_linear.h"
#include "sparse_linear_epilogue.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Rows of up to this many entries run unrolled code of their own: 24 covers nearly all rows of a block at 90 %. Few
// where no time is measured, to keep the library small.
#if defined(__AVX512F__)
template <typename A>
constexpr int max_unroll = sizeof(A) == 4 ? 24 : 8;
#elif defined(__AVX2__)
template <typename A>
constexpr int max_unroll = sizeof(A) == 4 ? 12 : 2;
#else
template <typename A>
constexpr int max_unroll = 2;
#endif

// Vectors of the widest tile: with two FMAs a cycle fewer than 8 chains of sums would wait for each other.
constexpr int widest = vector_bytes >= 32 ? 8 : 4;

// --- tiles of B = Z * lanes samples ---

// Where a tile is in its matrix, whose rows are `stride` apart.
struct Place {
  int64_t row, column, stride;
};

// p, of which the compiler knows nothing: or it keeps a pointer for every row of a block, more than there are
// registers.
template <typename T>
SG_INLINE T* one_pointer(T* p) {
  asm("" : "+r"(p));
  return p;
}

// L samples by L columns from p, `rows` and `columns` of which exist (all of them if `full`), masked, to the tile.
template <int Z, bool full, bool sum_columns, typename T, typename A>
SG_INLINE void block_in(const T* p, Place at, int rows, int columns, A* out, const SparseLinearMask<T, A>& mask,
                        A* column_sum) {
  constexpr int L = lanes<A>, B = Z * L;
  vec<A> r[L];
  if constexpr (full) {
    rows = columns = L;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = load(p + i * at.stride);
  } else {
    for (int i = 0; i < L; ++i) r[i] = i < rows ? load_n(p + i * at.stride, columns) : vec<A>{};
  }
  if (mask.y != nullptr || mask.how.threshold != 0)
    way_in(r, mask, at.row * at.stride + at.column, at.stride, at.row, at.column, rows, columns);
  if constexpr (sum_columns) {
    vec<A> s[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) s[i] = r[i];
#pragma GCC unroll 4
    for (int m = L / 2; m > 0; m /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < m; ++i) s[i] += s[i + m];
    if constexpr (full) {
      store(column_sum, load(column_sum) + s[0]);
    } else {
      store_n(column_sum, load_n(column_sum, columns) + s[0], columns);
    }
  }
  transpose<A>(r);
  if constexpr (full) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store(out + i * B, r[i]);
  } else {
    for (int i = 0; i < columns; ++i) store(out + i * B, r[i]);
  }
}

// tile[k][n] = src[n, k] for n < samples, k < width, masked; samples up to B become 0. column_sum[k] += the sum over n.
template <int Z, bool sum_columns = false, typename T, typename A>
SG_NOINLINE void tile_in(const T* matrix, Place at, int64_t samples, int64_t width, A* tile,
                         const SparseLinearMask<T, A>& mask = {}, A* column_sum = nullptr) {
  constexpr int L = lanes<A>, B = Z * L;
  for (int64_t n = 0; n < B; n += L) {
    const int rows = int(samples - n < L ? samples - n : L);
    for (int64_t k = 0; k < width; k += L) {
      const int columns = int(width - k < L ? width - k : L);
      const Place here{at.row + n, at.column + k, at.stride};
      const T* p = one_pointer(matrix + here.row * at.stride + here.column);
      A* sum = sum_columns ? column_sum + k : nullptr;
      if (rows == L && columns == L) {
        block_in<Z, true, sum_columns>(p, here, L, L, tile + k * B + n, mask, sum);
      } else {
        block_in<Z, false, sum_columns>(p, here, rows, columns, tile + k * B + n, mask, sum);
      }
    }
  }
}

// r[i] = epilogue of L outputs of sample i, from the tile: `columns` <= L of them exist.
template <int Z, typename A>
SG_INLINE void block_out(const A* tile, int64_t columns, const SparseLinearEpilogue<A>& epilogue, int64_t row,
                         int64_t column, vec<A>* r) {
  constexpr int L = lanes<A>, B = Z * L;
  if (columns == L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = load(tile + i * B);
  } else {
    for (int i = 0; i < L; ++i) r[i] = i < columns ? load(tile + i * B) : vec<A>{};
  }
  transpose<A>(r);
  if (epilogue.relu || epilogue.threshold != 0) way_out(r, epilogue, row, column);
}

// dst[n, k] = epilogue(tile[k][n]) for n < samples, k < width. Past the caches, cache lines are written whole, or each
// part of one would take a pass over the memory bus.
template <int Z, typename T, typename A>
SG_NOINLINE void tile_out(const A* tile, T* matrix, Place at, int64_t samples, int64_t width, bool stream,
                          const SparseLinearEpilogue<A>& epilogue = {}) {
  constexpr int L = lanes<A>, B = Z * L, P = vector_bytes >= 32 ? 64 / int(L * sizeof(T)) : 1;
  const int64_t stride = at.stride;
  T* dst = matrix + at.row * stride + at.column;
  for (int64_t n = 0; n < samples; n += L) {
    const int64_t rows = samples - n < L ? samples - n : L;
    int64_t k = 0;
    for (; stream && rows == L && k + P * L <= width; k += P * L) {
      alignas(64) T lines[L][P * L];
      vec<A> r[L];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        block_out<Z>(tile + (k + p * L) * B + n, L, epilogue, at.row + n, at.column + k + p * L, r);
        if constexpr (P > 1)
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) store(lines[i] + p * L, r[i]);
      }
      T* out = one_pointer(dst + n * stride + k);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if constexpr (P > 1) {
          line_past_caches(out + i * stride, lines[i]);
        } else {
          store_past_caches(out + i * stride, r[i]);
        }
      }
    }
    for (; k < width; k += L) {
      const int columns = int(width - k < L ? width - k : L);
      vec<A> r[L];
      block_out<Z>(tile + k * B + n, columns, epilogue, at.row + n, at.column + k, r);
      T* out = one_pointer(dst + n * stride + k);
      if (rows == L && columns == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(out + i * stride, r[i]);
      } else {
        for (int i = 0; i < rows; ++i) store_up_to(out + i * stride, r[i], columns);
      }
    }
  }
}

// Asks for the rows of a tile to come, a few lines at a time between the rows of the present one.
struct Prefetch {
  const char* at = nullptr;
  int64_t stride = 0, twin = 0;  // distance to a matrix of the same shape whose lines are wanted too, or 0
  int32_t rows = 0, lines = 0, line = 0, per_step = 0;

  SG_INLINE void step() {
    for (int i = 0; i < per_step && rows > 0; ++i) {
      __builtin_prefetch(at + line * 64, 0, 2);
      if (twin != 0) __builtin_prefetch(at + twin + line * 64, 0, 2);
      if (++line == lines) {
        line = 0;
        at += stride;
        --rows;
      }
    }
  }
};

// In bytes, or 0 without `to`.
template <typename T>
SG_INLINE int64_t distance(const T* from, const T* to) {
  return to == nullptr ? 0 : int64_t(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

template <typename T>
SG_INLINE Prefetch prefetch_tile(const T* p, int64_t stride, int64_t rows, int64_t width, int64_t steps,
                                 int64_t twin = 0) {
  Prefetch f;
  if (rows <= 0 || width <= 0 || steps <= 0) return f;
  f.twin = twin;
  f.at = reinterpret_cast<const char*>(p);
  f.stride = stride * int64_t(sizeof(T));
  f.rows = int32_t(rows);
  f.lines = int32_t((width * int64_t(sizeof(T)) + 63) / 64);
  f.per_step = int32_t((rows * f.lines + steps - 1) / steps);
  return f;
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
