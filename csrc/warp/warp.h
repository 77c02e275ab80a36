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

// The geometry, the same for forward and backward. F is what positions are computed in.
template <typename F>
struct Mapping {
  Axis<F> x, y;
  bool nearest;
  Padding padding;

  // V is F, or a vector of F.
  template <typename V>
  VSEGOPS_HD Taps<V> taps_x(Position<V> base, V flow) const {
    return taps(x, base, flow);
  }
  template <typename V>
  VSEGOPS_HD Taps<V> taps_y(Position<V> base, V flow) const {
    return taps(y, base, flow);
  }

 private:
  template <typename V>
  VSEGOPS_HD Taps<V> taps(const Axis<F>& axis, Position<V> base, V flow) const {
    const Position<V> p = axis.displaced(base, flow);
    return nearest ? nearest_taps(p, axis.source, padding) : bilinear_taps(p, axis.source, padding);
  }
};

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
