// topology / cpu
//
//   kept    the nnz - n slots of highest drop_score (ties: the lower slot)
//   grown   of the positions that are not kept, the n of highest grow_score (ties: the lower linear index)
//   result  both, sorted by position; source[e] = the old slot of entry e, -1 where position e was empty before
//
// layout     CSR: crow[M+1], col[nnz] int32, columns ascending; drop_score[nnz]; grow_score[M, K] row-major
// work       radix selection, 11 bits at a time: a pass over the scores, which reads every position and takes the kept
// ones
//            back out, so it has no branch; another that collects those in or above the bin of the threshold, of which
//            the rest is made. Where these are many (ties), passes over the scores: 2 more (5 for double), then one to
//            count and one to write. O(M*K)
// parallel   over rows: histograms per chunk, then row counts, then rows written at their offsets
// numerics   comparisons of exact integer keys: deterministic
// backward   none
// see        sparsegnn/ops/topology.py, tests/ops/test_topology.py, benchmarks/ops/bench_topology.py
#include "topology.h"

#include "simd.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

template <typename T>
SG_INLINE TopologyKey<T> key_of(T score) {
  using Key = TopologyKey<T>;
  const acc<T> v = widen(score) + acc<T>(0);  // -0 becomes +0
  Key bits;
  memcpy(&bits, &v, sizeof(bits));
  constexpr int last = int(sizeof(Key)) * 8 - 1;
  const Key flip = Key(-(bits >> last)) | Key{1} << last;  // negative: all bits, else the sign
  constexpr Key infinity = sizeof(Key) == 4 ? Key(0x7f800000u) : Key(0x7ff0000000000000u);
  return (bits & ~(Key{1} << last)) > infinity ? Key{0} : bits ^ flip;
}

template <typename Key>
SG_INLINE bool has_prefix(Key key, const TopologyDigit& d) {
  return d.high >= int(sizeof(Key)) * 8 || uint64_t(key >> d.high) == d.prefix;
}

template <typename Key>
SG_INLINE int64_t bin_of(Key key, const TopologyDigit& d) {
  return int64_t(key >> d.low & ((Key{1} << (d.high - d.low)) - 1));
}

}  // namespace

template <typename T>
void topology_histogram(const T* score, int64_t n, const TopologyDigit& digit, int64_t* bins) {
  if (digit.high >= int(sizeof(TopologyKey<T>)) * 8) {
    constexpr int copies = 4;  // most scores share a few exponents: spread the increments of one bin
    int32_t local[copies][topology_bins] = {};
    constexpr int block = 64;
    for (int64_t done = 0; done < n;) {
      const int64_t stop = n - done < (int64_t{1} << 30) ? n : done + (int64_t{1} << 30);
      for (; done + block <= stop; done += block) {
        uint32_t at[block];
        for (int j = 0; j < block; ++j) at[j] = uint32_t(key_of(score[done + j]) >> digit.low);
        for (int j = 0; j < block; ++j) ++local[j % copies][at[j]];
      }
      for (; done < stop; ++done) ++local[0][bin_of(key_of(score[done]), digit)];
      for (int64_t b = 0; b < topology_bins; ++b)
        for (int c = 0; c < copies; ++c) bins[b] += local[c][b], local[c][b] = 0;
    }
    return;
  }
  constexpr int block = 16;
  for (int64_t i = 0; i < n; i += block) {
    TopologyKey<T> keys[block], any = 0;
    const int m = int(n - i < block ? n - i : block);
    for (int j = 0; j < m; ++j) {
      keys[j] = key_of(score[i + j]);
      any |= TopologyKey<T>(uint64_t(keys[j] >> digit.high) == digit.prefix);
    }
    if (any == 0) continue;  // most blocks: few scores share a prefix with the threshold
    for (int j = 0; j < m; ++j)
      if (has_prefix(keys[j], digit)) ++bins[bin_of(keys[j], digit)];
  }
}

template <typename T>
void topology_histogram_rows(const TopologyArgs<T>& a, const TopologyDigit& digit, int64_t begin, int64_t end,
                             int64_t* bins) {
  topology_histogram(a.score + begin * a.cols, (end - begin) * a.cols, digit, bins);
  for (int64_t r = begin; r < end; ++r) {
    for (int32_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      const TopologyKey<T> key = key_of(a.score[r * a.cols + a.col[e]]);
      if (a.kept[e] && has_prefix(key, digit)) --bins[bin_of(key, digit)];
    }
  }
}

template <typename T>
void topology_histogram_keys(const TopologyKey<T>* key, int64_t n, const TopologyDigit& digit, int64_t* bins) {
  for (int64_t i = 0; i < n; ++i)
    if (has_prefix(key[i], digit)) ++bins[bin_of(key[i], digit)];
}

template <typename T>
void topology_keep(const T* score, int64_t n, TopologyKey<T> threshold, int64_t ties, uint8_t* kept) {
  for (int64_t e = 0; e < n; ++e) {
    const TopologyKey<T> key = key_of(score[e]);
    const bool tie = key == threshold && ties > 0;
    ties -= tie;
    kept[e] = key > threshold || tie;
  }
}

template <typename T>
void topology_count_rows(const TopologyArgs<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* score = a.score + r * a.cols;
    int32_t above = 0, equal = 0;
    for (int64_t j = 0; j < a.cols; ++j) {
      const TopologyKey<T> key = key_of(score[j]);
      above += key > a.threshold;
      equal += key == a.threshold;
    }
    for (int32_t e = a.crow[r]; e < a.crow[r + 1]; ++e) {
      const TopologyKey<T> key = key_of(score[a.col[e]]);
      above -= a.kept[e] && key > a.threshold;
      equal -= a.kept[e] && key == a.threshold;
    }
    a.above[r] = above;
    a.equal[r] = equal;
  }
}

template <typename T>
void topology_emit_rows(const TopologyArgs<T>& a, int64_t begin, int64_t end) {
  constexpr int block = 512, word = 8;
  uint8_t mark[block];  // 1: the position has a weight, or may grow
  for (int64_t r = begin; r < end; ++r) {
    int64_t out = a.new_crow[r], ties = a.take[r];
    int32_t e = a.crow[r];
    const int32_t last = a.crow[r + 1];
    for (int64_t first = 0; first < a.cols; first += block) {
      const T* score = a.score + r * a.cols + first;
      const int n = int(a.cols - first < block ? a.cols - first : block);
      for (int j = 0; j < n; ++j) mark[j] = key_of(score[j]) >= a.threshold;
      for (int j = n; j % word != 0; ++j) mark[j] = 0;
      for (int32_t i = e; i < last && a.col[i] < first + n; ++i) mark[a.col[i] - first] = 1;
      for (int j = 0; j < n; j += word) {
        uint64_t marks;
        for (memcpy(&marks, mark + j, word); marks != 0; marks &= marks - 1) {
          const int at = j + __builtin_ctzll(marks) / 8;
          const int32_t slot = e < last && a.col[e] == first + at ? e++ : -1;
          if (slot < 0 || !a.kept[slot]) {
            const TopologyKey<T> key = key_of(score[at]);
            const bool tie = key == a.threshold && ties > 0;
            ties -= tie;
            if (key <= a.threshold && !tie) continue;
          }
          a.new_col[out] = int32_t(first + at);
          a.source[out++] = slot;
        }
      }
    }
  }
}

template <typename T>
void topology_collect_rows(const TopologyArgs<T>& a, TopologyKey<T> least, int64_t begin, int64_t end, int64_t at,
                           const TopologyCandidates<T>& found) {
  constexpr int block = 512, word = 8;
  uint8_t mark[block];
  for (int64_t r = begin; r < end; ++r) {
    found.first[r] = at;
    int32_t e = a.crow[r];
    const int32_t last = a.crow[r + 1];
    for (int64_t first = 0; first < a.cols; first += block) {
      const T* score = a.score + r * a.cols + first;
      const int n = int(a.cols - first < block ? a.cols - first : block);
      for (int j = 0; j < n; ++j) mark[j] = key_of(score[j]) >= least;
      for (int j = n; j % word != 0; ++j) mark[j] = 0;
      for (; e < last && a.col[e] < first + n; ++e) mark[a.col[e] - first] &= uint8_t(a.kept[e] ^ 1);
      for (int j = 0; j < n; j += word) {
        uint64_t marks;
        for (memcpy(&marks, mark + j, word); marks != 0; marks &= marks - 1) {
          const int i = j + __builtin_ctzll(marks) / 8;
          found.col[at] = int32_t(first + i);
          found.key[at++] = key_of(score[i]);
        }
      }
    }
  }
}

template <typename T>
void topology_count_candidates(const TopologyArgs<T>& a, const TopologyCandidates<T>& found, int64_t begin,
                               int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    int32_t above = 0, equal = 0;
    for (int64_t i = found.first[r]; i < found.first[r + 1]; ++i) {
      above += found.key[i] > a.threshold;
      equal += found.key[i] == a.threshold;
    }
    a.above[r] = above;
    a.equal[r] = equal;
  }
}

template <typename T>
void topology_emit_candidates(const TopologyArgs<T>& a, const TopologyCandidates<T>& found, int64_t begin,
                              int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    int64_t out = a.new_crow[r], ties = a.take[r];
    int32_t e = a.crow[r];
    const int32_t last = a.crow[r + 1];
    const auto stay_up_to = [&](int64_t col) {
      for (; e < last && a.col[e] < col; ++e)
        if (a.kept[e]) a.new_col[out] = a.col[e], a.source[out++] = e;
    };
    for (int64_t i = found.first[r]; i < found.first[r + 1]; ++i) {
      const bool tie = found.key[i] == a.threshold && ties > 0;
      ties -= tie;
      if (found.key[i] <= a.threshold && !tie) continue;
      stay_up_to(found.col[i]);
      a.new_col[out] = found.col[i];
      a.source[out++] = e < last && a.col[e] == found.col[i] ? e++ : -1;
    }
    stay_up_to(a.cols);
  }
}

#define SG_INSTANTIATE(T)                                                                                             \
  template void topology_histogram<T>(const T*, int64_t, const TopologyDigit&, int64_t*);                             \
  template void topology_histogram_rows<T>(const TopologyArgs<T>&, const TopologyDigit&, int64_t, int64_t, int64_t*); \
  template void topology_histogram_keys<T>(const TopologyKey<T>*, int64_t, const TopologyDigit&, int64_t*);           \
  template void topology_collect_rows<T>(const TopologyArgs<T>&, TopologyKey<T>, int64_t, int64_t, int64_t,           \
                                         const TopologyCandidates<T>&);                                               \
  template void topology_count_candidates<T>(const TopologyArgs<T>&, const TopologyCandidates<T>&, int64_t, int64_t); \
  template void topology_emit_candidates<T>(const TopologyArgs<T>&, const TopologyCandidates<T>&, int64_t, int64_t);  \
  template void topology_keep<T>(const T*, int64_t, TopologyKey<T>, int64_t, uint8_t*);                               \
  template void topology_count_rows<T>(const TopologyArgs<T>&, int64_t, int64_t);                                     \
  template void topology_emit_rows<T>(const TopologyArgs<T>&, int64_t, int64_t);
SG_INSTANTIATE(float)
SG_INSTANTIATE(double)
SG_INSTANTIATE(bf16)
SG_INSTANTIATE(f16)

}  // namespace SG_ISA
}  // namespace sparsegnn
