// The window over the source that the CPU's backward keeps as panels.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/panels.h"

namespace vsegops::warp {
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
        values_{memory, kLanes<F>, capacity - 1},
        gradients_{memory + (source.data ? capacity * kLanes<F> : 0), kLanes<F>, capacity - 1} {}

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

}  // namespace
}  // namespace vsegops::warp
