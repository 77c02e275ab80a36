// channels_last images on a CPU, in strips of a few columns, each from the top to the bottom: what
// a row can reach of a source stays in L2 for the next.
#pragma once

#include <algorithm>

#include "binding.h"
#include "cpu_scratch.h"
#include "sampling.h"

namespace vsegops {
namespace {

// Pixels [x, x + count) of row y of image n.
struct StripRow {
  int64_t n, y, x, count;
};

// The rows of all strips of all images, numbered.
class Strips {
 public:
  template <typename T>
  explicit Strips(const View<T>& image)
      : images_(image.n), height_(image.h), width_(image.w), columns_(wide(image.c * sizeof(T))) {}

  int64_t rows() const { return images_ * ceil_div(width_, columns_) * height_; }
  int64_t columns() const { return columns_; }  // the most that a strip has

  StripRow operator[](int64_t k) const {
    const int64_t strip = k / height_, strips = ceil_div(width_, columns_);
    const int64_t x = strip % strips * columns_;
    return {strip / strips, k % height_, x, std::min(columns_, width_ - x)};
  }

 private:
  static constexpr int64_t kRowBytes = 32 << 10;

  // So many columns that some dozen rows fit L2, but enough to find their taps by vectors.
  int64_t wide(int64_t pixel) const {
    const int64_t columns = kRowBytes / std::max<int64_t>(pixel, 1) / 64 * 64;
    return std::clamp<int64_t>(columns, 64, std::max<int64_t>(width_, 64));
  }

  const int64_t images_, height_, width_, columns_;
};

// Fetches into L2, line after line, what a strip will read of a tensor some rows below. Taps jump
// about with the flow, and strips end after a few pages: processors foresee neither.
template <typename T>
class RowsAhead {
 public:
  RowsAhead() = default;  // of nothing

  // Of a source without flow: some pixels farther makes no difference.
  template <typename F>
  RowsAhead(const View<const T>& source, const Mapping<F>& mapping, const StripRow& row) {
    const int64_t y = row.y + kRows;
    if (y >= mapping.y.output) return;
    const auto along = [](const Axis<F>& axis, int64_t at) -> int64_t {
      return std::clamp(axis.base(static_cast<int32_t>(at)).index, 0, axis.source - 1);
    };
    const int64_t v = along(mapping.y, y);
    if (v == along(mapping.y, y - 1)) return;
    set(source, row, v, along(mapping.x, row.x), along(mapping.x, row.x + row.count - 1));
  }

  // Of a tensor that is read where it is written.
  RowsAhead(const View<const T>& same, const StripRow& row) {
    if (!same.data || row.y + kRows >= same.h) return;
    set(same, row, row.y + kRows, row.x, row.x + row.count - 1);
  }

  // With each pixel its share.
  VSEGOPS_HD void step() {
    for (int i = 0; i < lines_ && next_ < end_; ++i, next_ += kLine)
      __builtin_prefetch(next_, 0, 2);
  }

 private:
  void set(const View<const T>& x, const StripRow& row, int64_t v, int64_t first, int64_t last) {
    const T* const from = x.data + (row.n * x.h + v) * x.w * x.c;
    next_ = from + first * x.c;
    end_ = from + (last + 1) * x.c;
    lines_ = static_cast<int>(ceil_div(end_ - next_, row.count * kLine));
  }

  static constexpr int64_t kRows = 8;
  static constexpr int64_t kLine = 64 / sizeof(T);

  const T* next_ = nullptr;
  const T* end_ = nullptr;
  int lines_ = 0;
};

}  // namespace
}  // namespace vsegops
