// csr / cpu
//
//   from_edges  (target, source)[E] -> crow, col, perm: a stable sort by (target, source); perm[e] = input position
//   transpose   from_edges with the columns as targets and the row of every slot as source
//   degrees     y[r] = sum over edges e of row r: val[e]; the number of edges without val
//
// layout     edge list int32 or int64; crow[M+1], col[E], perm[E] int32
// work       O(E + M); sorting moves 12 B per edge twice: into buckets of neighbouring rows that stay in cache, then
// out parallel   over chunks of the edge list (count, scatter), then over buckets; each chunk owns its places in each
// bucket numerics   integers; degrees sum in float (double for double) in an order fixed by the row backward   degrees:
// dval[e] = dy[row(e)], plain PyTorch see        sparsegnn/ops/csr.py, tests/ops/test_csr.py,
// benchmarks/ops/bench_csr.py
#include "csr.h"

#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

constexpr int64_t insertion_limit = 24;  // shorter rows are sorted by insertion, longer ones by digits

// Stable order by col of one row; `scratch` holds 2 * n values.
SG_INLINE void sort_row(int32_t* col, int32_t* perm, int64_t n, int64_t num_cols, int32_t* scratch) {
  int64_t i = 1;
  while (i < n && col[i - 1] <= col[i]) ++i;
  if (i >= n) return;  // the usual case: edge lists are mostly sorted by source
  if (n <= insertion_limit) {
    for (; i < n; ++i) {
      const int32_t c = col[i], p = perm[i];
      int64_t j = i;
      for (; j > 0 && col[j - 1] > c; --j) col[j] = col[j - 1], perm[j] = perm[j - 1];
      col[j] = c, perm[j] = p;
    }
    return;
  }
  int32_t *from_col = col, *from_perm = perm, *to_col = scratch, *to_perm = scratch + n;
  for (int shift = 0; shift < 32 && (num_cols - 1) >> shift != 0; shift += 8) {
    int64_t next[257] = {};
    for (int64_t e = 0; e < n; ++e) ++next[(from_col[e] >> shift & 255) + 1];
    for (int d = 0; d < 256; ++d) next[d + 1] += next[d];
    for (int64_t e = 0; e < n; ++e) {
      const int64_t to = next[from_col[e] >> shift & 255]++;
      to_col[to] = from_col[e], to_perm[to] = from_perm[e];
    }
    int32_t *c = from_col, *p = from_perm;
    from_col = to_col, from_perm = to_perm, to_col = c, to_perm = p;
  }
  if (from_col != col) {
    memcpy(col, from_col, size_t(n) * 4);
    memcpy(perm, from_perm, size_t(n) * 4);
  }
}

}  // namespace

// Adds edges [begin, end) to counts[bucket]; false when an index is out of range.
template <typename I>
bool csr_count(const CsrSortArgs<I>& a, int64_t begin, int64_t end, int64_t* counts) {
  bool ok = true;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t t = a.target[e], s = a.source[e];
    const bool inside = uint64_t(t) < uint64_t(a.num_rows) && uint64_t(s) < uint64_t(a.num_cols);
    ok &= inside;
    ++counts[inside ? t >> a.shift : 0];
  }
  return ok;
}

// Writes edges [begin, end) to a.edges, from next[bucket] on.
template <typename I>
void csr_scatter(const CsrSortArgs<I>& a, int64_t begin, int64_t end, int64_t* next) {
  for (int64_t e = begin; e < end; ++e) {
    const int32_t t = int32_t(a.target[e]);
    a.edges[next[t >> a.shift]++] = {t, int32_t(a.source[e]), int32_t(e)};
  }
}

// Sorts the edges [first, last) of one bucket, and writes the crow entries of its rows.
template <typename I>
void csr_bucket(const CsrSortArgs<I>& a, int64_t bucket, int64_t first, int64_t last) {
  const int64_t begin = bucket << a.shift, wanted = (bucket + 1) << a.shift;
  const int64_t end = wanted < a.num_rows ? wanted : a.num_rows;
  int32_t* next = a.crow + 1;  // next[r] counts row r, then is its first slot, then its end, which is crow[r + 1]
  for (int64_t r = begin; r < end; ++r) next[r] = 0;
  for (int64_t e = first; e < last; ++e) ++next[a.edges[e].target];
  int32_t slot = int32_t(first);
  for (int64_t r = begin; r < end; ++r) {
    const int32_t count = next[r];
    next[r] = slot;
    slot += count;
  }
  for (int64_t e = first; e < last; ++e) {
    const CsrEdge edge = a.edges[e];
    const int32_t to = next[edge.target]++;
    a.col[to] = edge.source;
    a.perm[to] = edge.position;
  }
  for (int64_t r = begin, start = first; r < end; start = next[r++])
    sort_row(a.col + start, a.perm + start, next[r] - start, a.num_cols, reinterpret_cast<int32_t*>(a.edges + start));
}

void csr_row_ids(const int32_t* crow, int32_t* row, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r)
    for (int64_t e = crow[r]; e < crow[r + 1]; ++e) row[e] = int32_t(r);
}

template <typename T, typename A>
void csr_degrees_rows(const CsrDegreesArgs<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = lanes<A>;
  for (int64_t r = begin; r < end; ++r) {
    int64_t e = a.crow[r];
    const int64_t last = a.crow[r + 1];
    if (a.val == nullptr) {
      a.y[r] = A(last - e);
      continue;
    }
    A total = 0;
    if (last - e >= 2 * L) {
      vec<A> even = {}, odd = {};
      for (; e + 2 * L <= last; e += 2 * L) even += load(a.val + e), odd += load(a.val + e + L);
      total = sum<A>(even + odd);
    }
    for (; e < last; ++e) total += widen(a.val[e]);
    a.y[r] = total;
  }
}

#define SG_INSTANTIATE_SORT(I)                                                     \
  template bool csr_count<I>(const CsrSortArgs<I>&, int64_t, int64_t, int64_t*);   \
  template void csr_scatter<I>(const CsrSortArgs<I>&, int64_t, int64_t, int64_t*); \
  template void csr_bucket<I>(const CsrSortArgs<I>&, int64_t, int64_t, int64_t);
SG_INSTANTIATE_SORT(int32_t)
SG_INSTANTIATE_SORT(int64_t)

template void csr_degrees_rows<float, float>(const CsrDegreesArgs<float, float>&, int64_t, int64_t);
template void csr_degrees_rows<double, double>(const CsrDegreesArgs<double, double>&, int64_t, int64_t);
template void csr_degrees_rows<bf16, float>(const CsrDegreesArgs<bf16, float>&, int64_t, int64_t);
template void csr_degrees_rows<f16, float>(const CsrDegreesArgs<f16, float>&, int64_t, int64_t);

}  // namespace SG_ISA
}  // namespace sparsegnn
