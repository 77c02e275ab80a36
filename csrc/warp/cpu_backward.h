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

#include "../common/cpu_scatter.h"
#include "warp.h"

namespace vsegops::warp {
namespace {

constexpr int64_t kFewPlanes = 4;  // up to so many channels a panel would be mostly empty

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
      add_products<F>(tile, first, steps, even<F>(top[0], top[1], Lanes()),
                      odd<F>(top[0], top[1], Lanes()), even<F>(bottom[0], bottom[1], Lanes()),
                      odd<F>(bottom[0], bottom[1], Lanes()), {d_u, d_v});
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
        stream<F>(load(tile.factor + i) * load(g + i), out + i);
      }
    }
    for (; i < count; ++i) narrow(tile.factor[i] * widen(g[i]), out + i);
  }
  for (int64_t first = 0; !grad.planes() && first < count; first += n) {
    Vector<F> products[n] = {};
    for (int64_t i = first; i < std::min(first + n, count); ++i) {
      const T* g = grad.data + (begin + i) * grad.pixel;
      if (d_correction.data) {
        T* out = d_correction.data + (begin + i) * d_correction.pixel;
        for (int64_t c = 0; c < grad.width; ++c) narrow(tile.factor[i] * widen(g[c]), out + c);
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
      : call_(call), n_(n), pixels_(call.grad.h * call.grad.w), totals_(totals) {}

  void run(int64_t first_channel, int64_t last_channel, const Context& context) {
    Arena arena(Tile<F>::bytes(kBackwardTile) + Columns<F>::bytes(call_.grad.w) +
                kBackwardTile * kLanes<F> * sizeof(F) + 64);
    const Tile<F> tile(arena, kBackwardTile, true);
    const Columns<F> columns(arena, call_.mapping.x);
    if (first_channel == last_channel) clear(0, pixels_);
    F* const grad_copy = arena.take<F>(kBackwardTile * kLanes<F>);
    const Steps steps(call_.mapping);
    const bool slopes = call_.d_flow.data;
    bool cleared = false;
    if constexpr (std::is_same_v<T, F>) {
      // The last few of the channels, for which a panel would be mostly empty.
      const int64_t few = (last_channel - first_channel) % kLanes<F>;
      if (!call_.channels_last && few > 0 && few <= kFewPlanes && steps.pair) {
        last_channel -= few;
        const Image<T> d_input = image(call_.d_input, last_channel, few);
        if (d_input.data) store_zeros(0, call_.input.h * call_.input.w, d_input);
        for_tiles(tile, columns, [&](int64_t, int64_t begin, int64_t end) {
          clear(begin, end);
          correct(tile, begin, end, last_channel, few);
          Image<const T> grad = image(call_.grad, last_channel, few);
          grad.data += begin;
          scatter_planes<F>(tile, end - begin, steps, grad, image(call_.input, last_channel, few),
                            d_input, slopes ? totals_.u + begin : nullptr,
                            slopes ? totals_.v + begin : nullptr);
        });
        if (first_channel == last_channel) return;
        cleared = true;
      }
    }
    SourcePanels<T, F> source(call_.input, slopes, call_.d_input, call_.channels_last, n_, steps);
    if (!direct()) {
      for_tiles(tile.without_slopes(), columns,
                [&](int64_t, int64_t begin, int64_t end) { source.survey(tile, end - begin); });
    }
    std::optional<Tensor> held;
    F* const memory = kept_scratch<F, BackwardChunk>(source.elements(), context, &held);
    const int64_t most = direct() ? last_channel - first_channel : kLanes<F>;
    for (int64_t c = first_channel; c < last_channel; c += most) {
      const int64_t width = std::min(most, last_channel - c);
      source.open(c, width, memory);
      for_tiles(tile, columns, [&](int64_t t, int64_t begin, int64_t end) {
        if (c == first_channel && !cleared) clear(begin, end);
        source.enter(t, tile, end - begin);
        run_tile(tile, begin, end, most, c, width, grad_copy, source,
                 direct() ? Ahead<T>{} : ahead(c, width, end, source.next(t, c, width)));
      });
      source.close();
    }
  }

 private:
  // Channels side by side already, and in the type that is computed in.
  bool direct() const { return stands_as_panel<T, F>(call_.channels_last); }

  bool streamed() const {
    return call_.grad.n * call_.grad.c * pixels_ * int64_t(sizeof(T)) >= kStreamBytes;
  }

  template <typename U>
  Image<U> image(const View<U>& x, int64_t c, int64_t width) const {
    return image_of(x, call_.channels_last, n_, c, width);
  }

  // Pixels [begin, end) of a tensor as a panel: where they are, or copied.
  Panel<const F> panel(const View<const T>& x, int64_t c, int64_t width, int64_t begin, int64_t end,
                       F* copy) const {
    if (direct()) return in_place<F>(image(x, c, width), begin);
    load_panel(image(x, c, width), begin, end, copy);
    return {copy, kLanes<F>};
  }

  template <typename Body>
  void for_tiles(const Tile<F>& tile, const Columns<F>& columns, const Body& body) const {
    for (int64_t t = 0; t * kBackwardTile < pixels_; ++t) {
      const int64_t begin = t * kBackwardTile, end = std::min(begin + kBackwardTile, pixels_);
      find_taps(call_.mapping, call_.flow, call_.attention, columns, n_, begin, end, tile);
      body(t, begin, end);
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

  // The tile after the one that ends at `end`, and the source's next pixels.
  Ahead<T> ahead(int64_t c, int64_t width, int64_t end, const Image<const T>& source) const {
    Image<const T> grad = image(call_.grad, c, width);
    Image<const T> correction =
        image(call_.d_attention.data ? call_.correction : View<const T>(), c, width);
    grad.data += end;
    if (correction.data) correction.data += end;
    return {{grad.data, correction.data, source.data},
            {grad.channel, correction.channel, source.channel},
            width};
  }

  // Channels [c, c + width) of a tile; `lanes` of each pixel are handled.
  void run_tile(const Tile<F>& tile, int64_t begin, int64_t end, int64_t lanes, int64_t c,
                int64_t width, F* grad_copy, const SourcePanels<T, F>& source,
                const Ahead<T>& next) const {
    correct(tile, begin, end, c, width);
    if (!call_.d_input.data && !call_.d_flow.data) return;
    const Panel<const F> grad = panel(call_.grad, c, width, begin, end, grad_copy);
    const bool slopes = call_.d_flow.data;
    scatter_tile(tile, end - begin, Steps(call_.mapping), lanes, grad, source,
                 {slopes ? totals_.u + begin : nullptr, slopes ? totals_.v + begin : nullptr},
                 next);
  }

  const Call& call_;
  const int64_t n_, pixels_;
  const Totals<F> totals_;
};

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
