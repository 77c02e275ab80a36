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

// The pixels of a tile over the channels of a panel: adds grad, weighted, to the four taps in
// `d_source` (Scatter), and adds the slopes of u and v to `d_u` and `d_v` (Slopes).
template <bool Scatter, bool Slopes, typename F>
void scatter_tile(const Tile<F>& tile, int64_t count, const Steps& steps, int64_t width,
                  Panel<const F> grad, Panel<const F> source, Panel<F> d_source, F* d_u, F* d_v) {
  constexpr int n = kLanes<F>;
  const int64_t row = steps.row * source.stride, pair = steps.pair * source.stride;
  const int64_t d_row = steps.row * d_source.stride, d_pair = steps.pair * d_source.stride;
  alignas(64) Vector<F> products[4][n] = {};  // grad * source at the four taps, of each pixel
  for (int64_t first = 0; first < count; first += n) {
    const int64_t pixels = std::min<int64_t>(n, count - first);
    for (int64_t j = 0; j < pixels; ++j) {
      const int64_t i = first + j;
      const F* g = grad.data + i * grad.stride;
      const F* p = source.data + tile.offset[i] * source.stride;
      F* d = d_source.data + tile.offset[i] * d_source.stride;
      const F w00 = tile.top[2 * i], w01 = tile.top[2 * i + 1];
      const F w10 = tile.bottom[2 * i], w11 = tile.bottom[2 * i + 1];
      Vector<F> s00{}, s01{}, s10{}, s11{};
      int64_t c = 0;
      for (; c + n <= width; c += n) {
        const Vector<F> gradient = load(g + c);
        if constexpr (Slopes) {
          s00 += gradient * load(p + c);
          s01 += gradient * load(p + pair + c);
          s10 += gradient * load(p + row + c);
          s11 += gradient * load(p + row + pair + c);
        }
        if constexpr (Scatter) {  // one after the other: the taps of a thin source coincide
          store(load(d + c) + w00 * gradient, d + c);
          store(load(d + d_pair + c) + w01 * gradient, d + d_pair + c);
          store(load(d + d_row + c) + w10 * gradient, d + d_row + c);
          store(load(d + d_row + d_pair + c) + w11 * gradient, d + d_row + d_pair + c);
        }
      }
      F t00 = 0, t01 = 0, t10 = 0, t11 = 0;
      for (; c < width; ++c) {
        const F gradient = g[c];
        if constexpr (Slopes) {
          t00 += gradient * p[c];
          t01 += gradient * p[pair + c];
          t10 += gradient * p[row + c];
          t11 += gradient * p[row + pair + c];
        }
        if constexpr (Scatter) {
          d[c] += w00 * gradient;
          d[d_pair + c] += w01 * gradient;
          d[d_row + c] += w10 * gradient;
          d[d_row + d_pair + c] += w11 * gradient;
        }
      }
      if constexpr (Slopes) {
        products[0][j] = s00 + first_lane(t00);
        products[1][j] = s01 + first_lane(t01);
        products[2][j] = s10 + first_lane(t10);
        products[3][j] = s11 + first_lane(t11);
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

// Some channels of one image. `totals` receives d_u, d_v and d_attention, summed over them.
template <typename T, typename F, typename Flow>
class BackwardChunk {
 public:
  using Call = Backward<T, F, Flow>;

  BackwardChunk(const Call& call, int64_t n, F* totals)
      : call_(call),
        n_(n),
        pixels_(call.grad.h * call.grad.w),
        source_pixels_(call.input.h * call.input.w),
        d_u_(totals),
        d_v_(totals + padded(pixels_)),
        d_attention_(totals + 2 * padded(pixels_)) {}

  static int64_t padded(int64_t pixels) { return ceil_div(pixels, 64) * 64; }

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
                 in_place(image(call_.input, first_channel, width), 0), in_place(d_input, 0));
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
          scatter_planes<F>(tile, end - begin, steps, grad,
                            image(call_.input, first_channel, width), d_input,
                            slopes ? d_u_ + begin : nullptr, slopes ? d_v_ + begin : nullptr);
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
    const int64_t capacity = std::min(5 * alive.longest / 4, source_pixels_);
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
        ++t;
        run_tile(tile, begin, end, kLanes<F>, c, width, grad_copy, window.values(),
                 window.gradients());
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
    for (F* total : {d_u_, d_v_, d_attention_}) {
      std::fill_n(total + begin, ceil_div(end - begin, kLanes<F>) * kLanes<F>, F(0));
    }
  }

  void correct(const Tile<F>& tile, int64_t begin, int64_t end, int64_t c, int64_t width) const {
    if (!call_.d_correction.data && !call_.d_attention.data) return;
    correct_tile(image(call_.grad, c, width), image(call_.correction, c, width), tile, begin,
                 end - begin, image(call_.d_correction, c, width), streamed(),
                 call_.d_attention.data ? d_attention_ + begin : nullptr);
  }

  // Channels [c, c + width) of a tile; `lanes` of each pixel are handled.
  void run_tile(const Tile<F>& tile, int64_t begin, int64_t end, int64_t lanes, int64_t c,
                int64_t width, F* grad_copy, const Panel<const F>& source,
                const Panel<F>& d_source) const {
    correct(tile, begin, end, c, width);
    const bool scatter = call_.d_input.data, slopes = call_.d_flow.data;
    if (!scatter && !slopes) return;
    const Panel<const F> grad = panel(call_.grad, c, width, begin, end, grad_copy);
    lift(scatter, [&](auto with_scatter) {
      lift(slopes, [&](auto with_slopes) {
        scatter_tile<with_scatter(), with_slopes()>(tile, end - begin, Steps(call_.mapping), lanes,
                                                    grad, source, d_source, d_u_ + begin,
                                                    d_v_ + begin);
      });
    });
  }

  const Call& call_;
  const int64_t n_, pixels_, source_pixels_;
  F *const d_u_, *const d_v_, *const d_attention_;
};

// Sums a total over the chunks of an image and writes it to a channel of `out`.
template <typename F, typename T>
void write_total(const F* totals, int64_t chunks, int64_t chunk_size, int64_t n, int64_t channel,
                 const View<T>& out) {
  const int64_t pixels = out.h * out.w;
  const F* first = totals + n * chunks * chunk_size;
  T* to = out.data + (n * out.c + channel) * pixels;
  for (int64_t i = 0; i < pixels; ++i) {
    F total = first[i];
    for (int64_t k = 1; k < chunks; ++k) total += first[i + k * chunk_size];
    if constexpr (std::is_same_v<T, float>) {
      to[i] = static_cast<float>(total);  // (float flow beside double features)
    } else {
      narrow(total, to + i);
    }
  }
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& call, const Context& context) {
  using Chunk = BackwardChunk<T, F, Flow>;
  check_plane(call.input.h, call.input.w);
  const int64_t channels = call.input.c, images = call.grad.n;
  const int64_t panels = std::max<int64_t>(1, ceil_div(channels, kLanes<F>));
  // As many chunks of an image's panels as keep every thread busy.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t split = std::min(panels, images ? ceil_div(threads, images) : 1);
  const int64_t width = ceil_div(panels, split) * kLanes<F>;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(channels, width));
  const int64_t plane = Chunk::padded(call.grad.h * call.grad.w);
  F* totals;
  const Tensor held = context.scratch(images * chunks * 3 * plane, &totals);
  torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % chunks * width;
      Chunk(call, k / chunks, totals + k * 3 * plane)
          .run(begin, std::min(begin + width, channels), context);
    }
    stream_fence();
  });
  for (int64_t n = 0; n < images; ++n) {
    if (call.d_flow.data) {
      write_total(totals, chunks, 3 * plane, n, 0, call.d_flow);
      write_total(totals + plane, chunks, 3 * plane, n, 1, call.d_flow);
    }
    if (call.d_attention.data) {
      write_total(totals + 2 * plane, chunks, 3 * plane, n, 0, call.d_attention);
    }
  }
}

}  // namespace
}  // namespace vsegops::warp
