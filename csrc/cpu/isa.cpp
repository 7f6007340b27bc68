// Reads cpuid once; SPARSEGNN_ISA overrides it, never upwards.
#include "isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace sparsegnn {

Isa best_isa() {
#if defined(SG_HAVE_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::portable;
}

namespace {

const char* const names[] = {"portable", "avx2", "avx512"};

Isa choose() {
  const Isa best = best_isa();
  const char* wish = std::getenv("SPARSEGNN_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (int i = 0; i < 3; ++i) {
    if (std::string(wish) == names[i]) {
      STD_TORCH_CHECK(i <= static_cast<int>(best), "SPARSEGNN_ISA=", wish,
                      " is not supported by this processor, which has ", names[static_cast<int>(best)]);
      return static_cast<Isa>(i);
    }
  }
  STD_TORCH_CHECK(false, "SPARSEGNN_ISA must be portable, avx2 or avx512, got ", wish);
  return best;
}

std::string isa_name() { return names[static_cast<int>(isa())]; }
std::string best_isa_name() { return names[static_cast<int>(best_isa())]; }

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

bool two_wide_fmas() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool large = sysconf(_SC_LEVEL1_DCACHE_SIZE) > 32 << 10;
  return large && isa() == Isa::avx512;
#else
  return false;
#endif
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsegnn, m) {
  m.def("isa() -> str");
  m.def("best_isa() -> str");
  m.def("two_wide_fmas() -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_name));
  m.impl("best_isa", TORCH_BOX(&best_isa_name));
  m.impl("two_wide_fmas", TORCH_BOX(&two_wide_fmas));
}

}  // namespace sparsegnn
