// Arguments of the sddmm kernel; see sddmm.kernel.cpp for the formula.
#pragma once
#include "isa.h"

namespace sparsegnn {

template <typename T>
struct SddmmArgs {
  const int32_t *crow, *col;
  const T *a, *b;
  T* out;
  int64_t width;
};

SG_DECLARE(template <typename T> void sddmm_rows(const SddmmArgs<T>& s, int64_t begin, int64_t end))

}  // namespace sparsegnn
