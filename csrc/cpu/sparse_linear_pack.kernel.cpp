// Packing of sparse_linear weights: CSR rows cut into parts (a block of inputs by a panel of outputs), the rows of a
// part grouped by their number of entries, columns turned into byte offsets in the block's tile, values widened.
//
// work       about nnz * 12 B written once per call: below 1 % of a matmul with 4096 samples
// checks     crow, col and perm are validated on the way, at no measurable cost: perm ascends within rows,
//            and the first entry of a row in a part is the one it names (to ask all took half as long again)
#include "simd.h"
#include "sparse_linear.h"

namespace sparsegnn {
namespace SG_ISA {
namespace {

constexpr int buckets = 256;  // counts from 255 up share the last one

// starts[b * rows + r]: first entry of row r in block b. Entries of a row must ascend; crow must be a CSR pointer.
template <typename T, typename A>
bool find_starts(const SparseLinearPackArgs<T, A>& a, int64_t blocks) {
  const int64_t rows = a.out->rows, block = a.out->plan.block;
  if (a.crow[0] != 0 || a.crow[rows] != a.nnz) return false;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t end = a.crow[r + 1];
    int64_t e = a.crow[r];
    if (end < e || end > a.nnz) return false;
    for (int64_t b = 0; b < blocks; ++b) {
      a.starts[b * rows + r] = int32_t(e);
      const int64_t limit = (b + 1) * block;
      if (b + 1 < blocks)
        while (e < end && a.col[e] < limit) ++e;
    }
    a.starts[blocks * rows + r] = int32_t(end);
  }
  return true;
}

// Rows [begin, end) of block b in the order of their counts, and the runs that this makes.
template <typename T, typename A>
void sort_rows(const SparseLinearPackArgs<T, A>& a, int64_t b, int64_t begin, int64_t end, int64_t panel_begin,
               int32_t& runs, int32_t& row) {
  const int32_t* from = a.starts + b * a.out->rows;
  const int32_t* to = from + a.out->rows;
  int32_t at[buckets + 1] = {};
  const auto bucket = [&](int64_t r) { return to[r] - from[r] < buckets - 1 ? to[r] - from[r] : buckets - 1; };
  for (int64_t r = begin; r < end; ++r) ++at[bucket(r) + 1];
  if (b > 0) at[1] = 0;  // rows without entries
  for (int i = 0; i < buckets; ++i) at[i + 1] += at[i];
  for (int i = 0; i < buckets - 1; ++i)
    if (at[i + 1] > at[i]) a.runs[runs++] = {i, at[i + 1] - at[i]};
  for (int64_t r = begin; r < end; ++r) {
    const int i = bucket(r);
    if (i == 0 && b > 0) continue;
    if (i == buckets - 1) a.runs[runs++] = {to[r] - from[r], 1};
    a.order[row + at[i]++] = int32_t(r - panel_begin);
  }
  row += at[buckets - 1];
}

// Whether entry t of row r is entry perm[t] of the pattern whose transpose this is.
template <typename T, typename A>
bool is_turned_entry(const SparseLinearPackArgs<T, A>& a, int64_t r, int32_t t) {
  const int32_t slot = a.perm[t], line = a.col[t];
  if (uint32_t(slot) >= uint32_t(a.nnz) || uint32_t(line) >= uint32_t(a.out->cols)) return false;
  return a.turned_col[slot] == r && a.turned_crow[line] <= slot && slot < a.turned_crow[line + 1];
}

}  // namespace

template <typename T, typename A>
SparseLinearPackError sparse_linear_pack(const SparseLinearPackArgs<T, A>& a) {
  const auto& plan = a.out->plan;
  const int64_t rows = a.out->rows, blocks = (a.out->cols + plan.block - 1) / plan.block;
  if (!find_starts(a, blocks)) return SparseLinearPackError::crow;
  const int shift = __builtin_ctz(unsigned(plan.tile) * unsigned(sizeof(A)));
  int32_t runs = 0, row = 0, entry = 0;
  uint32_t outside = 0, misplaced = 0;
  int64_t part = 0;
  for (int64_t panel = 0; panel < rows; panel += plan.panel) {
    const int64_t panel_end = rows - panel < plan.panel ? rows : panel + plan.panel;
    for (int64_t b = 0; b < blocks; ++b, ++part) {
      a.first_run[part] = runs;
      a.first_row[part] = row;
      a.first_entry[part] = entry;
      const int32_t first = row;
      for (int64_t r = panel; r < panel_end; r += plan.window)
        sort_rows(a, b, r, panel_end - r < plan.window ? panel_end : r + plan.window, panel, runs, row);
      const int64_t width = a.out->cols - b * plan.block < plan.block ? a.out->cols - b * plan.block : plan.block;
      for (int32_t i = first; i < row; ++i) {
        const int64_t r = panel + a.order[i];
        const int32_t from = a.starts[b * rows + r], count = a.starts[(b + 1) * rows + r] - from;
        const int32_t* col = a.col + from;
        for (int32_t e = 0; e < count; ++e) {
          const uint32_t local = uint32_t(col[e]) - uint32_t(b * plan.block);
          outside |= local >= uint32_t(width);
          a.offset[entry + e] = local << shift;
        }
        if (a.perm == nullptr) {
          for (int32_t e = 0; e < count; ++e) a.value[entry + e] = widen(a.values[from + e]);
        } else {
          int32_t last = from > a.crow[r] ? a.perm[from - 1] : -1;
          if (count > 0) misplaced |= !is_turned_entry(a, r, from);
          for (int32_t e = 0; e < count; ++e) {
            const int32_t slot = a.perm[from + e];
            const bool inside = uint32_t(slot) < uint32_t(a.nnz);
            misplaced |= uint32_t(!inside) | uint32_t(slot <= last);
            last = slot;
            a.value[entry + e] = widen(a.values[inside ? slot : 0]);
            a.slot[entry + e] = slot;
          }
        }
        entry += count;
        for (; entry % plan.pad != 0; ++entry) {
          a.value[entry] = 0;
          a.offset[entry] = 0;
          if (a.slot != nullptr) a.slot[entry] = -1;
        }
      }
    }
  }
  a.first_run[part] = runs;
  a.first_row[part] = row;
  a.first_entry[part] = entry;
  if (outside != 0) return SparseLinearPackError::col;
  return misplaced != 0 ? SparseLinearPackError::perm : SparseLinearPackError::none;
}

#define SG_INSTANTIATE(T, A) template SparseLinearPackError sparse_linear_pack<T, A>(const SparseLinearPackArgs<T, A>&);
SG_INSTANTIATE(float, float)
SG_INSTANTIATE(double, double)
SG_INSTANTIATE(bf16, float)
SG_INSTANTIATE(f16, float)

}  // namespace SG_ISA
}  // namespace sparsegnn
