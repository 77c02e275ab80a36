// Where a fiber, or the thread that runs them, goes on: its registers and its stack.
#pragma once

#include <algorithm>
#include <cstddef>

#if defined(__x86_64__) && !defined(CUDA_HOST_UCONTEXT)

extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(
.text
.hidden cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");

namespace cuda_host {
using Context = void*;  // the stack pointer; what a function has to keep is on the stack

// Leaves `from` to be gone on with later.
inline void switch_context(Context& from, Context& to) { cuda_host_switch(&from, to); }

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // the entry's return address: a debugger's backtrace ends here
  *--top = reinterpret_cast<void*>(entry);
  context = top - 6;
  std::fill(top - 6, top, nullptr);
}

}  // namespace cuda_host

#else  // the C library's, which calls the system at each switch
#include <ucontext.h>

namespace cuda_host {

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

}  // namespace cuda_host
#endif
