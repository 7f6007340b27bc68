// sddmm / cpu
//
//   out[e] = dot(a[row(e)], b[col[e]])
//
// layout     CSR: crow[M+1], col[E] int32; a[M, K], b[N, K] row-major; out[E]
// work       2*E*K flop; E*(4 + s) + E*K*s bytes at the caches
// blocking   four edges at once share one load of a[r]: four independent FMA chains, one reduction tree at the end
// numerics   sums in float (double for double), in an order fixed by K
// backward   da: spmm with out's gradient as edge values; db: the same on the transpose
// see        sparsegnn/ops/sddmm.py, tests/ops/test_sddmm.py, benchmarks/ops/bench_sddmm.py
#include "sddmm.h"

#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

constexpr int64_t prefetch_distance = 8;

// `U` consecutive edges of row r, from e on.
template <int U, typename T>
SG_INLINE void dot_edges(const SddmmArgs<T>& s, int64_t r, int64_t e, int64_t last) {
  using A = acc<T>;
  constexpr int L = lanes<A>;
  const T* a = s.a + r * s.width;
  const T* b[U];
  vec<A> sums[U] = {};
  for (int u = 0; u < U; ++u) {
    b[u] = s.b + int64_t{s.col[e + u]} * s.width;
    const int64_t ahead = e + u + prefetch_distance < last ? e + u + prefetch_distance : last;
    const char* next = reinterpret_cast<const char*>(s.b + int64_t{s.col[ahead]} * s.width);
    for (int64_t at = 0; at < s.width * int64_t(sizeof(T)) && at < 1024; at += 64) __builtin_prefetch(next + at);
  }
  int64_t k = 0;
  for (; k + L <= s.width; k += L) {
    const vec<A> left = load(a + k);
    for (int u = 0; u < U; ++u) sums[u] += left * load(b[u] + k);
  }
  if (k < s.width) {
    const int n = int(s.width - k);
    const vec<A> left = load_n(a + k, n);
    for (int u = 0; u < U; ++u) sums[u] += left * load_n(b[u] + k, n);
  }
  for (int u = 0; u < U; ++u) s.out[e + u] = narrow<T>(sum<A>(sums[u]));
}

}  // namespace

template <typename T>
void sddmm_rows(const SddmmArgs<T>& s, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t stop = s.crow[r + 1];
    int64_t e = s.crow[r];
    for (; e + 4 <= stop; e += 4) dot_edges<4>(s, r, e, stop - 1);
    for (; e < stop; ++e) dot_edges<1>(s, r, e, stop - 1);
  }
}

template void sddmm_rows<float>(const SddmmArgs<float>&, int64_t, int64_t);
template void sddmm_rows<double>(const SddmmArgs<double>&, int64_t, int64_t);
template void sddmm_rows<bf16>(const SddmmArgs<bf16>&, int64_t, int64_t);
template void sddmm_rows<f16>(const SddmmArgs<f16>&, int64_t, int64_t);

}  // namespace SG_ISA
}  // namespace sparsegnn
