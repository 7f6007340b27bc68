// features_linear / cpu
//
//   y[n, m]      = bias[m] + sum over nonzeros (n, k) of x and (m, k) of W:  x[n, k] W[m, k]
//   dW[m, k]     = sum over nonzeros (n, k) of x:  x[n, k] dy[n, m]      at the nonzeros of W only
//
// layout     x: CSR for y, its transpose for dW; W: blocks [height, width] in columns of blocks, each stored
// transposed;
//            y, dy row-major
// work       2 flop for each pair of nonzeros that meet: nnz(x) nnz(W) / K on average, for y and for dW
// blocking   both: a row of y or dy is in L1 while the columns of W that its nonzeros name come from L2, where those of
//            a hidden layer at 90 % are. Columns of single weights with many entries, as training makes of popular
//            words, are held with their zeros
// numerics   sums in float (double for double), in the order of the nonzeros; dW in a few sums, one for each chunk of
//            samples
// see        sparsegnn/ops/features_linear.py, tests/ops/test_features_linear.py,
// benchmarks/ops/bench_features_linear.py
#include "features_linear.h"

#include "simd.h"
#include "simd_gather.h"
#include "simd_stream.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// H outputs of a block, as vectors that fill registers where there are so many.
template <typename A, int H>
struct Unit {
  static constexpr int width = H < lanes<A> ? H : lanes<A>, count = H / width;
  typedef A vector __attribute__((vector_size(width * sizeof(A)), aligned(alignof(A)), may_alias));
};

constexpr int ahead = 4;  // nonzeros of x; the columns of W that they name are at random in L2

// Blocks of a column that are taken together where a column has few: in no branch that depends on how many it has,
// which cannot be foreseen. Those behind the last go to spare places, of which nonzeros that follow each other have
// different ones: none waits for another.
template <int H>
constexpr int together = H <= 8 ? 4 : 2;
template <int H>
SG_INLINE int64_t spare_of(int64_t e) {
  static_assert(4 * together<H> * H <= features_linear_spare && together<H> <= features_linear_ahead + 1);
  return (e & 3) * together<H> * H;
}
SG_INLINE int64_t place_of(int64_t place, int64_t spare, bool there) {
  const int64_t mask = -int64_t{there};
  return (place & mask) | (spare & ~mask);
}

// Where the column of W begins that nonzero `e` of x names, and the first of its entries.
template <int H, typename A>
struct Column {
  int64_t first, entries, offset;
  SG_INLINE Column(const FeaturesWeight<A>& w, int32_t k) {
    const int64_t block = w.width == 1 ? k : k / w.width;
    first = w.ccol[block], entries = w.ccol[block + 1] - first;
    offset = H == 1 ? w.start[k] : first * H * w.width + (k - block * w.width) * H;
  }
};

template <int H, typename A>
SG_INLINE void prefetch(const FeaturesWeight<A>& w, const A* base, int32_t k) {
  const Column<H, A> next(w, k);
  const char* line = reinterpret_cast<const char*>(base + next.offset);
  __builtin_prefetch(line);
  __builtin_prefetch(line + 64);
  __builtin_prefetch(w.row + next.first);
}

// to[i] += scale * from[i] for the H outputs of a block.
template <int H, typename A>
SG_INLINE void add_unit(A* to, A scale, const A* from) {
  if constexpr (H == 1) {
    *to += scale * *from;
  } else {
    using U = Unit<A, H>;
    using V = typename U::vector;
    for (int i = 0; i < U::count; ++i) reinterpret_cast<V*>(to)[i] += scale * reinterpret_cast<const V*>(from)[i];
  }
}

// sum[row[j] * H ...] += scale * value[j * step ...] for entries j of a column of W; spare: a place behind the sums.
template <int H, bool few, typename A>
SG_INLINE void add_column(A* sum, int64_t spare, A scale, const int32_t* row, const A* value, int64_t step,
                          int64_t entries) {
  int64_t j = 0;
  if constexpr (!few) {
    for (; j < entries; ++j) add_unit<H>(sum + int64_t{row[j]} * H, scale, value + j * step);
    return;
  }
  do {
#pragma GCC unroll 4
    for (int i = 0; i < together<H>; ++i) {
      const int64_t to = place_of(int64_t{row[j + i]} * H, spare + i * H, j + i < entries);
      add_unit<H>(sum + to, scale, value + (j + i) * step);
    }
    j += together<H>;
  } while (j < entries);
}

// to[i] += scale * from[i] for all outputs.
template <typename A>
SG_INLINE void add_whole(A* to, A scale, const A* from, int64_t outputs) {
  int64_t i = 0;
  for (; i + lanes<A> <= outputs; i += lanes<A>) store(to + i, load(to + i) + scale * load(from + i));
  for (; i < outputs; ++i) to[i] += scale * from[i];
}

template <int H, bool few, typename T, typename A>
void rows_of(const FeaturesLinearArgs<T, A>& a, int64_t begin, int64_t end, A* sum) {
  const FeaturesWeight<A> w = a.w;
  const int32_t *const crow = a.crow, *const col = a.col;
  const T* const val = a.val;
  const int64_t m = w.outputs, step = int64_t{H} * w.width, last = crow[end];
  memset(sum + m, 0, features_linear_spare * sizeof(A));
  for (int64_t n = begin; n < end; ++n) {
    if (a.bias != nullptr) {
      memcpy(sum, a.bias, size_t(m) * sizeof(A));
    } else {
      memset(sum, 0, size_t(m) * sizeof(A));
    }
    for (int64_t e = crow[n], stop = crow[n + 1]; e < stop; ++e) {
      if (e + ahead < last) prefetch<H>(w, w.value, col[e + ahead]);
      const Column<H, A> c(w, col[e]);
      if (H == 1 && is_whole(c.entries, m)) {
        add_whole(sum, widen(val[e]), w.value + c.offset, m);
        continue;
      }
      add_column<H, few>(sum, m + spare_of<H>(e), widen(val[e]), w.row + c.first, w.value + c.offset, step, c.entries);
    }
    T* const y = a.y + n * m;
    if (a.stream) {
      for (int64_t i = 0; i < m; i += lanes<A>) store_past_caches(y + i, load(sum + i));
    } else {
      int64_t i = 0;
      for (; i + lanes<A> <= m; i += lanes<A>) store(y + i, load(sum + i));
      if (i < m) store_n(y + i, load_n(sum + i, int(m - i)), int(m - i));
    }
  }
  if (a.stream) stores_done();
}

// sums[j * step ...] += scale * dy[row[j] * H ...] for entries j of a column of W; spare: a place behind the sums, seen
// from these.
template <int H, bool few, typename A>
SG_INLINE void add_row(A* sums, int64_t spare, A scale, const int32_t* row, const A* dy, int64_t step,
                       int64_t entries) {
  int64_t j = 0;
  if constexpr (!few) {
    if constexpr (H == 1)
      for (; j + lanes<A> <= entries; j += lanes<A>) store(sums + j, load(sums + j) + scale * gather(dy, row + j));
    for (; j < entries; ++j) add_unit<H>(sums + j * step, scale, dy + int64_t{row[j]} * H);
    return;
  }
  do {
#pragma GCC unroll 4
    for (int i = 0; i < together<H>; ++i) {
      const int64_t to = place_of((j + i) * step, spare + i * H, j + i < entries);
      add_unit<H>(sums + to, scale, dy + int64_t{row[j + i]} * H);
    }
    j += together<H>;
  } while (j < entries);
}

template <int H, bool few, typename T, typename A>
void values_of(const FeaturesValuesArgs<T, A>& a, int64_t begin, int64_t end, A* sums, A* bias, A* workspace) {
  const FeaturesWeight<A> w = a.w;
  const int32_t *const crow = a.crow, *const col = a.col;
  const T* const val = a.val;
  const int64_t m = w.outputs, step = int64_t{H} * w.width, last = crow[end], spare = a.spare;
  for (int64_t n = begin; n < end; ++n) {
    const A* dy = workspace;
    if constexpr (sizeof(T) == sizeof(A)) {
      dy = a.dy + n * m;
    } else {
      for (int64_t i = 0; i < m; ++i) workspace[i] = widen(a.dy[n * m + i]);
    }
    if (bias != nullptr) {
      int64_t i = 0;
      for (; i + lanes<A> <= m; i += lanes<A>) store(bias + i, load(bias + i) + load(dy + i));
      for (; i < m; ++i) bias[i] += dy[i];
    }
    if (sums == nullptr) continue;
    for (int64_t e = crow[n], stop = crow[n + 1]; e < stop; ++e) {
      if (e + ahead < last) prefetch<H>(w, static_cast<const A*>(sums), col[e + ahead]);
      const Column<H, A> c(w, col[e]);
      if (H == 1 && is_whole(c.entries, m)) {
        add_whole(sums + c.offset, widen(val[e]), dy, m);
        continue;
      }
      add_row<H, few>(sums + c.offset, spare + spare_of<H>(e) - c.offset, widen(val[e]), w.row + c.first, dy, step,
                      c.entries);
    }
  }
}

}  // namespace

template <typename T, typename A>
void features_linear_pack(const T* values, const int32_t* perm, A* value, int64_t begin, int64_t end, int height,
                          int width) {
  const int64_t size = int64_t{height} * width;
  for (int64_t j = begin; j < end; ++j) {
    const T* from = values + perm[j] * size;
    for (int c = 0; c < width; ++c)
      for (int r = 0; r < height; ++r) value[j * size + c * height + r] = widen(from[r * width + c]);
  }
}

template <typename T, typename A>
void features_linear_pack_columns(const T* values, const FeaturesWeight<A>& w, const int32_t* perm, A* value,
                                  int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first = w.ccol[k], entries = w.ccol[k + 1] - first;
    A* const to = value + w.start[k];
    if (is_whole(entries, w.outputs)) {
      memset(to, 0, size_t(w.outputs) * sizeof(A));
      for (int64_t j = 0; j < entries; ++j) to[w.row[first + j]] += widen(values[perm[first + j]]);
    } else {
      for (int64_t j = 0; j < entries; ++j) to[j] = widen(values[perm[first + j]]);
    }
  }
}

template <typename T, typename A>
void features_linear_rows(const FeaturesLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  const auto run = [&]<int H>() {
    if (H > 1 && a.w.few) return rows_of<H, (H > 1)>(a, begin, end, workspace);
    rows_of<H, false>(a, begin, end, workspace);
  };
  if (a.w.height == 1) return run.template operator()<1>();
  if (a.w.height == 4) return run.template operator()<4>();
  if (a.w.height == 8) return run.template operator()<8>();
  if (a.w.height == 16) return run.template operator()<16>();
  run.template operator()<32>();
}

template <typename T, typename A>
void features_linear_values(const FeaturesValuesArgs<T, A>& a, int64_t begin, int64_t end, A* sums, A* bias,
                            A* workspace) {
  const auto run = [&]<int H>() {
    if (H > 1 && a.w.few) return values_of<H, (H > 1)>(a, begin, end, sums, bias, workspace);
    values_of<H, false>(a, begin, end, sums, bias, workspace);
  };
  if (a.w.height == 1) return run.template operator()<1>();
  if (a.w.height == 4) return run.template operator()<4>();
  if (a.w.height == 8) return run.template operator()<8>();
  if (a.w.height == 16) return run.template operator()<16>();
  run.template operator()<32>();
}

template <typename T, typename A>
void features_linear_unpack(const A* sums, int64_t chunks, int64_t stride, const int32_t* perm, T* dvalues,
                            int64_t begin, int64_t end, int height, int width) {
  const int64_t size = int64_t{height} * width;
  for (int64_t j = begin; j < end; ++j) {
    T* to = dvalues + (perm == nullptr ? j : perm[j]) * size;
    for (int c = 0; c < width; ++c)
      for (int r = 0; r < height; ++r) {
        const A* from = sums + j * size + c * height + r;
        A total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += from[chunk * stride];
        to[r * width + c] = narrow<T>(total);
      }
  }
}

template <typename T, typename A>
void features_linear_unpack_columns(const A* sums, int64_t chunks, int64_t stride, const FeaturesWeight<A>& w,
                                    const int32_t* perm, T* dvalues, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first = w.ccol[k], entries = w.ccol[k + 1] - first;
    const bool whole = is_whole(entries, w.outputs);
    for (int64_t j = 0; j < entries; ++j) {
      const A* from = sums + w.start[k] + (whole ? w.row[first + j] : j);
      A total = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += from[chunk * stride];
      dvalues[perm[first + j]] = narrow<T>(total);
    }
  }
}

#define SG_INSTANTIATE(T, A)                                                                                        \
  template void features_linear_pack<T, A>(const T*, const int32_t*, A*, int64_t, int64_t, int, int);               \
  template void features_linear_pack_columns<T, A>(const T*, const FeaturesWeight<A>&, const int32_t*, A*, int64_t, \
                                                   int64_t);                                                        \
  template void features_linear_rows<T, A>(const FeaturesLinearArgs<T, A>&, int64_t, int64_t, A*);                  \
  template void features_linear_values<T, A>(const FeaturesValuesArgs<T, A>&, int64_t, int64_t, A*, A*, A*);        \
  template void features_linear_unpack<T, A>(const A*, int64_t, int64_t, const int32_t*, T*, int64_t, int64_t, int, \
                                             int);                                                                  \
  template void features_linear_unpack_columns<T, A>(const A*, int64_t, int64_t, const FeaturesWeight<A>&,          \
                                                     const int32_t*, T*, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
