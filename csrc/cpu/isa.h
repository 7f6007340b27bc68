// Choice of instruction set at run time. Torch-free: included by kernels and entries.
//
// A kernel file `<op>.kernel.cpp` is compiled once per instruction set; SG_ISA names the namespace its functions live
// in. Everything it uses besides <cstdint>, <cstring> and builtins must sit in that namespace too, or code compiled for
// AVX-512 could be linked into a baseline caller.
#pragma once
#include <cstddef>
#include <cstdint>

#ifndef SG_ISA
#define SG_ISA portable
#endif

// Declares `function` in every namespace that the build compiles.
#if defined(SG_HAVE_X86)
#define SG_DECLARE(...) \
  namespace portable {  \
  __VA_ARGS__;          \
  }                     \
  namespace avx2 {      \
  __VA_ARGS__;          \
  }                     \
  namespace avx512 {    \
  __VA_ARGS__;          \
  }
// The function of the instruction set in use: SG_PICK(spmm_rows)(args).
#define SG_PICK(...)                                                    \
  (::sparsegnn::isa() == ::sparsegnn::Isa::avx512 ? avx512::__VA_ARGS__ \
   : ::sparsegnn::isa() == ::sparsegnn::Isa::avx2 ? avx2::__VA_ARGS__   \
                                                  : portable::__VA_ARGS__)
#else
#define SG_DECLARE(...) \
  namespace portable {  \
  __VA_ARGS__;          \
  }
#define SG_PICK(...) (portable::__VA_ARGS__)
#endif

namespace sparsegnn {

enum class Isa { portable, avx2, avx512 };

// What the kernels use: the best that the processor has, or what SPARSEGNN_ISA=portable|avx2|avx512 asks for.
Isa isa();
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
