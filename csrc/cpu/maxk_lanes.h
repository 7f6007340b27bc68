// Sets of columns as bits, values as integers, and the choice within groups of lanes. Kernel files only.
//
//   a row of F columns is F bits, column c bit c % 64 of word c / 64
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

SG_INLINE int count_bits(uint64_t bits) { return __builtin_popcountll(bits); }

// The bits of the vector of L columns that begins at column c, a multiple of L.
template <int L>
SG_INLINE uint32_t lane_bits(const uint64_t* row, int64_t c) {
  return uint32_t(row[c / 64] >> c % 64) & ((1u << L) - 1);
}

// One bit per lane that is not zero.
template <typename A>
SG_INLINE uint32_t to_bits(ivec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v));
  if constexpr (sizeof(A) == 8) return _mm512_movepi64_mask(reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return uint32_t(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
  if constexpr (sizeof(A) == 8) return uint32_t(_mm256_movemask_pd(reinterpret_cast<__m256d>(v)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes<A>; ++i) bits |= uint32_t(v[i] != 0) << i;
  return bits;
#endif
}

// Lanes where x >= t, or x is NaN.
template <typename A>
SG_INLINE uint32_t at_least(vec<A> x, vec<A> t) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_cmp_ps_mask(x, t, _CMP_NLT_UQ);
  if constexpr (sizeof(A) == 8) return _mm512_cmp_pd_mask(x, t, _CMP_NLT_UQ);
#else
  return to_bits<A>(~(x < t));
#endif
}

// --- floats as integers in the same order: -0 and 0 are both 0 ---

template <typename A>
struct key_of {
  using type = int32_t;
  static constexpr int32_t lowest = INT32_MIN, infinity = 0x7f800000;
};
template <>
struct key_of<double> {
  using type = int64_t;
  static constexpr int64_t lowest = INT64_MIN, infinity = 0x7ff0000000000000;
};
template <typename A>
using Key = typename key_of<A>::type;

// For every lane: its partner at distance 1, 2, 4 and 8, and its bit.
template <typename A>
struct Partners {
  alignas(64) Key<A> lane[4][lanes<A>], bit[lanes<A>];
};
template <typename A>
constexpr Partners<A> make_partners() {
  Partners<A> p{};
  for (int i = 0; i < lanes<A>; ++i) {
    for (int s = 0; s < 4; ++s) p.lane[s][i] = i ^ (1 << s);
    p.bit[i] = Key<A>{1} << i;
  }
  return p;
}
template <typename A>
constexpr Partners<A> partners = make_partners<A>();

// Groups of at most a vector: `size` lanes, a power of two. One bit each round for the first maximum of every group.
template <int size, typename A>
SG_INLINE uint32_t select_lanes(vec<A> x, int64_t kept) {
  constexpr int L = lanes<A>;
  constexpr uint32_t firsts = [] {
    uint32_t bits = 0;
    for (int i = 0; i < L; i += size) bits |= 1u << i;
    return bits;
  }();
  const ivec<A> raw = reinterpret_cast<ivec<A>>(x);
  const ivec<A> negative = raw < 0 ? raw : ivec<A>{};
  ivec<A> key = raw < 0 ? key_of<A>::lowest - negative : raw;
  key = x == x ? key : ivec<A>{} + (key_of<A>::infinity + 1);
  uint32_t chosen = 0;
  for (int64_t round = 1;; ++round) {
    ivec<A> best = key;
#pragma GCC unroll 4
    for (int s = 0; 1 << s < size; ++s) {
      const ivec<A> partner = *reinterpret_cast<const ivec<A>*>(partners<A>.lane[s]);
      const ivec<A> other = reinterpret_cast<ivec<A>>(permute<A>(reinterpret_cast<vec<A>>(best), partner));
      best = other > best ? other : best;
    }
    const uint32_t hits = to_bits<A>(key == best);
    const uint32_t first = hits & ~(hits - firsts);
    chosen |= first;
    if (round == kept) return chosen;
    const ivec<A> taken = (ivec<A>{} + Key<A>(first)) & *reinterpret_cast<const ivec<A>*>(partners<A>.bit);
    key = taken != 0 ? ivec<A>{} + key_of<A>::lowest : key;
  }
}

// Byte i of entry b is the place of the i-th bit of b that is set.
struct Tables {
  alignas(64) uint64_t place[256];
};
constexpr Tables make_tables() {
  Tables t{};
  for (int b = 0; b < 256; ++b) {
    int n = 0;
    for (int i = 0; i < 8; ++i) {
      if (b >> i & 1) t.place[b] |= uint64_t(i) << 8 * n++;
    }
  }
  return t;
}
constexpr Tables tables = make_tables();

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
