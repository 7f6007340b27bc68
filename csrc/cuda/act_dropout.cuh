// act_dropout / cuda
//
//   y = kept * scale * act(x + bias)      act: none, relu, elu; kept: 0 or 1 by the bits of (seed, row, column)
//   dx = dy * kept * scale * act',  dbias = its sums over rows
//
// layout     x, y, dy, dx [N, F] row-major
// work       forward N*F reads and writes; backward reads dy and, with an activation, y, and writes dx
// schedule   V columns a thread, up to 32 threads abreast on a row, 256 threads. A block owns a slab of so many columns
//            and a span of rows: the bits of a column, and its bias, are made once
// backward   relu needs y alone, elu makes act' of y (csrc/cpu/act_dropout.kernel.cpp)
// numerics   dbias: sums of spans, whose number depends on the shape alone; threads of a block, and then the spans, are
//            added in order
// see        sparsegnn/ops/act_dropout.py, tests/csrc/test_act_dropout.py, benchmarks/ops/bench_act_dropout.py
#pragma once
#include "sparse_linear_backward.cuh"

namespace sparsegnn::cuda {

enum class Activation : int { none, relu, elu };

template <typename T>
struct ActDropoutArguments {
  const T *x, *bias;  // bias may be null
  T* y;
  int64_t rows, width;
  LinearEpilogue<acc_t<T>> how;  // dropout
};

template <typename T>
struct ActDropoutBackwardArguments {
  const T *dy, *y;  // y: null without an activation
  T *dx, *dbias;    // may be null
  int64_t rows, width;
  LinearEpilogue<acc_t<T>> how;
  acc_t<T> inverse_scale;
};

constexpr int kActThreads = 256, kActSpans = 256, kActLeastRows = 32;

// Which threads have which elements; the spans depend on the shape alone, the lanes on V too.
struct ActPlan {
  int lanes;  // threads abreast
  int64_t slabs, span, spans;
};

inline ActPlan act_plan(int64_t rows, int64_t width, int V) {
  const int lanes = group_lanes(width / V);
  const int64_t span = max<int64_t>(kActLeastRows, ceil_div(rows, kActSpans));
  return {lanes, ceil_div(width / V, lanes), span, ceil_div(rows, span)};
}

__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }

// The bits of V columns from the first on.
template <int V, typename A>
struct ActDropper {
  const LinearEpilogue<A>& how;
  RandomKey key = {0, 0};
  uint32_t head[V];

  __device__ __forceinline__ ActDropper(const LinearEpilogue<A>& epilogue, int64_t column) : how(epilogue) {
    if (how.seed) key = random_key(*how.seed);
#pragma unroll
    for (int v = 0; v < V; ++v) head[v] = random_head(key, static_cast<uint32_t>(column + v));
  }
  __device__ __forceinline__ uint32_t row(int64_t r) const { return random_edge(key, static_cast<uint32_t>(r)); }
  __device__ __forceinline__ A keep(A x, uint32_t row, int v) const {
    if (!how.seed) return x;
    return random_bits(row, head[v]) >= how.threshold ? x * how.scale : A(0);
  }
};

template <typename T, int V, Activation act>
__global__ void __launch_bounds__(kActThreads) act_dropout_kernel(ActDropoutArguments<T> a, ActPlan plan) {
  using A = acc_t<T>;
  const int groups = kActThreads / plan.lanes, group = threadIdx.x / plan.lanes;
  const int64_t column = (int64_t{blockIdx.x} % plan.slabs * plan.lanes + threadIdx.x % plan.lanes) * V;
  const int64_t begin = blockIdx.x / plan.slabs * plan.span, end = min(begin + plan.span, a.rows);
  if (column >= a.width) return;
  const ActDropper<V, A> dropper(a.how, column);
  A bias[V] = {};
  if (a.bias)
#pragma unroll
    for (int v = 0; v < V; ++v) bias[v] = to_acc(a.bias[column + v]);
  for (int64_t r = begin + group; r < end; r += groups) {
    vec<T, V> x = load<V>(a.x + r * a.width + column);
    const uint32_t row = dropper.row(r);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A z = to_acc(x[v]) + bias[v];
      if (act == Activation::relu && z < A(0)) z = 0;
      if (act == Activation::elu && !(z > A(0))) z = expm1_of(z);
      x[v] = from_acc<T>(dropper.keep(z, row, v));
    }
    store(a.y + r * a.width + column, x);
  }
}

// partial[span, F], or null.
template <typename T, int V, Activation act>
__global__ void __launch_bounds__(kActThreads)
    act_dropout_backward_kernel(ActDropoutBackwardArguments<T> a, ActPlan plan, acc_t<T>* partial) {
  using A = acc_t<T>;
  SG_SHARED(A, sums);  // [groups][lanes * V]
  const int groups = kActThreads / plan.lanes, group = threadIdx.x / plan.lanes, lane = threadIdx.x % plan.lanes;
  const int64_t column = (int64_t{blockIdx.x} % plan.slabs * plan.lanes + lane) * V;
  const int64_t span = blockIdx.x / plan.slabs, begin = span * plan.span, end = min(begin + plan.span, a.rows);
  const bool inside = column < a.width;
  const ActDropper<V, A> dropper(a.how, column);
  A sum[V] = {};
  for (int64_t r = begin + group; inside && r < end; r += groups) {
    const int64_t at = r * a.width + column;
    vec<T, V> dy = load<V>(a.dy + at), y = {};
    if (act != Activation::none) y = load<V>(a.y + at);
    const uint32_t row = dropper.row(r);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A g = to_acc(dy[v]);
      if (act == Activation::elu && !(to_acc(y[v]) > A(0))) g *= to_acc(y[v]) * a.inverse_scale + 1;
      if (act == Activation::relu) {
        g = to_acc(y[v]) <= A(0) ? A(0) : g * a.how.scale;
      } else {
        g = dropper.keep(g, row, v);
      }
      sum[v] += g;
      dy[v] = from_acc<T>(g);
    }
    if (a.dx) store(a.dx + at, dy);
  }
  if (!partial) return;
#pragma unroll
  for (int v = 0; v < V; ++v) sums[threadIdx.x * V + v] = sum[v];
  __syncthreads();
  if (group > 0 || !inside) return;
  for (int g = 1; g < groups; ++g)
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += sums[(g * plan.lanes + lane) * V + v];
#pragma unroll
  for (int v = 0; v < V; ++v) partial[span * a.width + column + v] = sum[v];
}

// f of the activation as a constant.
template <typename F>
cudaError_t by_activation(Activation act, const F& f) {
  if (act == Activation::relu) return f(std::integral_constant<Activation, Activation::relu>{});
  if (act == Activation::elu) return f(std::integral_constant<Activation, Activation::elu>{});
  return f(std::integral_constant<Activation, Activation::none>{});
}

template <typename T>
cudaError_t launch_act_dropout(const ActDropoutArguments<T>& a, Activation act, cudaStream_t stream) {
  if (a.rows * a.width == 0) return cudaSuccess;
  return by_activation(act, [&](auto constant) {
    const auto run = [&](auto kernel, int V) {
      const ActPlan plan = act_plan(a.rows, a.width, V);
      return launch(kernel, static_cast<unsigned>(plan.slabs * plan.spans), kActThreads, 0, stream, a, plan);
    };
    if (can_vectorise(kVector<T>, a.width, a.x, a.y))
      return run(act_dropout_kernel<T, kVector<T>, decltype(constant)::value>, kVector<T>);
    return run(act_dropout_kernel<T, 1, decltype(constant)::value>, 1);
  });
}

template <typename T>
int64_t act_dropout_workspace_bytes(int64_t rows, int64_t width) {
  return act_plan(rows, width, 1).spans * width * sizeof(acc_t<T>);
}

// workspace: act_dropout_workspace_bytes<T>(...) where dbias is wanted.
template <typename T>
cudaError_t launch_act_dropout_backward(const ActDropoutBackwardArguments<T>& a, Activation act, void* workspace,
                                        cudaStream_t stream) {
  auto* partial = a.dbias ? static_cast<acc_t<T>*>(workspace) : nullptr;
  const bool vectors = can_vectorise(kVector<T>, a.width, a.dy, a.y, a.dx);  // null is aligned
  cudaError_t error = cudaSuccess;
  if (a.rows * a.width > 0 && (a.dx || a.dbias))
    error = by_activation(act, [&](auto constant) {
      const auto run = [&](auto kernel, int V) {
        const ActPlan plan = act_plan(a.rows, a.width, V);
        const size_t shared = partial ? kActThreads * V * sizeof(acc_t<T>) : 0;
        return launch(kernel, static_cast<unsigned>(plan.slabs * plan.spans), kActThreads, shared, stream, a, plan,
                      partial);
      };
      if (vectors) return run(act_dropout_backward_kernel<T, kVector<T>, decltype(constant)::value>, kVector<T>);
      return run(act_dropout_backward_kernel<T, 1, decltype(constant)::value>, 1);
    });
  if (error != cudaSuccess || !a.dbias || a.width == 0) return error;
  return launch_sparse_linear_partials(partial, act_plan(a.rows, a.width, 1).spans, a.width, a.dbias, stream);
}

}  // namespace sparsegnn::cuda
