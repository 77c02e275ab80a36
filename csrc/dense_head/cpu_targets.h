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
  Targets(const Target& target, int64_t classes, int64_t ignored, int64_t height, int64_t width)
      : target_(target),
        classes_(classes),
        ignored_(ignored),
        height_(height),
        width_(width),
        wrong_(ignored) {}

  // Row y of image n. One that is no class is remembered, and ignored.
  void read(int64_t n, int64_t y, int32_t* labels) const {
    switch (target_.dtype) {
      case ScalarType::Byte: return read_row<uint8_t>(n, y, labels);
      case ScalarType::Char: return read_row<int8_t>(n, y, labels);
      case ScalarType::Short: return read_row<int16_t>(n, y, labels);
      case ScalarType::Int: return read_row<int32_t>(n, y, labels);
      default: return read_row<int64_t>(n, y, labels);
    }
  }

  // Asks for some columns of a row that will be read soon.
  void fetch(int64_t n, int64_t y, int64_t x, int64_t count) const {
    if (target_.stride_w != 1 || y >= height_) return;
    const int64_t size = target_.dtype == ScalarType::Long    ? 8
                         : target_.dtype == ScalarType::Int   ? 4
                         : target_.dtype == ScalarType::Short ? 2
                                                              : 1;
    const char* row = static_cast<const char*>(target_.data) +
                      (n * target_.stride_n + y * target_.stride_h + x) * size;
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(row + i, 0, 2);
  }

  // Raises if there was one.
  void check() const {
    STD_TORCH_CHECK(wrong_ == ignored_, "target: expected classes from 0 to ", classes_ - 1,
                    " or ignore_index, got ", wrong_.load());
  }

 private:
  template <typename U>
  void read_row(int64_t n, int64_t y, int32_t* labels) const {
    const int64_t width = width_, step = target_.stride_w;
    const U* row =
        static_cast<const U*>(target_.data) + n * target_.stride_n + y * target_.stride_h;
    bool wrong = false;
    if (step == 1) {
      wrong = read_labels(row, width, classes_, ignored_, labels);
    } else {
      for (int64_t x = 0; x < width; ++x) {
        wrong |= read_labels(row + x * step, 1, classes_, ignored_, labels + x);
      }
    }
    for (int64_t x = 0; wrong; ++x) {
      const int64_t label = row[x * step];
      if (label == ignored_ || (label >= 0 && label < classes_)) continue;
      wrong_ = label;
      wrong = false;
    }
  }

  const Target& target_;
  const int64_t classes_, ignored_, height_, width_;
  mutable std::atomic<int64_t> wrong_;  // `ignored_` while there is none
};

}  // namespace
}  // namespace vsegops::dense_head
