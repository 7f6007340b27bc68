// The packed weight of one sparse_linear call, in memory that the calling thread keeps for the next call.
#pragma once
#include <utility>

#include "../common/tensor.h"
#include "dispatch.h"
#include "sparse_linear.h"
#include "workspace.h"

namespace sparsegnn {

inline void check_packed(SparseLinearPackError error) {
  using E = SparseLinearPackError;
  STD_TORCH_CHECK(error != E::crow, "sparse_linear: crow must ascend from 0 to the number of values");
  STD_TORCH_CHECK(error != E::col, "sparse_linear: col must ascend within rows and lie in the range of the inputs");
  STD_TORCH_CHECK(error != E::perm, "sparse_linear: ccol, row and perm must be the transpose of crow and col");
}

// Rows [rows, cols] from (crow, col), entry t being values[perm[t]] of the pattern whose transpose this is, or
// values[t].
template <typename T, typename A = accumulate<T>>
class SparseLinearWeight {
 public:
  SparseLinearWeight(const SparseLinearPlan& plan, int64_t rows, int64_t cols, const int32_t* crow, const int32_t* col,
                     const T* values, int64_t nnz, const int32_t* perm = nullptr, const int32_t* turned_crow = nullptr,
                     const int32_t* turned_col = nullptr) {
    thread_local Workspace memory;
    const int64_t blocks = (cols + plan.block - 1) / plan.block, panels = (rows + plan.panel - 1) / plan.panel;
    const int64_t parts = blocks * panels, lines = blocks * rows;
    const int64_t padded = (nnz + (plan.pad - 1) * lines + 15) / 16 * 16;
    const int64_t words = padded * (2 + int64_t(sizeof(A)) / 4) + 3 * (parts + 1) + 3 * lines + (lines + rows);
    int32_t* p = memory.get<int32_t>(words);
    const auto take = [&](int64_t count) { return std::exchange(p, p + count); };
    SparseLinearPackArgs<T, A> a{};
    a.crow = crow, a.col = col, a.perm = perm, a.turned_crow = turned_crow, a.turned_col = turned_col;
    a.values = values, a.nnz = nnz, a.out = &packed_;
    a.value = reinterpret_cast<A*>(take(padded * int64_t(sizeof(A)) / 4));
    a.offset = reinterpret_cast<uint32_t*>(take(padded));
    a.slot = perm != nullptr ? take(padded) : nullptr;
    a.first_run = take(parts + 1), a.first_row = take(parts + 1), a.first_entry = take(parts + 1);
    a.runs = reinterpret_cast<SparseLinearRun*>(take(2 * lines));
    a.order = take(lines);
    a.starts = take(lines + rows);
    packed_ = {rows, cols, plan, a.first_run, a.first_row, a.first_entry, a.runs, a.order, a.offset, a.value};
    slot_ = a.slot;
    check_packed(SG_PICK(sparse_linear_pack<T, A>)(a));
    places_ = a.first_entry[parts];
  }

  const SparseLinearPacked<A>& packed() const { return packed_; }
  const int32_t* slot() const { return slot_; }  // null without perm
  int64_t places() const { return places_; }     // nonzeros, and what pads their rows

 private:
  SparseLinearPacked<A> packed_{};
  const int32_t* slot_ = nullptr;
  int64_t places_ = 0;
};

}  // namespace sparsegnn
