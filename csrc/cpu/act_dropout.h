// Arguments of the act_dropout kernels; see act_dropout.kernel.cpp for the formulas.
#pragma once
#include "sparse_linear.h"

namespace sparsegnn {

enum class Activation : int { none, relu, elu };

// Strides are elements between rows; outputs have none between them.
template <typename T, typename A>
struct ActDropoutArgs {
  const T* x;
  const A* bias;  // [width] or null
  T* y;
  int64_t width, x_stride;
  Activation act;
  SparseLinearEpilogue<A> how;  // dropout
  bool stream;                  // write past the caches: rows of y are whole aligned cache lines
};

template <typename T, typename A>
struct ActDropoutBackwardArgs {
  const T *dy, *y;  // y: null without an activation
  T* dx;            // or null
  int64_t width, dy_stride;
  Activation act;
  SparseLinearEpilogue<A> how;
  A inverse_scale;
  bool stream;  // of dx
};

SG_DECLARE(template <typename T, typename A>
           void act_dropout_rows(const ActDropoutArgs<T, A>& a, int64_t begin, int64_t end))
// partial[width], or null: the sums over these rows.
SG_DECLARE(template <typename T, typename A> void act_dropout_backward_rows(const ActDropoutBackwardArgs<T, A>& a,
                                                                            int64_t begin, int64_t end, A* partial))

}  // namespace sparsegnn
