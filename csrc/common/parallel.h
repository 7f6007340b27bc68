// Splits work into chunks of about equal cost, and hands chunks to threads as they become free.
//
// The chunks depend on the input alone, never on the number of threads, and each owns its outputs: results are the same
// bits for any thread count.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "stable.h"

namespace sparsegnn {

// However many are asked for: none has as many processors, and a process that cannot start a thread is ended.
constexpr int64_t most_threads = 1024;

// OpenMP's threads do not survive a fork, and it would wait for them: a child of a process that had them does without.
inline std::atomic<bool> had_threads{false}, lost_threads{false};
inline const int forks = pthread_atfork(nullptr, nullptr, [] { lost_threads = had_threads.load(); });

// Runs body(chunk) for every chunk in [0, chunks). Bodies must not throw. Every thread begins with a range of its own,
// the same at every call, so that it finds in its caches what it wrote there, and then helps the others.
template <typename F>
void for_each_chunk(int64_t chunks, const F& body) {
  if (chunks <= 1 || torch::stable::get_num_threads() == 1 || lost_threads.load(std::memory_order_relaxed)) {
    for (int64_t c = 0; c < chunks; ++c) body(c);
    return;
  }
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t threads = std::min<int64_t>({chunks, torch::stable::get_num_threads(), most_threads});
  std::vector<Range> ranges(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    ranges[size_t(t)].next = chunks * t / threads;
    ranges[size_t(t)].end = chunks * (t + 1) / threads;
  }
  if (!had_threads.load(std::memory_order_relaxed)) had_threads = true;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t other = 0; other < threads; ++other) {
        Range& range = ranges[size_t((t + other) % threads)];
        for (int64_t c; (c = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) body(c);
      }
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
