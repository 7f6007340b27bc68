// Kernels with and without a planted bug: test_emulator.py expects the emulator to tell them apart.
#include "binding.h"

namespace sparsegnn::emulated {
namespace {

template <bool barrier>
__global__ void block_sum_kernel(const int* x, int* y) {
  SG_SHARED(int, s);
  const int t = threadIdx.x;
  s[t] = x[t];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (barrier) __syncthreads();
    if (t < half) s[t] += s[t + half];
    if (!barrier) __syncthreads();  // one too late
  }
  if (t == 0) *y = s[0];
}

int block_sum(const py::array& x, bool barrier) {
  Array<int> a(x), y({1});
  const unsigned n = static_cast<unsigned>(a.size());
  check(cuda::launch(barrier ? block_sum_kernel<true> : block_sum_kernel<false>, 1, n, n * sizeof(int), nullptr,
                     a.data(), y.data()));
  return *y.data();
}

__global__ void warp_sum_kernel(const float* x, float* y, int width) {
  y[threadIdx.x] = cuda::warp_sum(x[threadIdx.x], width);
}

py::array warp_sums(const py::array& x, int width) {
  Array<float> a(x), y({x.size()});
  check(cuda::launch(warp_sum_kernel, 1, static_cast<unsigned>(a.size()), 0, nullptr, a.data(), y.data(), width));
  return y.numpy();
}

// What threads of one block do when they part ways.
enum class Divergence { barrier_in_branch, return_before_barrier, missing_lane, other_intrinsic, barrier_against_warp };

__global__ void divergent_kernel(Divergence kind) {
  const bool odd = threadIdx.x % 2;
  switch (kind) {
    case Divergence::barrier_in_branch:
      if (odd) __syncthreads();
      if (!odd) __syncwarp(0x55555555u);
      if (!odd) return;
      break;
    case Divergence::return_before_barrier:
      if (odd) return;
      __syncthreads();
      break;
    case Divergence::missing_lane:
      if (odd) __shfl_sync(0x55555555u, 1, 0);
      break;
    case Divergence::other_intrinsic:
      if (odd) __syncwarp();
      if (!odd) __ballot_sync(cuda::kFullMask, 1);
      break;
    case Divergence::barrier_against_warp:
      if (odd) __syncthreads();
      if (!odd) __syncwarp();
      break;
  }
}

__global__ void copy_kernel(const float* x, float* y, int64_t from) { y[threadIdx.x] = x[threadIdx.x + from]; }

// Reads x[from : from + len(x)]: past the end unless from is 0.
py::array copy_from(const py::array& x, int64_t from) {
  Array<float> a(x), y({x.size()});
  check(cuda::launch(copy_kernel, 1, static_cast<unsigned>(a.size()), 0, nullptr, a.data(), y.data(), from));
  return y.numpy();
}

__global__ void shared_kernel(float* y, int at) {
  SG_SHARED(float, s);
  if (threadIdx.x == 0) s[at] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

// Writes element `at` of a shared array with `n` elements, returns all.
py::array shared_write(int n, int at) {
  Array<float> y({n});
  check(cuda::launch(shared_kernel, 1, static_cast<unsigned>(n), n * sizeof(float), nullptr, y.data(), at));
  return y.numpy();
}

__global__ void vector_kernel(const float* x, float* y, int64_t from) { cuda::store(y, cuda::load<4>(x + from)); }

void vector_copy(const py::array& x, int64_t from) {
  Array<float> a(x), y({4});
  check(cuda::launch(vector_kernel, 1, 1, 0, nullptr, a.data(), y.data(), from));
}

template <typename T>
__global__ void convert_kernel(const float* x, T* y, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = cuda::from_acc<T>(x[i]);
}

py::array to_bf16(const py::array& x) {
  Array<float> a(x);
  Array<bf16> y({x.size()});
  check(cuda::launch(convert_kernel<bf16>, static_cast<unsigned>(cuda::ceil_div(a.size(), 256)), 256, 0, nullptr,
                     a.data(), y.data(), a.size()));
  return y.numpy();
}

py::array to_fp16(const py::array& x) {
  Array<float> a(x);
  Array<fp16> y({x.size()});
  check(cuda::launch(convert_kernel<fp16>, static_cast<unsigned>(cuda::ceil_div(a.size(), 256)), 256, 0, nullptr,
                     a.data(), y.data(), a.size()));
  return y.numpy();
}

py::array widen(const py::array& x) {
  Array<float> y({x.size()});
  if (x.dtype().is(dtype_of<bf16>())) {
    Array<bf16> a(x);
    std::transform(a.data(), a.data() + a.size(), y.data(), [](bf16 v) { return cuda::to_acc(v); });
  } else {
    Array<fp16> a(x);
    std::transform(a.data(), a.data() + a.size(), y.data(), [](fp16 v) { return cuda::to_acc(v); });
  }
  return y.numpy();
}

int launch_error(unsigned grid, unsigned block, size_t shared_bytes) {
  return cuda::launch(divergent_kernel, grid, block, shared_bytes, nullptr, Divergence{99});
}

}  // namespace

SG_BINDINGS(m) {
  m.def("planted_block_sum", &block_sum, py::arg("x"), py::arg("barrier"));
  m.def("planted_warp_sums", &warp_sums);
  m.def("planted_divergence", [](int kind, unsigned threads) {
    check(cuda::launch(divergent_kernel, 1, threads, 0, nullptr, Divergence(kind)));
  });
  m.def("planted_copy_from", &copy_from);
  m.def("planted_shared_write", &shared_write);
  m.def("planted_vector_copy", &vector_copy);
  m.def("planted_launch_error", &launch_error);
  m.def("to_bf16", &to_bf16);
  m.def("to_fp16", &to_fp16);
  m.def("widen", &widen);
}

}  // namespace sparsegnn::emulated
