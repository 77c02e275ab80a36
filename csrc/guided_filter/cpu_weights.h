// The guide, normalised: rows of weights g, and back from their gradients to the guide's.
#pragma once

#include "cpu_rows.h"

namespace vsegops::guided_filter {
namespace {

// Rows of weights have the guide's channels in the stencil's order, one by one, and after them the
// factor that the backward of "sum" needs, 1 / (sum of the guide + eps).
template <typename F>
void normalize_row(Normalize normalize, F eps, int64_t channels, int64_t width, int64_t pitch,
                   F* weights) {
  constexpr int n = kLanes<F>;
  if (normalize == Normalize::kNone) return;
  for (int64_t x = 0; x < width; x += n) {
    F* const column = weights + x;
    Vector<F> sum{};
    if (normalize == Normalize::kSoftmax) {
      Vector<F> most = load(column);
      for (int64_t k = 1; k < channels; ++k) {
        const Vector<F> value = load(column + k * pitch);
        most = value > most ? value : most;
      }
      for (int64_t k = 0; k < channels; ++k) {
        const Vector<F> value = exp(load(column + k * pitch) - most);
        store(value, column + k * pitch);
        sum += value;
      }
    } else {
      for (int64_t k = 0; k < channels; ++k) sum += load(column + k * pitch);
      sum += eps;
    }
    const Vector<F> inverse = F(1) / sum;
    for (int64_t k = 0; k < channels; ++k) {
      store(load(column + k * pitch) * inverse, column + k * pitch);
    }
    store(inverse, column + channels * pitch);
  }
  for (int64_t k = 0; k <= channels; ++k) {  // the last vector may have gone beyond the row
    std::fill_n(weights + k * pitch + width, ceil_div(width, n) * n - width, F(0));
  }
}

// Reads rows of weights.
template <typename T, typename F>
class Weights {
 public:
  template <typename Call>
  Weights(const Call& call)
      : stencil_(call.stencil),
        normalize_(call.normalize),
        eps_(call.eps),
        channels_last_(call.source.channels_last),
        guide_(call.guide) {}

  void fill(int64_t n, int64_t begin, int64_t end, const Rows<F>& rows) const {
    for (int64_t y = begin; y < end; ++y) {
      F* const weights = rows.place(y);
      for (int64_t k = 0; k < guide_.c; ++k) {
        const T* from = guide_.data + guide_.at(n, stencil_.channels[k], y, 0);
        F* to = weights + k * rows.channel;
        if (channels_last_) {
          for (int64_t x = 0; x < guide_.w; ++x) to[x] = widen(from[x * guide_.c]);
        } else {
          widen_row(from, guide_.w, guide_.stride_c, to);
        }
      }
      normalize_row(normalize_, eps_, guide_.c, guide_.w, rows.channel, weights);
    }
  }

  // A row of the guide's gradient from the products r, in the order of the weights; both with
  // `pitch` between channels. `products` are used up.
  void backward(int64_t n, int64_t y, const F* weights, int64_t pitch, F* products,
                const View<T>& d_guide) const {
    const int64_t channels = guide_.c, width = guide_.w;
    for (int64_t x = 0; normalize_ != Normalize::kNone && x < width; x += kLanes<F>) {
      Vector<F> mean{};
      for (int64_t k = 0; k < channels; ++k) {
        mean += load(weights + k * pitch + x) * load(products + k * pitch + x);
      }
      for (int64_t k = 0; k < channels; ++k) {
        const int64_t factor = normalize_ == Normalize::kSum ? channels : k;
        F* const product = products + k * pitch + x;
        store(load(weights + factor * pitch + x) * (load(product) - mean), product);
      }
    }
    for (int64_t k = 0; k < channels; ++k) {
      const F* from = products + k * pitch;
      T* to = d_guide.data + d_guide.at(n, stencil_.channels[k], y, 0);
      if (channels_last_) {
        for (int64_t x = 0; x < width; ++x) narrow(from[x], to + x * channels);
      } else {
        for (int64_t x = 0; x < width; ++x) narrow(from[x], to + x);
      }
    }
  }

 private:
  const Stencil& stencil_;
  const Normalize normalize_;
  const F eps_;
  const bool channels_last_;
  const View<const T>& guide_;
};

}  // namespace
}  // namespace vsegops::guided_filter
