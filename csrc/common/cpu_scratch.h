// Scratch memory of CPU kernels that a thread keeps from call to call, unless it is much.
#pragma once

#include <optional>

#include "binding.h"
#include "cpu.h"

namespace vsegops {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

constexpr int64_t kKeptScratch = 16 << 20;  // bytes that a thread keeps from call to call

// Memory for the arrays of a tile, one block per thread; only one at a time.
class Arena {
 public:
  explicit Arena(size_t bytes) : next_(aligned(thread_scratch<char, Arena>(bytes + 64))) {}

  // The same where it may be much, which is given back.
  Arena(size_t bytes, const Context& context) {
    if (bytes <= kKeptScratch) {
      next_ = aligned(thread_scratch<char, Arena>(bytes + 64));
    } else {
      held_.emplace(context.scratch(bytes + 64, &next_));
      next_ = aligned(next_);
    }
  }

  template <typename T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return array;
  }

 private:
  static char* aligned(char* p) { return p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64; }

  std::optional<Tensor> held_;
  char* next_;
};

// Memory that a thread keeps from call to call, unless it is much.
template <typename F, typename Tag>
F* kept_scratch(int64_t elements, const Context& context, std::optional<Tensor>* held) {
  constexpr int64_t spare = 64 / sizeof(F);  // to begin at a line of the cache
  F* memory;
  if (elements * int64_t(sizeof(F)) <= kKeptScratch) {
    memory = thread_scratch<F, Tag>(elements + spare);
  } else {
    held->emplace(context.scratch(elements + spare, &memory));
  }
  return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64 / sizeof(F);
}

}  // namespace
}  // namespace vsegops
