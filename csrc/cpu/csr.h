// Arguments of the csr kernels; see csr.kernel.cpp for what they compute.
#pragma once
#include "isa.h"

namespace sparsegnn {

struct CsrEdge {
  int32_t target, source, position;
};

// Stable sort of an edge list by (target, source) in two levels: into buckets of 2^shift rows, then inside each bucket.
template <typename I>
struct CsrSortArgs {
  const I *target, *source;
  int64_t num_rows, num_cols;
  int shift;            // rows r >> shift share a bucket
  CsrEdge* edges;       // [E] in bucket order; then scratch
  int32_t* crow;        // [num_rows + 1]
  int32_t *col, *perm;  // [E]
};

template <typename T, typename A>
struct CsrDegreesArgs {
  const int32_t* crow;
  const T* val;  // or null: ones
  A* y;
};

SG_DECLARE(template <typename I> bool csr_count(const CsrSortArgs<I>& a, int64_t begin, int64_t end, int64_t* counts))
SG_DECLARE(template <typename I> void csr_scatter(const CsrSortArgs<I>& a, int64_t begin, int64_t end, int64_t* next))
SG_DECLARE(template <typename I> void csr_bucket(const CsrSortArgs<I>& a, int64_t bucket, int64_t first, int64_t last))
SG_DECLARE(void csr_row_ids(const int32_t* crow, int32_t* row, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A>
           void csr_degrees_rows(const CsrDegreesArgs<T, A>& a, int64_t begin, int64_t end))

}  // namespace sparsegnn
