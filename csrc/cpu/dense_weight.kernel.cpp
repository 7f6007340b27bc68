// dense_weight / cpu: between the values of a pattern of blocks [H, W] and the matrix with its zeros
//
//   fill:    dense[r H + i, c W + j] = values[e, i, j]  for every entry e = (r, c), 0 elsewhere
//   gather:  values[e, i, j] = dense[r H + i, c W + j]
//
// work       values and positions read or written once, M * K * s bytes of the matrix, whose rows are filled in while
//            their zeros are in L1
// parallel   over rows of blocks
// see        sparsegnn/ops/dense_weight.py, tests/ops/test_dense_weight.py, benchmarks/ops/bench_dense_weight.py
#include "dense_weight.h"

#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// Whether row r stays in the pattern and in the matrix.
template <typename T>
SG_INLINE bool valid(const DenseWeightArgs<T>& a, int64_t r) {
  const int64_t begin = a.crow[r], end = a.crow[r + 1];
  if (begin < 0 || end < begin || end > a.blocks) return false;
  uint32_t outside = 0;
  for (int64_t e = begin; e < end; ++e) outside |= uint32_t(a.col[e]) >= uint32_t(a.cols);
  return outside == 0;
}

}  // namespace

template <typename T>
bool dense_weight_fill(const DenseWeightArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t line = a.cols * a.width, size = a.height * a.width;
  for (int64_t r = begin; r < end; ++r) {
    if (!valid(a, r)) return false;
    T* out = a.to + r * a.height * line;
    memset(out, 0, size_t(a.height * line) * sizeof(T));
    const int64_t first = a.crow[r], last = a.crow[r + 1];
    if (size == 1) {
#pragma GCC unroll 8
      for (int64_t e = first; e < last; ++e) out[a.col[e]] = a.from[e];
      continue;
    }
    for (int64_t e = first; e < last; ++e)
      for (int64_t i = 0; i < a.height; ++i)
        memcpy(out + i * line + a.col[e] * a.width, a.from + e * size + i * a.width, size_t(a.width) * sizeof(T));
  }
  return true;
}

template <typename T>
bool dense_weight_gather(const DenseWeightArgs<T>& a, int64_t begin, int64_t end) {
  const int64_t line = a.cols * a.width, size = a.height * a.width;
  for (int64_t r = begin; r < end; ++r) {
    if (!valid(a, r)) return false;
    const T* in = a.from + r * a.height * line;
    const int64_t first = a.crow[r], last = a.crow[r + 1];
    if (size == 1) {
#pragma GCC unroll 8
      for (int64_t e = first; e < last; ++e) a.to[e] = in[a.col[e]];
      continue;
    }
    for (int64_t e = first; e < last; ++e)
      for (int64_t i = 0; i < a.height; ++i)
        memcpy(a.to + e * size + i * a.width, in + i * line + a.col[e] * a.width, size_t(a.width) * sizeof(T));
  }
  return true;
}

#define SG_INSTANTIATE(T)                                                          \
  template bool dense_weight_fill<T>(const DenseWeightArgs<T>&, int64_t, int64_t); \
  template bool dense_weight_gather<T>(const DenseWeightArgs<T>&, int64_t, int64_t);
SG_INSTANTIATE(float)
SG_INSTANTIATE(double)
SG_INSTANTIATE(bf16)
SG_INSTANTIATE(f16)

}  // namespace SG_ISA
}  // namespace sparsegnn
