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
//            a hidden layer at 90 % are
// numerics   sums in float (double for double), in the order of the nonzeros; dW in a few sums, one for each chunk of
//            samples
// see        sparsegnn/ops/features_linear.py, tests/ops/test_features_linear.py,
// benchmarks/ops/bench_features_linear.py
#include "features_linear.h"

#include "simd.h"
#include "simd_gather.h"

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

// Where the column of W begins that nonzero `e` of x names, and the first of its entries.
template <int H, typename A>
struct Column {
  int64_t first, entries, offset;
  SG_INLINE Column(const FeaturesWeight<A>& w, int32_t k) {
    const int64_t block = w.width == 1 ? k : k / w.width;
    first = w.ccol[block], entries = w.ccol[block + 1] - first;
    offset = first * H * w.width + (k - block * w.width) * H;
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

// sum[row[j] * H ...] += scale * value[j * step ...] for entries j of a column of W.
template <int H, typename A>
SG_INLINE void add_column(A* sum, A scale, const int32_t* row, const A* value, int64_t step, int64_t entries) {
  if constexpr (H == 1) {
    for (int64_t j = 0; j < entries; ++j) sum[row[j]] += scale * value[j];
  } else {
    using U = Unit<A, H>;
    using V = typename U::vector;
    for (int64_t j = 0; j < entries; ++j) {
      V* to = reinterpret_cast<V*>(sum + int64_t{row[j]} * H);
      const V* from = reinterpret_cast<const V*>(value + j * step);
      for (int i = 0; i < U::count; ++i) to[i] += scale * from[i];
    }
  }
}

template <int H, typename T, typename A>
void rows_of(const FeaturesLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  const int64_t m = a.w.outputs, step = int64_t{H} * a.w.width;
  for (int64_t n = begin; n < end; ++n) {
    A* sum = workspace;
    if constexpr (sizeof(T) == sizeof(A)) sum = a.y + n * m;
    if (a.bias != nullptr) {
      memcpy(sum, a.bias, size_t(m) * sizeof(A));
    } else {
      memset(sum, 0, size_t(m) * sizeof(A));
    }
    for (int32_t e = a.crow[n]; e < a.crow[n + 1]; ++e) {
      if (e + ahead < a.crow[end]) prefetch<H>(a.w, a.w.value, a.col[e + ahead]);
      const Column<H, A> c(a.w, a.col[e]);
      add_column<H>(sum, widen(a.val[e]), a.w.row + c.first, a.w.value + c.offset, step, c.entries);
    }
    if constexpr (sizeof(T) != sizeof(A)) {
      T* y = a.y + n * m;
      for (int64_t i = 0; i < m; i += lanes<A>)
        store_up_to(y + i, load_n(sum + i, int(m - i < lanes<A> ? m - i : lanes<A>)),
                    int(m - i < lanes<A> ? m - i : lanes<A>));
    }
  }
}

// sums[j * step ...] += scale * dy[row[j] * H ...] for entries j of a column of W.
template <int H, typename A>
SG_INLINE void add_row(A* sums, A scale, const int32_t* row, const A* dy, int64_t step, int64_t entries) {
  if constexpr (H == 1) {
    int64_t j = 0;
    for (; j + lanes<A> <= entries; j += lanes<A>) store(sums + j, load(sums + j) + scale * gather(dy, row + j));
    for (; j < entries; ++j) sums[j] += scale * dy[row[j]];
  } else {
    using U = Unit<A, H>;
    using V = typename U::vector;
    for (int64_t j = 0; j < entries; ++j) {
      V* to = reinterpret_cast<V*>(sums + j * step);
      const V* from = reinterpret_cast<const V*>(dy + int64_t{row[j]} * H);
      for (int i = 0; i < U::count; ++i) to[i] += scale * from[i];
    }
  }
}

template <int H, typename T, typename A>
void values_of(const FeaturesValuesArgs<T, A>& a, int64_t begin, int64_t end, A* sums, A* bias, A* workspace) {
  const int64_t m = a.w.outputs, step = int64_t{H} * a.w.width;
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
    for (int32_t e = a.crow[n]; e < a.crow[n + 1]; ++e) {
      if (e + ahead < a.crow[end]) prefetch<H>(a.w, sums, a.col[e + ahead]);
      const Column<H, A> c(a.w, a.col[e]);
      add_row<H>(sums + c.offset, widen(a.val[e]), a.w.row + c.first, dy, step, c.entries);
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
void features_linear_rows(const FeaturesLinearArgs<T, A>& a, int64_t begin, int64_t end, A* workspace) {
  if (a.w.height == 1) return rows_of<1>(a, begin, end, workspace);
  if (a.w.height == 4) return rows_of<4>(a, begin, end, workspace);
  if (a.w.height == 8) return rows_of<8>(a, begin, end, workspace);
  if (a.w.height == 16) return rows_of<16>(a, begin, end, workspace);
  rows_of<32>(a, begin, end, workspace);
}

template <typename T, typename A>
void features_linear_values(const FeaturesValuesArgs<T, A>& a, int64_t begin, int64_t end, A* sums, A* bias,
                            A* workspace) {
  if (a.w.height == 1) return values_of<1>(a, begin, end, sums, bias, workspace);
  if (a.w.height == 4) return values_of<4>(a, begin, end, sums, bias, workspace);
  if (a.w.height == 8) return values_of<8>(a, begin, end, sums, bias, workspace);
  if (a.w.height == 16) return values_of<16>(a, begin, end, sums, bias, workspace);
  values_of<32>(a, begin, end, sums, bias, workspace);
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

#define SG_INSTANTIATE(T, A)                                                                                        \
  template void features_linear_pack<T, A>(const T*, const int32_t*, A*, int64_t, int64_t, int, int);               \
  template void features_linear_rows<T, A>(const FeaturesLinearArgs<T, A>&, int64_t, int64_t, A*);                  \
  template void features_linear_values<T, A>(const FeaturesValuesArgs<T, A>&, int64_t, int64_t, A*, A*, A*);        \
  template void features_linear_unpack<T, A>(const A*, int64_t, int64_t, const int32_t*, T*, int64_t, int64_t, int, \
                                             int);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
