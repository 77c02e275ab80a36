// A source in panels, along the tiles of pixels that sample it. Where its channels are side by side
// in the type that is computed in, it is a panel as it stands. Otherwise it is copied, and only the
// pixels that the tile at hand and later ones can touch are kept: a window that slides over the
// source; the taps say how far.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include "cpu_taps.h"
#include "panels.h"

namespace vsegops {
namespace {

// For each tile, the source pixels [low, high) that are alive while it is handled: all that it
// touches and all that both earlier and later tiles touch.
struct Lifetimes {
  std::vector<int64_t> low, high;
  int64_t longest = 0;

  void finish() {
    for (size_t t = low.size(); t-- > 1;) low[t - 1] = std::min(low[t - 1], low[t]);
    for (size_t t = 0; t < low.size(); ++t) {
      if (t > 0) high[t] = std::max(high[t], high[t - 1]);
      longest = std::max(longest, high[t] - low[t]);
    }
  }
};

// The living part of a panel of the source, and of its gradient, in rings of `capacity` pixels: a
// power of two that is not below Lifetimes::longest.
template <typename T, typename F>
class Window {
 public:
  // Either image may be absent (null data).
  Window(const Image<const T>& source, const Image<T>& d_source, int64_t capacity, bool streamed,
         F* memory)
      : streamed_(streamed),
        source_(source),
        d_source_(d_source),
        values_{source.data ? memory : nullptr, kLanes<F>, capacity - 1},
        gradients_{d_source.data ? memory + (source.data ? capacity * kLanes<F> : 0) : nullptr,
                   kLanes<F>, capacity - 1} {}

  static int64_t elements(int64_t capacity, bool source, bool d_source) {
    return capacity * kLanes<F> * (source + d_source);
  }

  // Makes [low, high) living: earlier pixels are done, later ones begin.
  void advance(int64_t low, int64_t high) {
    retire(std::min(low, high_));
    if (low > high_) {
      if (d_source_.data) store_zeros(high_, low, d_source_);
      low_ = high_ = low;
    }
    if (high <= high_) return;
    for_runs(high_, high, [&](int64_t begin, int64_t end) {
      if (source_.data) load_panel(source_, begin, end, values_.data + values_.at(begin));
      if (d_source_.data) {
        std::fill_n(gradients_.data + gradients_.at(begin), (end - begin) * kLanes<F>, F(0));
      }
    });
    high_ = high;
  }

  void finish(int64_t pixels) { advance(pixels, pixels); }

  Panel<const F> values() const { return {values_.data, values_.stride, values_.mask}; }
  Panel<F> gradients() const { return gradients_; }

 private:
  void retire(int64_t low) {
    if (d_source_.data) {
      for_runs(low_, low, [&](int64_t begin, int64_t end) {
        store_panel<T, F>(gradients_.data + gradients_.at(begin), begin, end, d_source_, streamed_);
      });
    }
    low_ = low;
  }

  // Calls `run(begin, end)` for the parts of a range of pixels that are contiguous in the rings.
  template <typename Run>
  void for_runs(int64_t begin, int64_t end, const Run& run) const {
    while (begin < end) {
      const int64_t stop = std::min(end, (begin | values_.mask) + 1);
      run(begin, stop);
      begin = stop;
    }
  }

  const bool streamed_;
  const Image<const T> source_;
  const Image<T> d_source_;
  const Panel<F> values_, gradients_;
  int64_t low_ = 0, high_ = 0;
};

// Channels [c, c + width) of image n of a dense tensor, which may be absent.
template <typename U>
Image<U> image_of(const View<U>& x, bool channels_last, int64_t n, int64_t c, int64_t width) {
  if (!x.data) return {nullptr, 0, 0, width};
  const int64_t plane = x.h * x.w;
  if (channels_last) return {x.data + n * x.c * plane + c, 1, x.c, width};
  return {x.data + (n * x.c + c) * plane, plane, 1, width};
}

// From `pixel` on where it stands, for images whose channels are side by side and of type F.
template <typename F, typename U>
auto in_place(const Image<U>& x, int64_t pixel) {
  using Element = std::conditional_t<std::is_const_v<U>, const F, F>;
  return Panel<Element>{reinterpret_cast<Element*>(x.data) + pixel * x.pixel, x.pixel};
}

template <typename T, typename F>
constexpr bool stands_as_panel(bool channels_last) {
  return std::is_same_v<T, F> && channels_last;
}

// An image of a source, and its gradient, which may be absent, as the source may be where its
// values are not needed. In turn: `survey` for all tiles; then for each panel `open`, `enter` for
// all tiles, `close`.
template <typename T, typename F>
class SourcePanels {
 public:
  SourcePanels(const View<const T>& source, bool needed, const View<T>& d_source,
               bool channels_last, int64_t n, const Steps& steps)
      : source_(image_of(needed ? source : View<const T>(), channels_last, n, 0, 0)),
        d_source_(image_of(d_source, channels_last, n, 0, 0)),
        pixels_(source.h * source.w),
        reach_(steps.row + steps.pair + 1),
        in_place_(stands_as_panel<T, F>(channels_last)),
        streamed_(d_source.n * d_source.c * pixels_ * int64_t(sizeof(T)) >= kStreamBytes) {}

  void survey(const Tile<F>& tile, int64_t count) {
    if (in_place_) return;
    constexpr int n = kLanes<F>;
    const auto [low, high] = std::minmax_element(tile.offset, tile.offset + count);
    alive_.low.push_back(*low / n * n);  // (aligned, as streamed stores have to be)
    alive_.high.push_back(*high + reach_);
  }

  // How much memory `open` needs, after the survey.
  int64_t elements() {
    if (in_place_) return 0;
    alive_.finish();
    capacity_ = std::bit_ceil(static_cast<uint64_t>(alive_.longest));
    return Window<T, F>::elements(capacity_, source_.data, d_source_.data);
  }

  // Channels [c, c + width); at most kLanes of them, unless the source stands as a panel.
  void open(int64_t c, int64_t width, F* memory) {
    const Image<const T> source = part(source_, c, width);
    const Image<T> d_source = part(d_source_, c, width);
    if (!in_place_) {
      window_.emplace(source, d_source, capacity_, streamed_, memory);
      values = window_->values();
      gradients = window_->gradients();
      return;
    }
    if (d_source.data) store_zeros(0, pixels_, d_source);
    values = in_place<F>(source, 0);
    gradients = in_place<F>(d_source, 0);
  }

  // Makes what tile t touches available.
  void enter(int64_t t, const Tile<F>& tile, int64_t count) {
    if (in_place_) return;
    window_->advance(alive_.low[t], alive_.high[t]);
    // Whatever becomes of the flow meanwhile, nothing outside the window is touched.
    const int32_t low = static_cast<int32_t>(alive_.low[t]);
    const int32_t high = static_cast<int32_t>(alive_.high[t] - reach_);
    for (int64_t i = 0; i < count; ++i) {
      tile.offset[i] = std::min(std::max(tile.offset[i], low), high);
    }
  }

  // What `enter` will read after tile t, for planes: channel c's next pixel.
  Image<const T> next(int64_t t, int64_t c, int64_t width) const {
    Image<const T> image = part(source_, c, width);
    if (image.data) image.data += alive_.high[t] * image.pixel;
    return image;
  }

  void close() {
    if (!in_place_) window_->finish(pixels_);
  }

  Panel<const F> values{};
  Panel<F> gradients{};

 private:
  template <typename U>
  static Image<U> part(const Image<U>& x, int64_t c, int64_t width) {
    return {x.data ? x.data + c * x.channel : nullptr, x.channel, x.pixel, width};
  }

  const Image<const T> source_;
  const Image<T> d_source_;
  const int64_t pixels_, reach_;
  const bool in_place_, streamed_;
  Lifetimes alive_;
  int64_t capacity_ = 0;
  std::optional<Window<T, F>> window_;
};

}  // namespace
}  // namespace vsegops
