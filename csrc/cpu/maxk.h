// Arguments of the maxk kernels; see maxk.kernel.cpp for the formulas.
#pragma once
#include "isa.h"

namespace sparsegnn {

// Columns of compressed rows are uint8_t up to this width, int16_t above it.
constexpr int64_t maxk_narrow_width = 256;
constexpr int64_t maxk_most_columns = 1 << 15;

template <typename T>
struct MaxkArgs {
  const T* x;
  T* values;
  void* index;
  int64_t width, k;
  int64_t group, kept;  // columns of a group, and how many of them stay; group == width and kept == k without groups
  float guess;          // how many standard deviations above the mean the least entry kept is, in normal data
};

// dense = expanded compressed, or compressed = gathered dense
template <typename T>
struct MaxkCopyArgs {
  const T* from;
  const void* index;
  T* to;
  int64_t width, k;
  bool stream;  // write past the caches: rows are whole aligned cache lines
};

SG_DECLARE(template <typename T, typename I> void maxk_rows(const MaxkArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename I>
           void maxk_expand_rows(const MaxkCopyArgs<T>& a, int64_t begin, int64_t end))
SG_DECLARE(template <typename T, typename I>
           void maxk_gather_rows(const MaxkCopyArgs<T>& a, int64_t begin, int64_t end))

}  // namespace sparsegnn
