// The attention family as its kernels see it.
//
//   pool:          out[s] = mean of the input over bin s, for the bins of all levels of a pyramid
//   attention:     out(p) = sum over s of softmax_s(scale * query(p) . key_s) * value_s
//   criss-cross:   the same over the pixels of p's column and row, p itself once; scale 1
//
// A pointer that is null stands for a gradient that nobody wants.
#pragma once

#include "../common/binding.h"

namespace vsegops::attention {

// A tensor [N, C, ...] with all that follows the channels in one dimension: pixels, or anchors.
// Strides count elements.
template <typename T>
struct Columns {
  T* data = nullptr;
  int64_t n = 0, c = 0, size = 0;
  int64_t stride_n = 0, stride_c = 0, stride = 0;
};

// What [N, C, T, H, W] (T = 1 for an image) is divided into, at one level: t * h * w bins. Bin i of
// k along a dimension of size n is [floor(i * n / k), ceil((i + 1) * n / k)): bins may overlap.
struct Level {
  int64_t t, h, w;
};

constexpr int kMaxLevels = 16;  // as in vsegops/ops/attention/__init__.py

struct Pyramid {
  int64_t t, h, w;  // of what is pooled
  int levels = 0;
  Level level[kMaxLevels];

  VSEGOPS_HD int64_t anchors() const {
    int64_t sum = 0;
    for (int i = 0; i < levels; ++i) sum += level[i].t * level[i].h * level[i].w;
    return sum;
  }
};

// `input` and `d_input` are dense, [N, C, T, H, W] in one of the two layouts; `out`, [N, C, S], is
// contiguous, `grad` has any strides.
template <typename T>
struct Pool {
  Pyramid pyramid;
  Columns<const T> input;
  Columns<T> out;
};

template <typename T>
struct PoolBackward {
  Pyramid pyramid;
  Columns<const T> grad;
  Columns<T> d_input;
};

// `query`, `grad`, `out` and `d_query` are dense and of one layout, with the query's pixels; keys
// and values, [N, C, S], have any strides, their gradients are contiguous.
template <typename T>
struct Attention {
  double scale;
  Columns<const T> query, key, value;
  Columns<T> out;
};

template <typename T>
struct AttentionBackward {
  double scale;
  Columns<const T> query, key, value, grad;
  Columns<T> d_query, d_key, d_value;
};

// All dense and of one layout.
template <typename T>
struct CrissCross {
  bool channels_last;
  View<const T> query, key, value;
  View<T> out;
};

template <typename T>
struct CrissCrossBackward {
  bool channels_last;
  View<const T> query, key, value, grad;
  View<T> d_query, d_key, d_value;
};

}  // namespace vsegops::attention
