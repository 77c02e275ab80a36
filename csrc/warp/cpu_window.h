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

// The living part of a panel of the source, and of its gradient.
template <typename T, typename F>
class Window {
 public:
  // Either image may be absent (null data).
  Window(const Image<const T>& source, const Image<T>& d_source, int64_t capacity, bool streamed,
         F* memory)
      : streamed_(streamed),
        source_(source),
        d_source_(d_source),
        capacity_(capacity),
        values_(memory),
        gradients_(memory + (source.data ? capacity * kLanes<F> : 0)) {}

  static int64_t elements(int64_t capacity, bool source, bool d_source) {
    return capacity * kLanes<F> * (source + d_source);
  }

  // Makes [low, high) living: earlier pixels are done, later ones begin.
  void advance(int64_t low, int64_t high) {
    if (low >= high_) {
      retire(high_);
      if (d_source_.data) store_zeros(high_, low, d_source_);
      low_ = high_ = origin_ = low;
    } else {
      retire(low);
    }
    if (high - origin_ > capacity_) {
      const int64_t bytes = (high_ - low_) * kLanes<F> * sizeof(F);
      if (source_.data) std::memmove(values_, at(values_, low_), bytes);
      if (d_source_.data) std::memmove(gradients_, at(gradients_, low_), bytes);
      origin_ = low_;
    }
    if (high > high_) {
      if (source_.data) load_panel(source_, high_, high, at(values_, high_));
      if (d_source_.data) std::fill(at(gradients_, high_), at(gradients_, high), F(0));
      high_ = high;
    }
  }

  void finish(int64_t pixels) {
    retire(high_);
    if (d_source_.data) store_zeros(high_, pixels, d_source_);
  }

  // Where pixel 0 would stand.
  Panel<const F> values() const { return {at(values_, 0), kLanes<F>}; }
  Panel<F> gradients() const { return {at(gradients_, 0), kLanes<F>}; }

 private:
  void retire(int64_t low) {
    if (d_source_.data) store_panel(at(gradients_, low_), low_, low, d_source_, streamed_);
    low_ = low;
  }
  F* at(F* base, int64_t pixel) const { return base + (pixel - origin_) * kLanes<F>; }

  const bool streamed_;
  const Image<const T> source_;
  const Image<T> d_source_;
  const int64_t capacity_;
  F* const values_;
  F* const gradients_;
  int64_t origin_ = 0, low_ = 0, high_ = 0;
};

}  // namespace
}  // namespace vsegops::warp
