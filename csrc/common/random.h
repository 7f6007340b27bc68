// Counter-based random bits for dropout: the same numbers on every device, recomputed in backward, stored nowhere.
//
//   lo, hi                = the halves of splitmix64(seed)
//   bits(seed, edge, head) = mix(mix(edge ^ lo) + (head * 0x9e3779b9 ^ hi))      all in uint32
//   an entry is kept when bits >= threshold(p): with probability 1 - p, to within 2^-32
//
// mix is Wellons' lowbias32, a 32-bit bijection made for low avalanche bias; two rounds of it take any structure of the
// edge slots away, and the inner round is shared by the heads of an edge. Torch-free; `static` keeps one copy per file,
// as kernel files that are compiled per instruction set need. U is uint32_t or a vector of them.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SG_RANDOM static __host__ __device__ __forceinline__
#else
#define SG_RANDOM static inline __attribute__((always_inline))
#endif

namespace sparsegnn {

struct RandomKey {
  uint32_t lo, hi;
};

SG_RANDOM RandomKey random_key(int64_t seed) {  // splitmix64
  uint64_t z = static_cast<uint64_t>(seed) + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return RandomKey{static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

template <typename U>
SG_RANDOM U random_mix(U x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// What depends on the edge alone, and on the head alone.
SG_RANDOM uint32_t random_edge(RandomKey key, uint32_t edge) { return random_mix(edge ^ key.lo); }
template <typename U>
SG_RANDOM U random_head(RandomKey key, U head) {
  return (head * 0x9e3779b9u) ^ key.hi;
}

template <typename U>
SG_RANDOM U random_bits(U edge, U head) {
  return random_mix(edge + head);
}

SG_RANDOM uint32_t random_threshold(double p) {
  const double t = p * 4294967296.0;
  return t >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(t);
}

// What kept entries are multiplied by; 0 for p = 1, where nothing is kept.
SG_RANDOM double random_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

}  // namespace sparsegnn
