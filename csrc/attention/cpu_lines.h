// The rows or the columns of images, copied to scratch memory as matrices, [C, length] or
// [length, C], a chunk of channels at a time.
//
// Where neighbouring lines' elements are neighbours in memory (columns of planes), a vector of
// lines is copied at a time.
#pragma once

#include "../common/cpu_gemm.h"

namespace vsegops::attention {
namespace {

constexpr int64_t kPositionsAhead = 2;  // are fetched, where a position has few of each channel
constexpr int64_t kChunk = 256;         // channels

// The lines of an image along one direction; steps count pixels.
struct Direction {
  bool columns;
  int64_t lines, length;
  int64_t across, along;  // from line to line, and from position to position

  template <typename T>
  Direction(const View<T>& x, bool columns)
      : columns(columns),
        lines(columns ? x.w : x.h),
        length(columns ? x.h : x.w),
        across(columns ? 1 : x.w),
        along(columns ? x.w : 1) {}
};

// A dense tensor, or none: steps from one to the next.
template <typename T>
struct Images {
  T* data = nullptr;
  int64_t channels = 0;
  int64_t image = 0, channel = 0, pixel = 0;

  Images() = default;
  template <typename U>
  Images(T* data, const View<U>& like, bool channels_last)
      : data(data),
        channels(like.c),
        image(like.c * like.h * like.w),
        channel(channels_last ? 1 : like.h * like.w),
        pixel(channels_last ? like.c : 1) {}
  Images(const View<T>& x, bool channels_last) : Images(x.data, x, channels_last) {}

  operator Images<const T>() const {
    Images<const T> x;
    x.data = data;
    x.channels = channels;
    x.image = image;
    x.channel = channel;
    x.pixel = pixel;
    return x;
  }
};

// A matrix for each of some lines.
template <typename F>
struct Maps {
  F* data = nullptr;
  int64_t row = 0, line = 0;  // steps from row to row, from matrix to matrix

  static int64_t bytes(int64_t lines, int64_t rows, int64_t columns) {
    return lines * whole_tiles(rows) * pitch_of<F>(columns) * sizeof(F) + 64;
  }
  static Maps take(Arena& arena, int64_t lines, int64_t rows, int64_t columns) {
    const int64_t pitch = pitch_of<F>(columns), line = whole_tiles(rows) * pitch;
    return {arena.take<F>(lines * line), pitch, line};
  }
  Matrix<F> operator[](int64_t i) const { return {data + i * line, row}; }
  // Row i of all.
  Matrix<F> across(int64_t i) const { return {data + i * row, line}; }
};

// Lines [first, first + count) of image n.
struct Bundle {
  const Direction& direction;
  int64_t n, first, count;

  int64_t pixel(int64_t i) const { return (first + i) * direction.across; }  // where line i begins

  // How many make a bundle.
  template <typename F>
  static int64_t size(const Direction& direction, bool channels_last) {
    if (channels_last || !direction.columns) return 1;
    return std::min<int64_t>(kLanes<F>, direction.lines);
  }

  // [length, channels], of channels from c on.
  template <typename T, typename F>
  void load_positions(const Images<const T>& x, int64_t c, int64_t channels,
                      const Maps<F>& to) const {
    for_positions(x, c, channels, [&](const auto& from, int64_t rows, int64_t i) {
      load_matrix(from, rows, channels, count > 1 ? to.across(i) : to[i]);
    });
  }
  template <typename T, typename F>
  void store_positions(const Maps<F>& from, const Images<T>& x, int64_t c, int64_t channels) const {
    for_positions(x, c, channels, [&](const auto& to, int64_t rows, int64_t i) {
      store_matrix(count > 1 ? from.across(i) : from[i], rows, channels, to);
    });
  }

  // [channels, length].
  template <typename T, typename F>
  void load_channels(const Images<const T>& x, int64_t c, int64_t channels,
                     const Maps<F>& to) const {
    const int64_t across = direction.across * x.pixel, along = direction.along * x.pixel;
    const T* const data = at(x, c);
    if (count == 1) {
      load_matrix(Strided<const T>{data, x.channel, along}, channels, direction.length, to[0]);
      return;
    }
    for (int64_t k = 0; k < channels; ++k) {
      load_matrix(Strided<const T>{data + k * x.channel, across, along}, count, direction.length,
                  to.across(k));
    }
  }

 private:
  template <typename T>
  T* at(const Images<T>& x, int64_t c) const {
    return x.data + n * x.image + c * x.channel + pixel(0) * x.pixel;
  }

  // Calls `run(matrix, rows, i)` for the matrices that make up the lines' [length, channels]: one
  // line, or for each position i all lines.
  template <typename T, typename Run>
  void for_positions(const Images<T>& x, int64_t c, int64_t channels, const Run& run) const {
    const int64_t across = direction.across * x.pixel, along = direction.along * x.pixel;
    T* const data = at(x, c);
    if (count == 1) return run(Strided<T>{data, along, x.channel}, direction.length, 0);
    for (int64_t i = 0; i < direction.length; ++i) {
      const T* const ahead = data + (i + kPositionsAhead) * along;
      for (int64_t k = 0; k < channels; ++k) {
        __builtin_prefetch(ahead + k * x.channel);
        __builtin_prefetch(ahead + k * x.channel + count - 1);
      }
      run(Strided<T>{data + i * along, across, x.channel}, count, i);
    }
  }
};

}  // namespace
}  // namespace vsegops::attention
