// Choice of instruction set at run time. Torch-free: included by kernels and entries.
//
// A kernel file `<op>.kernel.cpp` is compiled once per instruction set; SG_ISA names the namespace its functions live
// in. Everything it uses besides <cstdint>, <cstring> and builtins must sit in that namespace too, or code compiled for
// AVX-512 could be linked into a baseline caller.
#pragma once
#include <cstddef>
#include <cstdint>

// The build says which instruction sets it compiles: SG_HAVE_PORTABLE, SG_HAVE_AVX2, SG_HAVE_AVX512 (cmake/cpu.cmake).
#if !defined(SG_HAVE_AVX2) && !defined(SG_HAVE_AVX512) && !defined(SG_HAVE_PORTABLE)
#define SG_HAVE_PORTABLE
#endif

#ifndef SG_ISA
#define SG_ISA portable
#endif

#if defined(SG_HAVE_PORTABLE)
#define SG_IN_PORTABLE(...) \
  namespace portable {      \
  __VA_ARGS__;              \
  }
#else
#define SG_IN_PORTABLE(...)
#endif
#if defined(SG_HAVE_AVX2)
#define SG_IN_AVX2(...) \
  namespace avx2 {      \
  __VA_ARGS__;          \
  }
#define SG_IF_AVX2(...) ::sparsegnn::isa() == ::sparsegnn::Isa::avx2 ? avx2::__VA_ARGS__:
#else
#define SG_IN_AVX2(...)
#define SG_IF_AVX2(...)
#endif
#if defined(SG_HAVE_AVX512)
#define SG_IN_AVX512(...) \
  namespace avx512 {      \
  __VA_ARGS__;            \
  }
#define SG_IF_AVX512(...) ::sparsegnn::isa() == ::sparsegnn::Isa::avx512 ? avx512::__VA_ARGS__:
#else
#define SG_IN_AVX512(...)
#define SG_IF_AVX512(...)
#endif
#if defined(SG_HAVE_PORTABLE)
#define SG_LEAST portable
#elif defined(SG_HAVE_AVX2)
#define SG_LEAST avx2
#else
#define SG_LEAST avx512
#endif

// Declares a function in every namespace that the build compiles.
#define SG_DECLARE(...) SG_IN_PORTABLE(__VA_ARGS__) SG_IN_AVX2(__VA_ARGS__) SG_IN_AVX512(__VA_ARGS__)
// The function of the instruction set in use: SG_PICK(spmm_rows)(args).
#define SG_PICK(...) (SG_IF_AVX512(__VA_ARGS__) SG_IF_AVX2(__VA_ARGS__) SG_LEAST::__VA_ARGS__)

namespace sparsegnn {

enum class Isa { portable, avx2, avx512 };

// What the kernels use: the best of the build that the processor has, or what SPARSEGNN_ISA=portable|avx2|avx512 asks
// for. sparsegnn/_native.py does not load a library of which the processor has nothing.
Isa isa();
// The best of the build that the processor has.
Isa best_isa();

// Whether the kernels use AVX-512 and a core starts two of its multiply-adds a cycle. Cores that do have more than 32
// KiB of L1 data (Ice Lake and later, Zen 5), those that start one have not (Zen 4).
bool two_wide_fmas();

// Element types of kernels. The 16-bit ones are storage only: kernels widen them to float.
enum class Type : int { f32, f64, bf16, f16 };
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace sparsegnn
