// gatv2 / cuda
//
//   z = x_src[j, h, :] + x_dst[i, h, :] + edge[e, h, :],   s[e, h] = sum_c att[h, c] leaky(z)[c]
//   alpha = softmax of s over the edges of row i;  y[i, h, :] = sum m alpha x_src[j, h, :];  lse = log sum exp(s)
//   backward, with D[i, h] = <dy, y>, l' the slope of leaky at z and de[e, h] = alpha (m <dy[i, h], x_src[j, h]> - D):
//   dx_dst[i] = att sum_row de l';   dx_src[j] = sum m alpha dy[i] + att sum_source de l'
//   datt = sum de leaky(z);          dedge = de att l'
//
// layout     CSR crow[M+1], col[E] and its transpose ccol[N+1], row[E], perm[E] int32; features [N or M, H, D] and edge
//            [E, H, D] in T; att[H, D], lse[M, H], datt in acc_t<T>; seed int64[1]
// work       5, 9 and 11 E*H*D flop; E*H*D*s bytes forward, 3 of them backward; O(M*H) of workspace, and datt's parts
// schedule   a warp owns a row (or a source) and a head, and 128 of its columns; its lanes share the dot product of an
//            edge. datt in one part per strip of rows, which a second kernel adds in order
// numerics   online softmax; sums in acc_t<T>, fixed order: the same bits in every run
// see        sparsegnn/ops/gatv2.py, tests/csrc/test_gatv2.py, benchmarks/ops/bench_gatv2.py
#pragma once
#include "gat.cuh"

namespace sparsegnn::cuda {

template <typename T>
struct Gatv2Edges {
  GatScores<acc_t<T>> scores;     // heads, width, slope and dropout; no scores of nodes
  const T *x_src, *x_dst, *edge;  // edge may be null
  const acc_t<T>* att;
  int64_t rows, cols, edges;
};

template <typename T>
struct Gatv2Arguments : Gatv2Edges<T> {
  const int32_t *crow, *col;
  T* y;
  acc_t<T>* lse;  // null when nothing is saved
};

template <typename T>
struct Gatv2BackwardArguments : Gatv2Edges<T> {
  const int32_t *crow, *col, *ccol, *row, *perm;
  const T *dy, *y;
  const acc_t<T>* lse;
  T *dx_src, *dx_dst, *dedge;  // dedge may be null
  acc_t<T>* datt;
};

constexpr int kGatv2Threads = 128;  // four warps
constexpr int kGatv2Columns = 4;    // of a lane
constexpr int64_t kGatv2Slice = kWarp * kGatv2Columns;

// Strips of rows that share a part of datt.
inline int64_t gatv2_strip(int64_t rows) { return max<int64_t>(1, ceil_div(rows, 2048)); }

// One (row or source, head) as a warp sees it: `own` and `other` are the head's columns at both ends of an edge.
template <typename T>
struct Gatv2Warp {
  using A = acc_t<T>;
  const Gatv2Edges<T>& a;
  const A* att;
  int64_t h, width;
  int lane;

  __device__ Gatv2Warp(const Gatv2Edges<T>& edges, int64_t head)
      : a(edges),
        att(edges.att + head * edges.scores.width),
        h(head),
        width(edges.scores.width),
        lane(threadIdx.x % kWarp) {}
  __device__ int64_t at(int64_t n) const { return (n * a.scores.heads + h) * width; }
  __device__ A sum_under_leaky(const T* own, const T* other, int64_t e, int64_t c) const {
    const A z = to_acc(own[c]) + to_acc(other[c]);
    return a.edge ? z + to_acc(a.edge[at(e) + c]) : z;
  }
  __device__ A score(const T* own, const T* other, int64_t e) const {
    A sum = 0;
    for (int64_t c = lane; c < width; c += kWarp) sum += att[c] * a.scores.leaky(sum_under_leaky(own, other, e, c));
    return warp_sum(sum);
  }
  __device__ A product(const T* u, const T* v) const {
    A sum = 0;
    for (int64_t c = lane; c < width; c += kWarp) sum += to_acc(u[c]) * to_acc(v[c]);
    return warp_sum(sum);
  }
  // Column k of this lane in slice blockIdx.y.
  __device__ int64_t column(int k) const { return int64_t{blockIdx.y} * kGatv2Slice + k * kWarp + lane; }
};

__device__ __forceinline__ int64_t gatv2_warp() {
  return int64_t{blockIdx.x} * (kGatv2Threads / kWarp) + threadIdx.x / kWarp;
}

template <typename T>
__global__ void __launch_bounds__(kGatv2Threads) gatv2_kernel(Gatv2Arguments<T> a) {
  using A = acc_t<T>;
  const int64_t n = gatv2_warp(), r = n / a.scores.heads;
  if (r >= a.rows) return;
  const Gatv2Warp<T> w(a, n % a.scores.heads);
  const RandomKey key = a.scores.key();
  A top = -A(INFINITY), total = 0, sum[kGatv2Columns] = {};
  for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
    const T* x = a.x_src + w.at(a.col[e]);
    const A score = w.score(a.x_dst + w.at(r), x, e), next = max(top, score);
    const A base = next == -A(INFINITY) ? A(0) : next;  // until a score is finite the sums are 0 and stay so
    const A factor = exponential(top - base), p = exponential(score - base), kept = p * a.scores.keep(key, e, w.h);
    top = next;
    total = total * factor + p;
    for (int k = 0; k < kGatv2Columns; ++k)
      if (w.column(k) < w.width) sum[k] = sum[k] * factor + kept * to_acc(x[w.column(k)]);
  }
  const bool any = a.crow[r] < a.crow[r + 1];
  const A scale = any ? a.scores.scale() / total : A(0);
  for (int k = 0; k < kGatv2Columns; ++k)
    if (w.column(k) < w.width) a.y[w.at(r) + w.column(k)] = from_acc<T>(sum[k] * scale);
  if (a.lse && blockIdx.y == 0 && w.lane == 0) a.lse[n] = any ? top + logarithm(total) : -A(INFINITY);
}

// A warp for each (strip of rows, head): dx_dst, dedge, D, and the strip's part of datt.
template <typename T>
__global__ void __launch_bounds__(kGatv2Threads)
    gatv2_rows_kernel(Gatv2BackwardArguments<T> a, int64_t strip, acc_t<T>* node, acc_t<T>* part) {
  using A = acc_t<T>;
  const int64_t n = gatv2_warp(), s = n / a.scores.heads;
  if (s * strip >= a.rows) return;
  const Gatv2Warp<T> w(a, n % a.scores.heads);
  const RandomKey key = a.scores.key();
  const A scale = a.scores.scale();
  A datt[kGatv2Columns] = {};
  for (int64_t r = s * strip; r < min((s + 1) * strip, a.rows); ++r) {
    const T *own = a.x_dst + w.at(r), *dy = a.dy + w.at(r);
    const A flow = w.product(dy, a.y + w.at(r)), lse = a.lse[r * a.scores.heads + w.h];
    if (blockIdx.y == 0 && w.lane == 0) node[r * a.scores.heads + w.h] = flow;
    A sum[kGatv2Columns] = {};
    for (int64_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      const T* x = a.x_src + w.at(a.col[e]);
      const A alpha = exponential(w.score(own, x, e) - lse);
      const A de = alpha * (a.scores.keep(key, e, w.h) * scale * w.product(dy, x) - flow);
      for (int k = 0; k < kGatv2Columns; ++k) {
        const int64_t c = w.column(k);
        if (c >= w.width) continue;
        const A z = w.sum_under_leaky(own, x, e, c), sloped = de * a.scores.slope(z);
        sum[k] += sloped;
        datt[k] += sloped * z;
        if (a.dedge) a.dedge[w.at(e) + c] = from_acc<T>(sloped * w.att[c]);
      }
    }
    for (int k = 0; k < kGatv2Columns; ++k)
      if (w.column(k) < w.width) a.dx_dst[w.at(r) + w.column(k)] = from_acc<T>(sum[k] * w.att[w.column(k)]);
  }
  for (int k = 0; k < kGatv2Columns; ++k)
    if (w.column(k) < w.width) part[w.at(s) + w.column(k)] = datt[k];
}

// A warp for each (source, head): dx_src.
template <typename T>
__global__ void __launch_bounds__(kGatv2Threads)
    gatv2_sources_kernel(Gatv2BackwardArguments<T> a, const acc_t<T>* node) {
  using A = acc_t<T>;
  const int64_t n = gatv2_warp(), j = n / a.scores.heads;
  if (j >= a.cols) return;
  const Gatv2Warp<T> w(a, n % a.scores.heads);
  const RandomKey key = a.scores.key();
  const A scale = a.scores.scale();
  const T* own = a.x_src + w.at(j);
  A sum[kGatv2Columns] = {}, slopes[kGatv2Columns] = {};
  for (int64_t t = a.ccol[j]; t < a.ccol[j + 1]; ++t) {
    const int64_t i = a.row[t], e = a.perm[t];
    const T *other = a.x_dst + w.at(i), *dy = a.dy + w.at(i);
    const A alpha = exponential(w.score(own, other, e) - a.lse[i * a.scores.heads + w.h]);
    const A kept = alpha * a.scores.keep(key, e, w.h) * scale;
    const A de = kept * w.product(dy, own) - alpha * node[i * a.scores.heads + w.h];
    for (int k = 0; k < kGatv2Columns; ++k) {
      const int64_t c = w.column(k);
      if (c >= w.width) continue;
      sum[k] += kept * to_acc(dy[c]);
      slopes[k] += de * a.scores.slope(w.sum_under_leaky(own, other, e, c));
    }
  }
  for (int k = 0; k < kGatv2Columns; ++k) {
    const int64_t c = w.column(k);
    if (c < w.width) a.dx_src[w.at(j) + c] = from_acc<T>(sum[k] + w.att[c] * slopes[k]);
  }
}

// datt = the sum of its parts, in order.
template <typename A>
__global__ void __launch_bounds__(kGatv2Threads)
    gatv2_parts_kernel(const A* part, int64_t columns, int64_t parts, A* sum) {
  const int64_t c = int64_t{blockIdx.x} * kGatv2Threads + threadIdx.x;
  if (c >= columns) return;
  A s = 0;
  for (int64_t p = 0; p < parts; ++p) s += part[p * columns + c];
  sum[c] = s;
}

// ---- launchers

inline dim3 gatv2_grid(int64_t items, int64_t width) {
  return dim3(static_cast<unsigned>(ceil_div(items, kGatv2Threads / kWarp)),
              static_cast<unsigned>(ceil_div(width, kGatv2Slice)));
}

template <typename T>
cudaError_t launch_gatv2(const Gatv2Arguments<T>& a, cudaStream_t stream) {
  const int64_t heads = a.scores.heads, width = a.scores.width;
  if (a.rows * heads * width == 0) return cudaSuccess;
  return launch(gatv2_kernel<T>, gatv2_grid(a.rows * heads, width), kGatv2Threads, 0, stream, a);
}

// D of every (row, head), and the parts of datt.
template <typename T>
int64_t gatv2_workspace_bytes(int64_t rows, int64_t heads, int64_t width) {
  return (rows + ceil_div(rows, gatv2_strip(rows)) * width) * heads * sizeof(acc_t<T>);
}

// workspace: gatv2_workspace_bytes<T>(...), aligned to acc_t<T>.
template <typename T>
cudaError_t launch_gatv2_backward(const Gatv2BackwardArguments<T>& a, void* workspace, cudaStream_t stream) {
  using A = acc_t<T>;
  const int64_t heads = a.scores.heads, width = a.scores.width, columns = heads * width;
  if (columns == 0) return cudaSuccess;
  const int64_t strip = gatv2_strip(a.rows), strips = ceil_div(a.rows, strip);
  A *node = static_cast<A*>(workspace), *part = node + a.rows * heads;
  cudaError_t error = cudaSuccess;
  if (strips > 0)
    error =
        launch(gatv2_rows_kernel<T>, gatv2_grid(strips * heads, width), kGatv2Threads, 0, stream, a, strip, node, part);
  if (error == cudaSuccess)
    error = launch(gatv2_parts_kernel<A>, dim3(static_cast<unsigned>(ceil_div(columns, kGatv2Threads))), kGatv2Threads,
                   0, stream, part, columns, strips, a.datt);
  if (error != cudaSuccess || a.cols == 0) return error;
  return launch(gatv2_sources_kernel<T>, gatv2_grid(a.cols * heads, width), kGatv2Threads, 0, stream, a, node);
}

}  // namespace sparsegnn::cuda
