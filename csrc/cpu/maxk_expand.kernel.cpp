// maxk, to and from dense rows / cpu
//
//   maxk_expand: y[n, index[n, t]] = values[n, t], 0 elsewhere;   maxk_gather: values[n, t] = x[n, index[n, t]]
//
// work       N * (F * s + k * (s + 1)) bytes; a large y is made a row at a time in L1 and written past the caches
// see        maxk.kernel.cpp, sparsegnn/ops/maxk_expand.py
#include "maxk.h"
#include "simd_stream.h"

namespace sparsegnn {
namespace SG_ISA {

template <typename T, typename I>
void maxk_expand_rows(const MaxkCopyArgs<T>& a, int64_t begin, int64_t end) {
  const auto* index = static_cast<const I*>(a.index);
  constexpr int64_t most = 4096 / sizeof(T);
  alignas(64) T row[most];
  const bool staged = a.stream && a.width <= most;
  if (staged) memset(row, 0, size_t(a.width) * sizeof(T));
  for (int64_t r = begin; r < end; ++r) {
    const T* from = a.from + r * a.k;
    const I* at = index + r * a.k;
    T* to = a.to + r * a.width;
    if (!staged) {
      memset(to, 0, size_t(a.width) * sizeof(T));
      for (int64_t t = 0; t < a.k; ++t) to[at[t]] = from[t];
      continue;
    }
    for (int64_t t = 0; t < a.k; ++t) row[at[t]] = from[t];
    for (int64_t c = 0; c < a.width; c += lanes<acc<T>>) store_past_caches(to + c, load(row + c));
    for (int64_t t = 0; t < a.k; ++t) row[at[t]] = T{};
  }
  if (staged) stores_done();
}

template <typename T, typename I>
void maxk_gather_rows(const MaxkCopyArgs<T>& a, int64_t begin, int64_t end) {
  const auto* index = static_cast<const I*>(a.index);
  for (int64_t r = begin; r < end; ++r)
    for (int64_t t = r * a.k; t < (r + 1) * a.k; ++t) a.to[t] = a.from[r * a.width + index[t]];
}

#define SG_INSTANTIATE(T, I)                                                      \
  template void maxk_expand_rows<T, I>(const MaxkCopyArgs<T>&, int64_t, int64_t); \
  template void maxk_gather_rows<T, I>(const MaxkCopyArgs<T>&, int64_t, int64_t);
#define SG_INSTANTIATE_ALL(T) \
  SG_INSTANTIATE(T, uint8_t)  \
  SG_INSTANTIATE(T, int16_t)
SG_INSTANTIATE_ALL(float)
SG_INSTANTIATE_ALL(double)
SG_INSTANTIATE_ALL(bf16)
SG_INSTANTIATE_ALL(f16)

}  // namespace SG_ISA
}  // namespace sparsegnn
