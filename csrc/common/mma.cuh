// mma.cuh: tensor cores. A kernel file includes it in place of gpu.cuh, whose rules hold. Torch-free.
//
// mma<T>(d, a, b)   D[16, 8] += A[16, K] B[K, 8] by all 32 lanes of a warp; D in fp32. The operands are words of 32
//                   bits: one float rounded by tf32(), or two bf16 or fp16, the lower k in the lower half; K is eight
//                   words long. Lane 4 g + t holds
//                     a[0], a[1]   word t of rows g and g + 8          b[0]   word t of column g
//                     a[2], a[3]   word t + 4 of rows g and g + 8      b[1]   word t + 4 of column g
//                     d[0], d[1]   columns 2t and 2t + 1 of row g      d[2], d[3]   of row g + 8
//                   Which k a word stands for is free as long as A and B agree.
// tf32(x)           the bits of x rounded to TF32, to nearest, ties away from zero
//
// Under the emulator each has a twin in tests/csrc/tensor_core.h, which reads the lanes' fragments by this layout.
#pragma once
#include "gpu.cuh"

namespace sparsegnn::cuda {

template <typename T>
constexpr int kWordElements = 4 / int(sizeof(T));
template <typename T>
constexpr int kMmaDepth = 8 * kWordElements<T>;  // K

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// volatile: all lanes take part, so it must not move to where fewer of them need the result.
#define SG_MMA(shape, type)                                                           \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SG_MMA("m16n8k8", "tf32");
}
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SG_MMA("m16n8k16", "bf16");
}
template <>
__device__ __forceinline__ void mma<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  SG_MMA("m16n8k16", "f16");
}
#undef SG_MMA
#else
inline uint32_t tf32(float x) { return emulator::to_tf32(x); }

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma(d, a, b, kWordElements<T>, [](uint32_t word, int part) -> float {
    if constexpr (sizeof(T) == 4) return emulator::from_tf32(word);
    if constexpr (sizeof(T) == 2) return to_acc(T{static_cast<uint16_t>(word >> 16 * part)});
  });
}
#endif

// The word of two numbers of 16 bits, and the words of the lower and of the upper halves of two words.
template <typename T>
__device__ __forceinline__ uint32_t word_of(T lower, T upper) {
  return lower.bits | uint32_t{upper.bits} << 16;
}
__device__ __forceinline__ uint32_t lower_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ __forceinline__ uint32_t upper_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}

}  // namespace sparsegnn::cuda
