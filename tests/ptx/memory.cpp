#include "memory.h"

#include <stdexcept>
#include <string>

#include "allocation.h"

namespace sparsegnn::ptx {

Allocation::Allocation(const void* p, size_t bytes) : begin_(reinterpret_cast<uint64_t>(p)) {
  memory().add(begin_, bytes);
}
Allocation::~Allocation() { memory().remove(begin_); }

void Page::refine(uint32_t bytes) {
  if (bytes >= unit) return;
  std::vector<Cell> smaller(kBytes / bytes);
  for (size_t i = 0; i < smaller.size(); ++i) smaller[i] = cells[i * bytes / unit];
  cells = std::move(smaller);
  unit = bytes;
}

void Memory::add(uint64_t begin, size_t bytes, bool shared) {
  Region& r = regions_[begin];
  r.begin = begin, r.end = begin + bytes, r.shared = shared;
  r.pages.resize((bytes + Page::kBytes - 1) / Page::kBytes);
}

void Memory::remove(uint64_t begin) { regions_.erase(begin); }

const Region* Memory::nearest(uint64_t address) const {
  auto after = regions_.upper_bound(address);
  return after == regions_.begin() ? nullptr : &(--after)->second;
}

void Memory::outside(uint64_t address, uint32_t bytes, Space space) const {
  const Region* r = nearest(address);
  std::string where = "no array is there";
  if (r != nullptr)
    where = std::to_string(address - r->begin) + " bytes after the begin of " +
            (r->shared ? "shared memory" : "an array") + " of " + std::to_string(r->end - r->begin);
  if (r != nullptr && space == Space::global && r->shared) where += ", by an access to global memory";
  throw std::runtime_error("out of bounds: " + std::to_string(bytes) + " bytes, " + where);
}

void Memory::touch(Region*& hint, Space space, uint64_t address, uint32_t bytes, Access access) {
  if (address % bytes != 0) throw std::runtime_error("misaligned: needs " + std::to_string(bytes) + " bytes");
  if (hint == nullptr || address < hint->begin || address + bytes > hint->end) {
    hint = const_cast<Region*>(nearest(address));
    if (hint == nullptr || address + bytes > hint->end) {
      hint = nullptr;
      outside(address, bytes, space);
    }
  }
  if (space != Space::generic && (space == Space::shared) != hint->shared) outside(address, bytes, space);
  const uint64_t offset = address - hint->begin;
  for (uint64_t at = offset; at < offset + bytes;) {
    std::unique_ptr<Page>& page = hint->pages[at / Page::kBytes];
    if (!page) page = std::make_unique<Page>();
    const uint32_t misplaced = uint32_t(at | bytes) & 3;  // an array may begin anywhere, or so may an access
    if (misplaced != 0) page->refine(misplaced & 1 ? 1 : 2);
    const uint32_t unit = page->unit;
    if (const Accesses* other = order.touch(page->cells[at % Page::kBytes / unit], access, hint->shared)) {
      throw std::runtime_error(std::string("race between ") + order.between(*other) + ": not ordered with what line " +
                               std::to_string(other->line) + " did there");
    }
    at += unit;
  }
}

}  // namespace sparsegnn::ptx
