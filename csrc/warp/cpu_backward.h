// Backward on a CPU, in one pass: per channel and pixel 4 multiply-adds to scatter the gradient and
// 4 products for the flow, against 16 C P bytes or more: memory bounds it if the taps stay in the
// caches.
//
// Channels are handled in panels, so that a tap is read, and its gradient added to, by whole
// vectors. Channels_last float and double tensors are such a panel as they stand. Others are
// copied: of a panel, only the pixels that the tile at hand and later ones can touch are kept (a
// window that slides over the source; the taps say how far).
//
// Chunks of channels run in parallel: each owns its part of d_input, so nothing is atomic and the
// order of all sums is fixed; what has to be summed over chunks is summed at the end.
#pragma once

#include <bit>

#include "../common/panels.h"
#include "cpu_tile.h"
#include "cpu_window.h"

namespace vsegops::warp {
namespace {

constexpr int64_t kBackwardTile = 1024;  // pixels
constexpr int64_t kFewPlanes = 4;        // up to so many channels a panel would be mostly empty

// Adds what kLanes pixels, from `first` on, contribute to the slopes of u and v, given the products
// of gradient and source at their four taps, in memory order.
template <typename F>
VSEGOPS_HD void add_slopes(const Tile<F>& tile, int64_t first, const Steps& steps,
                           Vector<F> low_low, Vector<F> second, Vector<F> third,
                           Vector<F> high_high, F* d_u, F* d_v) {
  // A source of one column has its pairs along v (see find_row_taps): low and high change.
  const Vector<F> high_low = steps.column ? third : second;  // u high, v low
  const Vector<F> low_high = steps.column ? second : third;
  const Vector<F> u0 = load(tile.weight_u[0] + first), u1 = load(tile.weight_u[1] + first);
  const Vector<F> v0 = load(tile.weight_v[0] + first), v1 = load(tile.weight_v[1] + first);
  const Vector<F> u = load(tile.slope_u[0] + first) * (v0 * low_low + v1 * low_high) +
                      load(tile.slope_u[1] + first) * (v0 * high_low + v1 * high_high);
  const Vector<F> v = load(tile.slope_v[0] + first) * (u0 * low_low + u1 * high_low) +
                      load(tile.slope_v[1] + first) * (u0 * low_high + u1 * high_high);
  store(load(d_u + first) + u, d_u + first);
  store(load(d_v + first) + v, d_v + first);
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
// `d_source` (Scatter), and adds the slopes of u and v to `d_u` and `d_v` (Slopes).
template <bool Scatter, bool Slopes, typename F, typename T>
void scatter_tile(const Tile<F>& tile, int64_t count, const Steps& steps, int64_t width,
                  Panel<const F> grad, Panel<const F> source, Panel<F> d_source, F* d_u, F* d_v,
                  const Ahead<T>& ahead) {
  constexpr int n = kLanes<F>;
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
        if constexpr (Slopes) {
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
        if constexpr (Slopes) {
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
      if constexpr (Slopes) {
        products[0][j] = s00 + first_lane(rest[0]);
        products[1][j] = s01 + first_lane(rest[1]);
        products[2][j] = s10 + first_lane(rest[2]);
        products[3][j] = s11 + first_lane(rest[3]);
      }
    }
    if constexpr (Slopes) {
      add_slopes<F>(tile, first, steps, sums<F>(products[0]), sums<F>(products[1]),
                    sums<F>(products[2]), sums<F>(products[3]), d_u, d_v);
    }
  }
}

// The same for few channels that are kept apart: vectors over pixels, and a scatter by elements.
template <typename F>
void scatter_planes(const Tile<F>& tile, int64_t count, const Steps& steps,
                    const Image<const F>& grad, const Image<const F>& source,
                    const Image<F>& d_source, F* d_u, F* d_v) {
  constexpr int n = kLanes<F>;
  using Lanes = std::make_integer_sequence<int, n>;
  for (int64_t first = 0; first < count; first += n) {
    const int64_t pixels = std::min<int64_t>(n, count - first);
    const int32_t* offset = tile.offset + first;
    Vector<F> top[2] = {}, bottom[2] = {};  // products at the taps, a pair for each pixel
    for (int64_t c = 0; c < grad.width; ++c) {
      F last[n] = {};
      const F* g = grad.data + c * grad.channel + first;
      if (pixels < n) g = std::copy_n(g, pixels, last) - pixels;
      Vector<F> gradient[2];  // each twice
      interleave<F>(load(g), load(g), gradient, gradient + 1, Lanes());
      F* d = d_source.data + c * d_source.channel;
      for (int h = 0; h < 2; ++h) {
        const int64_t at = first + h * (n / 2);
        if (d_u) {
          const F* p = source.data + c * source.channel;
          top[h] += gradient[h] * load_pairs(p, tile.offset + at);
          bottom[h] += gradient[h] * load_pairs(p + steps.row, tile.offset + at);
        }
        if (!d_source.data) continue;
        F upper[n], lower[n];
        store(gradient[h] * load(tile.top + 2 * at), upper);
        store(gradient[h] * load(tile.bottom + 2 * at), lower);
        for (int j = 0; j < n / 2; ++j) {
          F* tap = d + offset[h * (n / 2) + j];
          tap[0] += upper[2 * j];
          tap[1] += upper[2 * j + 1];
          tap[steps.row] += lower[2 * j];
          tap[steps.row + 1] += lower[2 * j + 1];
        }
      }
    }
    if (d_u) {
      add_slopes<F>(tile, first, steps, even<F>(top[0], top[1], Lanes()),
                    odd<F>(top[0], top[1], Lanes()), even<F>(bottom[0], bottom[1], Lanes()),
                    odd<F>(bottom[0], bottom[1], Lanes()), d_u, d_v);
    }
  }
}

// d_correction = grad * attention, and d_attention += grad * correction, summed over the channels:
// the part of the backward that is not moved by the flow. Either may be absent.
template <typename T, typename F>
void correct_tile(const Image<const T>& grad, const Image<const T>& correction, const Tile<F>& tile,
                  int64_t begin, int64_t count, const Image<T>& d_correction, bool streamed,
                  F* d_attention) {
  constexpr int n = kLanes<F>;
  for (int64_t c = 0; grad.planes() && c < grad.width; ++c) {
    const T* g = grad.data + c * grad.channel + begin;
    const T* added = correction.data + c * correction.channel + begin;
    T* out = d_correction.data + c * d_correction.channel + begin;
    if (d_attention) {
      for (int64_t i = 0; i < count; ++i) d_attention[i] += widen(g[i]) * widen(added[i]);
    }
    if (!d_correction.data) continue;
    int64_t i = 0;
    if constexpr (std::is_same_v<T, F>) {
      for (; streamed && is_aligned(out) && i + n <= count; i += n) {
        stream<F>(load(tile.attention + i) * load(g + i), out + i);
      }
    }
    for (; i < count; ++i) narrow(tile.attention[i] * widen(g[i]), out + i);
  }
  for (int64_t first = 0; !grad.planes() && first < count; first += n) {
    Vector<F> products[n] = {};
    for (int64_t i = first; i < std::min(first + n, count); ++i) {
      const T* g = grad.data + (begin + i) * grad.pixel;
      if (d_correction.data) {
        T* out = d_correction.data + (begin + i) * d_correction.pixel;
        for (int64_t c = 0; c < grad.width; ++c) narrow(tile.attention[i] * widen(g[c]), out + c);
      }
      if (d_attention) {
        const T* added = correction.data + (begin + i) * correction.pixel;
        Vector<F> sum{};
        int64_t c = 0;
        for (; c + n <= grad.width; c += n) sum += load(g + c) * load(added + c);
        F rest = 0;
        for (; c < grad.width; ++c) rest += widen(g[c]) * widen(added[c]);
        products[i - first] = sum + first_lane(rest);
      }
    }
    if (d_attention) store(load(d_attention + first) + sums<F>(products), d_attention + first);
  }
}

// Where the gradients of the flow and the attention are summed over channels, one entry per pixel
// and up to a whole vector. (Absent, null, where nobody wants them.)
template <typename F>
struct Totals {
  F *u, *v, *attention;
};

// Some channels of one image; adds what they contribute to `totals`, after clearing them.
template <typename T, typename F, typename Flow>
class BackwardChunk {
 public:
  using Call = Backward<T, F, Flow>;

  BackwardChunk(const Call& call, int64_t n, const Totals<F>& totals)
      : call_(call),
        n_(n),
        pixels_(call.grad.h * call.grad.w),
        source_pixels_(call.input.h * call.input.w),
        totals_(totals) {}

  void run(int64_t first_channel, int64_t last_channel, const Context& context) {
    Arena arena(Tile<F>::bytes(kBackwardTile) + Columns<F>::bytes(call_.grad.w) +
                kBackwardTile * kLanes<F> * sizeof(F) + 64);
    const Tile<F> tile(arena, kBackwardTile, true);
    const Columns<F> columns(arena, call_.mapping.x);
    if (first_channel == last_channel) clear(0, pixels_);
    F* const grad_copy = arena.take<F>(kBackwardTile * kLanes<F>);
    if (direct()) {
      const int64_t width = last_channel - first_channel;
      const Image<T> d_input = image(call_.d_input, first_channel, width);
      if (d_input.data) store_zeros(0, source_pixels_, d_input);
      for_tiles(tile, columns, [&](int64_t begin, int64_t end) {
        clear(begin, end);
        run_tile(tile, begin, end, width, first_channel, width, grad_copy,
                 in_place(image(call_.input, first_channel, width), 0), in_place(d_input, 0), {});
      });
      return;
    }
    if constexpr (std::is_same_v<T, F>) {
      const Steps steps(call_.mapping);
      if (!call_.channels_last && last_channel - first_channel <= kFewPlanes && steps.pair) {
        const int64_t width = last_channel - first_channel;
        const Image<T> d_input = image(call_.d_input, first_channel, width);
        if (d_input.data) store_zeros(0, source_pixels_, d_input);
        for_tiles(tile, columns, [&](int64_t begin, int64_t end) {
          clear(begin, end);
          correct(tile, begin, end, first_channel, width);
          Image<const T> grad = image(call_.grad, first_channel, width);
          grad.data += begin;
          const bool slopes = call_.d_flow.data;
          scatter_planes<F>(
              tile, end - begin, steps, grad, image(call_.input, first_channel, width), d_input,
              slopes ? totals_.u + begin : nullptr, slopes ? totals_.v + begin : nullptr);
        });
        return;
      }
    }
    Lifetimes alive;
    const Steps steps(call_.mapping);
    for_tiles(tile.without_slopes(), columns, [&](int64_t begin, int64_t end) {
      const auto [low, high] = std::minmax_element(tile.offset, tile.offset + (end - begin));
      alive.low.push_back(*low / kLanes<F> *
                          kLanes<F>);  // (aligned, as streamed stores have to be)
      alive.high.push_back(*high + steps.row + steps.pair + 1);
    });
    alive.finish();
    const int64_t capacity = std::bit_ceil(static_cast<uint64_t>(alive.longest));
    const bool slopes = call_.d_flow.data, scatter = call_.d_input.data;
    const int64_t elements = Window<T, F>::elements(capacity, slopes, scatter);
    F* memory;
    std::optional<Tensor> held;
    if (elements * int64_t(sizeof(F)) <= kKeptScratch) {
      memory = thread_scratch<F, Window<T, F>>(elements);
    } else {
      held = context.scratch(elements, &memory);
    }
    for (int64_t c = first_channel; c < last_channel; c += kLanes<F>) {
      const int64_t width = std::min<int64_t>(kLanes<F>, last_channel - c);
      Image<const T> source = image(call_.input, c, width);
      if (!slopes) source.data = nullptr;
      Window<T, F> window(source, image(call_.d_input, c, width), capacity, streamed(), memory);
      int64_t t = 0;
      for_tiles(tile, columns, [&](int64_t begin, int64_t end) {
        if (c == first_channel) clear(begin, end);
        window.advance(alive.low[t], alive.high[t]);
        // Whatever becomes of the flow meanwhile, nothing outside the window is touched.
        const int32_t low = static_cast<int32_t>(alive.low[t]);
        const int32_t high = static_cast<int32_t>(alive.high[t] - steps.row - steps.pair - 1);
        for (int64_t i = 0; i < end - begin; ++i) {
          tile.offset[i] = std::min(std::max(tile.offset[i], low), high);
        }
        run_tile(tile, begin, end, kLanes<F>, c, width, grad_copy, window.values(),
                 window.gradients(), ahead(c, width, end, alive.high[t]));
        ++t;
      });
      window.finish(source_pixels_);
    }
  }

 private:
  // Channels side by side already, and in the type that is computed in.
  bool direct() const { return std::is_same_v<T, F> && call_.channels_last; }

  bool streamed() const {
    return call_.d_input.n * call_.d_input.c * source_pixels_ * int64_t(sizeof(T)) >= kStreamBytes;
  }

  template <typename U>
  Image<U> image(const View<U>& x, int64_t c, int64_t width) const {
    if (!x.data) return {nullptr, 0, 0, width};
    const int64_t plane = x.h * x.w;
    if (call_.channels_last) return {x.data + n_ * x.c * plane + c, 1, x.c, width};
    return {x.data + (n_ * x.c + c) * plane, plane, 1, width};
  }

  template <typename U>
  auto in_place(const Image<U>& x, int64_t pixel) const {
    using Element = std::conditional_t<std::is_const_v<U>, const F, F>;
    return Panel<Element>{reinterpret_cast<Element*>(x.data) + pixel * x.pixel, x.pixel};
  }

  // Pixels [begin, end) of a tensor as a panel: where they are, or copied.
  Panel<const F> panel(const View<const T>& x, int64_t c, int64_t width, int64_t begin, int64_t end,
                       F* copy) const {
    if (direct()) return in_place(image(x, c, width), begin);
    load_panel(image(x, c, width), begin, end, copy);
    return {copy, kLanes<F>};
  }

  template <typename Body>
  void for_tiles(const Tile<F>& tile, const Columns<F>& columns, const Body& body) const {
    for (int64_t begin = 0; begin < pixels_; begin += kBackwardTile) {
      const int64_t end = std::min(begin + kBackwardTile, pixels_);
      find_taps(call_.mapping, call_.flow, call_.attention, columns, n_, begin, end, tile);
      body(begin, end);
    }
  }

  void clear(int64_t begin, int64_t end) const {
    for (F* total : {totals_.u, totals_.v, totals_.attention}) {
      if (total) std::fill_n(total + begin, ceil_div(end - begin, kLanes<F>) * kLanes<F>, F(0));
    }
  }

  void correct(const Tile<F>& tile, int64_t begin, int64_t end, int64_t c, int64_t width) const {
    if (!call_.d_correction.data && !call_.d_attention.data) return;
    correct_tile(image(call_.grad, c, width), image(call_.correction, c, width), tile, begin,
                 end - begin, image(call_.d_correction, c, width), streamed(),
                 totals_.attention ? totals_.attention + begin : nullptr);
  }

  // The tile after the one that ends at `end`, and the source from `high` on.
  Ahead<T> ahead(int64_t c, int64_t width, int64_t end, int64_t high) const {
    const Image<const T> images[3] = {image(call_.grad, c, width),
                                      image(call_.correction, c, width),
                                      image(call_.input, c, width)};
    const bool wanted[3] = {true, call_.d_attention.data != nullptr, call_.d_flow.data != nullptr};
    Ahead<T> next{};
    next.width = width;
    for (int k = 0; k < 3; ++k) {
      if (!wanted[k] || !images[k].data) continue;
      next.planes[k] = images[k].data + (k < 2 ? end : high);
      next.channel[k] = images[k].channel;
    }
    return next;
  }

  // Channels [c, c + width) of a tile; `lanes` of each pixel are handled.
  void run_tile(const Tile<F>& tile, int64_t begin, int64_t end, int64_t lanes, int64_t c,
                int64_t width, F* grad_copy, const Panel<const F>& source, const Panel<F>& d_source,
                const Ahead<T>& next) const {
    correct(tile, begin, end, c, width);
    const bool scatter = call_.d_input.data, slopes = call_.d_flow.data;
    if (!scatter && !slopes) return;
    const Panel<const F> grad = panel(call_.grad, c, width, begin, end, grad_copy);
    lift(scatter, [&](auto with_scatter) {
      lift(slopes, [&](auto with_slopes) {
        scatter_tile<with_scatter(), with_slopes()>(tile, end - begin, Steps(call_.mapping), lanes,
                                                    grad, source, d_source, totals_.u + begin,
                                                    totals_.v + begin, next);
      });
    });
  }

  const Call& call_;
  const int64_t n_, pixels_, source_pixels_;
  const Totals<F> totals_;
};

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

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& call, const Context& context) {
  check_plane(call.input.h, call.input.w);
  const int64_t channels = call.input.c, images = call.grad.n, pixels = call.grad.h * call.grad.w;
  const int64_t panels = std::max<int64_t>(1, ceil_div(channels, kLanes<F>));
  // As many chunks of an image's panels as keep every thread busy.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t split = std::min(panels, images ? ceil_div(threads, images) : 1);
  const int64_t width = ceil_div(panels, split) * kLanes<F>;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(channels, width));

  // Summed in place if one chunk has all channels and no vector ends beyond the output.
  constexpr bool kAlike = std::is_same_v<T, F> && std::is_same_v<Flow, F>;
  const bool in_place = kAlike && chunks == 1 && pixels % kLanes<F> == 0;
  const bool flow = call.d_flow.data, attention = call.d_attention.data;
  const int64_t plane = ceil_div(pixels, kLanes<F>) * kLanes<F>,
                step = (2 * flow + attention) * plane;
  F* scratch = nullptr;
  std::optional<Tensor> held;
  if (!in_place) held = context.scratch(images * chunks * step, &scratch);
  const auto totals = [&](int64_t k) {
    F *u = scratch + k * step, *gate = u + 2 * flow * plane;
    if (in_place) {
      u = reinterpret_cast<F*>(call.d_flow.data) + 2 * k * pixels;
      gate = reinterpret_cast<F*>(call.d_attention.data) + k * pixels;
    }
    return Totals<F>{flow ? u : nullptr, flow ? u + plane : nullptr, attention ? gate : nullptr};
  };
  torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % chunks * width;
      BackwardChunk(call, k / chunks, totals(k))
          .run(begin, std::min(begin + width, channels), context);
    }
    stream_fence();
  });
  for (int64_t n = 0; n < images && !in_place; ++n) {
    const Totals<F> first = totals(n * chunks);
    if (flow) {
      write_total(first.u, chunks, step, n, 0, call.d_flow);
      write_total(first.v, chunks, step, n, 1, call.d_flow);
    }
    if (attention) write_total(first.attention, chunks, step, n, 0, call.d_attention);
  }
}

}  // namespace
}  // namespace vsegops::warp
