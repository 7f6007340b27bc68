// Arguments of the topology kernels; see topology.kernel.cpp.
#pragma once
#include "isa.h"

namespace sparsegnn {

// Scores are compared as unsigned integers of the same order: NaN is 0, -0 equals +0.
template <typename T>
struct topology_key {
  using type = uint32_t;
};
template <>
struct topology_key<double> {
  using type = uint64_t;
};
template <typename T>
using TopologyKey = typename topology_key<T>::type;

// One digit of a radix selection: of the keys that begin with `prefix` (their bits from `high` up), bits [low, high).
struct TopologyDigit {
  int low, high;
  uint64_t prefix;
};
constexpr int topology_digit_bits = 11;
constexpr int64_t topology_bins = int64_t{1} << topology_digit_bits;

// The second half of an update: what grows, given what is kept.
template <typename T>
struct TopologyArgs {
  const int32_t *crow, *col;  // the pattern so far
  const uint8_t* kept;        // [nnz]
  const T* score;             // [M, K]
  int64_t cols;
  TopologyKey<T> threshold;  // a position grows if its key is above, or equal and among the first take[r] of row r
  int32_t *above, *equal;    // [M] candidates of each row
  const int64_t* take;       // [M]
  const int32_t* new_crow;   // [M + 1]
  int32_t *new_col, *source;
};

// Positions that are not kept, whose scores may be among the highest: row by row, ascending.
template <typename T>
struct TopologyCandidates {
  int64_t* first;  // [M + 1], where those of a row begin
  int32_t* col;
  TopologyKey<T>* key;
};

SG_DECLARE(template <typename T>
           void topology_histogram(const T* score, int64_t n, const TopologyDigit& digit, int64_t* bins))
SG_DECLARE(template <typename T> void topology_histogram_rows(const TopologyArgs<T>& a, const TopologyDigit& digit,
                                                              int64_t begin, int64_t end, int64_t* bins))
SG_DECLARE(template <typename T>
           void topology_keep(const T* score, int64_t n, TopologyKey<T> threshold, int64_t ties, uint8_t* kept))
SG_DECLARE(template <typename T> void topology_count_rows(const TopologyArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> void topology_emit_rows(const TopologyArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T> void topology_histogram_keys(const TopologyKey<T>* key, int64_t n,
                                                              const TopologyDigit& digit, int64_t* bins))
// Those of rows [begin, end) with keys of `least` or more, from place `at` on.
SG_DECLARE(template <typename T> void topology_collect_rows(const TopologyArgs<T>& a, TopologyKey<T> least,
                                                            int64_t begin, int64_t end, int64_t at,
                                                            const TopologyCandidates<T>& found))
SG_DECLARE(template <typename T> void topology_count_candidates(const TopologyArgs<T>& a,
                                                                const TopologyCandidates<T>& found, int64_t begin,
                                                                int64_t end))
SG_DECLARE(template <typename T> void topology_emit_candidates(const TopologyArgs<T>& a,
                                                               const TopologyCandidates<T>& found, int64_t begin,
                                                               int64_t end))

}  // namespace sparsegnn
