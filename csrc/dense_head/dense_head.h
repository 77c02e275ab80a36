// The dense head as its kernels see it. Z is the logits, sampled bilinearly at full resolution
// (positions of sampling.h without flow, clamped at the border); it is never written.
//
//   argmax:         label(p) = the first c with the largest Z_c(p); confidence(p) = softmax(Z(p))
//                   at that class
//   cross-entropy:  with y = target(p), w the classes' weights (1 where there are none), s the
//   label
//                   smoothing and l_c = log(sum_k exp(Z_k(p))) - Z_c(p):
//                   loss(p) = (1 - s) * w_y * l_y + s / C * sum_c w_c * l_c,   0 if y is ignored
//   backward:       d_Z_c(p) = g(p) * (softmax_c(Z(p)) * ((1 - s) * w_y + s / C * sum_k w_k)
//                                      - (1 - s) * w_y * [c = y] - s / C * w_c)
//                   gathered to the pixels of the logits by the adjoint of the sampling
#pragma once

#include "../common/binding.h"
#include "../common/sampling.h"

namespace vsegops::dense_head {

// From full resolution to the logits' own.
template <typename F>
struct Upsampling {
  Axis<F> x, y;
};

// Integers of any width: `at` gives one as int64_t.
struct Target {
  const void* data = nullptr;
  ScalarType dtype = ScalarType::Long;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;  // count elements

  VSEGOPS_HD int64_t at(int64_t n, int64_t y, int64_t x) const {
    const int64_t place = n * stride_n + y * stride_h + x * stride_w;
    switch (dtype) {
      case ScalarType::Byte: return static_cast<const uint8_t*>(data)[place];
      case ScalarType::Char: return static_cast<const int8_t*>(data)[place];
      case ScalarType::Short: return static_cast<const int16_t*>(data)[place];
      case ScalarType::Int: return static_cast<const int32_t*>(data)[place];
      default: return static_cast<const int64_t*>(data)[place];
    }
  }
};

// T: the logits' element type; F: what is computed in, and the type of losses. `logits` is dense,
// in one of two layouts. Labels, confidence and losses are contiguous [N, H, W].
template <typename T, typename F>
struct Argmax {
  Upsampling<F> upsampling;
  bool channels_last;
  View<const T> logits;
  uint8_t* labels = nullptr;       // one of the two
  int32_t* wide_labels = nullptr;  // for more than 256 classes
  F* confidence = nullptr;         // or null
};

template <typename F>
struct LossOptions {
  Upsampling<F> upsampling;
  Target target;
  const F* weight = nullptr;  // [C], or null
  int64_t ignore_index;
  F label_smoothing;
};

template <typename T, typename F>
struct Loss : LossOptions<F> {
  bool channels_last;
  View<const T> logits;
};

// A target that is neither a class nor `ignore_index`: its loss is NaN. On a CPU the call raises.
template <typename T, typename F>
struct LossForward : Loss<T, F> {
  F* losses = nullptr;  // per pixel; or
  F* sum = nullptr;     // their sum
  F* total = nullptr;   // and the sum of the targets' weights
};

template <typename T, typename F>
struct LossBackward : Loss<T, F> {
  const F* grad = nullptr;
  bool reduced;      // `grad` is one number; else it is [N, H, W], contiguous
  View<T> d_logits;  // dense, in the layout of the logits
};

}  // namespace vsegops::dense_head
