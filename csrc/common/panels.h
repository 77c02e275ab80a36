// Panels: some channels of every pixel side by side, in the type that is computed in, so that one
// pixel is read and written by whole vectors. An image is copied to and from panels of one or more
// vectors a pixel, transposed if it keeps its channels apart.
#pragma once

#include <algorithm>

#include "cpu.h"

namespace vsegops {

template <typename F>
struct Panel {
  F* data;         // pixel 0
  int64_t stride;  // from pixel to pixel
};

// An image as panels are copied from and to: `channel` and `pixel` are its strides, one of them 1.
template <typename T>
struct Image {
  T* data;  // the panel's first channel of pixel 0
  int64_t channel, pixel;
  int64_t width;  // of the panel, in channels

  bool planes() const { return pixel == 1; }
};

// Planes are read in runs too short for the processor to foresee the next.
constexpr int64_t kAhead = 2048;

// Pixels [begin, end) into `panel`, `stride` (whole vectors) apart; lanes past the image's channels
// become 0.
template <typename T, typename F>
void load_panel(const Image<T>& image, int64_t begin, int64_t end, int64_t stride, F* panel) {
  constexpr int n = kLanes<F>;
  int64_t i = begin;
  for (; image.planes() && i + n <= end; i += n, panel += n * stride) {
    for (int64_t c = 0; c < stride; c += n) {
      Vector<F> block[n];
      for (int k = 0; k < n; ++k) {
        const T* from = image.data + (c + k) * image.channel + i;
        block[k] = c + k < image.width ? load(from) : Vector<F>{};
        if (c + k < image.width) __builtin_prefetch(from + kAhead);
      }
      transpose<F>(block);
      for (int k = 0; k < n; ++k) store(block[k], panel + k * stride + c);
    }
  }
  for (; i < end; ++i, panel += stride) {
    const T* from = image.data + i * image.pixel;
    for (int64_t k = 0; k < image.width; ++k) panel[k] = F(widen(from[k * image.channel]));
    std::fill(panel + image.width, panel + stride, F(0));
  }
}

template <bool Stream, typename T, typename F>
void store_planes(const F* panel, int64_t pixel, int64_t stride, const Image<T>& image) {
  constexpr int n = kLanes<F>;
  for (int64_t c = 0; c < image.width; c += n) {
    Vector<F> block[n];
    for (int k = 0; k < n; ++k) block[k] = load(panel + k * stride + c);
    transpose<F>(block);
    T* to = image.data + c * image.channel + pixel;
    for (int k = 0; k < n && c + k < image.width; ++k, to += image.channel) {
      if constexpr (Stream) {
        stream<F>(block[k], to);
      } else {
        store(block[k], to);
      }
    }
  }
}

// `panel` into pixels [begin, end); past the caches if `streamed` and the image is aligned.
template <typename T, typename F>
void store_panel(const F* panel, int64_t begin, int64_t end, int64_t stride, const Image<T>& image,
                 bool streamed) {
  constexpr int n = kLanes<F>;
  int64_t i = begin;
  if constexpr (std::is_same_v<T, F>) {
    const bool fits = is_aligned(image.data + i) && is_aligned(image.data + image.channel + i);
    for (; streamed && fits && image.planes() && i + n <= end; i += n, panel += n * stride) {
      store_planes<true>(panel, i, stride, image);
    }
  }
  for (; image.planes() && i + n <= end; i += n, panel += n * stride) {
    store_planes<false>(panel, i, stride, image);
  }
  for (; i < end; ++i, panel += stride) {
    T* to = image.data + i * image.pixel;
    for (int64_t k = 0; k < image.width; ++k) narrow(panel[k], to + k * image.channel);
  }
}

template <typename T>
void store_zeros(int64_t begin, int64_t end, const Image<T>& image) {
  if (image.planes()) {
    for (int k = 0; k < image.width; ++k) {
      std::fill(image.data + k * image.channel + begin, image.data + k * image.channel + end, T{});
    }
  } else {
    for (int64_t i = begin; i < end; ++i) std::fill_n(image.data + i * image.pixel, image.width, T{});
  }
}

// The sums of the elements of kLanes vectors, in one vector: a transposition that adds as it goes.
template <typename F>
VSEGOPS_HD Vector<F> sums(const Vector<F>* rows) {
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
      partial[i] = low + high;
    }
  }
  return partial[0];
}

}  // namespace vsegops
