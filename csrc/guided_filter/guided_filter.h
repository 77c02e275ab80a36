// The guided filter family as its kernels see it.
//
//   S        = logits, or A(logits) where a flow is given; 0 outside the image
//   g        = guide, normalised over its channels
//   forward:   out(p) = sum_k g_k(p) * S(p + offset_k) + g_last(p) * intra(p)
//   backward:  d_S(q)    = sum_k g_k(q - offset_k) * grad(q - offset_k), from there d_logits,
//   d_flow
//              d_intra   = g_last * grad
//              r_k(p)    = sum_c grad(p) * S(p + offset_k), r_last = sum_c grad * intra
//              d_guide_k = (r_k - sum_j g_j r_j) / (sum_j guide_j + eps)   "sum"
//                          g_k * (r_k - sum_j g_j r_j)                     "softmax"
//                          r_k                                             "none"
//   edges:     label = argmax_c S, then the response of its 3x3 Laplacian
//
// A pointer that is null stands for a tensor that is not there (flow) or for a gradient that nobody
// wants.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "../common/binding.h"
#include "../common/sampling.h"

namespace vsegops::guided_filter {

constexpr int kMostOffsets = 256;  // as in vsegops/ops/guided_filter/__init__.py

enum class Normalize { kSum, kSoftmax, kNone };

struct Offset {
  int32_t y, x;
};
VSEGOPS_HD constexpr bool operator==(Offset a, Offset b) { return a.y == b.y && a.x == b.x; }

// Windows whose offsets are compiled in: offset(k) for k < kCount.
struct Window3 {
  static constexpr int kCount = 9, kReach = 1;
  VSEGOPS_HD static constexpr Offset offset(int k) { return {k / 3 - 1, k % 3 - 1}; }
};
// GSVNet's 17 of 5x5: those 9, and their neighbours at twice the distance.
struct Window5 {
  static constexpr int kCount = 17, kReach = 2;
  VSEGOPS_HD static constexpr Offset offset(int k) {
    if (k < 9) return Window3::offset(k);
    const Offset o = Window3::offset(k < 13 ? k - 9 : k - 8);  // without the centre
    return {2 * o.y, 2 * o.x};
  }
};

enum class Shape { kWindow3, kWindow5, kOther };

// The offsets that can touch an image, and the guide's channels in an order of their own: those of
// these offsets, that of `intra`, then the others, which take part in the normalisation alone.
struct Stencil {
  Shape shape = Shape::kOther;
  std::vector<Offset> offsets;
  std::vector<int32_t> channels;
  int32_t reach_y = 0, reach_x = 0;  // the largest |dy| and |dx|

  Stencil() = default;
  Stencil(const std::vector<int64_t>& flat, int64_t height, int64_t width) {
    const auto count = static_cast<int32_t>(flat.size() / 2);
    std::vector<int32_t> idle;
    for (int32_t k = 0; k < count; ++k) {
      const int64_t y = flat[2 * k], x = flat[2 * k + 1];
      if (y <= -height || y >= height || x <= -width || x >= width) {
        idle.push_back(k);
      } else {
        offsets.push_back({static_cast<int32_t>(y), static_cast<int32_t>(x)});
        channels.push_back(k);
      }
    }
    if (arrange<Window3>()) shape = Shape::kWindow3;
    if (arrange<Window5>()) shape = Shape::kWindow5;
    for (const Offset& o : offsets) {
      reach_y = std::max(reach_y, std::abs(o.y));
      reach_x = std::max(reach_x, std::abs(o.x));
    }
    channels.push_back(count);
    channels.insert(channels.end(), idle.begin(), idle.end());
  }

 private:
  // Puts the offsets in the window's order if they are the window's.
  template <typename Window>
  bool arrange() {
    if (offsets.size() != Window::kCount) return false;
    std::vector<int32_t> order;
    for (int k = 0; k < Window::kCount; ++k) {
      const auto found = std::find(offsets.begin(), offsets.end(), Window::offset(k));
      if (found == offsets.end()) return false;
      order.push_back(channels[found - offsets.begin()]);
    }
    channels = order;
    for (int k = 0; k < Window::kCount; ++k) offsets[k] = Window::offset(k);
    return true;
  }
};

// S: its mapping has equal sizes, and a null flow stands for S = logits.
template <typename T, typename F, typename Flow>
struct Sampled {
  bool channels_last;  // the layout of all tensors but the flow
  View<const T> logits;
  View<const Flow> flow;
  Mapping<F> mapping;
};

// T: element type; F: type that is computed in; Flow: the flow's element type. All tensors but the
// flow are dense and of one layout.
template <typename T, typename F, typename Flow>
struct Forward {
  Stencil stencil;
  Normalize normalize;
  F eps;
  Sampled<T, F, Flow> source;
  View<const T> intra;
  View<const T> guide;
  View<T> out;
};

template <typename T, typename F, typename Flow>
struct Backward {
  Stencil stencil;
  Normalize normalize;
  F eps;
  Sampled<T, F, Flow> source;
  View<const T> grad;
  View<const T> intra;
  View<const T> guide;
  View<T> d_logits;  // without a flow
  View<F> d_source;  // with one: the gradient of S, like logits
  View<T> d_intra;
  View<T> d_guide;
};

template <typename T, typename F, typename Flow>
struct Edges {
  Sampled<T, F, Flow> source;
  bool sigmoid;
  View<T> out;  // one channel
};

}  // namespace vsegops::guided_filter
