// tensor_core.h: the emulator's tensor cores; the twins of csrc/common/mma.cuh.
#pragma once
#include "machine.h"

namespace sparsegnn::emulator {

// As cvt.rna.tf32.f32: to nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return x != x ? 0x7fffffff : (bits + 0x1000) & ~uint32_t{0x1fff};
}

// A tensor core ignores the 13 bits that TF32 lacks.
inline float from_tf32(uint32_t bits) {
  bits &= ~uint32_t{0x1fff};
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// What a lane brings to mma.sync m16n8k(8 parts).
struct MmaCall : Collective {
  float* d;
  const uint32_t *a, *b;
  int parts;  // numbers in a word
  float (*value)(uint32_t word, int part);
};

// Once for the warp, when all lanes have come.
inline void run_mma(Collective* const* lanes) {
  const auto lane = [&](int g, int t) -> const MmaCall& { return *static_cast<const MmaCall*>(lanes[4 * g + t]); };
  const int parts = lane(0, 0).parts;
  float a[16][16], b[16][8];
  for (int g = 0; g < 8; ++g)
    for (int word = 0; word < 8; ++word)
      for (int part = 0; part < parts; ++part) {
        const MmaCall& from = lane(g, word % 4);
        const int upper = word / 4, k = word * parts + part;
        a[g][k] = from.value(from.a[2 * upper], part);
        a[g + 8][k] = from.value(from.a[2 * upper + 1], part);
        b[k][g] = from.value(from.b[upper], part);
      }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& d = lane(row % 8, column / 2).d[row / 8 * 2 + column % 2];
      for (int k = 0; k < 8 * parts; ++k) d += a[row][k] * b[k][column];
    }
}

inline void mma(float* d, const uint32_t* a, const uint32_t* b, int parts, float (*value)(uint32_t, int)) {
  MmaCall call = {{&run_mma}, d, a, b, parts, value};
  machine().collective(call);
}

}  // namespace sparsegnn::emulator
