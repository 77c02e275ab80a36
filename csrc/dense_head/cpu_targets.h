// Targets on a CPU: rows of any integers as int32 labels, C for what is ignored.
#pragma once

#include <atomic>

#include "cpu_cells.h"

namespace vsegops::dense_head {
namespace {

template <typename U>
bool read_labels(const U* from, int64_t stride, int64_t count, uint64_t classes, int64_t ignored,
                 int32_t* labels) {
  const int32_t none = static_cast<int32_t>(classes);
  bool wrong = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = from[i * stride];
    const bool known = static_cast<uint64_t>(label) < classes, counted = label != ignored;
    labels[i] = known & counted ? static_cast<int32_t>(label) : none;
    wrong |= !known & counted;
  }
  return wrong;
}

class Targets {
 public:
  Targets(const Target& target, int64_t classes, int64_t ignored, int64_t width)
      : target_(target), classes_(classes), ignored_(ignored), width_(width), wrong_(ignored) {}

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

  // Raises if there was one.
  void check() const {
    STD_TORCH_CHECK(wrong_ == ignored_, "target: expected classes from 0 to ", classes_ - 1,
                    " or ignore_index, got ", wrong_.load());
  }

 private:
  template <typename U>
  void read_row(int64_t n, int64_t y, int32_t* labels) const {
    const U* row = static_cast<const U*>(target_.data) + n * target_.stride_n + y * target_.stride_h;
    bool wrong;
    if (target_.stride_w == 1) {
      wrong = read_labels(row, 1, width_, classes_, ignored_, labels);
    } else {
      wrong = read_labels(row, target_.stride_w, width_, classes_, ignored_, labels);
    }
    for (int64_t x = 0; wrong; ++x) {
      const int64_t label = target_.at(n, y, x);
      if (label != ignored_ && (label < 0 || label >= classes_)) {
        wrong_ = label;
        wrong = false;
      }
    }
  }

  const Target& target_;
  const int64_t classes_, ignored_, width_;
  mutable std::atomic<int64_t> wrong_;  // `ignored_` while there is none
};

}  // namespace
}  // namespace vsegops::dense_head
