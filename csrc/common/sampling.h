// Where an output pixel samples its source: the arithmetic that CPU and CUDA kernels share.
//
//   align_corners:      u = x * (w-1) / (W-1) + scale * flow
//   not align_corners:  u = (x + 0.5) * w / W - 0.5 + scale * flow
//
// A float32 coordinate near 2048 has a step of 1.2e-4, so the integer and the fraction of u are
// kept apart: the base is split exactly, in integers, the flow by floor, and only fractions are
// added. F is float, or double for double features.
//
// V is F where one pixel is handled at a time, or a vector of F (cpu_sampling.h): hence conditions
// are combined by & and |, and branches are selections.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace vsegops {

enum class Padding { kZeros, kBorder };

// The arithmetic of a V for which C++ has no operator.
template <typename V>
struct Arithmetic {
  using Index = int32_t;  // counts pixels

  // The largest integer that is not above x, for |x| <= 2^30: as an index, and as it was.
  struct Floor {
    Index index;
    V value;
  };
  static VSEGOPS_HD Floor floor(V x) {
    const V value = std::floor(x);
    return {static_cast<Index>(value), value};
  }

  // a * b - c, rounded once.
  static VSEGOPS_HD V multiply_subtract(V a, V b, V c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
    return std::fma(a, b, -c);
#else
    // (Doubles are rounded twice: their positions have bits to spare.)
    return static_cast<V>(static_cast<double>(a) * b - c);
#endif
  }
};
template <typename V>
using index_t = typename Arithmetic<V>::Index;

// A coordinate: index + fraction, with fraction in [0, 1].
template <typename V>
struct Position {
  index_t<V> index;
  V fraction;
};

// One axis of the mapping from output to source.
template <typename F>
struct Axis {
  int32_t source, output;  // sizes, up to 2^30
  bool align_corners;
  F scale, scale_low;  // pixels per unit of flow, as an unevaluated sum

  Axis() = default;
  Axis(int64_t source_size, int64_t output_size, bool align, double s)
      : source(static_cast<int32_t>(source_size)),
        output(static_cast<int32_t>(output_size)),
        align_corners(align),
        scale(static_cast<F>(s)),
        scale_low(static_cast<F>(s - static_cast<double>(static_cast<F>(s)))) {}

  // SFNet's scale: flow is in units of half an output pixel.
  static double semantic_scale(int64_t source_size, int64_t output_size, bool align) {
    return static_cast<double>(align ? source_size - 1 : source_size) /
           (2.0 * static_cast<double>(output_size));
  }

  // The position of output pixel x without flow: exact but for one rounding of the fraction.
  VSEGOPS_HD Position<F> base(int32_t x) const {
    if (source == output) return {x, F(0)};
    return small() ? divided<uint32_t>(x) : divided<uint64_t>(x);
  }

  // base + scale * flow. NaN goes far to the left, infinities far outside; no integer overflows.
  template <typename V>
  VSEGOPS_HD Position<V> displaced(Position<V> base, V flow) const {
    using A = Arithmetic<V>;
    constexpr F kFar = F(1 << 30);
    const V product = flow * scale;
    const auto near = (product > -kFar) & (product < kFar);  // false for NaN
    const auto whole = A::floor(near ? product : (product >= kFar ? V{} + kFar : V{} - kFar));
    // What the product has beyond its integer, free of the product's rounding.
    const V part = A::multiply_subtract(flow, V{} + scale, whole.value) + flow * scale_low;
    const V rest = base.fraction + (near ? part : V{});
    const auto carry = A::floor(rest);
    return {base.index + whole.index + carry.index, rest - carry.value};
  }

 private:
  // Whether `divided` stays within 32 bits, where a division costs a GPU a quarter.
  VSEGOPS_HD bool small() const { return source < 1 << 15 && output < 1 << 15; }

  template <typename Unsigned>
  VSEGOPS_HD Position<F> divided(int32_t x) const {
    const Unsigned n = source, m = output, twice = 2 * Unsigned(x) + 1;
    const Unsigned denominator = align_corners ? (m > 1 ? m - 1 : 1) : 2 * m;
    // One pixel to the right of where it is, because the half pixel left of the first is negative.
    const Unsigned numerator = align_corners ? Unsigned(x) * (n - 1) + denominator : twice * n + m;
    const Unsigned index = numerator / denominator;
    return {static_cast<int32_t>(index) - 1,
            static_cast<F>(numerator - index * denominator) / static_cast<F>(denominator)};
  }
};

// The two pixels that a position touches along one axis, in a form that needs no branch: both are
// inside the source, `low` and `low + step`, and what lies outside has weight 0. `slope` is the
// derivative of the sampled value: slope_low * value(low) + slope_high * value(low + step).
template <typename V>
struct Taps {
  index_t<V> low;  // in [0, max(size - 2, 0)], so that low + step is inside
  int32_t step;    // 1, or 0 where the source has one pixel
  V weight_low, weight_high;
  V slope_low, slope_high;
};

template <typename V>
VSEGOPS_HD Taps<V> bilinear_taps(Position<V> p, int32_t size, Padding padding) {
  const V zero{}, one = zero + 1;
  V slope = one;
  if (padding == Padding::kBorder) {
    // Clamped to [0, size - 1]; beyond it the value does not change. (At size - 1 itself the
    // right-hand derivative is 0 as well.)
    const auto before = p.index < 0, after = p.index >= size - 1;
    slope = before | after ? zero : one;
    p.fraction = before | after ? zero : p.fraction;
    p.index = before ? 0 : (after ? size - 1 : p.index);
  }
  const auto low_inside = (p.index >= 0) & (p.index < size);
  const auto high_inside = (p.index >= -1) & (p.index < size - 1);
  const V low = low_inside ? one - p.fraction : zero;
  const V high = high_inside ? p.fraction : zero;
  const V slope_low = low_inside ? -slope : zero;
  const V slope_high = high_inside ? slope : zero;
  // The pair may stand one pixel off, at either end: then the taps change places.
  const int32_t last = size > 1 ? size - 2 : 0;
  Taps<V> taps;
  taps.low = p.index < 0 ? 0 : (p.index > last ? last : p.index);
  taps.step = size > 1;
  const auto left = p.index < taps.low;   // the high tap stands at taps.low
  const auto right = p.index > taps.low;  // the low tap stands at taps.low + 1
  taps.weight_low = left ? high : (right ? zero : low);
  taps.weight_high = right ? low : (left ? zero : high);
  taps.slope_low = left ? slope_high : (right ? zero : slope_low);
  taps.slope_high = right ? slope_low : (left ? zero : slope_high);
  return taps;
}

// Nearest, halves to even, as a pair of taps of which one has weight 1 (or none, outside).
template <typename V>
VSEGOPS_HD Taps<V> nearest_taps(Position<V> p, int32_t size, Padding padding) {
  const auto odd = (p.index & 1) != 0;
  const auto up = (p.fraction > V{} + 0.5f) | ((p.fraction == V{} + 0.5f) & odd);
  Taps<V> taps = bilinear_taps<V>({up ? p.index + 1 : p.index, V{}}, size, padding);
  taps.slope_low = taps.slope_high = V{};
  return taps;
}

// Where output pixels sample a source, both axes.
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

}  // namespace vsegops
