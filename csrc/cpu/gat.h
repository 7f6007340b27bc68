// Arguments of the gat kernels; see gat.kernel.cpp and gat_backward.kernel.cpp for the formulas.
#pragma once
#include "../common/random.h"
#include "isa.h"

namespace sparsegnn {

// What is worked on at once: heads [head, head + heads) and their columns [column, column + columns) of a row, or part
// of the columns of one wide head.
struct GatTile {
  int64_t head, column;
  int heads, columns;
  bool first;  // of its heads
};
constexpr int gat_tile_columns = 512;

// The edges, by rows of A or of its transpose, and what is the same for all of them.
template <typename A>
struct GatEdges {
  const int32_t *offsets, *index;
  const int32_t* slot;   // transpose: edge slot of an entry, or null where it does not matter
  int64_t heads, width;  // H and D
  A slope;               // of leaky, below 0
  bool dropout;
  RandomKey key;
  uint32_t threshold;
  A scale;  // of what dropout keeps
};

// The edges are those of A in forward, of its transpose in backward.
template <typename A>
struct GatScores : GatEdges<A> {
  const A *a_src, *a_dst;  // [N, H], [M, H]
  const A* a_edge;         // [E, H] or null
};

// T is the type of features, A the accumulator's.
template <typename T, typename A>
struct GatArgs : GatScores<A> {
  const T* x;     // [N, H, D]
  const A* bias;  // [H, D] or null
  T* y;           // [M, H, D]
  A* lse;         // [M, H] or null: nothing is saved
  T* tilt;        // [M, H, D]
};

template <typename T, typename A>
struct GatBackwardArgs : GatScores<A> {
  const T *x, *dy, *y, *tilt;
  const A* lse;
  A* node;        // [M, 3, H]: a_dst, lse and <dy, y>, written by gat_backward_nodes
  const A* bias;  // [H, D] or null: part of y
  T* dx;
  A *da_src, *da_dst, *da_edge;  // da_edge may be null
  // [H, D] or null: the scores are <x, att>, and dx and the gradient of att follow from those of the scores
  const A *att_src, *att_dst;
};

// scores[0 or 1, n, h] = <x[n, h], att_src or att_dst [h]> of the nodes [begin, end) of `nodes`.
SG_DECLARE(template <typename T, typename A> void gat_scores(const T* x, const A* att_src, const A* att_dst, A* scores,
                                                             int64_t nodes, int64_t heads, int64_t width, int64_t begin,
                                                             int64_t end))
// Rows [begin, end) of A; nodes [begin, end) of dy; rows [begin, end) of the transpose. The parts of these nodes: dbias
// [H, D] unless null, datt [2, H, D] where there is att_src.
SG_DECLARE(template <typename T, typename A>
           void gat_rows(const GatArgs<T, A>& a, const GatTile* tiles, int64_t n, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename A>
           void gat_backward_nodes(const GatBackwardArgs<T, A>& a, int64_t begin, int64_t end, A* dbias))
SG_DECLARE(template <typename T, typename A> void gat_backward_rows(const GatBackwardArgs<T, A>& a,
                                                                    const GatTile* tiles, int64_t n, int64_t begin,
                                                                    int64_t end, A* datt))
// Heads that one tile can hold: the lanes of a vector of A.
SG_DECLARE(template <typename A> int gat_tile_heads())

}  // namespace sparsegnn
