// binding.h: what the bindings tests/csrc/<op>.cpp share. Arrays are copied to allocations of exactly their size, so
// that ASan sees one element too many; outputs start as 0xFF bytes, which read as NaN or -1.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/gpu.cuh"

namespace sparsegnn::emulated {

namespace py = pybind11;
using cuda::acc_t;
using cuda::bf16;
using cuda::fp16;

// Every file registers its functions: SG_BINDINGS(m) { m.def(...); }
using Binder = void (*)(py::module_&);
std::vector<Binder>& binders();
#define SG_BINDINGS(m) SG_BINDINGS_AS(m, __COUNTER__)
#define SG_BINDINGS_AS(m, number) SG_BINDINGS_NAMED(m, number)
#define SG_BINDINGS_NAMED(m, number)                                                                 \
  static void bind##number(py::module_& m);                                                          \
  static const bool bound##number = (sparsegnn::emulated::binders().push_back(&bind##number), true); \
  static void bind##number([[maybe_unused]] py::module_& m)

// Elements that arrays are moved off their alignment; set by a test.
int64_t& misalignment();

// numpy has no bfloat16: its bits travel as uint16.
template <typename T>
py::dtype dtype_of() {
  if constexpr (std::is_same_v<T, bf16>) return py::dtype("uint16");
  if constexpr (std::is_same_v<T, fp16>) return py::dtype("float16");
  if constexpr (!std::is_same_v<T, bf16> && !std::is_same_v<T, fp16>) return py::dtype::of<T>();
}

// "Device" memory: exactly `size` elements.
template <typename T>
class Array {
 public:
  explicit Array(std::vector<py::ssize_t> shape) : shape_(std::move(shape)), size_(1) {
    for (py::ssize_t n : shape_) size_ *= n;
    const size_t bytes = (size_ + shift_) * sizeof(T);
    bytes_.reset(static_cast<char*>(std::malloc(bytes)));
    std::memset(bytes_.get(), 0xFF, bytes);
    allocation_ = std::make_unique<emulator::Allocation>(bytes_.get(), bytes);
  }
  explicit Array(const py::array& source) : Array(shape_of(source)) {
    if (!source.dtype().is(dtype_of<T>()))
      throw py::type_error("expected " + std::string(py::str(dtype_of<T>())) + ", got " +
                           std::string(py::str(source.dtype())));
    const py::array dense = py::array::ensure(source, py::array::c_style);
    std::memcpy(data(), dense.data(), size_ * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(bytes_.get()) + shift_; }
  int64_t size() const { return size_; }
  py::array numpy() {
    py::array out(dtype_of<T>(), shape_);
    std::memcpy(out.mutable_data(), data(), size_ * sizeof(T));
    return out;
  }

 private:
  static std::vector<py::ssize_t> shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::vector<py::ssize_t> shape_;
  int64_t size_;
  const int64_t shift_ = misalignment();
  std::unique_ptr<char, Free> bytes_;
  std::unique_ptr<emulator::Allocation> allocation_;
};

// A number that kernels read from the device.
template <typename T>
Array<T> on_device(T value) {
  Array<T> one({1});
  *one.data() = value;
  return one;
}

// An argument that may be None: data() is then null.
template <typename T>
class Optional {
 public:
  explicit Optional(const py::object& source) {
    if (!source.is_none()) array_ = std::make_unique<Array<T>>(py::array::ensure(source));
  }
  T* data() { return array_ ? array_->data() : nullptr; }

 private:
  std::unique_ptr<Array<T>> array_;
};

// Spans of rows, [S, 2], or None.
class Spans {
 public:
  explicit Spans(const py::object& source) : array_(source), count_(source.is_none() ? 0 : py::len(source)) {}
  template <typename List>
  operator List() {
    return {array_.data(), count_};
  }

 private:
  Optional<int32_t> array_;
  int64_t count_;
};

// Calls f(T{}) with the element type of the array: the types that this build has, CMakeLists.txt says which.
template <typename F>
auto by_dtype(const py::array& a, F f) {
  if (a.dtype().is(dtype_of<float>())) return f(float{});
#if !defined(SG_NO_FP64)
  if (a.dtype().is(dtype_of<double>())) return f(double{});
#endif
#if !defined(SG_NO_FP16)
  if (a.dtype().is(dtype_of<fp16>())) return f(fp16{});
#endif
#if !defined(SG_NO_BF16)
  if (a.dtype().is(dtype_of<bf16>())) return f(bf16{});
#endif
  throw py::type_error("expected float32, float64, float16 or uint16 (bfloat16 bits)");
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("CUDA error " + std::to_string(int(error)));
}

}  // namespace sparsegnn::emulated
