// Backward on a CPU, in one pass: per channel and pixel 8 multiply-adds to scatter the gradient and
// 8 products for the flows and the gate, against 20 C P bytes of float32 where both sources have P
// pixels: memory bounds it if the taps stay in the caches.
//
// Chunks of channels run in parallel: each owns its part of d_high and d_low, so nothing is atomic
// and the order of all sums is fixed; what has to be summed over chunks is summed at the end.
#pragma once

#include "../common/cpu_scatter.h"
#include "cpu_side.h"

namespace vsegops::dual_warp {
namespace {

// Where the gradients of one image's flows and gate are summed over some channels: planes of whole
// vectors, of which those that nobody wants are absent.
template <typename F>
struct Totals {
  F *high[2], *low[2], *gate;  // (of the flows, along x and along y)

  PixelSums<F> high_sums(int64_t begin) const { return sums(high, 1, begin); }
  PixelSums<F> low_sums(int64_t begin) const { return sums(low, -1, begin); }

  void clear(int64_t begin, int64_t end) const {
    for (F* plane : {high[0], high[1], low[0], low[1], gate}) {
      if (plane) std::fill_n(plane + begin, ceil_div(end - begin, kLanes<F>) * kLanes<F>, F(0));
    }
  }

 private:
  PixelSums<F> sums(F* const (&flow)[2], F sign, int64_t begin) const {
    const auto from = [&](F* plane) { return plane ? plane + begin : nullptr; };
    return {from(flow[0]), from(flow[1]), from(gate), sign};
  }
};

// Channels [first_channel, last_channel) of image n; fills `totals` with what they contribute.
template <typename T, typename F, typename Flow>
void backward_chunk(const Backward<T, F, Flow>& call, int64_t n, int64_t first_channel,
                    int64_t last_channel, const Totals<F>& totals, const Context& context) {
  const int64_t pixels = call.grad.h * call.grad.w;
  const bool last = call.channels_last, direct = stands_as_panel<T, F>(last);
  Arena arena(2 * Side<T, F, Flow>::bytes(call.grad.w, kBackwardTile) +
              kBackwardTile * kLanes<F> * sizeof(F));
  const Side<T, F, Flow> high(arena, call.high, call.gate, false, kBackwardTile, true);
  const Side<T, F, Flow> low(arena, call.low, call.gate, true, kBackwardTile, true);
  F* const copy = arena.take<F>(kBackwardTile * kLanes<F>);
  const auto for_tiles = [&](const auto& body) {
    for (int64_t t = 0, begin = 0; begin < pixels; ++t, begin += kBackwardTile) {
      const int64_t end = std::min(begin + kBackwardTile, pixels);
      high.find(n, begin, end);
      low.find(n, begin, end);
      body(t, begin, end);
    }
  };
  const bool high_summed = totals.high_sums(0).wanted(), low_summed = totals.low_sums(0).wanted();
  SourcePanels<T, F> from_high(call.high.input, high_summed, call.high.d_input, last, n,
                               high.steps);
  SourcePanels<T, F> from_low(call.low.input, low_summed, call.low.d_input, last, n, low.steps);
  if (!direct) {
    for_tiles([&](int64_t, int64_t begin, int64_t end) {
      from_high.survey(high.tile, end - begin);
      from_low.survey(low.tile, end - begin);
    });
  }
  const int64_t elements = from_high.elements();
  std::optional<Tensor> held;
  F* const memory =
      kept_scratch<F, SourcePanels<T, F>>(elements + from_low.elements(), context, &held);
  const int64_t lanes = direct ? last_channel - first_channel : kLanes<F>;
  if (first_channel == last_channel) totals.clear(0, pixels);
  for (int64_t c = first_channel; c < last_channel; c += lanes) {
    const int64_t width = std::min(lanes, last_channel - c);
    const Image<const T> image = image_of(call.grad, last, n, c, width);
    from_high.open(c, width, memory);
    from_low.open(c, width, memory + elements);
    for_tiles([&](int64_t t, int64_t begin, int64_t end) {
      if (c == first_channel) totals.clear(begin, end);
      from_high.enter(t, high.tile, end - begin);
      from_low.enter(t, low.tile, end - begin);
      Panel<const F> grad{copy, kLanes<F>};
      Ahead<T> with_high{}, with_low{};
      if (direct) {
        grad = in_place<F>(image, begin);
      } else {
        load_panel(image, begin, end, copy);
        const Image<const T> high_next = from_high.next(t, c, width);
        const Image<const T> low_next = from_low.next(t, c, width);
        with_high = {{image.data + end * image.pixel, high_next.data, nullptr},
                     {image.channel, high_next.channel, 0},
                     width};
        with_low = {{low_next.data, nullptr, nullptr}, {low_next.channel, 0, 0}, width};
      }
      scatter_tile(high.tile, end - begin, high.steps, lanes, grad, from_high,
                   totals.high_sums(begin), with_high);
      scatter_tile(low.tile, end - begin, low.steps, lanes, grad, from_low, totals.low_sums(begin),
                   with_low);
    });
    from_high.close();
    from_low.close();
  }
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& call, const Context& context) {
  check_plane(call.high.input.h, call.high.input.w);
  check_plane(call.low.input.h, call.low.input.w);
  const int64_t channels = call.grad.c, images = call.grad.n, pixels = call.grad.h * call.grad.w;
  const int64_t panels = std::max<int64_t>(1, ceil_div(channels, kLanes<F>));
  // As many chunks of an image's panels as keep every thread busy.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t split = std::min(panels, images ? ceil_div(threads, images) : 1);
  const int64_t width = ceil_div(panels, split) * kLanes<F>;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(channels, width));

  const bool high = call.high.d_flow.data, low = call.low.d_flow.data, gate = call.d_gate.data;
  const int64_t plane = ceil_div(pixels, kLanes<F>) * kLanes<F>;
  const int64_t step = (2 * high + 2 * low + gate) * plane;
  F* scratch;
  const Tensor held = context.scratch(images * chunks * step, &scratch);
  const auto totals = [&](int64_t k) {
    F* next = scratch + k * step;
    const auto take = [&](bool wanted) {
      F* const taken = wanted ? next : nullptr;
      next += wanted * plane;
      return taken;
    };
    return Totals<F>{{take(high), take(high)}, {take(low), take(low)}, take(gate)};
  };
  torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % chunks * width;
      backward_chunk(call, k / chunks, begin, std::min(begin + width, channels), totals(k),
                     context);
    }
    stream_fence();
  });
  for (int64_t n = 0; n < images; ++n) {
    const Totals<F> of = totals(n * chunks);
    for (int k = 0; k < 2; ++k) {
      if (high) write_total(of.high[k], chunks, step, n, k, call.high.d_flow);
      if (low) write_total(of.low[k], chunks, step, n, k, call.low.d_flow);
    }
    if (gate) write_total(of.gate, chunks, step, n, 0, call.d_gate);
  }
}

}  // namespace
}  // namespace vsegops::dual_warp
