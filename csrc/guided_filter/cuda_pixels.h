// What the guided filter's CUDA kernels share: what they are called with, what a thread has to do,
// the weights of a pixel, and S, sampled where a flow is given.
//
// Threads have one pixel each, whose weights stay in registers over the classes (windows that are
// compiled in), and four classes under way at a time. In channels_last tensors several threads
// share a pixel, so that neighbours read neighbours. What a kernel reads again, the nine or so taps
// of each pixel, comes from the level 1 cache; what is sampled along a flow is sampled once a tile
// and class, into shared memory.
#pragma once

#include <cmath>

#include "../common/pixels.h"
#include "guided_filter.h"

namespace vsegops::guided_filter {
namespace {

constexpr int kTogether = 4;                   // classes that a thread has under way
constexpr int kTileWidth = 32, kTileRows = 8;  // of what is sampled; a thread for each pixel
static_assert(kTileWidth * kTileRows == kPixelThreads);

// ---- What kernels are called with ----

// A dense tensor of either layout.
template <typename T>
struct Flat {
  T* data = nullptr;
  int64_t image = 0, channel = 0, pixel = 0;  // strides

  Flat() = default;
  template <typename U>
  Flat(const View<U>& like, T* elements, bool channels_last)
      : data(elements),
        image(like.c * like.h * like.w),
        channel(channels_last ? 1 : like.h * like.w),
        pixel(channels_last ? like.c : 1) {}
  Flat(const View<T>& x, bool channels_last) : Flat(x, x.data, channels_last) {}

  __device__ T* at(int32_t n, int32_t c, int32_t p) const {
    return data + n * image + c * channel + p * pixel;
  }
};

// Stencil, by value: the offsets and the guide's channels in their order.
struct Taps {
  int32_t count, channels;
  Offset offsets[kMostOffsets];
  int16_t order[kMostOffsets + 1];

  explicit Taps(const Stencil& s)
      : count(static_cast<int32_t>(s.offsets.size())),
        channels(static_cast<int32_t>(s.channels.size())) {
    std::copy(s.offsets.begin(), s.offsets.end(), offsets);
    std::copy(s.channels.begin(), s.channels.end(), order);
  }
};

struct AnyWindow {};
template <typename Window>
constexpr bool kFixed = !std::is_same_v<Window, AnyWindow>;

template <typename Window>
__device__ Offset offset_of(const Taps& taps, int k) {
  if constexpr (kFixed<Window>) {
    return Window::offset(k);
  } else {
    return taps.offsets[k];
  }
}

template <typename T, typename F>
struct Guide {
  Flat<const T> data;
  Normalize normalize;
  F eps;
};

// S; a null flow stands for the logits themselves.
template <typename T, typename F>
struct Source {
  Flat<const T> logits;
  Either<T> flow;
  Mapping<F> mapping;

  template <typename Flow>
  explicit Source(const Sampled<T, F, Flow>& s)
      : logits(s.logits, s.channels_last), flow(s.flow), mapping(s.mapping) {}
};

struct Geometry {
  bool channels_last;
  int32_t classes, height, width;
  Split split;
};

template <typename T, typename F>
struct ForwardCall : Geometry {
  Taps taps;
  Guide<T, F> guide;
  Source<T, F> source;
  Flat<const T> intra;
  Flat<T> out;
};
// The normalisers of all pixels: shift, then factor, a plane each.
template <typename T, typename F>
struct AdjointCall : Geometry {
  Taps taps;
  Guide<T, F> guide;
  const F* shift;
  const F* factor;
  Flat<const T> grad;
  Flat<T> d_logits;
  Flat<F> d_source;  // one of the two, or neither
  Flat<T> d_intra;
};
template <typename T, typename F>
struct ProductsCall : Geometry {
  Taps taps;
  Guide<T, F> guide;
  Source<T, F> source;
  Flat<const T> grad, intra;
  Flat<T> d_guide;
};
template <typename T, typename F>
struct NormalizeCall {
  int32_t channels;
  int64_t pixels, plane;  // of all images, of one
  Guide<T, F> guide;
  F* shift;
  F* factor;
};
template <typename T, typename F>
struct EdgesCall : Geometry {
  Source<T, F> source;
  bool sigmoid;
  Flat<T> out;
};

// ---- What a thread has to do ----

struct Place {
  int slot, group, slots, groups;  // as in Worker
  bool inside;
  int32_t n, x, y, pixel;
  int32_t first, last;  // classes of the block

  __device__ explicit Place(const Geometry& g)
      : slots(kPixelThreads >> g.split.log_groups), groups(1 << g.split.log_groups) {
    const int thread = threadIdx.x;
    slot = g.channels_last ? thread >> g.split.log_groups : thread & (slots - 1);
    group = g.channels_last ? thread & (groups - 1) : thread / slots;
    const int width = 1 << g.split.log_width;
    x = blockIdx.x * width + (slot & (width - 1));
    y = (g.split.first_y + blockIdx.y) * (slots >> g.split.log_width) + (slot >> g.split.log_width);
    inside = x < g.width && y < g.height;
    pixel = inside ? y * g.width + x : 0;
    const uint32_t plane = g.split.first_plane + blockIdx.z;
    n = plane / g.split.chunks;
    first = (plane - n * g.split.chunks) * g.split.chunk;
    last = min(first + g.split.chunk, g.classes);
  }

  // Calls `run(c, count)` for classes c + i * groups, i < count <= kTogether.
  template <typename Run>
  __device__ void each(const Run& run) const {
#pragma unroll 1
    for (int32_t c = first + group; c < last; c += kTogether * groups) {
      run(c, min(kTogether, (last - c + groups - 1) / groups));
    }
  }
};

template <typename F, typename T>
__device__ F read(const Flat<const T>& x, int32_t n, int32_t c, int32_t pixel) {
  return widen(fetch(x.at(n, c, pixel)));
}

// ---- The guide ----

// g = exp(guide - shift) * factor for "softmax", otherwise guide * factor.
template <typename F>
struct Normalizer {
  bool softmax;
  F shift, factor;

  __device__ F weight(F guide) const { return (softmax ? ::exp(guide - shift) : guide) * factor; }
};

template <typename T, typename F>
__device__ Normalizer<F> find_normalizer(const Guide<T, F>& guide, int32_t channels, int32_t n,
                                         int32_t pixel) {
  if (guide.normalize == Normalize::kNone) return {false, F(0), F(1)};
  F most = F(0), sum = F(0);
  if (guide.normalize == Normalize::kSum) {
    for (int k = 0; k < channels; ++k) sum += read<F>(guide.data, n, k, pixel);
    return {false, F(0), F(1) / (sum + guide.eps)};
  }
  for (int k = 0; k < channels; ++k) {
    const F value = read<F>(guide.data, n, k, pixel);
    most = k == 0 || value > most ? value : most;
  }
  for (int k = 0; k < channels; ++k) sum += ::exp(read<F>(guide.data, n, k, pixel) - most);
  return {true, most, F(1) / sum};
}

// The weights of a pixel: at hand where the window is compiled in, else found when asked for.
template <typename Window, typename T, typename F>
class Weights {
 public:
  __device__ Weights(const Guide<T, F>& guide, const Taps& taps, int32_t n, int32_t pixel)
      : guide_(guide), taps_(taps), n_(n), pixel_(pixel) {
    normalizer = find_normalizer(guide, taps.channels, n, pixel);
    if constexpr (kFixed<Window>) {
#pragma unroll
      for (int k = 0; k <= Window::kCount; ++k) kept_[k] = find(k);
    }
  }
  // Of offset k; of intra.
  __device__ F operator[](int k) const {
    if constexpr (kFixed<Window>) {
      return kept_[k];
    } else {
      return find(k);
    }
  }
  __device__ F last() const {
    if constexpr (kFixed<Window>) {
      return kept_[Window::kCount];
    } else {
      return find(taps_.count);
    }
  }
  __device__ F find(int k) const {
    return normalizer.weight(read<F>(guide_.data, n_, taps_.order[k], pixel_));
  }

  Normalizer<F> normalizer;

 private:
  template <typename W>
  static constexpr int room() {
    if constexpr (kFixed<W>) {
      return W::kCount + 1;
    } else {
      return 1;
    }
  }
  const Guide<T, F>& guide_;
  const Taps& taps_;
  const int32_t n_, pixel_;
  F kept_[room<Window>()];
};

// Calls `run(k)` for the offsets; without a branch where their number is known.
template <typename Window, typename Run>
__device__ void for_taps(const Taps& taps, const Run& run) {
  if constexpr (kFixed<Window>) {
#pragma unroll
    for (int k = 0; k < Window::kCount; ++k) run(k);
  } else {
#pragma unroll 1
    for (int k = 0; k < taps.count; ++k) run(k);
  }
}

// ---- Sampling ----

// The four pixels that are mixed for one of S; `low` is negative outside the image.
template <typename F>
struct Mixture {
  int32_t low;
  F weight[4];
};

template <typename T, typename F>
__device__ Mixture<F> find_mixture(const Source<T, F>& s, const Geometry& g, int32_t n, int32_t y,
                                   int32_t x) {
  if (y < 0 || y >= g.height || x < 0 || x >= g.width) return {-1, {}};
  const int64_t at = s.flow.at(n, 0, y, x);
  const auto u = s.mapping.taps_x({x, F(0)}, s.flow.load(at));
  const auto v = s.mapping.taps_y({y, F(0)}, s.flow.load(at + s.flow.stride_c));
  return {v.low * g.width + u.low,
          {u.weight_low * v.weight_low, u.weight_high * v.weight_low, u.weight_low * v.weight_high,
           u.weight_high * v.weight_high}};
}

template <typename T, typename F>
__device__ F sample(const Source<T, F>& s, const Geometry& g, const Mixture<F>& m, int32_t n,
                    int32_t c) {
  if (m.low < 0) return F(0);
  const int32_t right = g.width > 1, down = g.height > 1 ? g.width : 0;
  F sum = F(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    sum += m.weight[k] * read<F>(s.logits, n, c, m.low + (k & 1 ? right : 0) + (k & 2 ? down : 0));
  }
  return sum;
}

// S on a tile and what is within `Reach` of it, for kTogether classes at a time.
template <int Reach, typename F>
struct Tile {
  static constexpr int kWidth = kTileWidth + 2 * Reach, kRows = kTileRows + 2 * Reach;
  static constexpr int kPixels = kWidth * kRows;
  Mixture<F> mixtures[kPixels];
  F values[kTogether][kPixels];

  // Both have to be called by all threads of a block, and end with a barrier.
  template <typename T>
  __device__ void find(const Source<T, F>& s, const Geometry& g, const Place& me) {
    const int32_t x0 = blockIdx.x * kTileWidth - Reach;
    const int32_t y0 = (g.split.first_y + blockIdx.y) * kTileRows - Reach;
    for (int i = threadIdx.x; i < kPixels; i += kPixelThreads) {
      mixtures[i] = find_mixture(s, g, me.n, y0 + i / kWidth, x0 + i % kWidth);
    }
    __syncthreads();
  }
  template <typename T>
  __device__ void fill(const Source<T, F>& s, const Geometry& g, const Place& me, int32_t c,
                       int count) {
    for (int i = threadIdx.x; i < kPixels * kTogether; i += kPixelThreads) {
      const int which = g.channels_last ? i % kTogether : i / kPixels;
      const int at = g.channels_last ? i / kTogether : i % kPixels;
      if (which < count) values[which][at] = sample(s, g, mixtures[at], me.n, c + which);
    }
    __syncthreads();
  }
  __device__ F at(int which, int slot, Offset o) const {
    const int x = slot % kTileWidth + Reach + o.x, y = slot / kTileWidth + Reach + o.y;
    return values[which][y * kWidth + x];
  }
};

// Calls `run(k, values)` for the offsets of a pixel, with the values of S there for `count` classes
// from c on; what is outside is left out. Not for tiles.
template <typename Window, bool Sampled, typename T, typename F, typename Run>
__device__ void for_values(const Source<T, F>& s, const Geometry& g, const Taps& taps,
                           const Place& me, int32_t c, int count, const Run& run) {
  for_taps<Window>(taps, [&](int k) {
    const Offset o = offset_of<Window>(taps, k);
    const int32_t y = me.y + o.y, x = me.x + o.x;
    if (y < 0 || y >= g.height || x < 0 || x >= g.width) return;
    F values[kTogether];
    if constexpr (Sampled) {
      const Mixture<F> m = find_mixture(s, g, me.n, y, x);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        values[i] = i < count ? sample(s, g, m, me.n, c + i * me.groups) : F(0);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        values[i] = i < count ? read<F>(s.logits, me.n, c + i * me.groups, y * g.width + x) : F(0);
      }
    }
    run(k, values);
  });
}

}  // namespace
}  // namespace vsegops::guided_filter
