// Rows of the logits and of their gradient, as the cells want them: planes of the compute type,
// pixel i at i + 1, between copies of the first pixel and of the last.
#pragma once

#include "cpu_cells.h"

namespace vsegops::dense_head {
namespace {

// to[c][r] = from[r][c]
template <typename F, typename From, typename To>
void transpose_matrix(const From* from, int64_t from_pitch, int64_t rows, int64_t columns, To* to,
                      int64_t to_pitch) {
  constexpr int n = kLanes<F>;
  if (rows < n || columns < n) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        narrow(static_cast<F>(widen(from[r * from_pitch + c])), to + c * to_pitch + r);
      }
    }
    return;
  }
  // (The last tiles lie over the ones before.)
  for (int64_t row = 0; row < rows; row += n) {
    const int64_t r = std::min(row, rows - n);
    for (int64_t column = 0; column < columns; column += n) {
      const int64_t c = std::min(column, columns - n);
      Vector<F> tile[n];
      for (int i = 0; i < n; ++i) tile[i] = load(from + (r + i) * from_pitch + c);
      transpose<F>(tile);
      for (int i = 0; i < n; ++i) store(tile[i], to + (c + i) * to_pitch + r);
    }
  }
}

// From one class to the next. An odd number of vectors, so that the classes do not meet in the same
// sets of a cache.
template <typename F>
int64_t row_pitch(const Axis<F>& columns) {
  return ((Cells<F>::padded(columns) / kLanes<F> + 1) | 1) * kLanes<F>;
}

// The rows of the logits above and below the cells at hand, as planes of the compute type.
template <typename T, typename F>
class SourceRows {
 public:
  const int64_t pitch;

  static size_t bytes(const View<const T>& x, const Axis<F>& axis) {
    return 2 * (x.c * row_pitch(axis) + 16) * sizeof(F);
  }

  SourceRows(Arena& arena, const View<const T>& x, bool channels_last, const Axis<F>& axis)
      : pitch(row_pitch(axis)), x_(x), channels_last_(channels_last) {
    for (F*& row : rows_) row = arena.take<F>(x.c * pitch);
  }

  // Row y of image n, clamped, until two others are asked for.
  const F* row(int64_t n, int64_t y) {
    y = std::clamp<int64_t>(y, 0, x_.h - 1);
    const int64_t number = n * x_.h + y;
    F* const row = rows_[y % 2];
    if (std::exchange(held_[y % 2], number) != number) read(n, y, row);
    return row;
  }

 private:
  void read(int64_t n, int64_t y, F* row) const {
    constexpr int lanes = kLanes<F>;
    if (channels_last_) {
      transpose_matrix<F>(x_.data + (n * x_.h + y) * x_.w * x_.c, x_.c, x_.w, x_.c, row + 1, pitch);
    }
    for (int64_t c = 0; c < x_.c; ++c) {
      F* const plane = row + c * pitch;
      if (!channels_last_) {
        const T* from = x_.data + ((n * x_.c + c) * x_.h + y) * x_.w;
        int64_t i = 0;
        for (; i + lanes <= x_.w; i += lanes) {
          __builtin_prefetch(from + i + x_.w, 0, 2);  // the next row
          store(load(from + i), plane + 1 + i);
        }
        for (; i < x_.w; ++i) plane[1 + i] = widen(from[i]);
      }
      plane[0] = plane[1];
      std::fill(plane + 1 + x_.w, plane + pitch, plane[x_.w]);
    }
  }

  const View<const T>& x_;
  const bool channels_last_;
  F* rows_[2];
  int64_t held_[2] = {-1, -1};
};

// Two rows of the gradient, laid out as those of the logits: `upper` and `lower` of the cells.
template <typename T, typename F>
class GradientRows {
 public:
  F *upper, *lower;

  static size_t bytes(const View<T>& d, const Axis<F>& axis) {
    return 2 * (d.c * row_pitch(axis) + 16) * sizeof(F);
  }
  GradientRows(Arena& arena, const View<T>& d, bool channels_last, const Axis<F>& axis)
      : upper(arena.take<F>(d.c * row_pitch(axis))),
        lower(arena.take<F>(d.c * row_pitch(axis))),
        d_(d),
        channels_last_(channels_last),
        pitch_(row_pitch(axis)) {}

  // To the next row of cells: what was below is above.
  void advance() {
    std::swap(upper, lower);
    std::fill_n(lower, d_.c * pitch_, F(0));
  }

  // `upper` is row y of image n.
  void write(int64_t n, int64_t y) const {
    for (int64_t c = 0; c < d_.c; ++c) {
      F* const plane = upper + c * pitch_;
      plane[1] += plane[0];
      plane[d_.w] += plane[d_.w + 1];
      if (channels_last_) continue;
      T* const to = d_.data + ((n * d_.c + c) * d_.h + y) * d_.w;
      int64_t i = 0;
      for (; i + kLanes<F> <= d_.w; i += kLanes<F>) store(load(plane + 1 + i), to + i);
      for (; i < d_.w; ++i) narrow(plane[1 + i], to + i);
    }
    if (channels_last_) {
      transpose_matrix<F>(upper + 1, pitch_, d_.c, d_.w, d_.data + (n * d_.h + y) * d_.w * d_.c,
                          d_.c);
    }
  }

 private:
  const View<T>& d_;
  const bool channels_last_;
  const int64_t pitch_;
};

}  // namespace
}  // namespace vsegops::dense_head
