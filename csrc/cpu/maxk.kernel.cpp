// maxk / cpu
//
//   of every row of x [N, F], or of every group of its columns, the k largest entries: values[n, :], and their columns
//   index[n, :], ascending. NaN is largest, -0 equals 0, and of equals the lower columns are kept
//
// layout     x row-major; index uint8_t up to 256 columns, int16_t above; a row's choice is first made as F bits
// work       a row is read once from memory and about 5 times from L1; N * (F * s + k * (s + 1)) bytes at memory
// method     the threshold t with count(x >= t) == k, by bracketing: first where it would be in normal data, then by
// the
//            density of normal data, by interpolation between counts, and by halving the integers that floats are in
//            order, so that any row ends; a count is one comparison a vector and a popcount
// groups     up to a vector: r rounds of a maximum within the lanes of a group; wider ones: as rows
// backward   maxk_expand of the gradient: dense rows, zeros elsewhere; its backward is maxk_gather
// see        sparsegnn/ops/maxk.py, maxk_expand.py, tests/ops/test_maxk.py, benchmarks/ops/bench_maxk.py
#include "maxk.h"

#include "maxk_lanes.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

// The distance between keys of neighbouring values of T.
template <typename T>
constexpr Key<acc<T>> key_step = __is_same(T, bf16)  ? 1 << 16
                                 : __is_same(T, f16) ? 1 << 13
                                                     : 1;

template <typename A>
SG_INLINE Key<A> to_key(A value) {
  Key<A> bits;
  memcpy(&bits, &value, sizeof(A));
  return bits < 0 ? key_of<A>::lowest - bits : bits;
}
template <typename A>
SG_INLINE A from_key(Key<A> key) {
  const Key<A> bits = key < 0 ? key_of<A>::lowest - key : key;
  A value;
  memcpy(&value, &bits, sizeof(A));
  return value;
}

// --- one group of n columns ---

// bits[c] = f(vector of columns) for c < n; returns how many are set.
template <typename T, typename F>
SG_INLINE int64_t mark(const T* x, int64_t n, uint64_t* bits, const F& f) {
  constexpr int L = lanes<acc<T>>;
  int64_t count = 0, c = 0;
  for (; c + 64 <= n; c += 64) {
    uint64_t word = 0;
    for (int v = 0; v < 64; v += L) word |= uint64_t(f(load(x + c + v))) << v;
    bits[c / 64] = word;
    count += count_bits(word);
  }
  if (c < n) {
    uint64_t word = 0;
    for (int v = 0; c + v < n; v += L) word |= uint64_t(f(load_n(x + c + v, int(n - c - v < L ? n - c - v : L)))) << v;
    word &= (uint64_t{1} << (n - c)) - 1;
    bits[c / 64] = word;
    count += count_bits(word);
  }
  return count;
}

template <typename T>
SG_INLINE int64_t mark_at_least(const T* x, int64_t n, Key<acc<T>> key, uint64_t* bits) {
  using A = acc<T>;
  if (key > key_of<A>::infinity)  // only NaN is above
    return mark(x, n, bits, [](vec<A> v) { return to_bits<A>(v != v); });
  const vec<A> t = splat(from_key<A>(key));
  return mark(x, n, bits, [&](vec<A> v) { return at_least<A>(v, t); });
}

// Keeps the first k of the bits that are set.
SG_INLINE void keep_first(uint64_t* bits, int64_t words, int64_t k) {
  for (int64_t w = 0; w < words; ++w) {
    int64_t count = count_bits(bits[w]);
    for (; count > k; --count) bits[w] &= ~(uint64_t{1} << (63 - __builtin_clzll(bits[w])));
    k -= count;
  }
}

// Mean and standard deviation of finite data.
template <typename T, typename A = acc<T>>
SG_INLINE void moments(const T* x, int64_t n, A& mean, A& deviation) {
  constexpr int L = lanes<A>;
  vec<A> s[2] = {}, q[2] = {};
  int64_t c = 0;
  for (; c + 2 * L <= n; c += 2 * L)
    for (int u = 0; u < 2; ++u) {
      const vec<A> v = load(x + c + u * L);
      s[u] += v;
      q[u] += v * v;
    }
  for (; c < n; c += L) {
    const vec<A> v = load_n(x + c, int(n - c < L ? n - c : L));
    s[0] += v;
    q[0] += v * v;
  }
  mean = sum<A>(s[0] + s[1]) / A(n);
  const A variance = sum<A>(q[0] + q[1]) / A(n) - mean * mean;
  deviation = variance > 0 ? __builtin_sqrtf(float(variance)) : A{0};
}

// The k largest of n columns, at most `most`, as bits.
template <int64_t most, typename T>
void select(const T* x, int64_t n, int64_t k, float guess, uint64_t* bits) {
  using A = acc<T>;
  constexpr Key<A> step = key_step<T>, top = key_of<A>::infinity + step;
  // count(x >= low) > k > count(x >= high); both counts are known once they are not at their first values
  Key<A> low = -key_of<A>::infinity, high = top;
  int64_t low_count = n, high_count = 0;
  if (k == n) {
    mark(x, n, bits, [](vec<A>) { return ~0u >> (32 - lanes<A>); });
    return;
  }
  A mean, deviation;
  moments(x, n, mean, deviation);
  A t = mean + guess * deviation;
  // normal data has this many columns per unit around t
  const A density = A(n) * A(0.39894228f) * A(__builtin_exp2f(-0.72134752f * guess * guess)) / deviation;
  for (int round = 0; low < high - step; ++round) {
    Key<A> key;
    if (round == 3 && low < step && high > step) {
      key = step;  // zeros are the likeliest equals: is the threshold one?
    } else if (round == 4 && low < 0 && high > 0) {
      key = 0;
    } else if (round < 9 && t == t) {
      key = to_key(t) & ~(step - 1);
    } else {
      key = (low / 2 + high / 2) & ~(step - 1);
    }
    key = key <= low ? low + step : key >= high ? high - step : key;
    const int64_t count = mark_at_least(x, n, key, bits);
    if (count == k) return;
    const bool more = count > k;  // no branch: it could not be predicted
    low = more ? key : low, low_count = more ? count : low_count;
    high = more ? high : key, high_count = more ? high_count : count;
    if (low == -key_of<A>::infinity || high == top) {
      t += A(2 * (count - k)) / density;
    } else {
      const A from = from_key<A>(low), to = from_key<A>(high);
      const A share = round % 2 == 1 ? A(0.5f) : (A(low_count - k)) / A(low_count - high_count);
      t = from + (to - from) * share;
    }
  }
  // What is above the threshold stays, and of what is equal to it the first.
  const int64_t words = (n + 63) / 64;
  uint64_t equal[most / 64];
  mark_at_least(x, n, low, equal);
  const int64_t above = mark_at_least(x, n, high, bits);
  for (int64_t w = 0; w < words; ++w) equal[w] &= ~bits[w];
  keep_first(bits, words, k);
  keep_first(equal, words, k > above ? k - above : 0);
  for (int64_t w = 0; w < words; ++w) bits[w] |= equal[w];
}

// --- groups ---

template <int size, typename T>
SG_INLINE void select_groups(const MaxkArgs<T>& a, const T* x, uint64_t* bits) {
  using A = acc<T>;
  if constexpr (size <= lanes<A>) mark(x, a.width, bits, [&](vec<A> v) { return select_lanes<size, A>(v, a.kept); });
}

template <int64_t most, typename T>
void select_row(const MaxkArgs<T>& a, const T* x, uint64_t* bits) {
  if (a.group == a.width) return select<most>(x, a.width, a.k, a.guess, bits);
  if (a.group <= lanes<acc<T>> && (a.group & (a.group - 1)) == 0) {
    if (a.group == 1) return select_groups<1>(a, x, bits);
    if (a.group == 2) return select_groups<2>(a, x, bits);
    if (a.group == 4) return select_groups<4>(a, x, bits);
    if (a.group == 8) return select_groups<8>(a, x, bits);
    if (a.group == 16) return select_groups<16>(a, x, bits);
  }
  memset(bits, 0, size_t(a.width + 63) / 64 * 8);
  uint64_t part[most / 64];
  for (int64_t c = 0; c < a.width; c += a.group) {
    select<most>(x + c, a.group, a.kept, a.guess, part);
    for (int64_t i = 0; i < a.group; i += 64) {
      bits[(c + i) / 64] |= part[i / 64] << (c + i) % 64;
      const uint64_t rest = (c + i) % 64 == 0 ? 0 : part[i / 64] >> (64 - (c + i) % 64);
      if (rest != 0) bits[(c + i) / 64 + 1] |= rest;
    }
  }
}

// --- compressed rows from bits ---

// Both write up to a vector behind the k entries of the row.
template <typename I>
SG_INLINE void write_columns(const uint64_t* bits, int64_t width, I* index) {
  for (int64_t c = 0; c < width; c += 8) {
    const uint32_t b = lane_bits<8>(bits, c);
    uint64_t place = tables.place[b];
    if constexpr (sizeof(I) == 1) {
      place += 0x0101010101010101u * uint64_t(c);
      memcpy(index, &place, 8);
    } else {
      typedef uint8_t bytes __attribute__((vector_size(8)));
      typedef int16_t columns __attribute__((vector_size(16)));
      const columns column = __builtin_convertvector(reinterpret_cast<bytes>(place), columns) + int16_t(c);
      memcpy(index, &column, 16);
    }
    index += count_bits(b);
  }
}

template <typename T, typename I>
SG_INLINE void write_values(const T* x, const uint64_t* bits, const I* index, int64_t width, int64_t k, T* values) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    for (int64_t c = 0; c < width; c += 16) {
      const uint32_t b = lane_bits<16>(bits, c);
      const vec<float> v = c + 16 <= width ? load(x + c) : load_n(x + c, int(width - c));
      store(values, _mm512_maskz_compress_ps(__mmask16(b), v));
      values += count_bits(b);
    }
    return;
  }
#endif
  for (int64_t t = 0; t < k; ++t) values[t] = x[index[t]];
}

}  // namespace

template <typename T, typename I>
void maxk_rows(const MaxkArgs<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t most = sizeof(I) == 1 ? maxk_narrow_width : maxk_most_columns;
  uint64_t bits[most / 64];
  I index[most + 8];
  T values[most + lanes<float>];
  for (int64_t r = begin; r < end; ++r) {
    const T* x = a.x + r * a.width;
    select_row<most>(a, x, bits);
    write_columns(bits, a.width, index);
    write_values(x, bits, index, a.width, a.k, values);
    memcpy(static_cast<I*>(a.index) + r * a.k, index, size_t(a.k) * sizeof(I));
    memcpy(a.values + r * a.k, values, size_t(a.k) * sizeof(T));
  }
}

#define SG_INSTANTIATE(T)                                                    \
  template void maxk_rows<T, uint8_t>(const MaxkArgs<T>&, int64_t, int64_t); \
  template void maxk_rows<T, int16_t>(const MaxkArgs<T>&, int64_t, int64_t);
SG_INSTANTIATE(float)
SG_INSTANTIATE(double)
SG_INSTANTIATE(bf16)
SG_INSTANTIATE(f16)

}  // namespace SG_ISA
}  // namespace sparsegnn
