// Splits work into chunks of about equal cost, and hands chunks to threads as they become free.
//
// The chunks depend on the input alone, never on the number of threads, and each owns its outputs: results are the same
// bits for any thread count.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "stable.h"

namespace sparsegnn {

// Runs body(chunk) for every chunk in [0, chunks). Bodies must not throw.
template <typename F>
void for_each_chunk(int64_t chunks, const F& body) {
  if (chunks <= 1 || torch::stable::get_num_threads() == 1) {
    for (int64_t c = 0; c < chunks; ++c) body(c);
    return;
  }
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(chunks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t c; (c = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(c);
  });
}

// Row boundaries of chunks whose cost (edges + rows) is about `cost` each: bounds[c] .. bounds[c + 1].
inline std::vector<int64_t> balanced_rows(const int32_t* crow, int64_t rows, int64_t cost) {
  std::vector<int64_t> bounds{0};
  const int64_t total = rows == 0 ? 0 : crow[rows] + rows;
  const int64_t chunks = std::max<int64_t>(1, total / std::max<int64_t>(1, cost));
  for (int64_t c = 1; c < chunks; ++c) {
    const int64_t want = total * c / chunks;  // first row r with crow[r] + r >= want
    int64_t low = bounds.back(), high = rows;
    while (low < high) {
      const int64_t mid = (low + high) / 2;
      if (crow[mid] + mid < want) {
        low = mid + 1;
      } else {
        high = mid;
      }
    }
    if (low > bounds.back() && low < rows) bounds.push_back(low);
  }
  bounds.push_back(rows);
  return bounds;
}

}  // namespace sparsegnn
