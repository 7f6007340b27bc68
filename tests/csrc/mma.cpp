// Tensor cores alone: test_mma.py compares products by fragments with products of matrices.
#include "common/mma.cuh"

#include "binding.h"

namespace sparsegnn::emulated {
namespace {

// Where the PTX manual puts element i of a lane's fragment, in its own words: groupID and threadID_in_group.
struct Place {
  int row, column;
};
template <typename T>
__device__ Place place_of_a(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (sizeof(T) == 4) return {i == 0 || i == 2 ? group : group + 8, i < 2 ? thread : thread + 4};
  return {i < 2 || (i >= 4 && i < 6) ? group : group + 8, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
template <typename T>
__device__ Place place_of_b(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if (sizeof(T) == 4) return {i == 0 ? thread : thread + 4, group};
  return {thread * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}

__device__ uint32_t words(const float* x) { return cuda::tf32(*x); }
template <typename T>
__device__ uint32_t words(const T* x) {
  return cuda::word_of(x[0], x[1]);
}

template <typename T>
__global__ void mma_kernel(const T* a, const T* b, float* d) {
  constexpr int kDepth = cuda::kMmaDepth<T>, kParts = cuda::kWordElements<T>;
  const int lane = threadIdx.x, group = lane >> 2, thread = lane % 4;
  T as[4 * kParts], bs[2 * kParts];
  for (int i = 0; i < 4 * kParts; ++i) {
    const Place p = place_of_a<T>(lane, i);
    as[i] = a[p.row * kDepth + p.column];
  }
  for (int i = 0; i < 2 * kParts; ++i) {
    const Place p = place_of_b<T>(lane, i);
    bs[i] = b[p.row * 8 + p.column];
  }
  uint32_t a_words[4], b_words[2];
  for (int i = 0; i < 4; ++i) a_words[i] = words(as + i * kParts);
  for (int i = 0; i < 2; ++i) b_words[i] = words(bs + i * kParts);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = d[(i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1)];
  cuda::mma<T>(sum, a_words, b_words);
  for (int i = 0; i < 4; ++i) d[(i < 2 ? group : group + 8) * 8 + thread * 2 + (i & 1)] = sum[i];
}

// d + a b, where lanes are a warp, or fewer.
py::object mma_product(const py::array& a, const py::array& b, const py::array& d, unsigned lanes) {
  return by_dtype(a, [&](auto scalar) -> py::object {
    using T = decltype(scalar);
    if constexpr (sizeof(T) == 8) throw py::type_error("tensor cores take no float64 here");
    if constexpr (sizeof(T) < 8) {
      Array<T> left(a), right(b);
      Array<float> sum(d);
      check(cuda::launch(mma_kernel<T>, 1, lanes, 0, nullptr, left.data(), right.data(), sum.data()));
      return sum.numpy();
    }
  });
}

py::array to_tf32(const py::array& x) {
  Array<float> a(x), y({x.size()});
  std::transform(a.data(), a.data() + a.size(), y.data(), [](float v) { return __uint_as_float(cuda::tf32(v)); });
  return y.numpy();
}

}  // namespace

SG_BINDINGS(m) {
  m.def("mma_product", &mma_product, py::arg("a"), py::arg("b"), py::arg("d"), py::arg("lanes") = 32);
  m.def("to_tf32", &to_tf32);
  m.def("byte_perm", [](unsigned x, unsigned y, unsigned selector) { return __byte_perm(x, y, selector); });
}

}  // namespace sparsegnn::emulated
