// What the CPU's backward passes share. Channels are handled in panels, so that a tap is read, and
// its gradient added to, by whole vectors.
#pragma once

#include <bit>

#include "cpu_taps.h"
#include "cpu_window.h"

namespace vsegops {
namespace {

constexpr int64_t kBackwardTile = 1024;  // pixels

// What is summed over the channels of each pixel: the slopes of u and v, and sign * grad *
// A(source) with the weights of weight_u and weight_v. Null where nobody wants it; u and v come
// together.
template <typename F>
struct PixelSums {
  F *u = nullptr, *v = nullptr, *value = nullptr;
  F sign = 1;

  bool wanted() const { return u || value; }
};

// Adds what kLanes pixels, from `first` on, contribute, given the products of gradient and source
// at their four taps, in memory order.
template <typename F>
VSEGOPS_HD void add_products(const Tile<F>& tile, int64_t first, const Steps& steps,
                             Vector<F> low_low, Vector<F> second, Vector<F> third,
                             Vector<F> high_high, const PixelSums<F>& to) {
  // A source of one column has its pairs along v (see find_row_taps): low and high change.
  const Vector<F> high_low = steps.column ? third : second;  // u high, v low
  const Vector<F> low_high = steps.column ? second : third;
  const Vector<F> u0 = load(tile.weight_u[0] + first), u1 = load(tile.weight_u[1] + first);
  const Vector<F> v0 = load(tile.weight_v[0] + first), v1 = load(tile.weight_v[1] + first);
  const auto add = [&](F* sum, Vector<F> x) { store(load(sum + first) + x, sum + first); };
  const Vector<F> low = v0 * low_low + v1 * low_high, high = v0 * high_low + v1 * high_high;
  if (to.value) add(to.value, to.sign * (u0 * low + u1 * high));
  if (!to.u) return;
  add(to.u, load(tile.slope_u[0] + first) * low + load(tile.slope_u[1] + first) * high);
  add(to.v, load(tile.slope_v[0] + first) * (u0 * low_low + u1 * high_low) +
                load(tile.slope_v[1] + first) * (u0 * low_high + u1 * high_high));
}

// Fetches what the next tile reads of some planes while this one is computed: a line of each image
// for each pixel.
template <typename T>
struct Ahead {
  static constexpr int64_t kLine = 64 / sizeof(T), kLines = kBackwardTile / kLine;
  const T* planes[3];  // channel 0 of the next tile's first pixel; null where there is none
  int64_t channel[3];  // from plane to plane
  int64_t width;

  VSEGOPS_HD void fetch(int64_t i) const {
    const int64_t c = i / kLines, at = i % kLines * kLine;
    if (c >= width) return;
    for (int k = 0; k < 3; ++k) {
      if (planes[k]) __builtin_prefetch(planes[k] + c * channel[k] + at);
    }
  }
};

// The pixels of a tile over the channels of a panel: adds grad, weighted, to the four taps in
// `d_source` (Scatter), and to what is summed for each pixel (Sum). Width: of the panels; if it is
// a constant, one vector, they have nothing beside it.
template <bool Scatter, bool Sum, typename Width, typename F, typename T>
void scatter_tile(const Tile<F>& tile, int64_t count, const Steps& steps, Width width,
                  Panel<const F> grad, Panel<const F> source, Panel<F> d_source,
                  const PixelSums<F>& to, const Ahead<T>& ahead) {
  constexpr int n = kLanes<F>;
  if constexpr (!std::is_same_v<Width, int64_t>) grad.stride = source.stride = d_source.stride = n;
  const auto& taps = [&] {  // (source and d_source are alike; either may be absent)
    if constexpr (Scatter)
      return d_source;
    else
      return source;
  }();
  alignas(64) Vector<F> products[4][n] = {};  // grad * source at the four taps, of each pixel
  for (int64_t first = 0; first < count; first += n) {
    const int64_t pixels = std::min<int64_t>(n, count - first);
    for (int64_t j = 0; j < pixels; ++j) {
      const int64_t i = first + j;
      ahead.fetch(i);
      const F* g = grad.data + i * grad.stride;
      const int64_t at = tile.offset[i];
      const int64_t t00 = taps.at(at), t01 = taps.at(at + steps.pair);
      const int64_t t10 = taps.at(at + steps.row), t11 = taps.at(at + steps.row + steps.pair);
      const F w00 = tile.top[2 * i], w01 = tile.top[2 * i + 1];
      const F w10 = tile.bottom[2 * i], w11 = tile.bottom[2 * i + 1];
      Vector<F> s00{}, s01{}, s10{}, s11{};
      int64_t c = 0;
      for (; c + n <= width; c += n) {
        const Vector<F> gradient = load(g + c);
        if constexpr (Sum) {
          s00 += gradient * load(source.data + t00 + c);
          s01 += gradient * load(source.data + t01 + c);
          s10 += gradient * load(source.data + t10 + c);
          s11 += gradient * load(source.data + t11 + c);
        }
        if constexpr (Scatter) {  // one after the other: the taps of a thin source coincide
          F* const d = d_source.data + c;
          store(load(d + t00) + w00 * gradient, d + t00);
          store(load(d + t01) + w01 * gradient, d + t01);
          store(load(d + t10) + w10 * gradient, d + t10);
          store(load(d + t11) + w11 * gradient, d + t11);
        }
      }
      F rest[4] = {};
      for (; c < width; ++c) {
        const F gradient = g[c];
        if constexpr (Sum) {
          rest[0] += gradient * source.data[t00 + c];
          rest[1] += gradient * source.data[t01 + c];
          rest[2] += gradient * source.data[t10 + c];
          rest[3] += gradient * source.data[t11 + c];
        }
        if constexpr (Scatter) {
          d_source.data[t00 + c] += w00 * gradient;
          d_source.data[t01 + c] += w01 * gradient;
          d_source.data[t10 + c] += w10 * gradient;
          d_source.data[t11 + c] += w11 * gradient;
        }
      }
      if constexpr (Sum) {
        products[0][j] = s00 + first_lane(rest[0]);
        products[1][j] = s01 + first_lane(rest[1]);
        products[2][j] = s10 + first_lane(rest[2]);
        products[3][j] = s11 + first_lane(rest[3]);
      }
    }
    if constexpr (Sum) {
      add_products<F>(tile, first, steps, sums<F>(products[0]), sums<F>(products[1]),
                      sums<F>(products[2]), sums<F>(products[3]), to);
    }
  }
}

// The same by what is wanted.
template <typename T, typename F>
void scatter_tile(const Tile<F>& tile, int64_t count, const Steps& steps, int64_t width,
                  Panel<const F> grad, const SourcePanels<T, F>& source, const PixelSums<F>& to,
                  const Ahead<T>& ahead) {
  constexpr std::integral_constant<int64_t, kLanes<F>> one;  // vector
  const bool slim = grad.stride == one &&
                    (source.gradients.data ? source.gradients.stride : source.values.stride) == one;
  lift(source.gradients.data, [&](auto scatter) {
    lift(to.wanted(), [&](auto sum) {
      if constexpr (scatter() || sum()) {
        const auto run = [&](auto channels) {
          scatter_tile<scatter(), sum()>(tile, count, steps, channels, grad, source.values,
                                         source.gradients, to, ahead);
        };
        if (slim && width == one) return run(one);
        run(width);
      }
    });
  });
}

// Sums a total over the chunks of an image, which stand `step` apart, and writes it to a channel of
// `out`.
template <typename F, typename T>
void write_total(const F* total, int64_t chunks, int64_t step, int64_t n, int64_t channel,
                 const View<T>& out) {
  const int64_t pixels = out.h * out.w;
  T* to = out.data + (n * out.c + channel) * pixels;
  for (int64_t i = 0; i < pixels; ++i) {
    F sum = total[i];
    for (int64_t k = 1; k < chunks; ++k) sum += total[i + k * step];
    if constexpr (std::is_same_v<T, float>) {
      to[i] = static_cast<float>(sum);  // (float flow beside double features)
    } else {
      narrow(sum, to + i);
    }
  }
}

}  // namespace
}  // namespace vsegops
