// The output pool: blocks from mmap on 2 MiB pages, each reused for an output of its size.
//
// glibc maps and unmaps blocks above 32 MiB at every call, and every page of a fresh block costs a fault: up to four
// times the kernel that fills it. Blocks are kept while live and kept ones together stay below the most that was live
// at once lately, so that the pool never holds more than its tensors needed, and gives back what is no longer used.
#include "pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace sparsegnn {
namespace {

constexpr size_t page = size_t{2} << 20;
constexpr int epoch = 256;  // allocations after which the high-water mark before the last one is forgotten

#if defined(__linux__)
void* map(size_t size) {
  void* p = mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p), aligned = (begin + page - 1) / page * page;
  if (aligned > begin) munmap(p, aligned - begin);
  if (begin + page > aligned) munmap(reinterpret_cast<void*>(aligned + size), begin + page - aligned);
#if defined(MADV_HUGEPAGE)
  madvise(reinterpret_cast<void*>(aligned), size, MADV_HUGEPAGE);
#endif
  return reinterpret_cast<void*>(aligned);
}
void unmap(void* p, size_t size) { munmap(p, size); }
#else
void* map(size_t size) { return std::aligned_alloc(page, size); }
void unmap(void* p, size_t) { std::free(p); }
#endif

class Pool {
 public:
  void* allocate(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      kept_.reserve(kept_.size() + blocks_ + 1);  // free() must not need memory
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    live_ += size;
    if (++allocations_ % epoch == 0) before_ = now_, now_ = 0;
    now_ = std::max(now_, live_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->size == size) best = block;  // the latest: most likely still in the caches
    if (best != kept_.end()) {
      void* p = best->p;
      kept_bytes_ -= size;
      kept_.erase(best);
      ++blocks_;
      return p;
    }
    trim(limit());
    void* p = map(size);
    if (p == nullptr) {
      trim(0);
      p = map(size);
    }
    if (p == nullptr) {
      live_ -= size;
    } else {
      ++blocks_;
    }
    return p;
  }

  void free(void* p, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ -= size, --blocks_;
    kept_.push_back({p, size});
    kept_bytes_ += size;
    trim(limit());
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    trim(0);
  }

  PoolUse use() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {live_, kept_bytes_};
  }

  // Around a fork: a child has none of the other threads, and would wait for ever for a lock that one of them holds.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Block {
    void* p;
    size_t size;
  };

  size_t limit() const {
    const size_t mark = std::max(before_, now_);
    return mark > live_ ? mark - live_ : 0;
  }

  // Gives the oldest blocks back until at most `bytes` are kept.
  void trim(size_t bytes) {
    size_t n = 0;
    for (; n < kept_.size() && kept_bytes_ > bytes; ++n) {
      kept_bytes_ -= kept_[n].size;
      unmap(kept_[n].p, kept_[n].size);
    }
    kept_.erase(kept_.begin(), kept_.begin() + ptrdiff_t(n));
  }

  std::mutex mutex_;
  std::vector<Block> kept_;                        // oldest first
  size_t live_ = 0, kept_bytes_ = 0, blocks_ = 0;  // blocks_: live ones
  size_t now_ = 0, before_ = 0;                    // most live bytes in this epoch and in the one before
  uint64_t allocations_ = 0;
};

// Never destroyed, as tensors may outlive it; made as the library is loaded, so that no fork finds it half made.
Pool& pool = *new Pool;
const int forks_of_pool = pthread_atfork([] { pool.lock(); }, [] { pool.unlock(); }, [] { pool.unlock(); });

}  // namespace

void* pool_allocate(size_t bytes, size_t* size) {
  *size = (bytes + page - 1) / page * page;
  return pool.allocate(*size);
}

void pool_free(void* p, size_t size) { pool.free(p, size); }
void pool_release() { pool.release(); }
PoolUse pool_use() { return pool.use(); }

}  // namespace sparsegnn

// For sparsegnn._native, through ctypes.
extern "C" __attribute__((visibility("default"))) void sparsegnn_pool_release() { sparsegnn::pool_release(); }
extern "C" __attribute__((visibility("default"))) void sparsegnn_pool_use(uint64_t* live, uint64_t* kept) {
  const auto use = sparsegnn::pool_use();
  *live = use.live;
  *kept = use.kept;
}
