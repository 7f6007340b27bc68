// Which instruction sets are built and which the processor has; SPARSEGNN_ISA chooses among those that are both.
#include "isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace sparsegnn {
namespace {

constexpr Isa all[] = {Isa::portable, Isa::avx2, Isa::avx512};
const char* const names[] = {"portable", "avx2", "avx512"};
const char* name(Isa isa) { return names[static_cast<int>(isa)]; }

// sparsegnn/_native.py reads it from the file before it loads the library.
__attribute__((used)) const char built_names[] =
    "sparsegnn-isas:"
#if defined(SG_HAVE_PORTABLE)
    "portable,"
#endif
#if defined(SG_HAVE_AVX2)
    "avx2,"
#endif
#if defined(SG_HAVE_AVX512)
    "avx512,"
#endif
    ;

bool is_built(Isa isa) { return std::string(built_names).find(name(isa)) != std::string::npos; }

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
#endif
  return isa == Isa::portable;
}

// Of the build, from the least to the best.
std::string isa_names() {
  std::string joined;
  for (const Isa isa : all) {
    if (!is_built(isa)) continue;
    if (!joined.empty()) joined += ',';
    joined += name(isa);
  }
  return joined;
}

// Made as the library is loaded, so that a fork never finds it half made; an error waits for the first call.
struct Choice {
  Isa isa;
  std::string error;
};

Choice choose() {
  const char* value = std::getenv("SPARSEGNN_ISA");
  const std::string wish = value == nullptr ? "" : value, have = name(best_isa());
  if (wish.empty()) return {best_isa(), ""};
  for (const Isa isa : all) {
    if (wish != name(isa)) continue;
    if (!runs_here(isa))
      return {isa, "SPARSEGNN_ISA=" + wish + " is not supported by this processor, which has " + have};
    if (!is_built(isa))
      return {isa, "SPARSEGNN_ISA=" + wish + " is not in this build, which has " + isa_names() +
                       ": SPARSEGNN_ISAS=all pip install --no-build-isolation . builds every one"};
    return {isa, ""};
  }
  return {best_isa(), "SPARSEGNN_ISA must be portable, avx2 or avx512, got " + wish};
}

const Choice choice = choose();

#if defined(_SC_LEVEL1_DCACHE_SIZE)
const bool large_caches = sysconf(_SC_LEVEL1_DCACHE_SIZE) > 32 << 10;
#else
const bool large_caches = false;
#endif

std::string isa_name() { return name(isa()); }
std::string best_isa_name() { return name(best_isa()); }

}  // namespace

Isa best_isa() {
  Isa best = Isa::portable;
  for (const Isa isa : all)
    if (is_built(isa) && runs_here(isa)) best = isa;
  return best;
}

Isa isa() {
  STD_TORCH_CHECK(choice.error.empty(), choice.error);
  return choice.isa;
}

bool two_wide_fmas() { return large_caches && isa() == Isa::avx512; }

STABLE_TORCH_LIBRARY_FRAGMENT(sparsegnn, m) {
  m.def("isa() -> str");
  m.def("best_isa() -> str");
  m.def("isas() -> str");
  m.def("two_wide_fmas() -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(sparsegnn, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_name));
  m.impl("best_isa", TORCH_BOX(&best_isa_name));
  m.impl("isas", TORCH_BOX(&isa_names));
  m.impl("two_wide_fmas", TORCH_BOX(&two_wide_fmas));
}

}  // namespace sparsegnn
