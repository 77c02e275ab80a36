// The filter's inner loops on a CPU: over the classes and pixels of one or two rows of the output.
//
//   filter:    out(p) = sum_k g_k(p) S(p + offset_k) + g_last(p) intra(p)
//   adjoint:   d_S(q) = sum_k g_k(q - offset_k) grad(q - offset_k)
//   products:  r_k(p) = sum_c grad(p) S(p + offset_k), r_last(p) = sum_c grad(p) intra(p)
#pragma once

#include "../common/panels.h"
#include "cpu_rows.h"

namespace vsegops::guided_filter {
namespace {

// Offsets that are not known when this is compiled; see Window3.
struct AnyWindow {
  const Offset* offsets;
  int count;
};

template <typename Window>
constexpr bool kFixed = !std::is_same_v<Window, AnyWindow>;
constexpr int kMostFixed = Window5::kCount;

// Rows that are filtered together, and share what they load.
template <typename Window>
constexpr int kRowsAtOnce = std::is_same_v<Window, Window3> ? 2 : 1;

// Where the pixels stand that an output row's offsets (times Sign) point to: `at(r, k)` for row
// y + r and offset k.
template <typename Window, int R, int Sign, typename F>
class Taps {
 public:
  static constexpr int kCount = Window::kCount;

  Taps(const Window&, const Rows<F>& rows, int64_t y) : pixel_(rows.pixel) {
    for (int i = 0; i < kRows; ++i) rows_[i] = rows.row(y + i - Window::kReach);
  }
  static constexpr int count() { return kCount; }
  VSEGOPS_HD const F* at(int r, int k) const {
    const Offset o = Window::offset(k);
    return rows_[Window::kReach + r + Sign * o.y] + Sign * o.x * pixel_;
  }

 private:
  static constexpr int kRows = 2 * Window::kReach + R;
  const int64_t pixel_;
  const F* rows_[kRows];
};

template <int Sign, typename F>
class Taps<AnyWindow, 1, Sign, F> {
 public:
  Taps(const AnyWindow& window, const Rows<F>& rows, int64_t y) {
    for (int k = 0; k < window.count; ++k) {
      const Offset o = window.offsets[k];
      taps_.push_back(rows.row(y + Sign * o.y) + Sign * o.x * rows.pixel);
    }
  }
  int count() const { return static_cast<int>(taps_.size()); }
  const F* at(int, int k) const { return taps_[k]; }

 private:
  std::vector<const F*> taps_;
};

// Rows of a dense tensor, from one on.
template <typename T>
struct Lines {
  T* data;
  int64_t channel, row, pixel;  // strides

  Lines(const View<T>& x, bool channels_last, int64_t n, int64_t y)
      : data(x.data + n * x.stride_n + y * x.stride_h),
        channel(channels_last ? 1 : x.h * x.w),
        row(x.w * (channels_last ? x.c : 1)),
        pixel(channels_last ? x.c : 1) {}
};

// Calls `run(k)` for k < taps.count(); k is a constant where the window is fixed.
template <typename Window, int R, int Sign, typename F, typename Run>
VSEGOPS_HD void for_taps(const Taps<Window, R, Sign, F>& taps, const Run& run) {
  if constexpr (kFixed<Window>) {
    [&]<int... K>(std::integer_sequence<int, K...>) __attribute__((always_inline)) {
      (run(std::integral_constant<int, K>()), ...);
    }(std::make_integer_sequence<int, Window::kCount>());
  } else {
    for (int k = 0; k < taps.count(); ++k) run(k);
  }
}

// The first `count` elements, of which there may be fewer than a vector has; the others are 0.
template <typename F, typename T>
VSEGOPS_HD Vector<F> load_some(const T* p, int64_t count) {
  if (count >= kLanes<F>) return load(p);
  T elements[kLanes<F>] = {};
  std::copy_n(p, count, elements);
  return load(elements);
}
template <typename F, typename T>
VSEGOPS_HD void store_some(Vector<F> v, T* p, int64_t count) {
  if (count >= kLanes<F>) return store(v, p);
  T elements[kLanes<F>];
  store(v, elements);
  std::copy_n(elements, count, p);
}

// Calls `run(x, count, done)` for the vectors that cover [0, size): `count` elements from x on, the
// first `done` of which an earlier vector has had. Where there is a whole one all are whole.
template <typename F, typename Run>
VSEGOPS_HD void for_vectors(int64_t size, const Run& run) {
  constexpr int64_t n = kLanes<F>;
  if (size < n) return run(int64_t(0), size, int64_t(0));
  int64_t x = 0;
  for (; x + n <= size; x += n) run(x, n, int64_t(0));
  if (x < size) run(size - n, n, x - (size - n));
}

// ---- Filter and adjoint ----

// Planes are read side by side, too many for the processor to foresee what comes next.
constexpr int64_t kPixelsAhead = 48;

// Contiguous: vectors over pixels, whose weights are kept over all classes. Stream: past the
// caches.
template <bool Adjoint, int R, bool Stream, typename Window, typename F, typename T, typename U>
void filter_planes(const Window& window, int64_t classes, int64_t width, int64_t y,
                   const Rows<F>& source, const Rows<F>& weights, const Lines<const T>& intra,
                   const Lines<U>& out) {
  constexpr int sign = Adjoint ? -1 : 1;
  const Taps<Window, R, sign, F> taps(window, source, y);
  const Taps<Window, R, sign, F> shifted(window, weights, y);
  const F* row[R];
  for (int r = 0; r < R; ++r) row[r] = weights.row(y + r);
  const auto weight = [&](int r, int k, int64_t x) {
    return load((Adjoint ? shifted.at(r, k) : row[r]) + k * weights.channel + x);
  };
  for_vectors<F>(width, [&](int64_t x, int64_t lanes, int64_t) {
    Vector<F> kept[R][kMostFixed], last[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      if constexpr (!Adjoint) last[r] = load(row[r] + taps.count() * weights.channel + x);
      if constexpr (kFixed<Window>) for_taps(taps, [&](auto k) { kept[r][k] = weight(r, k, x); });
    }
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t from = c * source.channel + x;
      Vector<F> sum[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        sum[r] = Vector<F>{};
        if constexpr (!Adjoint) {
          const T* blended = intra.data + c * intra.channel + r * intra.row + x;
          __builtin_prefetch(blended + kPixelsAhead, 0, 2);
          sum[r] = last[r] * load_some<F>(blended, lanes);
        }
        for_taps(taps, [&](auto k) {
          const Vector<F> g = kFixed<Window> ? kept[r][k] : weight(r, k, x);
          sum[r] += g * load(taps.at(r, k) + from);
        });
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        U* const to = out.data + c * out.channel + r * out.row + x;
        if constexpr (Stream) {
          stream<F>(sum[r], to);
        } else {
          store_some<F>(sum[r], to, lanes);
        }
      }
    }
  });
}

// channels_last: vectors over classes.
template <bool Adjoint, typename Window, typename F, typename T, typename U>
void filter_pixels(const Window& window, int64_t classes, int64_t width, int64_t y,
                   const Rows<F>& source, const Rows<F>& weights, const Lines<const T>& intra,
                   const Lines<U>& out) {
  constexpr int sign = Adjoint ? -1 : 1;
  const Taps<Window, 1, sign, F> taps(window, source, y);
  const Taps<Window, 1, sign, F> shifted(window, weights, y);
  const F* row = weights.row(y);
  for (int64_t x = 0; x < width; ++x) {
    for_vectors<F>(classes, [&](int64_t c, int64_t lanes, int64_t) {
      const int64_t from = x * source.pixel + c;
      Vector<F> sum{};
      if constexpr (!Adjoint) {
        sum = row[taps.count() * weights.channel + x] *
              load_some<F>(intra.data + x * intra.pixel + c, lanes);
      }
      for_taps(taps, [&](auto k) {
        const F* weight = (Adjoint ? shifted.at(0, k) : row) + k * weights.channel + x;
        sum += *weight * load(taps.at(0, k) + from);
      });
      store_some<F>(sum, out.data + x * out.pixel + c, lanes);
    });
  }
}

// ---- Products ----

// r_k at products + k * pitch + x, r_last after them.
template <typename Window, typename F, typename T>
void multiply_planes(const Window& window, int64_t classes, int64_t width, int64_t y,
                     const Rows<F>& grad, const Rows<F>& source, const Lines<const T>& intra,
                     int64_t pitch, F* products) {
  const Taps<Window, 1, 1, F> taps(window, source, y);
  const F* incoming = grad.row(y);
  F* const last_products = products + taps.count() * pitch;
  for_vectors<F>(width, [&](int64_t x, int64_t lanes, int64_t) {
    Vector<F> last{}, sums[kMostFixed] = {};
    for (int64_t c = 0; c < classes; ++c) {
      const Vector<F> g = load(incoming + c * grad.channel + x);
      last += g * load_some<F>(intra.data + c * intra.channel + x, lanes);
      if constexpr (kFixed<Window>) {
        const int64_t at = c * source.channel + x;
        for_taps(taps, [&](auto k) { sums[k] += g * load(taps.at(0, k) + at); });
      }
    }
    store(last, last_products + x);
    for_taps(taps, [&](auto k) {
      if constexpr (kFixed<Window>) return store(sums[k], products + k * pitch + x);
      Vector<F> sum{};
      for (int64_t c = 0; c < classes; ++c) {
        sum += load(incoming + c * grad.channel + x) * load(taps.at(0, k) + c * source.channel + x);
      }
      store(sum, products + k * pitch + x);
    });
  });
}

template <typename F, int... I>
VSEGOPS_HD Vector<F> iota(std::integer_sequence<int, I...>) {
  return Vector<F>{F(I)...};
}

template <typename Window, typename F, typename T>
void multiply_pixels(const Window& window, int64_t classes, int64_t width, int64_t y,
                     const Rows<F>& grad, const Rows<F>& source, const Lines<const T>& intra,
                     int64_t pitch, F* products) {
  constexpr int n = kLanes<F>;
  const Taps<Window, 1, 1, F> taps(window, source, y);
  const int count = taps.count();
  const F* incoming = grad.row(y);
  const Vector<F> lane = iota<F>(std::make_integer_sequence<int, n>());
  for (int64_t x = 0; x < width; ++x) {
    for (int first = 0; first <= count; first += n) {
      const int some = std::min(n, count + 1 - first);
      Vector<F> partial[n] = {};
      for_vectors<F>(classes, [&](int64_t c, int64_t lanes, int64_t done) {
        Vector<F> g = load(incoming + x * grad.pixel + c);
        if (done || lanes < n) g = lane >= F(done) && lane < F(lanes) ? g : Vector<F>{};
        for (int k = 0; k < some; ++k) {
          partial[k] +=
              g * (first + k < count ? load(taps.at(0, first + k) + x * source.pixel + c)
                                     : load_some<F>(intra.data + x * intra.pixel + c, lanes));
        }
      });
      const Vector<F> sum = sums<F>(partial);
      for (int k = 0; k < some; ++k) products[(first + k) * pitch + x] = sum[k];
    }
  }
}

// ---- The gradient of intra: out = g_last * grad ----

template <typename F, typename U>
void scale_row(int64_t classes, int64_t width, bool channels_last, const Rows<F>& grad,
               const F* incoming, const F* weight, const Lines<U>& out) {
  if (channels_last) {
    for (int64_t x = 0; x < width; ++x) {
      for_vectors<F>(classes, [&](int64_t c, int64_t lanes, int64_t) {
        store_some<F>(weight[x] * load(incoming + x * grad.pixel + c), out.data + x * out.pixel + c,
                      lanes);
      });
    }
  } else {
    for (int64_t c = 0; c < classes; ++c) {
      for_vectors<F>(width, [&](int64_t x, int64_t lanes, int64_t) {
        store_some<F>(load(weight + x) * load(incoming + c * grad.channel + x),
                      out.data + c * out.channel + x, lanes);
      });
    }
  }
}

}  // namespace
}  // namespace vsegops::guided_filter
