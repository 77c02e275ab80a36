// Matrices in global memory and pieces of them in shared memory: chunks.
//
// A chunk holds kItems items (pixels or anchors) by 128 bytes of their channels: 8 KB for every
// type. Its lines are the items, or, where items are neighbours in memory and the elements have 16
// bits, the channels: tensor cores take either. Their 16-byte segments change places with the line,
// so that what a warp reads together lies in different banks.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../common/async.h"
#include "attention.h"

namespace vsegops::attention {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpItems = 16;  // of a tile's items, those whose sums a warp has
constexpr int kItems = kThreads / 32 * kWarpItems;

template <int Power>
constexpr int kLog2 = 1 + kLog2<Power / 2>;
template <>
constexpr int kLog2<1> = 0;

template <typename T>
constexpr int kDepth = 128 / sizeof(T);  // channels of a chunk

template <typename T>
constexpr int kChunk = kItems * kDepth<T>;  // elements of a chunk

template <typename T>
constexpr bool kTensorCores = sizeof(T) == 2;

// Where in a chunk with lines of `length` elements the one at `place` of a line is.
template <typename T>
__device__ __forceinline__ uint32_t chunk_at(uint32_t line, uint32_t place, uint32_t length) {
  constexpr uint32_t V = kVector<T>;
  const uint32_t turn = (kTensorCores<T> ? line : line + line / 8) & 7;
  return line * length + (place / V ^ turn) * V + place % V;
}

// Items by channels, one such matrix for each image and for each of its lines: a column or a row of
// pixels in the criss-cross operators, else all of the image is one.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t stride_n = 0, stride_line = 0, stride_c = 0, stride = 0;
  int32_t items = 0, channels = 0;
  bool last = false;  // a channel's neighbour is nearer than an item's
  int vector = 1;     // neighbours that are read or written together

  __device__ T* of(int32_t n, int32_t line) const {
    return data + n * stride_n + line * stride_line;
  }
};

// Fills in how the matrix is accessed.
template <typename T>
Matrix<T> planned(Matrix<T> m) {
  m.last = m.stride_c < m.stride;
  // (What is read is turned where only lines of items will do, element by element.)
  if (!m.last && std::is_const_v<T> && !kTensorCores<T>) return m;
  if ((m.last ? m.stride_c : m.stride) != 1) return m;
  const int64_t others[] = {m.last ? m.channels : m.items, m.last ? m.stride : m.stride_c,
                            m.stride_n, m.stride_line};
  for (int v = kVector<T>; v > 1; v /= 2) {
    const bool fits = std::all_of(std::begin(others), std::end(others),
                                  [&](int64_t size) { return size % v == 0; });
    if (fits && reinterpret_cast<uintptr_t>(m.data) % (v * sizeof(T)) == 0) {
      m.vector = v;
      break;
    }
  }
  return m;
}

template <typename T>
Matrix<T> matrix(const Columns<T>& x) {
  return planned(Matrix<T>{x.data, x.stride_n, 0, x.stride_c, x.stride,
                           static_cast<int32_t>(x.size), static_cast<int32_t>(x.c)});
}

// ---- Between global and shared memory: kItems items by Depth channels. ----

// Calls `run(line, place, item, channel)` for each V neighbours of those of the thread: where in
// the matrix' order they are, and what.
template <int Depth, int V, int Unrolled, typename T, typename Run>
__device__ __forceinline__ void for_neighbours(const Matrix<T>& x, int32_t item0, int32_t channel0,
                                               const Run& run) {
  constexpr uint32_t short_line = kLog2<Depth / V>, long_line = kLog2<kItems / V>;
  const uint32_t shift = x.last ? short_line : long_line;
#pragma unroll(Unrolled)
  for (uint32_t i = threadIdx.x; i < kItems * Depth / V; i += kThreads) {
    const uint32_t line = i >> shift, place = (i - (line << shift)) * V;
    run(line, place, item0 + static_cast<int32_t>(x.last ? line : place),
        channel0 + static_cast<int32_t>(x.last ? place : line));
  }
}

// Begins to copy; zeros beyond items and channels. `from`: of an image and line.
template <int Depth, int V, typename T>
__device__ __forceinline__ void begin_copy_by(T* chunk, const Matrix<const T>& x, const T* from,
                                              int32_t item0, int32_t channel0) {
  constexpr bool asynchronous = V * sizeof(T) >= 4;
  const bool turned = !kTensorCores<T> && !x.last;
  for_neighbours<Depth, V, asynchronous ? 1 : 4>(
      x, item0, channel0, [&](uint32_t line, uint32_t place, int32_t item, int32_t channel) {
        const bool inside = item < x.items && channel < x.channels;
        const T* const source = from + item * x.stride + channel * x.stride_c;
        T* const target = chunk + (turned ? chunk_at<T>(place, line, Depth)
                                          : chunk_at<T>(line, place, x.last ? Depth : kItems));
        if constexpr (asynchronous) {
          using Neighbours = Vec<T, V>;
          copy_async(reinterpret_cast<Neighbours*>(target),
                     reinterpret_cast<const Neighbours*>(source), inside);
        } else {
          *target = inside ? fetch(source) : static_cast<T>(0.f);
        }
      });
}

template <int Depth, typename T>
__device__ __forceinline__ void begin_copy(T* chunk, const Matrix<const T>& x, const T* from,
                                           int32_t item0, int32_t channel0) {
  constexpr int least = sizeof(T) < 4 ? 2 : 1;  // that are copied asynchronously
  if (x.vector == kVector<T>) {
    begin_copy_by<Depth, kVector<T>>(chunk, x, from, item0, channel0);
  } else if (least > 1 && x.vector >= least) {
    begin_copy_by<Depth, least>(chunk, x, from, item0, channel0);
  } else {
    begin_copy_by<Depth, 1>(chunk, x, from, item0, channel0);
  }
}

// Where in a chunk that is going to be written an item's channel is.
template <int Depth, typename T>
__device__ __forceinline__ uint32_t written_at(const Matrix<T>& x, uint32_t item,
                                               uint32_t channel) {
  return x.last ? chunk_at<T>(item, channel, Depth) : chunk_at<T>(channel, item, kItems);
}

template <int Depth, int V, typename T>
__device__ __forceinline__ void write_by(const T* chunk, const Matrix<T>& x, T* to, int32_t item0,
                                         int32_t channel0) {
  for_neighbours<Depth, V, 4>(
      x, item0, channel0, [&](uint32_t line, uint32_t place, int32_t item, int32_t channel) {
        if (item >= x.items || channel >= x.channels) return;
        *reinterpret_cast<Vec<T, V>*>(to + item * x.stride + channel * x.stride_c) =
            *reinterpret_cast<const Vec<T, V>*>(chunk +
                                                chunk_at<T>(line, place, x.last ? Depth : kItems));
      });
}

template <int Depth, typename T>
__device__ __forceinline__ void write(const T* chunk, const Matrix<T>& x, T* to, int32_t item0,
                                      int32_t channel0) {
  if (x.vector == kVector<T>) return write_by<Depth, kVector<T>>(chunk, x, to, item0, channel0);
  write_by<Depth, 1>(chunk, x, to, item0, channel0);
}

}  // namespace
}  // namespace vsegops::attention
