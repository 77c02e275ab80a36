// Where an output pixel samples its source: the arithmetic that CPU and CUDA kernels share.
//
//   align_corners:      u = x * (w-1) / (W-1) + scale * flow
//   not align_corners:  u = (x + 0.5) * w / W - 0.5 + scale * flow
//
// A float32 coordinate near 2048 has a step of 1.2e-4, so the integer and the fraction of u are
// kept apart: the base is split exactly, in integers, the flow by floor, and only fractions are
// added. F is float, or double for double features.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace vsegops {

enum class Padding { kZeros, kBorder };

// A coordinate: index + fraction, with fraction in [0, 1].
template <typename F>
struct Position {
  int32_t index;
  F fraction;
};

// a * b - c, rounded once.
VSEGOPS_HD double multiply_subtract(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
  return ::fma(a, b, -c);
#else
  return a * b - c;  // (rounded twice: double positions have bits to spare)
#endif
}
VSEGOPS_HD float multiply_subtract(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
  return ::fmaf(a, b, -c);
#else
  return static_cast<float>(static_cast<double>(a) * b - c);
#endif
}

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
  VSEGOPS_HD Position<F> displaced(Position<F> base, F flow) const {
    constexpr F kFar = F(1 << 30);
    F product = flow * scale;
    const bool near = product > -kFar && product < kFar;  // false for NaN
    product = near ? product : (product >= kFar ? kFar : -kFar);
    const F whole = floor_(product);
    // What the product has beyond its integer, free of the product's rounding.
    const F part = near ? multiply_subtract(flow, scale, whole) + flow * scale_low : F(0);
    const F rest = base.fraction + part;
    const F carry = floor_(rest);
    return {base.index + static_cast<int32_t>(whole) + static_cast<int32_t>(carry), rest - carry};
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

  VSEGOPS_HD static float floor_(float x) { return ::floorf(x); }
  VSEGOPS_HD static double floor_(double x) { return ::floor(x); }
};

// The two pixels that a position touches along one axis, in a form that needs no branch: both are
// inside the source, `low` and `low + step`, and what lies outside has weight 0. `slope` is the
// derivative of the sampled value: slope_low * value(low) + slope_high * value(low + step).
template <typename F>
struct Taps {
  int32_t low;   // in [0, max(size - 2, 0)], so that low + step is inside
  int32_t step;  // 1, or 0 where the source has one pixel
  F weight_low, weight_high;
  F slope_low, slope_high;
};

template <typename F>
VSEGOPS_HD Taps<F> bilinear_taps(Position<F> p, int32_t size, Padding padding) {
  F slope = F(1);
  if (padding == Padding::kBorder) {
    // Clamped to [0, size - 1]; beyond it the value does not change. (At size - 1 itself the
    // right-hand derivative is 0 as well.)
    const bool before = p.index < 0;
    const bool after = p.index >= size - 1;
    slope = before || after ? F(0) : F(1);
    p.fraction = before || after ? F(0) : p.fraction;
    p.index = before ? 0 : (after ? size - 1 : p.index);
  }
  const bool low_inside = p.index >= 0 && p.index < size;
  const bool high_inside = p.index >= -1 && p.index < size - 1;
  const F low = low_inside ? F(1) - p.fraction : F(0);
  const F high = high_inside ? p.fraction : F(0);
  const F slope_low = low_inside ? -slope : F(0);
  const F slope_high = high_inside ? slope : F(0);
  // The pair may stand one pixel off, at either end: then the taps change places.
  const int32_t last = size > 1 ? size - 2 : 0;
  Taps<F> taps;
  taps.low = p.index < 0 ? 0 : (p.index > last ? last : p.index);
  taps.step = size > 1;
  const bool left = p.index < taps.low;   // the high tap stands at taps.low
  const bool right = p.index > taps.low;  // the low tap stands at taps.low + 1
  taps.weight_low = left ? high : (right ? F(0) : low);
  taps.weight_high = right ? low : (left ? F(0) : high);
  taps.slope_low = left ? slope_high : (right ? F(0) : slope_low);
  taps.slope_high = right ? slope_low : (left ? F(0) : slope_high);
  return taps;
}

// Nearest, halves to even, as a pair of taps of which one has weight 1 (or none, outside).
template <typename F>
VSEGOPS_HD Taps<F> nearest_taps(Position<F> p, int32_t size, Padding padding) {
  const bool up = p.fraction > F(0.5) || (p.fraction == F(0.5) && (p.index & 1));
  p.index += up ? 1 : 0;
  p.fraction = F(0);
  Taps<F> taps = bilinear_taps(p, size, padding);
  taps.slope_low = taps.slope_high = F(0);
  return taps;
}

}  // namespace vsegops
