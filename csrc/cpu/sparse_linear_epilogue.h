// What sparse_linear does to a tile on its way out, and to a gradient on its way in: ReLU and dropout, with no pass of
// their own over memory; act_dropout is that pass, for what other products leave. Kernel files only.
//
//   out  y = kept * scale * relu(sum)       kept: 0 or 1 by the bits of (seed, sample, output), see common/random.h
//   in   dy * scale where y is not <= 0     as torch's threshold_backward: a NaN lets the gradient through
//        dy * kept * scale                  without ReLU: the same bits again
#pragma once
#include "simd.h"
#include "sparse_linear.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// 32 random bits for every lane.
template <typename A>
struct words_of {
  typedef uint32_t type __attribute__((vector_size(vector_bytes)));
};
template <>
struct words_of<double> {
  typedef uint32_t type __attribute__((vector_size(vector_bytes / 2)));
};

template <typename A>
struct Dropper {
  static constexpr int L = lanes<A>;
  using words = typename words_of<A>::type;
  const SparseLinearEpilogue<A>& e;
  words head{};

  // Outputs [column, column + L) come next.
  SG_INLINE void at(int64_t column) {
    words lane;
    for (int i = 0; i < L; ++i) lane[i] = uint32_t(i);
    head = random_head(e.key, lane + uint32_t(column));
  }
  // v of sample `row` where kept, scaled; 0 elsewhere.
  SG_INLINE vec<A> keep(vec<A> v, int64_t row) const {
    const words bits = random_bits(words{} + random_edge(e.key, uint32_t(row)), head);
    const ivec<A> kept = __builtin_convertvector(bits >= e.threshold, ivec<A>);
    return kept ? v * e.scale : vec<A>{};
  }
};

// r[i]: outputs [column, column + L) of sample row + i.
template <typename A>
SG_INLINE void way_out(vec<A>* r, const SparseLinearEpilogue<A>& e, int64_t row, int64_t column) {
  constexpr int L = lanes<A>;
  if (e.relu) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = r[i] < vec<A>{} ? vec<A>{} : r[i];
  }
  if (e.threshold == 0) return;
  Dropper<A> dropper{e};
  dropper.at(column);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) r[i] = dropper.keep(r[i], row + i);
}

// The same for one element.
template <typename A>
SG_INLINE A way_out(A v, const SparseLinearEpilogue<A>& e, int64_t row, int64_t column) {
  if (e.relu && v < A{0}) v = 0;
  if (e.threshold == 0) return v;
  const uint32_t bits = random_bits(random_edge(e.key, uint32_t(row)), random_head(e.key, uint32_t(column)));
  return bits >= e.threshold ? v * e.scale : A{0};
}

// r[i]: gradients of outputs [column, column + n) of sample row + i, for i < rows; `at` is where they are in y.
template <typename T, typename A>
SG_INLINE void way_in(vec<A>* r, const SparseLinearMask<T, A>& m, int64_t at, int64_t stride, int64_t row,
                      int64_t column, int rows, int n) {
  constexpr int L = lanes<A>;
  if (m.y != nullptr) {
    const T* y = m.y + at;
    if (rows == L && n == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) r[i] = load(y + i * stride) <= vec<A>{} ? vec<A>{} : r[i] * m.how.scale;
    } else {
      for (int i = 0; i < rows; ++i) r[i] = load_n(y + i * stride, n) <= vec<A>{} ? vec<A>{} : r[i] * m.how.scale;
    }
  } else {
    Dropper<A> dropper{m.how};
    dropper.at(column);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) r[i] = dropper.keep(r[i], row + i);
  }
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
