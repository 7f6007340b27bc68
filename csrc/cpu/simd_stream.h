// Stores past the caches, for outputs that would only push other data out of them.
#pragma once
#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// p must be aligned to what is written. The thread calls stores_done() at its end.
template <typename T>
SG_INLINE void store_past_caches(T* p, vec<acc<T>> v) {
  if constexpr (sizeof(T) == sizeof(acc<T>)) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
    store(p, v);
#endif
  } else {
    T half[lanes<float>];
    store(half, v);
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
#elif defined(__AVX2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
#else
    memcpy(p, half, sizeof(half));
#endif
  }
}

// 64 bytes, a cache line; both aligned to them. What reaches memory in parts of a line takes a pass for each.
template <typename T>
SG_INLINE void line_past_caches(T* p, const T* line) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), *reinterpret_cast<const __m512i*>(line));
#elif defined(__AVX2__)
  for (int i = 0; i < 2; ++i)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + i, reinterpret_cast<const __m256i*>(line)[i]);
#else
  memcpy(p, line, 64);
#endif
}

SG_INLINE void stores_done() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace SG_ISA
}  // namespace sparsegnn
