// Limits of a core: multiply-adds in registers, and a copy that passes the caches. Loaded by machine.py.
#include <immintrin.h>
#include <stddef.h>

#ifdef __AVX512F__
typedef __m512 vec;
#define LANES 16
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define SET(v) _mm512_set1_ps(v)
#else
typedef __m256 vec;
#define LANES 8
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define SET(v) _mm256_set1_ps(v)
#endif

// Ten chains hide the latency of four cycles on two units. Returns the floating-point operations done.
double multiply_adds(long n, float* out) {
  const vec a = SET(0.5f), b = SET(0.25f);
  vec s0 = SET(0), s1 = SET(1), s2 = SET(2), s3 = SET(3), s4 = SET(4);
  vec s5 = SET(5), s6 = SET(6), s7 = SET(7), s8 = SET(8), s9 = SET(9);
  for (long i = 0; i < n; ++i) {
    s0 = FMA(s0, a, b), s1 = FMA(s1, a, b), s2 = FMA(s2, a, b), s3 = FMA(s3, a, b), s4 = FMA(s4, a, b);
    s5 = FMA(s5, a, b), s6 = FMA(s6, a, b), s7 = FMA(s7, a, b), s8 = FMA(s8, a, b), s9 = FMA(s9, a, b);
  }
  const vec sum = (s0 + s1 + s2 + s3 + s4) + (s5 + s6 + s7 + s8 + s9);
  for (int j = 0; j < LANES; ++j) out[j] = sum[j];
  return 2.0 * LANES * 10 * n;
}

// Both arrays are aligned to 32 bytes, n is a multiple of 16.
void copy(float* to, const float* from, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    _mm_prefetch((const char*)(from + i) + 1024, _MM_HINT_T0);
    _mm256_stream_ps(to + i, _mm256_load_ps(from + i));
    _mm256_stream_ps(to + i + 8, _mm256_load_ps(from + i + 8));
  }
  _mm_sfence();
}
