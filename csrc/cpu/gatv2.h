// Arguments of the gatv2 kernels; see gatv2.kernel.cpp and gatv2_backward.kernel.cpp for the formulas.
#pragma once
#include "gat.h"

namespace sparsegnn {

// T is the type of features, A the accumulator's.
template <typename T, typename A>
struct Gatv2Edges : GatEdges<A> {
  const T *x_src, *x_dst;  // [N, H, D], [M, H, D]
  const T* edge;           // [E, H, D] or null
  const A* att;            // [H, D]
};

template <typename T, typename A>
struct Gatv2Args : Gatv2Edges<T, A> {
  T* y;    // [M, H, D]
  A* lse;  // [M, H] or null: nothing is saved
};

template <typename T, typename A>
struct Gatv2BackwardArgs : Gatv2Edges<T, A> {
  const T *dy, *y;
  const A* lse;
  A* node;  // [M, 2, H]: lse and <dy, y>, written with dx_dst, read for dx_src
  T *dx_src, *dx_dst;
  T* dedge;  // [E, H, D] or null
};

// Rows [begin, end) of A.
SG_DECLARE(template <typename T, typename A>
           void gatv2_rows(const Gatv2Args<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end))
// Rows [begin, end) of A: dx_dst, dedge, node, and the part [H, D] of the gradient of att.
SG_DECLARE(template <typename T, typename A> void gatv2_backward_rows(const Gatv2BackwardArgs<T, A>& a,
                                                                      const GatTile* tiles, int64_t n, int64_t begin,
                                                                      int64_t end, A* datt))
// Rows [begin, end) of the transpose: dx_src.
SG_DECLARE(template <typename T, typename A> void gatv2_backward_sources(const Gatv2BackwardArgs<T, A>& a,
                                                                         const GatTile* tiles, int64_t n, int64_t begin,
                                                                         int64_t end))

}  // namespace sparsegnn
