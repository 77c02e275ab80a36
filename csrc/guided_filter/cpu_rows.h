// Rows of S, or of another tensor, with zeros around: what a band of output rows needs of them is
// copied, widened or sampled once, so that the filter itself knows no borders, dtypes or flows.
#pragma once

#include <algorithm>
#include <cstring>

#include "../warp/cpu_forward.h"
#include "guided_filter.h"

namespace vsegops::guided_filter {
namespace {

// A window of `slots` rows of an image that slides down: row y stands in slot y % slots.
template <typename F>
class Rows {
 public:
  int64_t channel, pixel;  // strides

  struct Sizes {
    int64_t channels, height, width;
    int64_t reach_y, reach_x;  // how far beside a pixel is read
    int64_t step;              // rows that are handled at a time
    bool channels_last;

    int64_t slots() const { return std::min(2 * reach_y + step, height); }
    int64_t left() const { return ceil_div(reach_x, kLanes<F>) * kLanes<F>; }
    // Of a row of pixels; vectors may begin at the last pixel. An odd number of vectors, so that
    // the rows of many channels do not meet in the same sets of a cache.
    int64_t pitch() const {
      const int64_t elements = (left() + width + reach_x) * (channels_last ? channels : 1);
      return ((ceil_div(elements, kLanes<F>) + 1) | 1) * kLanes<F>;
    }
    int64_t row() const { return pitch() * (channels_last ? 1 : channels); }
    size_t bytes() const { return ((slots() + 1) * row() + kLanes<F>)*sizeof(F); }
  };

  Rows(Arena& arena, const Sizes& sizes)
      : channel(sizes.channels_last ? 1 : sizes.pitch()),
        pixel(sizes.channels_last ? sizes.channels : 1),
        sizes_(sizes),
        row_(sizes.row()),
        left_(sizes.left() * pixel),
        memory_(arena.take<F>((sizes.slots() + 1) * row_)) {
    std::fill_n(memory_, (sizes.slots() + 1) * row_, F(0));
  }

  // Where pixel 0 of row y stands, of channel 0.
  F* place(int64_t y) const { return memory_ + (y % sizes_.slots() + 1) * row_ + left_; }
  // The same for reading, also outside the image: the first slot stays 0.
  const F* row(int64_t y) const { return y < 0 || y >= sizes_.height ? memory_ + left_ : place(y); }

  // Begins a band at row `first` of an image.
  void restart(int64_t first) { next_ = std::max<int64_t>(0, first - sizes_.reach_y); }

  // Makes what the output rows [y, y + step) can reach available: `fill(begin, end)` is called for
  // the rows that are new.
  template <typename Fill>
  void advance(int64_t y, const Fill& fill) {
    const int64_t end = std::min(y + sizes_.step + sizes_.reach_y, sizes_.height);
    // No more at a time than there are slots.
    for (; next_ < end; next_ = std::min(next_ + sizes_.step, end)) {
      fill(next_, std::min(next_ + sizes_.step, end));
    }
  }

 private:
  const Sizes sizes_;
  const int64_t row_, left_;
  F* const memory_;
  int64_t next_ = 0;
};

// A row of `count` elements in the type that is computed in. `ahead`: what will be read later
// stands there, relative to this.
template <typename T, typename F>
VSEGOPS_HD void widen_row(const T* from, int64_t count, int64_t ahead, F* to) {
  constexpr int n = kLanes<F>;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    __builtin_prefetch(from + i + ahead, 0, 2);
    store(load(from + i), to + i);
  }
  for (; i < count; ++i) to[i] = widen(from[i]);
}

// Reads whole rows of a tensor, as it stands.
template <typename T, typename F>
class Plain {
 public:
  Plain(const View<const T>& x, bool channels_last) : x_(x), channels_last_(channels_last) {}

  void fill(int64_t n, int64_t begin, int64_t end, const Rows<F>& rows) const {
    // The next row, or the same of the next plane.
    const int64_t ahead = channels_last_ ? x_.stride_h : x_.stride_c;
    for (int64_t y = begin; y < end; ++y) {
      const T* from = x_.data + n * x_.stride_n + y * x_.stride_h;
      F* to = rows.place(y);
      if (channels_last_) {
        widen_row(from, x_.w * x_.c, ahead, to);
      } else {
        for (int64_t c = 0; c < x_.c; ++c) {
          widen_row(from + c * x_.stride_c, x_.w, ahead, to + c * rows.channel);
        }
      }
    }
  }

 private:
  const View<const T>& x_;
  const bool channels_last_;
};

// Samples rows of the logits along the flow, or reads them where there is none.
template <typename T, typename F, typename Flow>
class Reader {
 public:
  using Call = Sampled<T, F, Flow>;

  // `most`: rows at a time.
  static size_t bytes(const Call& call, int64_t most) {
    return Tile<F>::bytes(most * pitch(call)) + Columns<F>::bytes(call.logits.w);
  }

  Reader(Arena& arena, const Call& call, int64_t most)
      : call_(call),
        plain_(call.logits, call.channels_last),
        tile_(arena, call.flow.data ? most * pitch(call) : 0, false),
        columns_(arena, call.mapping.x) {}

  void fill(int64_t n, int64_t begin, int64_t end, const Rows<F>& rows) const {
    if (!call_.flow.data) return plain_.fill(n, begin, end, rows);
    const View<const T>& x = call_.logits;
    const Steps steps(call_.mapping);
    const View<const T> no_attention;
    for (int64_t y = begin; y < end; ++y) {
      find_taps(call_.mapping, call_.flow, no_attention, columns_, n, y * x.w, (y + 1) * x.w,
                row(y - begin));
    }
    const T* source = x.data + n * x.stride_n;
    if (call_.channels_last) {
      for (int64_t y = begin; y < end; ++y) {
        warp::warp_pixels<false, false, T, F, F>(source, x.c, steps, row(y - begin), x.w, nullptr,
                                                 rows.place(y));
      }
      return;
    }
    const warp::SourcePlanes<T, F> planes(source, x.h * x.w, steps, tile_,
                                          (end - begin) * pitch(call_));
    for (int64_t c = 0; c < x.c; ++c) {
      const F* plane = planes[c];
      for (int64_t y = begin; y < end; ++y) {
        warp::warp_plane<false, false, F, F>(plane, steps.row, row(y - begin), x.w, nullptr,
                                             planes.next(), 0, rows.place(y) + c * rows.channel);
      }
    }
  }

 private:
  // Pixels of a row with its padding.
  static int64_t pitch(const Call& call) { return ceil_div(call.logits.w, kLanes<F>) * kLanes<F>; }
  Tile<F> row(int64_t i) const { return tile_.from(i * pitch(call_)); }

  const Call& call_;
  const Plain<T, F> plain_;
  const Tile<F> tile_;
  const Columns<F> columns_;
};

}  // namespace
}  // namespace vsegops::guided_filter
