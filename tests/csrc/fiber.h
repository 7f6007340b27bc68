// fiber.h: a second stack to run on, and the switch between stacks.
#pragma once
#include <cstddef>

// Elsewhere, or if asked, ucontext: portable and much slower.
#if defined(__x86_64__) && !defined(SPARSEGNN_UCONTEXT)
#define SPARSEGNN_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace sparsegnn::emulator {

#if defined(SPARSEGNN_OWN_SWITCH)
using Context = void*;  // the stack pointer; what a call must keep lies above it
#else
using Context = ucontext_t;
#endif

// Makes `context` start `entry` on the given stack when it is first switched to. `entry` never returns.
void prepare(Context& context, void* stack, size_t bytes, void (*entry)());

// Goes on where `to` was left, and returns when someone switches to `from`.
void switch_context(Context& from, Context& to);

}  // namespace sparsegnn::emulator
