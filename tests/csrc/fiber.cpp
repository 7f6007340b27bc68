#include "fiber.h"

#include <cstdint>

namespace sparsegnn::emulator {

#if defined(SPARSEGNN_OWN_SWITCH)

// swapcontext would do, but asks the kernel for the signal mask each time; a warp shuffle is 64 switches.
extern "C" __attribute__((visibility("hidden"))) void sparsegnn_switch_stack(void** from, void* to);
asm(R"(
.text
.globl sparsegnn_switch_stack
.hidden sparsegnn_switch_stack
.type sparsegnn_switch_stack, @function
sparsegnn_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sparsegnn_switch_stack, . - sparsegnn_switch_stack
)");

void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16;
  auto** frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;  // six registers, where to go, and no caller behind it
  frame[6] = reinterpret_cast<void*>(entry);
  context = frame;
}

void switch_context(Context& from, Context& to) { sparsegnn_switch_stack(&from, to); }

#else

void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

#endif

}  // namespace sparsegnn::emulator
