// Memory of large CPU outputs, kept for the next output of about the same size.
#pragma once
#include <cstddef>

namespace sparsegnn {

// Bytes now: held by live tensors, and kept for later ones.
struct PoolUse {
  size_t live, kept;
};

// At least `bytes` bytes on huge pages, contents undefined; null when the system has no more. `*size` is what
// pool_free() wants back.
void* pool_allocate(size_t bytes, size_t* size);
void pool_free(void* p, size_t size);

// Gives everything that is kept back to the system.
void pool_release();
PoolUse pool_use();

}  // namespace sparsegnn
