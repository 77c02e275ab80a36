// Targets on a CPU: rows of any integers as int32 labels, C for what is ignored.
#pragma once

#include <atomic>

#include "cpu_cells.h"

namespace vsegops::dense_head {
namespace {

// Labels of `count` targets; returns whether one is no class.
template <typename U>
bool read_labels(const U* from, int64_t count, int64_t classes, int64_t ignored, int32_t* labels) {
  constexpr int n = kVectorBytes / sizeof(int64_t);
  typedef U Given __attribute__((vector_size(n * sizeof(U))));
  using Wide = Vector<int64_t>;
  Wide wrong{};
  int64_t i = 0;
  for (; i < count; i += n) {
    Given given{};
    if (i + n <= count) {
      std::memcpy(&given, from + i, sizeof(given));
    } else {
      std::memcpy(&given, from + i, (count - i) * sizeof(U));
    }
    const Wide label = __builtin_convertvector(given, Wide);
    const Wide known = (label >= 0) & (label < classes), counted = label != ignored;
    const FewIndices few =
        __builtin_convertvector(known & counted ? label : Wide{} + classes, FewIndices);
    if (i + n <= count) {
      std::memcpy(labels + i, &few, sizeof(few));
    } else {
      std::memcpy(labels + i, &few, (count - i) * sizeof(int32_t));
    }
    wrong |= ~known & counted;
  }
  return any(wrong);
}

class Targets {
 public:
  Targets(const Target& target, int64_t classes, int64_t ignored, int64_t height)
      : target_(target), classes_(classes), ignored_(ignored), height_(height), wrong_(ignored) {}

  // `count` columns of row y of image n, from x on. One that is no class is remembered, and
  // ignored.
  void read(int64_t n, int64_t y, int64_t x, int64_t count, int32_t* labels) const {
    with_type([&](auto type) {
      const auto* const row = at<typename decltype(type)::type>(n, y, x);
      const int64_t step = target_.stride_w;
      bool wrong = false;
      if (step == 1) {
        wrong = read_labels(row, count, classes_, ignored_, labels);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          wrong |= read_labels(row + i * step, 1, classes_, ignored_, labels + i);
        }
      }
      for (int64_t i = 0; wrong; ++i) {
        const int64_t label = row[i * step];
        if (label == ignored_ || (label >= 0 && label < classes_)) continue;
        wrong_ = label;
        wrong = false;
      }
    });
  }

  // Asks for what will be read soon.
  void fetch(int64_t n, int64_t y, int64_t x, int64_t count) const {
    if (target_.stride_w != 1 || y >= height_) return;
    with_type([&](auto type) {
      const auto* const row = at<typename decltype(type)::type>(n, y, x);
      for (int64_t i = 0; i < count; i += 64 / sizeof(*row)) __builtin_prefetch(row + i);
    });
  }

  // Raises if there was one.
  void check() const {
    STD_TORCH_CHECK(wrong_ == ignored_, "target: expected classes from 0 to ", classes_ - 1,
                    " or ignore_index, got ", wrong_.load());
  }

 private:
  template <typename Run>
  void with_type(const Run& run) const {
    switch (target_.dtype) {
      case ScalarType::Byte: return run(Type<uint8_t>());
      case ScalarType::Char: return run(Type<int8_t>());
      case ScalarType::Short: return run(Type<int16_t>());
      case ScalarType::Int: return run(Type<int32_t>());
      default: return run(Type<int64_t>());
    }
  }
  template <typename U>
  const U* at(int64_t n, int64_t y, int64_t x) const {
    return static_cast<const U*>(target_.data) + n * target_.stride_n + y * target_.stride_h +
           x * target_.stride_w;
  }

  const Target& target_;
  const int64_t classes_, ignored_, height_;
  mutable std::atomic<int64_t> wrong_;  // `ignored_` while there is none
};

}  // namespace
}  // namespace vsegops::dense_head
