// spmm / cpu: checks, outputs, dtype, threads. The arithmetic is in spmm.kernel.cpp.
#include "spmm.h"

#include "../common/parallel.h"
#include "../common/tensor.h"
#include "dispatch.h"
#include "output.h"
#include "workspace.h"

namespace sparsegnn {
namespace {

// Edges and rows of one chunk: small enough to balance hubs, large enough to make the queue free (about 20 us of work).
constexpr int64_t chunk_cost = 4096;
// Rows of more edges than this are cut into pieces, so that one of them does not hold up all threads.
constexpr int64_t hub_edges = 1 << 15, piece_edges = 1 << 13;
// Outputs of this size are written past the caches, which keep more of x then.
constexpr size_t stream_bytes = 12 << 20;
// Tables of this size are read from L2: features times a small weight.
constexpr size_t near_bytes = 256 << 10;

struct Range {
  int64_t begin, end;
};

// The rows of a matrix as chunks of about equal cost, and the rows that are cut: `crow` holds the edges of their
// pieces, one row of partial results for each; between those of two hubs one is left out.
struct Work {
  std::vector<Range> chunks;
  std::vector<SpmmHub> hubs;
  std::vector<int32_t> crow;
  std::vector<int64_t> pieces;

  Work(const int32_t* rows, int64_t n) {
    const auto bounds = balanced_rows(rows, n, chunk_cost);
    for (size_t c = 0; c + 1 < bounds.size(); ++c) {
      int64_t begin = bounds[c];
      const int64_t end = bounds[c + 1];
      if (rows[end] - rows[begin] > hub_edges)
        for (int64_t r = begin; r < end; ++r)
          if (rows[r + 1] - rows[r] > hub_edges) {
            chunks.push_back({begin, r});
            cut(r, rows[r], rows[r + 1]);
            begin = r + 1;
          }
      chunks.push_back({begin, end});
    }
  }

  void cut(int64_t row, int64_t begin, int64_t end) {
    const int64_t first = int64_t(crow.size());
    for (int64_t e = begin; e < end; e += piece_edges) {
      pieces.push_back(int64_t(crow.size()));
      crow.push_back(int32_t(e));
    }
    hubs.push_back({row, first, int64_t(crow.size())});
    crow.push_back(int32_t(end));
  }

  // rows(begin, end) for all chunks, piece(p) for all pieces, then join(hub).
  template <typename Rows, typename Piece, typename Join>
  void run(const Rows& rows, const Piece& piece, const Join& join) const {
    const int64_t n = int64_t(chunks.size());
    for_each_chunk(n + int64_t(pieces.size()), [&](int64_t c) {
      if (c < n) return rows(chunks[size_t(c)].begin, chunks[size_t(c)].end);
      piece(pieces[size_t(c - n)]);
    });
    for_each_chunk(int64_t(hubs.size()), [&](int64_t h) { join(hubs[size_t(h)]); });
  }
};

using Optional = std::optional<Tensor>;

// A small transposed weight. torch takes 30 us to turn one of 1433 x 16 around, spmm_table 5; and each thread does it
// for itself, because to fetch it from the cache of the core that did takes longer.
bool is_turned(const Tensor& x) {
  constexpr int64_t small = 1 << 18;
  return !x.is_contiguous() && x.stride(0) == 1 && x.numel() <= small;
}

// `args` with the calling thread's own copy of x, made at its first use in call number `call`.
template <typename T, typename A>
SpmmArgs<T, A> with_table(const SpmmArgs<T, A>& args, const Tensor& x, uint64_t call) {
  thread_local Workspace memory;
  thread_local uint64_t held = 0;
  SpmmArgs<T, A> mine = args;
  T* table = memory.get<T>(x.numel());
  if (held != call) SG_PICK(spmm_table<T>)(args.x, x.stride(1), table, x.size(0), x.size(1));
  held = call, mine.x = table;
  return mine;
}

bool is_extremum(const std::string& reduce) { return reduce == "max" || reduce == "min"; }

void check(const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val, const Optional& row_scale,
           const Optional& col_scale, const Optional& diag, const Text& reduce) {
  check_index("spmm", "crow", crow);
  check_index("spmm", "col", col);
  STD_TORCH_CHECK(x.dim() == 2, "spmm: x must have shape [N, K], got ", x.dim(), " dimension(s)");
  STD_TORCH_CHECK(crow.numel() >= 1, "spmm: crow must have at least one element");
  const bool extremum = is_extremum(reduce);
  STD_TORCH_CHECK(extremum || reduce == "sum" || reduce == "mean", "spmm: reduce must be sum, mean, max or min, got ",
                  reduce);
  const int64_t rows = crow.numel() - 1;
  if (val) {
    check_same_dtype("spmm", "val", *val, x);
    STD_TORCH_CHECK(val->numel() == col.numel(), "spmm: val must have one element per edge");
  }
  STD_TORCH_CHECK(!extremum || (!row_scale && !col_scale && !diag), "spmm: scales and diag need reduce sum or mean");
  STD_TORCH_CHECK(!row_scale || row_scale->numel() == rows, "spmm: row_scale must have one element per row");
  STD_TORCH_CHECK(!col_scale || col_scale->numel() == x.size(0), "spmm: col_scale must have one element per row of x");
  STD_TORCH_CHECK(!diag || (diag->numel() == rows && rows == x.size(0)), "spmm: diag needs a square matrix");
}

// Writes y, and arg where it has elements; both contiguous.
void reduce_into(Tensor& y, Tensor& arg, const Tensor& x_in, const Tensor& crow, const Tensor& col,
                 const Optional& val_in, const Optional& row_scale_in, const Optional& col_scale_in,
                 const Optional& diag_in, const Text& reduce) {
  static std::atomic<uint64_t> calls{0};
  const bool turned = is_turned(x_in);
  const uint64_t call = turned ? ++calls : 0;
  const Tensor x = turned ? x_in : as_contiguous(x_in);
  const auto val = as_contiguous(val_in);
  const auto row_scale = as_scale(row_scale_in, x), col_scale = as_scale(col_scale_in, x), diag = as_scale(diag_in, x);
  const int64_t rows = crow.numel() - 1, width = x.size(1);
  const bool extremum = is_extremum(reduce);
  const Work work(data<int32_t>(crow), rows);
  const int64_t partial_rows = int64_t(work.crow.size());
  thread_local Workspace partials, partial_args;
  dispatch("spmm", x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    SpmmArgs<T, A> args{};
    args.crow = data<int32_t>(crow), args.col = data<int32_t>(col), args.edges = col.numel();
    args.val = data<T>(val);
    args.row_scale = data<A>(row_scale), args.col_scale = data<A>(col_scale), args.diag = data<A>(diag);
    args.x = data<T>(x), args.y = mutable_data<T>(y);
    args.arg = arg.numel() > 0 ? mutable_data<int32_t>(arg) : nullptr;
    args.width = args.x_stride = args.y_stride = width;
    args.mean = reduce == "mean", args.largest = reduce == "max";
    args.stream = size_t(y.numel()) * sizeof(T) > stream_bytes && rows_are_lines(y);
    args.near = size_t(x.numel()) * sizeof(T) <= near_bytes;
    SpmmArgs<T, A> pieces = args;
    pieces.crow = work.crow.data(), pieces.partial = partials.get<A>(partial_rows * width);
    if (args.arg != nullptr) pieces.arg = partial_args.get<int32_t>(partial_rows * width);
    pieces.stream = false;
    const auto kernel = extremum ? SG_PICK(spmm_arg_rows<T, A>) : SG_PICK(spmm_sum_rows<T, A>);
    const auto own = [&](const SpmmArgs<T, A>& a) { return turned ? with_table(a, x, call) : a; };
    work.run([&](int64_t begin, int64_t end) { kernel(own(args), begin, end); },
             [&](int64_t p) { kernel(own(pieces), p, p + 1); },
             [&](const SpmmHub& hub) {
               SpmmArgs<T, A> joined = own(args);
               joined.partial = pieces.partial;
               if (extremum) return SG_PICK(spmm_arg_hub<T, A>)(joined, args.arg ? pieces.arg : nullptr, hub);
               SG_PICK(spmm_sum_hub<T, A>)(joined, hub);
             });
  });
}

std::tuple<Tensor, Tensor> spmm(const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val,
                                const Optional& row_scale, const Optional& col_scale, const Optional& diag,
                                const Optional& /*ccol*/, const Optional& /*row*/, const Optional& /*perm*/,
                                const Text& reduce, bool need_arg, const Optional& /*spans*/,
                                const Optional& /*cspans*/) {
  check(x, crow, col, val, row_scale, col_scale, diag, reduce);
  const int64_t rows = crow.numel() - 1, width = x.size(1);
  const bool with_arg = need_arg && is_extremum(reduce);
  Tensor y = new_output(x, {rows, width});
  Tensor arg = new_output(x, {with_arg ? rows : 0, with_arg ? width : 0}, ScalarType::Int);
  reduce_into(y, arg, x, crow, col, val, row_scale, col_scale, diag, reduce);
  return {y, arg};
}

void spmm_out(Tensor y, const Tensor& x, const Tensor& crow, const Tensor& col, const Optional& val,
              const Optional& row_scale, const Optional& col_scale, const Optional& diag, const Text& reduce,
              const Optional& /*spans*/) {
  check(x, crow, col, val, row_scale, col_scale, diag, reduce);
  check_same_dtype("spmm", "out", y, x);
  STD_TORCH_CHECK(y.dim() == 2 && y.size(0) == crow.numel() - 1 && y.size(1) == x.size(1) && y.is_contiguous(),
                  "spmm: out must be contiguous, of shape [M, K]");
  Tensor arg = new_output(x, {0, 0}, ScalarType::Int);
  reduce_into(y, arg, x, crow, col, val, row_scale, col_scale, diag, reduce);
}

std::tuple<Tensor, Tensor> spmm_arg_backward(const Tensor& dy_in, const Tensor& x_in, const Tensor& arg_in,
                                             const Optional& val_in, const Tensor& crow, const Tensor& col,
                                             const Optional& ccol, const Optional& row, const Optional& perm,
                                             bool need_dx, bool need_dval, const Optional& /*cspans*/) {
  const char* op = "spmm_arg_backward";
  check_index(op, "crow", crow);
  check_index(op, "col", col);
  STD_TORCH_CHECK(!need_dx || (ccol && row && perm), op, ": ccol, row and perm must be given for a gradient of x");
  for (const auto& [name, t] : {std::pair<const char*, const Optional&>{"ccol", ccol}, {"row", row}, {"perm", perm}})
    if (t) check_index(op, name, *t);
  const Tensor dy = as_contiguous(dy_in), x = as_contiguous(x_in), arg = as_contiguous(arg_in);
  const auto val = as_contiguous(val_in);
  const int64_t rows = crow.numel() - 1, columns = x.size(0), width = x.size(1);
  check_same_dtype(op, "dy", dy, x);
  STD_TORCH_CHECK(arg.scalar_type() == ScalarType::Int, op, ": arg must be int32");
  STD_TORCH_CHECK(dy.numel() == rows * width && arg.numel() == rows * width, op, ": dy and arg must have shape [M, K]");
  STD_TORCH_CHECK(!need_dx || ccol->numel() == columns + 1, op, ": ccol must have N + 1 elements");
  Tensor dx = new_output(x, {need_dx ? columns : 0, need_dx ? width : 0});
  Tensor dval = new_output(x, {need_dval ? col.numel() : 0});
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = accumulate<T>;
    SpmmArgGradient<T, A> args{};
    args.edges = col.numel(), args.val = data<T>(val), args.x = data<T>(x), args.dy = data<T>(dy);
    args.arg = data<int32_t>(arg), args.width = width;
    if (need_dx) {
      args.crow = data<int32_t>(ccol), args.col = data<int32_t>(row), args.perm = data<int32_t>(perm);
      args.y = mutable_data<T>(dx);
      const Work work(args.crow, columns);
      thread_local Workspace partials;
      SpmmArgGradient<T, A> pieces = args;
      pieces.crow = work.crow.data(), pieces.partial = partials.get<A>(int64_t(work.crow.size()) * width);
      SpmmArgs<T, A> joined{};
      joined.crow = args.crow, joined.y = args.y, joined.partial = pieces.partial;
      joined.width = joined.y_stride = width;
      work.run(
          [&](int64_t begin, int64_t end) {
            SG_PICK(spmm_arg_dx_rows<T, A>)
            (args, begin, end);
          },
          [&](int64_t p) {
            SG_PICK(spmm_arg_dx_rows<T, A>)
            (pieces, p, p + 1);
          },
          [&](const SpmmHub& hub) {
            SG_PICK(spmm_sum_hub<T, A>)
            (joined, hub);
          });
    }
    if (need_dval) {
      args.crow = data<int32_t>(crow), args.col = data<int32_t>(col), args.y = mutable_data<T>(dval);
      const auto bounds = balanced_rows(args.crow, rows, chunk_cost);
      for_each_chunk(int64_t(bounds.size()) - 1, [&](int64_t c) {
        SG_PICK(spmm_arg_dval_rows<T, A>)(args, bounds[c], bounds[c + 1]);
      });
    }
  });
  return {dx, dval};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CPU, m) {
  m.impl("spmm", TORCH_BOX(&spmm));
  m.impl("spmm_out", TORCH_BOX(&spmm_out));
  m.impl("spmm_arg_backward", TORCH_BOX(&spmm_arg_backward));
}

}  // namespace sparsegnn
