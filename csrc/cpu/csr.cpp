// csr / cpu: checks, outputs, dtype, threads. The arithmetic is in csr.kernel.cpp.
#include "csr.h"

#include <utility>

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"

namespace sparsegnn {
namespace {

constexpr int64_t chunk_edges = 1 << 16;  // about 0.2 ms of sorting
constexpr int64_t max_chunks = 64, max_buckets = 512;
constexpr int64_t chunk_cost = 1 << 14;  // edges and rows, for degrees

using Csr = std::tuple<Tensor, Tensor, Tensor>;

template <typename I>
Csr sorted(const char* op, const Tensor& like, const I* target, const I* source, int64_t edges, int64_t rows,
           int64_t cols) {
  Tensor crow = new_output(like, {rows + 1}, ScalarType::Int), col = new_output(like, {edges}, ScalarType::Int);
  Tensor perm = new_output(like, {edges}, ScalarType::Int);
  Tensor buffer = new_output(like, {3 * edges}, ScalarType::Int);
  const int64_t chunks = std::clamp<int64_t>(edges / chunk_edges, 1, max_chunks);
  int shift = 0;
  while ((rows - 1) >> shift >= (chunks == 1 ? 1 : max_buckets)) ++shift;
  const int64_t buckets = rows == 0 ? 0 : ((rows - 1) >> shift) + 1;
  const CsrSortArgs<I> args{target,
                            source,
                            rows,
                            cols,
                            shift,
                            reinterpret_cast<CsrEdge*>(mutable_data<int32_t>(buffer)),
                            mutable_data<int32_t>(crow),
                            mutable_data<int32_t>(col),
                            mutable_data<int32_t>(perm)};
  mutable_data<int32_t>(crow)[0] = 0;

  // places[c][b]: how many edges chunk c has in bucket b, then where the first of them goes
  std::vector<int64_t> places(size_t(chunks) * size_t(std::max<int64_t>(buckets, 1)), 0), start(size_t(buckets) + 1, 0);
  std::atomic<bool> in_range{true};
  const auto begin = [&](int64_t c) { return edges * c / chunks; };
  for_each_chunk(chunks, [&](int64_t c) {
    if (!SG_PICK(csr_count<I>)(args, begin(c), begin(c + 1), places.data() + c * buckets)) in_range = false;
  });
  STD_TORCH_CHECK(in_range, op, ": indices must be in [0, ", rows, ") and [0, ", cols, ")");
  int64_t total = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    start[b] = total;
    for (int64_t c = 0; c < chunks; ++c) total += std::exchange(places[c * buckets + b], total);
  }
  start[buckets] = total;
  for_each_chunk(chunks, [&](int64_t c) {
    SG_PICK(csr_scatter<I>)(args, begin(c), begin(c + 1), places.data() + c * buckets);
  });
  for_each_chunk(buckets, [&](int64_t b) { SG_PICK(csr_bucket<I>)(args, b, start[b], start[b + 1]); });
  return {crow, col, perm};
}

void check_size(const char* op, int64_t rows, int64_t cols, int64_t edges) {
  constexpr int64_t limit = INT32_MAX;
  STD_TORCH_CHECK(rows >= 0 && cols >= 0 && rows < limit && cols < limit && edges < limit, op,
                  ": rows, columns and edges must be below 2^31 - 1");
}

// crow must rise from 0 to the number of edges, or kernels would leave their arrays.
void check_offsets(const char* op, const Tensor& crow, int64_t edges) {
  const int32_t* p = data<int32_t>(crow);
  bool ok = p[0] == 0 && p[crow.numel() - 1] == edges;
  for (int64_t r = 1; r < crow.numel(); ++r) ok &= p[r - 1] <= p[r];
  STD_TORCH_CHECK(ok, op, ": crow must rise from 0 to the number of edges, ", edges);
}

Csr csr_from_edges(const Tensor& target_in, const Tensor& source_in, int64_t num_rows, int64_t num_cols) {
  const char* op = "csr_from_edges";
  const auto dtype = target_in.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Long, op, ": target must be int32 or int64");
  STD_TORCH_CHECK(source_in.scalar_type() == dtype, op, ": source must have the dtype of target");
  STD_TORCH_CHECK(target_in.dim() == 1 && source_in.dim() == 1 && target_in.numel() == source_in.numel(), op,
                  ": target and source must have one dimension and the same size");
  const Tensor target = as_contiguous(target_in), source = as_contiguous(source_in);
  const int64_t edges = target.numel();
  check_size(op, num_rows, num_cols, edges);
  if (dtype == ScalarType::Int)
    return sorted(op, target, data<int32_t>(target), data<int32_t>(source), edges, num_rows, num_cols);
  return sorted(op, target, data<int64_t>(target), data<int64_t>(source), edges, num_rows, num_cols);
}

Csr csr_transpose(const Tensor& crow, const Tensor& col, int64_t num_cols, bool /*check: costs nothing here*/) {
  const char* op = "csr_transpose";
  check_index(op, "crow", crow);
  check_index(op, "col", col);
  const int64_t rows = crow.numel() - 1, edges = col.numel();
  STD_TORCH_CHECK(rows >= 0, op, ": crow must have at least one element");
  check_size(op, rows, num_cols, edges);
  check_offsets(op, crow, edges);
  Tensor row = new_output(crow, {edges});
  const auto bounds = balanced_rows(data<int32_t>(crow), rows, chunk_cost);
  for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) {
    SG_PICK(csr_row_ids)(data<int32_t>(crow), mutable_data<int32_t>(row), bounds[c], bounds[c + 1]);
  });
  return sorted(op, crow, data<int32_t>(col), data<int32_t>(row), edges, num_cols, rows);
}

Tensor csr_degrees(const Tensor& crow, const std::optional<Tensor>& val_in) {
  const char* op = "csr_degrees";
  check_index(op, "crow", crow);
  const int64_t rows = crow.numel() - 1;
  STD_TORCH_CHECK(rows >= 0, op, ": crow must have at least one element");
  const auto val = as_contiguous(val_in);
  STD_TORCH_CHECK(!val || val->dim() == 1, op, ": val must have one dimension");
  if (val) check_offsets(op, crow, val->numel());
  const ScalarType dtype = val ? val->scalar_type() : ScalarType::Float;
  Tensor y = new_output(crow, {rows}, accumulator(dtype));
  const auto bounds = balanced_rows(data<int32_t>(crow), rows, chunk_cost);
  dispatch(op, dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    const CsrDegreesArgs<T, A> args{data<int32_t>(crow), data<T>(val), mutable_data<A>(y)};
    const auto kernel = SG_PICK(csr_degrees_rows<T, A>);
    for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) { kernel(args, bounds[c], bounds[c + 1]); });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("csr_from_edges", TORCH_BOX(&csr_from_edges));
  m.impl("csr_transpose", TORCH_BOX(&csr_transpose));
  m.impl("csr_degrees", TORCH_BOX(&csr_degrees));
}

}  // namespace sparsegnn
