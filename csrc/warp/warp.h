// The warp family as its kernels see it.
//
//   forward:   out = A(input) + attention * correction
//   backward:  d_input = A'(grad), d_flow, d_correction = grad * attention,
//              d_attention = sum over channels of grad * correction
//
// A pointer that is null stands for a tensor that is not there (attention 1, no correction) or for
// a gradient that nobody wants.
#pragma once

#include "../common/binding.h"
#include "../common/sampling.h"

namespace vsegops::warp {

// T: element type; F: type that is computed in; Flow: the flow's element type. `input`,
// `correction` and `out` are dense and of one layout; flow and attention have any strides.
template <typename T, typename F, typename Flow>
struct Forward {
  Mapping<F> mapping;
  bool channels_last;  // the layout of the dense tensors
  View<const T> input;
  View<const Flow> flow;
  View<const T> correction;
  View<const T> attention;
  View<T> out;
};

// `grad`, `input`, `correction`, `d_input` and `d_correction` are dense and of one layout.
template <typename T, typename F, typename Flow>
struct Backward {
  Mapping<F> mapping;
  bool channels_last;  // the layout of the dense tensors
  View<const T> grad;
  View<const T> input;
  View<const Flow> flow;
  View<const T> correction;
  View<const T> attention;
  View<T> d_input;
  View<Flow> d_flow;
  View<T> d_correction;
  View<T> d_attention;
};

}  // namespace vsegops::warp
