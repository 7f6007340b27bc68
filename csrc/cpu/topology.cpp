// topology / cpu: checks, radix selection, threads. The arithmetic is in topology.kernel.cpp.
#include "topology.h"

#include <numeric>
#include <vector>

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_scores = 1 << 16;  // per chunk: some 50 us of work for a 16 KiB histogram
constexpr int64_t most_chunks = 64;
constexpr int64_t share_of_candidates = 8;  // of the positions one in so many, at most; more take longer than passes

// The `count` highest of the keys: all above `key`, and the first `ties` of those equal to it.
struct Threshold {
  uint64_t key;
  int64_t ties;
};

// histogram(digit, bins) adds up the keys that begin with digit.prefix.
template <typename F>
Threshold select(int bits, int64_t count, const F& histogram) {
  TopologyDigit digit{bits, bits, 0};
  if (count <= 0) return {~uint64_t{0} >> (64 - bits), 0};  // above every key: that of a NaN is 0
  while (digit.low > 0) {
    digit.high = digit.low;
    digit.low = std::max(0, digit.high - topology_digit_bits);
    std::vector<int64_t> bins(topology_bins, 0);
    histogram(digit, bins.data());
    int64_t b = (int64_t{1} << (digit.high - digit.low)) - 1;
    for (; b > 0 && bins[b] < count; --b) count -= bins[b];
    digit.prefix = digit.prefix << (digit.high - digit.low) | uint64_t(b);
  }
  return {digit.prefix, count};
}

void check_pattern(const int32_t* crow, const int32_t* col, int64_t rows, int64_t cols, int64_t nnz) {
  STD_TORCH_CHECK(crow[0] == 0 && crow[rows] == nnz, "topology_: crow must start at 0 and end at ", nnz);
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(crow[r] <= crow[r + 1] && crow[r + 1] <= nnz, "topology_: crow must not decrease");
    for (int64_t e = crow[r]; e < crow[r + 1]; ++e)
      STD_TORCH_CHECK(col[e] >= 0 && col[e] < cols && (e == crow[r] || col[e - 1] < col[e]),
                      "topology_: col must be in [0, ", cols, ") and ascend strictly within each row");
  }
}

// Which of the slots stay: the `count` highest.
template <typename T>
std::vector<uint8_t> keep(const Tensor& score, int64_t count) {
  const int64_t nnz = score.numel();
  const Threshold t = select(int(sizeof(TopologyKey<T>)) * 8, count, [&](const TopologyDigit& digit, int64_t* bins) {
    SG_PICK(topology_histogram<T>)(data<T>(score), nnz, digit, bins);
  });
  std::vector<uint8_t> kept(nnz);
  SG_PICK(topology_keep<T>)(data<T>(score), nnz, TopologyKey<T>(t.key), t.ties, kept.data());
  return kept;
}

// Adds the n highest of the other positions and rewrites the pattern.
template <typename T>
Tensor grow(Tensor& crow, Tensor& col, const std::vector<uint8_t>& kept, const Tensor& score, int64_t n) {
  using Key = TopologyKey<T>;
  const int64_t nnz = col.numel(), rows = score.size(0), cols = score.size(1);
  const int64_t most = std::clamp<int64_t>(rows, 1, most_chunks);
  const int64_t chunks = std::clamp<int64_t>(rows * cols / chunk_scores, 1, most);
  const auto first_row = [&](int64_t c) { return rows * c / chunks; };

  std::vector<int32_t> above(rows), equal(rows), new_crow(rows + 1, 0), new_col(nnz);
  std::vector<int64_t> take(rows);
  Tensor source = torch::stable::new_empty(col, {nnz});
  TopologyArgs<T> args{data<int32_t>(crow),
                       data<int32_t>(col),
                       kept.data(),
                       data<T>(score),
                       cols,
                       Key{0},
                       above.data(),
                       equal.data(),
                       take.data(),
                       new_crow.data(),
                       new_col.data(),
                       mutable_data<int32_t>(source)};
  std::vector<int64_t> partial(chunks * topology_bins), first;
  std::vector<int32_t> found_col;
  std::vector<Key> found_key;
  TopologyCandidates<T> found{};
  constexpr int bits = int(sizeof(Key)) * 8;
  // Those that begin with the highest digits of the threshold or with higher ones: how many each chunk has is known.
  const auto collect = [&](const TopologyDigit& digit) {
    std::vector<int64_t> at(chunks + 1, 0);
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t* bins = partial.data() + c * topology_bins;
      at[c + 1] = std::accumulate(bins + digit.prefix, bins + topology_bins, at[c]);
    }
    if (at[chunks] > rows * cols / share_of_candidates) return;
    first.resize(rows + 1), found_col.resize(at[chunks]), found_key.resize(at[chunks]);
    first[rows] = at[chunks];
    found = {first.data(), found_col.data(), found_key.data()};
    const auto kernel = SG_PICK(topology_collect_rows<T>);
    const Key least = Key(Key(digit.prefix) << digit.high);
    for_each_chunk(chunks, [&](int64_t c) { kernel(args, least, first_row(c), first_row(c + 1), at[c], found); });
  };
  const Threshold best = select(bits, n, [&](const TopologyDigit& digit, int64_t* bins) {
    if (digit.high + topology_digit_bits == bits) collect(digit);  // the second digit
    if (found.first != nullptr) return SG_PICK(topology_histogram_keys<T>)(found.key, first[rows], digit, bins);
    std::fill(partial.begin(), partial.end(), 0);
    const auto kernel = SG_PICK(topology_histogram_rows<T>);
    for_each_chunk(chunks, [&](int64_t c) {
      kernel(args, digit, first_row(c), first_row(c + 1), partial.data() + c * topology_bins);
    });
    for (int64_t i = 0; i < chunks * topology_bins; ++i) bins[i % topology_bins] += partial[i];
  });
  args.threshold = Key(best.key);

  const auto count = [&](int64_t begin, int64_t end) {
    if (found.first == nullptr) return SG_PICK(topology_count_rows<T>)(args, begin, end);
    SG_PICK(topology_count_candidates<T>)(args, found, begin, end);
  };
  for_each_chunk(chunks, [&](int64_t c) { count(first_row(c), first_row(c + 1)); });
  int64_t ties = best.ties;
  for (int64_t r = 0; r < rows; ++r) {
    int32_t stay = 0;
    for (int64_t e = args.crow[r]; e < args.crow[r + 1]; ++e) stay += kept[e];
    take[r] = std::min<int64_t>(ties, equal[r]);
    ties -= take[r];
    new_crow[r + 1] = new_crow[r] + stay + above[r] + int32_t(take[r]);
  }
  const auto emit = [&](int64_t begin, int64_t end) {
    if (found.first == nullptr) return SG_PICK(topology_emit_rows<T>)(args, begin, end);
    SG_PICK(topology_emit_candidates<T>)(args, found, begin, end);
  };
  for_each_chunk(chunks, [&](int64_t c) { emit(first_row(c), first_row(c + 1)); });
  std::copy(new_crow.begin(), new_crow.end(), mutable_data<int32_t>(crow));
  std::copy(new_col.begin(), new_col.end(), mutable_data<int32_t>(col));
  return source;
}

Tensor topology(Tensor crow, Tensor col, const Tensor& drop_score_in, const Tensor& grow_score_in, const Tensor& n_in) {
  check_index("topology_", "crow", crow);
  check_index("topology_", "col", col);
  STD_TORCH_CHECK(grow_score_in.dim() == 2 && grow_score_in.size(0) + 1 == crow.numel(),
                  "topology_: grow_score must have shape [", crow.numel() - 1, ", K]");
  STD_TORCH_CHECK(drop_score_in.dim() == 1 && drop_score_in.numel() == col.numel(),
                  "topology_: drop_score must have shape [", col.numel(), "]");
  STD_TORCH_CHECK(n_in.numel() == 1 && n_in.scalar_type() == ScalarType::Long, "topology_: n must be one int64");
  const int64_t n = *data<int64_t>(n_in);
  STD_TORCH_CHECK(n >= 0 && n <= col.numel(), "topology_: n must be in [0, ", col.numel(), "], got ", n);
  check_pattern(data<int32_t>(crow), data<int32_t>(col), grow_score_in.size(0), grow_score_in.size(1), col.numel());
  const Tensor drop_score = as_contiguous(drop_score_in), grow_score = as_contiguous(grow_score_in);
  std::vector<uint8_t> kept;
  dispatch("topology_", drop_score.scalar_type(),
           [&](auto zero) { kept = keep<decltype(zero)>(drop_score, col.numel() - n); });
  Tensor source = crow;  // replaced in the next line
  dispatch("topology_", grow_score.scalar_type(),
           [&](auto zero) { source = grow<decltype(zero)>(crow, col, kept, grow_score, n); });
  return source;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) { m.impl("topology_", TORCH_BOX(&topology)); }

}  // namespace sparsegnn
