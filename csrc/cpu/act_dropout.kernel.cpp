// act_dropout / cpu
//
//   y = kept * scale * act(x + bias)     act: none, relu, elu; kept: 0 or 1 by the bits of (seed, row, column)
//   dx = dy * kept * scale * act',  dbias = its sums over rows
//
// layout     x, y, dy, dx [N, F] row-major, x and dy with any stride between rows
// work       forward N F reads and writes; backward N F reads of dy and of y, N F writes of dx
// backward   relu needs y alone: dy * scale where y is not <= 0, so that a NaN lets the gradient through, as torch's
//            does. elu makes act' of y, e^z = y / scale + 1, and the bits again; a NaN stays one. Without activation
//            the bits alone
// numerics   dbias: sums of chunks of rows, which sparse_linear_sum_partials adds in order
// see        sparsegnn/ops/act_dropout.py, tests/ops/test_act_dropout.py, benchmarks/ops/bench_act_dropout.py
#include "act_dropout.h"

#include "math.h"
#include "simd_stream.h"
#include "sparse_linear_epilogue.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename T>
SG_INLINE void put(T* p, vec<acc<T>> v, bool stream) {
  if (stream) return store_past_caches(p, v);
  store(p, v);
}

template <Activation act, typename A>
SG_INLINE vec<A> activate(vec<A> z) {
  if constexpr (act == Activation::relu) return z < vec<A>{} ? vec<A>{} : z;
  if constexpr (act == Activation::elu) return z > vec<A>{} ? z : expm1_below_zero<A>(z);
  return z;
}

template <Activation act, bool drops, typename T, typename A>
void forward(const ActDropoutArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  const int64_t whole = a.width / L * L;
  const int rest = int(a.width - whole);
  const SparseLinearEpilogue<A> how = a.how;  // its own: what is stored cannot change it
  const bool stream = a.stream;
  Dropper<A> dropper{how};
  for (int64_t r = begin; r < end; ++r) {
    const T* x = a.x + r * a.x_stride;
    T* y = a.y + r * a.width;
    const auto result = [&](vec<A> z, int64_t c) {
      z = activate<act, A>(z);
      if constexpr (!drops) return z;
      dropper.at(c);
      return dropper.keep(z, r);
    };
    if (a.bias != nullptr) {
      for (int64_t c = 0; c < whole; c += L) put(y + c, result(load(x + c) + load(a.bias + c), c), stream);
    } else {
      for (int64_t c = 0; c < whole; c += L) put(y + c, result(load(x + c), c), stream);
    }
    if (rest > 0) {
      const vec<A> bias = a.bias != nullptr ? load_n(a.bias + whole, rest) : vec<A>{};
      store_n(y + whole, result(load_n(x + whole, rest) + bias, whole), rest);
    }
  }
  if (stream) stores_done();
}

template <Activation act, bool drops, typename T, typename A>
void backward(const ActDropoutBackwardArgs<T, A>& a, int64_t begin, int64_t end, A* partial) {
  constexpr int L = lanes<A>;
  const int64_t whole = a.width / L * L;
  const int rest = int(a.width - whole);
  const SparseLinearEpilogue<A> how = a.how;  // its own: what is stored cannot change it
  const bool stream = a.stream;
  Dropper<A> dropper{how};
  if (partial != nullptr) memset(partial, 0, size_t(a.width) * sizeof(A));
  for (int64_t r = begin; r < end; ++r) {
    const T *dy = a.dy + r * a.dy_stride, *y = a.y + r * a.width;
    T* dx = a.dx + r * a.width;
    const auto gradient = [&](vec<A> g, vec<A> y_c, int64_t c) {
      if constexpr (act == Activation::relu) return y_c <= vec<A>{} ? vec<A>{} : g * how.scale;
      if constexpr (act == Activation::elu) g = y_c > vec<A>{} ? g : g * (y_c * a.inverse_scale + A(1));
      if constexpr (!drops) return g;
      dropper.at(c);
      return dropper.keep(g, r);
    };
    for (int64_t c = 0; c < whole; c += L) {
      vec<A> y_c{};
      if constexpr (act != Activation::none) y_c = load(y + c);
      const vec<A> g = gradient(load(dy + c), y_c, c);
      if (a.dx != nullptr) put(dx + c, g, stream);
      if (partial != nullptr) store(partial + c, load(partial + c) + g);
    }
    if (rest > 0) {
      vec<A> y_c{};
      if constexpr (act != Activation::none) y_c = load_n(y + whole, rest);
      const vec<A> g = gradient(load_n(dy + whole, rest), y_c, whole);
      if (a.dx != nullptr) store_n(dx + whole, g, rest);
      if (partial != nullptr) store_n(partial + whole, load_n(partial + whole, rest) + g, rest);
    }
  }
  if (stream) stores_done();
}

}  // namespace

template <typename T, typename A>
void act_dropout_rows(const ActDropoutArgs<T, A>& a, int64_t begin, int64_t end) {
  const bool drops = a.how.threshold != 0;
  if (a.act == Activation::relu)
    return drops ? forward<Activation::relu, true>(a, begin, end) : forward<Activation::relu, false>(a, begin, end);
  if (a.act == Activation::elu)
    return drops ? forward<Activation::elu, true>(a, begin, end) : forward<Activation::elu, false>(a, begin, end);
  return drops ? forward<Activation::none, true>(a, begin, end) : forward<Activation::none, false>(a, begin, end);
}

template <typename T, typename A>
void act_dropout_backward_rows(const ActDropoutBackwardArgs<T, A>& a, int64_t begin, int64_t end, A* partial) {
  const bool drops = a.how.threshold != 0;
  if (a.act == Activation::relu) return backward<Activation::relu, false>(a, begin, end, partial);
  if (a.act == Activation::elu)
    return drops ? backward<Activation::elu, true>(a, begin, end, partial)
                 : backward<Activation::elu, false>(a, begin, end, partial);
  return drops ? backward<Activation::none, true>(a, begin, end, partial)
               : backward<Activation::none, false>(a, begin, end, partial);
}

#define SG_INSTANTIATE(T, A)                                                           \
  template void act_dropout_rows<T, A>(const ActDropoutArgs<T, A>&, int64_t, int64_t); \
  template void act_dropout_backward_rows<T, A>(const ActDropoutBackwardArgs<T, A>&, int64_t, int64_t, A*);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
