// Panels: some channels of every pixel side by side, in the type that is computed in, so that one
// pixel is read and written by whole vectors. An image is copied to and from panels of kLanes
// channels, transposed if it keeps its channels apart.
#pragma once

#include <algorithm>

#include "cpu.h"

namespace vsegops {

template <typename F>
struct Panel {
  F* data;            // pixel 0
  int64_t stride;     // from pixel to pixel
  int64_t mask = -1;  // of a pixel's number: a ring has a power of two of them

  int64_t at(int64_t pixel) const { return (pixel & mask) * stride; }
};

// An image as panels are copied from and to: `channel` and `pixel` are its strides, one of them 1.
template <typename T>
struct Image {
  T* data;  // the panel's first channel of pixel 0
  int64_t channel, pixel;
  int64_t width;  // of the panel, in channels, at most kLanes

  bool planes() const { return pixel == 1; }
};

// Planes are read in runs too short for the processor to foresee the next.
constexpr int64_t kAhead = 512;

// Pixels [begin, end) into `panel`; lanes past the image's channels become 0.
template <typename T, typename F>
void load_panel(const Image<T>& image, int64_t begin, int64_t end, F* panel) {
  constexpr int n = kLanes<F>;
  int64_t i = begin;
  for (; image.planes() && i + n <= end; i += n, panel += n * n) {
    Vector<F> block[n];
    for (int k = 0; k < n; ++k) {
      const T* from = image.data + k * image.channel + i;
      block[k] = k < image.width ? load(from) : Vector<F>{};
      if (k < image.width) __builtin_prefetch(from + kAhead);
    }
    transpose<F>(block);
    for (int k = 0; k < n; ++k) store(block[k], panel + k * n);
  }
  for (; i < end; ++i, panel += n) {
    const T* from = image.data + i * image.pixel;
    for (int k = 0; k < n; ++k)
      panel[k] = k < image.width ? F(widen(from[k * image.channel])) : F(0);
  }
}

// `panel` into pixels [begin, end); past the caches if `streamed` and the image is aligned.
template <typename T, typename F>
void store_panel(const F* panel, int64_t begin, int64_t end, const Image<T>& image,
                 bool streamed = false) {
  constexpr int n = kLanes<F>;
  int64_t i = begin;
  if constexpr (std::is_same_v<T, F>) {
    if (streamed && image.planes() && is_aligned(image.data + i) &&
        is_aligned(image.data + image.channel + i)) {
      for (; i + n <= end; i += n, panel += n * n) {
        Vector<F> block[n];
        for (int k = 0; k < n; ++k) block[k] = load(panel + k * n);
        transpose<F>(block);
        for (int k = 0; k < image.width; ++k)
          stream<F>(block[k], image.data + k * image.channel + i);
      }
    }
  }
  for (; image.planes() && i + n <= end; i += n, panel += n * n) {
    Vector<F> block[n];
    for (int k = 0; k < n; ++k) block[k] = load(panel + k * n);
    transpose<F>(block);
    for (int k = 0; k < image.width; ++k) store(block[k], image.data + k * image.channel + i);
  }
  for (; i < end; ++i, panel += n) {
    T* to = image.data + i * image.pixel;
    for (int k = 0; k < image.width; ++k) narrow(panel[k], to + k * image.channel);
  }
}

template <typename T>
void store_zeros(int64_t begin, int64_t end, const Image<T>& image) {
  if (image.planes()) {
    for (int k = 0; k < image.width; ++k) {
      std::fill(image.data + k * image.channel + begin, image.data + k * image.channel + end, T{});
    }
  } else {
    for (int64_t i = begin; i < end; ++i)
      std::fill_n(image.data + i * image.pixel, image.width, T{});
  }
}

// The elements of each of kLanes vectors joined by `join`, in one vector: a transposition that
// joins as it goes.
template <typename F, typename Join>
VSEGOPS_HD Vector<F> fold(const Vector<F>* rows, const Join& join) {
  constexpr int n = kLanes<F>;
  Vector<F> partial[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) partial[i] = rows[i];
#pragma GCC unroll 4
  for (int count = n; count > 1; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) {
      Vector<F> low, high;
      interleave<F>(partial[i], partial[i + count / 2], &low, &high,
                    std::make_integer_sequence<int, n>());
      partial[i] = join(low, high);
    }
  }
  return partial[0];
}

template <typename F>
VSEGOPS_HD Vector<F> sums(const Vector<F>* rows) {
  return fold<F>(rows, [](Vector<F> a, Vector<F> b) { return a + b; });
}

}  // namespace vsegops
