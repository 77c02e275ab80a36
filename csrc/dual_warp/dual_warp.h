// The dual warp family as its kernels see it.
//
//   forward:   out = gate * A(high) + (1 - gate) * A(low)
//   backward:  d_high = A'(gate * grad), d_low = A'((1 - gate) * grad), d_high_flow, d_low_flow,
//              d_gate = sum over channels of grad * (A(high) - A(low))
//   pool:      mean and maximum over the channels of two tensors; backward: d_input = grad of the
//              mean / C, and at the maximum also that of the maximum
//
// A pointer that is null stands for a gradient that nobody wants.
#pragma once

#include "../common/binding.h"
#include "../common/sampling.h"

namespace vsegops::dual_warp {

// One of the two that are sampled, with what the backward makes for it. T: element type; F: type
// that is computed in; Flow: the flows' element type.
template <typename T, typename F, typename Flow>
struct Source {
  Mapping<F> mapping;
  View<const T> input;
  View<const Flow> flow;
  View<T> d_input;
  View<Flow> d_flow;
};

// `input`, `d_input`, `grad` and `out` are dense and of one layout; flows and gate have any
// strides.
template <typename T, typename F, typename Flow>
struct Forward {
  bool channels_last;  // the layout of the dense tensors
  Source<T, F, Flow> high, low;
  View<const T> gate;
  View<T> out;
};

template <typename T, typename F, typename Flow>
struct Backward {
  bool channels_last;
  Source<T, F, Flow> high, low;
  View<const T> gate;
  View<const T> grad;
  View<T> d_gate;
};

// One tensor of two, the `which`-th; its mean and maximum are channels `which` and `which + 2` of
// `out`, the maximum's channel is `which` of `places` (null: unwanted). All but `grad`, which has
// any strides, and `places`, which is contiguous, are dense and of one layout.
template <typename T>
struct Pool {
  int which;
  bool channels_last;
  View<const T> input;
  View<T> out;
  View<int32_t> places;
};

template <typename T>
struct PoolBackward {
  int which;
  bool channels_last;
  View<const T> grad;
  View<const int32_t> places;
  View<T> d_input;
};

}  // namespace vsegops::dual_warp
