// Forward on a CPU: 8 C P multiply-adds for C channels and P pixels against at least 8 C P bytes
// (12 where both sources have P pixels) of float32: memory bounds it.
//
// Vectors go over channels: of channels_last tensors as they stand, of others in panels, which are
// transposed on the way in and out. (Gathering pairs of taps from planes takes several times the
// shuffles.)
#pragma once

#include "../common/cpu_strips.h"
#include "cpu_side.h"

namespace vsegops::dual_warp {
namespace {

constexpr int64_t kForwardTile = 512;  // pixels: a panel of them stays in L1

// The four taps of a pixel: where they stand in a panel, and their weights.
template <typename F, typename In>
struct Corners {
  const In* at[4];
  F weight[4];

  VSEGOPS_HD Corners(const Tile<F>& tile, const Steps& steps, const Panel<const In>& source,
                     int64_t i) {
    const int64_t first = tile.offset[i];
    for (int k = 0; k < 4; ++k) {
      at[k] = source.data + source.at(first + (k & 1 ? steps.pair : 0) + (k & 2 ? steps.row : 0));
      weight[k] = (k & 2 ? tile.bottom : tile.top)[2 * i + (k & 1)];
    }
  }

  VSEGOPS_HD Vector<F> sample(int64_t c) const {
    return weight[0] * load(at[0] + c) + weight[1] * load(at[1] + c) + weight[2] * load(at[2] + c) +
           weight[3] * load(at[3] + c);
  }
  VSEGOPS_HD F sample_one(int64_t c) const {
    F sum = 0;
    for (int k = 0; k < 4; ++k) sum += weight[k] * widen(at[k][c]);
    return sum;
  }
};

// The pixels of a tile, `width` channels of each; `step` is called with each.
template <bool Stream, typename Width, typename F, typename In, typename Out, typename Step>
void blend(const Tile<F>& high_tile, const Steps& high_steps, Panel<const In> high,
           const Tile<F>& low_tile, const Steps& low_steps, Panel<const In> low, int64_t count,
           Width width, Panel<Out> out, const Step& step) {
  constexpr int n = kLanes<F>;
  for (int64_t i = 0; i < count; ++i) {
    const Corners<F, In> a(high_tile, high_steps, high, i), b(low_tile, low_steps, low, i);
    Out* const to = out.data + out.at(i);
    step();
    int64_t c = 0;
    for (; c + n <= width; c += n) {
      const Vector<F> sum = a.sample(c) + b.sample(c);
      if constexpr (Stream) {
        stream<F>(sum, to + c);
      } else {
        store(sum, to + c);
      }
    }
    for (; c < width; ++c) narrow(a.sample_one(c) + b.sample_one(c), to + c);
  }
}

template <typename T, typename F, typename Flow>
bool streamed(const Forward<T, F, Flow>& call) {
  return call.out.n * call.out.c * call.out.h * call.out.w * int64_t(sizeof(T)) >= kStreamBytes;
}

// channels_last.
template <typename T, typename F, typename Flow>
void forward_pixels(const Forward<T, F, Flow>& call) {
  const int64_t channels = call.out.c;
  const Strips strips(call.out);
  const bool past_caches = std::is_same_v<T, F> && streamed(call) && is_aligned(call.out.data) &&
                           channels % kLanes<F> == 0;
  torch::stable::parallel_for(0, strips.rows(), 1, [&](int64_t first, int64_t last) {
    Arena arena(2 * Side<T, F, Flow>::bytes(call.out.w, strips.columns()));
    const Side<T, F, Flow> high(arena, call.high, call.gate, false, strips.columns(), false);
    const Side<T, F, Flow> low(arena, call.low, call.gate, true, strips.columns(), false);
    for (int64_t k = first; k < last; ++k) {
      const StripRow row = strips[k];
      const int64_t begin = row.y * call.out.w + row.x;
      high.find(row.n, begin, begin + row.count);
      low.find(row.n, begin, begin + row.count);
      const auto panel = [&](const auto& view) {
        return Panel{view.data + row.n * view.h * view.w * channels, channels};
      };
      Panel out = panel(call.out);
      out.data += begin * channels;
      RowsAhead<T> high_ahead(call.high.input, call.high.mapping, row);
      RowsAhead<T> low_ahead(call.low.input, call.low.mapping, row);
      const auto step = [&] {
        high_ahead.step();
        low_ahead.step();
      };
      lift(past_caches, [&](auto stream) {
        constexpr bool kStream = stream() && std::is_same_v<T, F>;
        blend<kStream>(high.tile, high.steps, panel(call.high.input), low.tile, low.steps,
                       panel(call.low.input), row.count, channels, out, step);
      });
    }
    stream_fence();
  });
}

// Contiguous: some channels of a band of pixels.
template <typename T, typename F, typename Flow>
void forward_planes(const Forward<T, F, Flow>& call, int64_t n, int64_t first_channel,
                    int64_t last_channel, int64_t first_pixel, int64_t last_pixel,
                    const Context& context) {
  constexpr std::integral_constant<int64_t, kLanes<F>> width;
  Arena arena(2 * Side<T, F, Flow>::bytes(call.out.w, kForwardTile) +
              kForwardTile * width * sizeof(F));
  const Side<T, F, Flow> high(arena, call.high, call.gate, false, kForwardTile, false);
  const Side<T, F, Flow> low(arena, call.low, call.gate, true, kForwardTile, false);
  F* const blended = arena.take<F>(kForwardTile * width);
  const auto for_tiles = [&](const auto& body) {
    for (int64_t t = 0, begin = first_pixel; begin < last_pixel; ++t, begin += kForwardTile) {
      const int64_t end = std::min(begin + kForwardTile, last_pixel);
      high.find(n, begin, end);
      low.find(n, begin, end);
      body(t, begin, end);
    }
  };
  SourcePanels<T, F> from_high(call.high.input, true, View<T>(), false, n, high.steps);
  SourcePanels<T, F> from_low(call.low.input, true, View<T>(), false, n, low.steps);
  for_tiles([&](int64_t, int64_t begin, int64_t end) {
    from_high.survey(high.tile, end - begin);
    from_low.survey(low.tile, end - begin);
  });
  const int64_t elements = from_high.elements();
  std::optional<Tensor> held;
  F* const memory =
      kept_scratch<F, SourcePanels<T, F>>(elements + from_low.elements(), context, &held);
  for (int64_t c = first_channel; c < last_channel; c += width) {
    const int64_t used = std::min<int64_t>(width, last_channel - c);
    from_high.open(c, used, memory);
    from_low.open(c, used, memory + elements);
    const Image<T> out = image_of(call.out, false, n, c, used);
    for_tiles([&](int64_t t, int64_t begin, int64_t end) {
      from_high.enter(t, high.tile, end - begin);
      from_low.enter(t, low.tile, end - begin);
      blend<false>(high.tile, high.steps, from_high.values, low.tile, low.steps, from_low.values,
                   end - begin, width, Panel<F>{blended, width}, [] {});
      store_panel<T, F>(blended, begin, end, out, streamed(call));
    });
  }
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& call, const Context& context) {
  check_plane(call.high.input.h, call.high.input.w);
  check_plane(call.low.input.h, call.low.input.w);
  if (call.channels_last) return forward_pixels(call);
  // As many chunks of an image's panels as keep every thread busy, and as many bands of pixels if
  // those are too few.
  const int64_t threads = torch::stable::get_num_threads(), images = call.out.n;
  const int64_t pixels = call.out.h * call.out.w, panels = ceil_div(call.out.c, kLanes<F>);
  const int64_t width = ceil_div(panels, std::min(panels, ceil_div(threads, images))) * kLanes<F>;
  const int64_t chunks = ceil_div(call.out.c, width);
  const int64_t tiles = ceil_div(pixels, kForwardTile);
  const int64_t band =
      ceil_div(tiles, std::min(tiles, ceil_div(threads, images * chunks))) * kForwardTile;
  const int64_t bands = ceil_div(pixels, band);
  torch::stable::parallel_for(0, images * chunks * bands, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t c = k / bands % chunks * width, begin = k % bands * band;
      forward_planes(call, k / bands / chunks, c, std::min(c + width, call.out.c), begin,
                     std::min(begin + band, pixels), context);
    }
    stream_fence();
  });
}

}  // namespace
}  // namespace vsegops::dual_warp
