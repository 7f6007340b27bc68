// sddmm / cuda
//
//   out[e] = sum over j of  a[row(e), j] * b[col[e], j]          for every edge e of a CSR pattern
//   with arg: only where arg[row(e), j] == e                     (gradient of edge values under max and min)
//
// layout     CSR: crow[M+1], col[E] int32; a[M, K], b[N, K] row-major; out[E]
// work       2*E*K flop; E*(4 + K*s) bytes without reuse (a's rows stay in cache)
// schedule   a group of 1..32 lanes takes 16 consecutive edges, four at a time, whatever rows they lie in: hubs need no
//            special care. V = 16 bytes of T a lane where K and the pointers allow, else 1; the dot product is summed
//            by shuffles; 256 threads a block, no shared memory
// numerics   sums in acc_t<T> in an order fixed by K alone
// see        sparsegnn/ops/sddmm.py, tests/csrc/test_sddmm.py, benchmarks/ops/bench_sddmm.py
#pragma once
#include "../common/gpu.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct SddmmArguments {  // device pointers
  const T *a, *b;
  const int32_t *crow, *col;
  const int32_t* arg;  // null: every column counts
  T* out;
  int64_t rows, width, edges;
};

constexpr int kSddmmThreads = 256;
constexpr int kSddmmEdges = 16, kSddmmUnroll = 4;

template <typename T, int V>
__global__ void __launch_bounds__(kSddmmThreads) sddmm_kernel(SddmmArguments<T> s, int lanes) {
  const int lane = threadIdx.x % lanes;
  const int64_t group = int64_t{blockIdx.x} * (kSddmmThreads / lanes) + threadIdx.x / lanes;
  const int64_t first = group * kSddmmEdges, last = s.edges - 1;
  int64_t r = row_of_edge(s.crow, s.rows, min(first, last));
  for (int i = 0; i < kSddmmEdges; i += kSddmmUnroll) {
    acc_t<T> dot[kSddmmUnroll] = {};
#pragma unroll
    for (int u = 0; u < kSddmmUnroll; ++u) {
      const int64_t e = min(first + i + u, last);  // beyond the end: repeat the last, for the shuffles' sake
      while (s.crow[r + 1] <= e) ++r;
      const T *a = s.a + r * s.width, *b = s.b + int64_t{s.col[e]} * s.width;
      for (int64_t j = lane * V; j < s.width; j += lanes * V) {
        const vec<T, V> x = load<V>(a + j), y = load<V>(b + j);
        if (s.arg) {
          const vec<int32_t, V> arg = load<V>(s.arg + r * s.width + j);
          for (int v = 0; v < V; ++v) dot[u] += arg[v] == e ? to_acc(x[v]) * to_acc(y[v]) : acc_t<T>(0);
        } else {
          for (int v = 0; v < V; ++v) dot[u] += to_acc(x[v]) * to_acc(y[v]);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kSddmmUnroll; ++u) {
      const acc_t<T> sum = warp_sum(dot[u], lanes);
      if (lane == u % lanes && first + i + u <= last) s.out[first + i + u] = from_acc<T>(sum);
    }
  }
}

template <typename T>
cudaError_t launch_sddmm(const SddmmArguments<T>& s, cudaStream_t stream) {
  if (s.edges == 0) return cudaSuccess;
  constexpr int V = kVector<T>;
  const bool vectors = can_vectorise(V, s.width, s.a, s.b) && (!s.arg || can_vectorise(V, s.width, s.arg));
  const int lanes = group_lanes(ceil_div(s.width, vectors ? V : 1));
  const int64_t groups = ceil_div(s.edges, kSddmmEdges);
  const dim3 grid(static_cast<unsigned>(ceil_div(groups, kSddmmThreads / lanes)));
  return launch(vectors ? sddmm_kernel<T, V> : sddmm_kernel<T, 1>, grid, kSddmmThreads, 0, stream, s, lanes);
}

}  // namespace sparsegnn::cuda
