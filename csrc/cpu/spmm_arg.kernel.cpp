// spmm / cpu: max and min, and their gradients
//
//   max   y[r, k] = max over edges e of row r of val[e] * x[col[e], k];  arg[r, k] = the first e that reaches it;
//         0 and -1 without edges; NaN wins over everything
//   dx    dx[c, k] = sum over transposed edges t of c: val[perm[t]] * dy[row[t], k] where arg[row[t], k] == perm[t]
//   dval  dval[e] = sum over k with arg[r, k] == e: dy[r, k] * x[col[e], k]
//
// layout     as spmm.kernel.cpp; arg[M, K] int32
// work       as a sum; dx gathers a row of dy and a row of arg for every edge
// numerics   dx is summed as in spmm.kernel.cpp; edges of a row belong to that row alone
// see        sparsegnn/ops/spmm_arg.py, tests/ops/test_spmm.py
#include "spmm_tile.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename A>
using slot = __typeof__(ivec<A>{}[0] + 0);

// Slots of edges, one per lane of A: n of them in memory.
template <typename A>
SG_INLINE ivec<A> load_slots(const int32_t* p, int n) {
  typedef int32_t words __attribute__((vector_size(4 * lanes<A>)));
  words slots = {};
  if (n == lanes<A>) {
    memcpy(&slots, p, sizeof(slots));
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4)
      return reinterpret_cast<ivec<A>>(_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), p));
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 4) return reinterpret_cast<ivec<A>>(_mm256_maskload_epi32(p, first_lanes(n)));
#endif
    memcpy(&slots, p, size_t(n) * 4);
  }
  return __builtin_convertvector(slots, ivec<A>);
}

template <typename A>
SG_INLINE void store_slots(int32_t* p, ivec<A> v, int n, bool past_caches) {
  typedef int32_t words __attribute__((vector_size(4 * lanes<A>)));
  const words slots = __builtin_convertvector(v, words);
  if (n == lanes<A>) {
    if constexpr (sizeof(A) == 4)
      if (past_caches) return store_past_caches(reinterpret_cast<float*>(p), reinterpret_cast<vec<float>>(slots));
    memcpy(p, &slots, sizeof(slots));
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4)
      return _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 4) return _mm256_maskstore_epi32(p, first_lanes(n), reinterpret_cast<__m256i>(v));
#endif
    memcpy(p, &slots, size_t(n) * 4);
  }
}

// The best value so far and its edge: `value` replaces it where it is larger or NaN; NaN stays.
template <bool with_arg, typename A>
SG_INLINE void take_better(vec<A>& best, ivec<A>& arg, vec<A> value, ivec<A> edge) {
  const auto take = ~(value <= best) & (best == best);
  best = take ? value : best;
  if constexpr (with_arg) arg = take ? edge : arg;
}

// Plain: the largest x. Otherwise the largest of x times a weight, and -1 for min.
template <typename T, bool plain, bool with_arg>
struct Extremum {
  using A = acc<T>;
  static constexpr bool any_width = false;
  using Args = SpmmArgs<T, A>;

  static const T* table(const Args& a) { return a.x; }

  template <int level, int V, bool ragged>
  SG_INLINE static void prefetch(const Args& a, const Columns<V, ragged>& columns, int64_t c) {
    columns.template prefetch<level>(a.x + c * a.x_stride);
  }

  template <int V, bool ragged>
  struct State {
    vec<A> best[V] = {};
    ivec<A> arg[V];

    SG_INLINE static vec<A> value(const Args& a, const Columns<V, ragged>& columns, int64_t e, int64_t c, int v) {
      const vec<A> x = columns.get(a.x + c * a.x_stride, v);
      if constexpr (plain) return x;
      return x * ((a.largest ? A{1} : A{-1}) * (a.val != nullptr ? widen(a.val[e]) : A{1}));
    }

    // The first edge comes twice: it does not beat itself.
    SG_INLINE void start(const Args& a, const Columns<V, ragged>& columns, int64_t, int64_t begin, int64_t end) {
      for (int v = 0; v < V; ++v) {
        arg[v] = ivec<A>{} + slot<A>(begin < end ? begin : -1);
        if (begin < end) best[v] = value(a, columns, begin, a.col[begin], v);
      }
    }

    SG_INLINE void edge(const Args& a, const Columns<V, ragged>& columns, int64_t e, int64_t c) {
      const ivec<A> edge = ivec<A>{} + slot<A>(e);
      for (int v = 0; v < V; ++v) take_better<with_arg, A>(best[v], arg[v], value(a, columns, e, c, v), edge);
    }

    SG_INLINE void finish(const Args& a, const Columns<V, ragged>& columns, int64_t r) {
      const A sign = a.largest ? A{1} : A{-1};
      for (int v = 0; v < V; ++v) {
        if (a.partial != nullptr) {
          columns.put(a.partial + r * a.y_stride, v, best[v], false);  // of the signed values
        } else {
          columns.put(a.y + r * a.y_stride, v, plain ? best[v] : sign * best[v], a.stream);
        }
        if constexpr (with_arg)
          store_slots<A>(a.arg + r * a.y_stride + columns.first + v * lanes<A>, arg[v], columns.template count<A>(v),
                         a.stream);
      }
    }
  };
};

template <typename T>
struct ArgGradient {
  using A = acc<T>;
  static constexpr bool any_width = false;
  using Args = SpmmArgGradient<T, A>;

  static const T* table(const Args& a) { return a.dy; }

  template <int level, int V, bool ragged>
  SG_INLINE static void prefetch(const Args& a, const Columns<V, ragged>& columns, int64_t r) {
    columns.template prefetch<level>(a.dy + r * a.width);
    columns.template prefetch<level>(a.arg + r * a.width);
  }

  template <int V, bool ragged>
  struct State {
    vec<A> sum[V] = {};

    SG_INLINE void start(const Args&, const Columns<V, ragged>&, int64_t, int64_t, int64_t) {}

    SG_INLINE void edge(const Args& a, const Columns<V, ragged>& columns, int64_t t, int64_t r) {
      const int32_t e = a.perm[t];
      const A w = a.val != nullptr ? widen(a.val[e]) : A{1};
      for (int v = 0; v < V; ++v) {
        const ivec<A> arg =
            load_slots<A>(a.arg + r * a.width + columns.first + v * lanes<A>, columns.template count<A>(v));
        const vec<A> flow = w * columns.get(a.dy + r * a.width, v);
        sum[v] += arg == ivec<A>{} + slot<A>(e) ? flow : vec<A>{};
      }
    }

    SG_INLINE void finish(const Args& a, const Columns<V, ragged>& columns, int64_t c) {
      for (int v = 0; v < V; ++v) {
        if (a.partial != nullptr) {
          columns.put(a.partial + c * a.width, v, sum[v], false);
        } else {
          columns.put(a.y + c * a.width, v, sum[v], false);
        }
      }
    }
  };
};

template <int level>
struct into {
  static constexpr int value = level;
};

}  // namespace

template <typename T, typename A>
void spmm_arg_rows(const SpmmArgs<T, A>& a, int64_t begin, int64_t end) {
  const bool plain = a.largest && a.val == nullptr, with_arg = a.arg != nullptr;
  if (plain && with_arg) {
    reduce_rows<Extremum<T, true, true>, T>(a, a.x_stride, begin, end);
  } else if (plain) {
    reduce_rows<Extremum<T, true, false>, T>(a, a.x_stride, begin, end);
  } else if (with_arg) {
    reduce_rows<Extremum<T, false, true>, T>(a, a.x_stride, begin, end);
  } else {
    reduce_rows<Extremum<T, false, false>, T>(a, a.x_stride, begin, end);
  }
  if (a.stream) stores_done();
}

// y and arg of row hub.row from those of its pieces, in order.
template <typename T, typename A>
void spmm_arg_hub(const SpmmArgs<T, A>& a, const int32_t* arg, const SpmmHub& hub) {
  constexpr int L = lanes<A>;
  const A sign = a.largest ? A{1} : A{-1};
  for (int64_t k = 0; k < a.width; k += L) {
    const int n = int(a.width - k < L ? a.width - k : L);
    const auto piece = [&](int64_t p) { return load_n(a.partial + p * a.y_stride + k, n); };
    const auto edge = [&](int64_t p) {
      return arg == nullptr ? ivec<A>{} : load_slots<A>(arg + p * a.y_stride + k, n);
    };
    vec<A> best = piece(hub.begin);
    ivec<A> first = edge(hub.begin);
    for (int64_t p = hub.begin + 1; p < hub.end; ++p) take_better<true, A>(best, first, piece(p), edge(p));
    store_n(a.y + hub.row * a.y_stride + k, sign * best, n);
    if (a.arg != nullptr) store_slots<A>(a.arg + hub.row * a.y_stride + k, first, n, false);
  }
}

template <typename T, typename A>
void spmm_arg_dx_rows(const SpmmArgGradient<T, A>& a, int64_t begin, int64_t end) {
  reduce_rows<ArgGradient<T>, T>(a, a.width, begin, end);
}

template <typename T, typename A>
void spmm_arg_dval_rows(const SpmmArgGradient<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  const int64_t last = a.edges - 1, whole = a.width / L * L;
  const auto prefetch = [&](int64_t e, auto level) {
    const char* row = reinterpret_cast<const char*>(a.x + a.col[e < last ? e : last] * a.width);
    for (int64_t b = 0; b < a.width * int64_t(sizeof(T)); b += 64)
      __builtin_prefetch(row + b, 0, decltype(level)::value);
  };
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* arg = a.arg + r * a.width;
    const T* dy = a.dy + r * a.width;
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      prefetch(e + far_ahead<8>, into<2>{});
      prefetch(e + near_ahead, into<3>{});
      const T* x = a.x + a.col[e] * a.width;
      const ivec<A> edge = ivec<A>{} + slot<A>(e);
      vec<A> total = {};
      for (int64_t k = 0; k < whole; k += L)
        total += load_slots<A>(arg + k, L) == edge ? load(dy + k) * load(x + k) : vec<A>{};
      if (whole < a.width) {
        const int n = int(a.width - whole);
        const vec<A> flow = load_n(dy + whole, n) * load_n(x + whole, n);
        total += load_slots<A>(arg + whole, n) == edge ? flow : vec<A>{};
      }
      a.y[e] = narrow<T>(sum<A>(total));
    }
  }
}

#define SG_INSTANTIATE(T, A)                                                               \
  template void spmm_arg_rows<T, A>(const SpmmArgs<T, A>&, int64_t, int64_t);              \
  template void spmm_arg_hub<T, A>(const SpmmArgs<T, A>&, const int32_t*, const SpmmHub&); \
  template void spmm_arg_dx_rows<T, A>(const SpmmArgGradient<T, A>&, int64_t, int64_t);    \
  template void spmm_arg_dval_rows<T, A>(const SpmmArgGradient<T, A>&, int64_t, int64_t);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
