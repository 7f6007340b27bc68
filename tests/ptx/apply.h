// apply.h: what executes an instruction that makes a number of numbers, lane by lane.
#pragma once
#include <tuple>

#include "instructions.h"
#include "numbers.h"

namespace sparsegnn::ptx {

template <typename Operation, typename D, typename... S, size_t... n>
void apply_rows(Warp& w, const Instruction& i, std::index_sequence<n...>) {
  D* d = w.row<D>(i.operand[0]);
  const std::tuple<const S*...> s{w.row<const S>(i.operand[n + 1])...};
  w.each([&](int lane) { d[lane] = Operation::of(std::get<n>(s)[lane]...); });
}
template <typename Operation, typename D, typename... S>
void apply(Warp& w, const Instruction& i) {
  apply_rows<Operation, D, S...>(w, i, std::index_sequence_for<S...>{});
}

// Of n numbers of one type a number of that type.
template <typename Operation, typename T, int n>
Execute uniform() {
  if constexpr (n == 1) return apply<Operation, T, T>;
  if constexpr (n == 2) return apply<Operation, T, T, T>;
  if constexpr (n == 3) return apply<Operation, T, T, T, T>;
}

// The operands of d, a, b, ..., all of one type.
inline void same(Reader& r, Type t, int sources) {
  r.destination(t);
  for (int k = 0; k < sources; ++k) r.source(t);
}

}  // namespace sparsegnn::ptx
