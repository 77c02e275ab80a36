// The guided filter family on a GPU.
//
// Threads have one pixel each, whose weights stay in registers over the classes (windows that are
// compiled in), and four classes under way at a time. In channels_last tensors several threads
// share a pixel, so that neighbours read neighbours. What a kernel reads again, the nine or so taps
// of each pixel, comes from the level 1 cache; what is sampled along a flow is sampled once a tile
// and class, into shared memory.
#include <cmath>
#include <optional>

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

// ---- Forward ----
//
// Moves (3 C + K) elements a pixel for C classes and K channels of the guide, for K C
// multiply-adds: 0.7 of them a byte for 19 classes and 10 channels of float32, so memory bounds it.
template <typename Window, bool Sampled, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads, 3) filter_kernel(const ForwardCall<T, F> call) {
  constexpr bool tiled = Sampled && kFixed<Window>;
  const Place me(call);
  if (!tiled && !me.inside) return;
  const Weights<Window, T, F> weights(call.guide, call.taps, me.n, me.pixel);
  const auto blend = [&](int32_t c, int count, F(&sums)[kTogether]) {
    const F last = weights.last();
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      sums[i] = i < count ? last * read<F>(call.intra, me.n, c + i * me.groups, me.pixel) : F(0);
    }
  };
  const auto write = [&](int32_t c, int count, const F(&sums)[kTogether]) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) narrow(sums[i], call.out.at(me.n, c + i * me.groups, me.pixel));
    }
  };
  if constexpr (tiled) {
    __shared__ Tile<Window::kReach, F> tile;
    tile.find(call.source, call, me);
    for (int32_t c = me.first; c < me.last; c += kTogether) {
      const int count = min(kTogether, me.last - c);
      tile.fill(call.source, call, me, c, count);
      if (me.inside) {
        F sums[kTogether];
        blend(c, count, sums);
        for_taps<Window>(call.taps, [&](int k) {
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            if (i < count) sums[i] += weights[k] * tile.at(i, me.slot, Window::offset(k));
          }
        });
        write(c, count, sums);
      }
      __syncthreads();
    }
  } else {
    me.each([&](int32_t c, int count) {
      F sums[kTogether];
      blend(c, count, sums);
      for_values<Window, Sampled>(call.source, call, call.taps, me, c, count,
                                  [&](int k, const F(&values)[kTogether]) {
                                    const F weight = weights[k];
#pragma unroll
                                    for (int i = 0; i < kTogether; ++i) {
                                      sums[i] += weight * values[i];
                                    }
                                  });
      write(c, count, sums);
    });
  }
}

// ---- Backward ----

// K elements a pixel are read, and two written: memory bounds it.
template <typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads) normalize_kernel(const NormalizeCall<T, F> call) {
  const int64_t i = int64_t(blockIdx.x) * kPixelThreads + threadIdx.x;
  if (i >= call.pixels) return;
  const auto n = static_cast<int32_t>(i / call.plane);
  const auto normalizer =
      find_normalizer(call.guide, call.channels, n, static_cast<int32_t>(i - n * call.plane));
  call.shift[i] = normalizer.shift;
  call.factor[i] = normalizer.factor;
}

// The gradients of S, gathered, and of intra:
//
//   d_S(q) = sum_k g_k(q - offset_k) * grad(q - offset_k),  d_intra = g_last * grad
//
// Moves 3 C + K elements a pixel for K C multiply-adds: memory bounds it.
template <typename Window, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads, 2) adjoint_kernel(const AdjointCall<T, F> call) {
  const Place me(call);
  if (!me.inside) return;
  const int64_t image = int64_t(me.n) * call.height * call.width;
  const bool softmax = call.guide.normalize == Normalize::kSoftmax;
  const auto weight_at = [&](int k, int32_t pixel) {
    const Normalizer<F> normalizer{softmax, call.shift[image + pixel], call.factor[image + pixel]};
    return normalizer.weight(read<F>(call.guide.data, me.n, call.taps.order[k], pixel));
  };
  const F last = weight_at(call.taps.count, me.pixel);
  me.each([&](int32_t c, int count) {
    F sums[kTogether] = {};
    for_taps<Window>(call.taps, [&](int k) {
      const Offset o = offset_of<Window>(call.taps, k);
      const int32_t y = me.y - o.y, x = me.x - o.x;
      if (y < 0 || y >= call.height || x < 0 || x >= call.width) return;
      const int32_t pixel = y * call.width + x;
      const F weight = weight_at(k, pixel);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (i < count) sums[i] += weight * read<F>(call.grad, me.n, c + i * me.groups, pixel);
      }
    });
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i >= count) break;
      const int32_t channel = c + i * me.groups;
      if (call.d_logits.data) narrow(sums[i], call.d_logits.at(me.n, channel, me.pixel));
      if (call.d_source.data) *call.d_source.at(me.n, channel, me.pixel) = sums[i];
      if (call.d_intra.data) {
        narrow(last * read<F>(call.grad, me.n, channel, me.pixel),
               call.d_intra.at(me.n, channel, me.pixel));
      }
    }
  });
}

// The gradient of the guide, from the products of grad with S at each offset, summed over the
// classes by the threads of a pixel. Moves 3 C + 2 K elements a pixel for K C multiply-adds.
template <typename Window, bool Sampled, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads, 2) products_kernel(const ProductsCall<T, F> call) {
  constexpr bool tiled = Sampled && kFixed<Window>;
  const Place me(call);
  const Weights<Window, T, F> weights(call.guide, call.taps, me.n, me.pixel);
  const auto load_grad = [&](int32_t c, int count, F(&grad)[kTogether]) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      grad[i] =
          i < count && me.inside ? read<F>(call.grad, me.n, c + i * me.groups, me.pixel) : F(0);
    }
  };
  // The sum over the threads of a pixel, in a fixed order.
  __shared__ F parts[kPixelThreads];
  const auto total = [&](F value) {
    if (me.groups == 1) return value;
    __syncthreads();
    parts[me.group * me.slots + me.slot] = value;
    __syncthreads();
    F sum = F(0);
    for (int g = 0; g < me.groups; ++g) sum += parts[g * me.slots + me.slot];
    return sum;
  };
  const bool writes = me.inside && me.group == 0;
  const auto write = [&](int k, F product, F mean) {
    F d = product;
    if (call.guide.normalize != Normalize::kNone) {
      const bool softmax = call.guide.normalize == Normalize::kSoftmax;
      d = (product - mean) * (softmax ? weights[k] : weights.normalizer.factor);
    }
    if (writes) narrow(d, call.d_guide.at(me.n, call.taps.order[k], me.pixel));
  };
  // Those that take part in the normalisation alone.
  const auto write_idle = [&](F mean) {
    for (int k = call.taps.count + 1; k < call.taps.channels; ++k) {
      F d = F(0);
      if (call.guide.normalize == Normalize::kSum) d = -mean * weights.normalizer.factor;
      if (call.guide.normalize == Normalize::kSoftmax) d = -mean * weights.find(k);
      if (writes) narrow(d, call.d_guide.at(me.n, call.taps.order[k], me.pixel));
    }
  };
  const auto intra_product = [&](int32_t c, int count, const F(&grad)[kTogether]) {
    F sum = F(0);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) sum += grad[i] * read<F>(call.intra, me.n, c + i * me.groups, me.pixel);
    }
    return sum;
  };
  if constexpr (kFixed<Window>) {
    F products[Window::kCount + 1] = {};
    if constexpr (tiled) {
      __shared__ Tile<Window::kReach, F> tile;
      tile.find(call.source, call, me);
      for (int32_t c = me.first; c < me.last; c += kTogether) {
        const int count = min(kTogether, me.last - c);
        F grad[kTogether];
        load_grad(c, count, grad);
        tile.fill(call.source, call, me, c, count);
        products[Window::kCount] += intra_product(c, count, grad);
        for_taps<Window>(call.taps, [&](int k) {
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            if (i < count) products[k] += grad[i] * tile.at(i, me.slot, Window::offset(k));
          }
        });
        __syncthreads();
      }
    } else {
      me.each([&](int32_t c, int count) {
        F grad[kTogether];
        load_grad(c, count, grad);
        products[Window::kCount] += intra_product(c, count, grad);
        for_values<Window, Sampled>(call.source, call, call.taps, me, c, count,
                                    [&](int k, const F(&values)[kTogether]) {
#pragma unroll
                                      for (int i = 0; i < kTogether; ++i) {
                                        products[k] += grad[i] * values[i];
                                      }
                                    });
      });
    }
    F mean = F(0);
#pragma unroll
    for (int k = 0; k <= Window::kCount; ++k) {
      products[k] = total(products[k]);
      mean += weights[k] * products[k];
    }
#pragma unroll
    for (int k = 0; k <= Window::kCount; ++k) write(k, products[k], mean);
    write_idle(mean);
  } else {
    // The product of one offset at a time: a first round finds their weighted mean.
    const auto product = [&](int k) {
      F sum = F(0);
      const Offset o = k < call.taps.count ? call.taps.offsets[k] : Offset{0, 0};
      const int32_t y = me.y + o.y, x = me.x + o.x;
      if (me.inside && y >= 0 && y < call.height && x >= 0 && x < call.width) {
        const bool sampled = Sampled && k < call.taps.count;
        const Mixture<F> m = sampled ? find_mixture(call.source, call, me.n, y, x) : Mixture<F>{};
        const Flat<const T>& plain = k < call.taps.count ? call.source.logits : call.intra;
        for (int32_t c = me.first + me.group; c < me.last; c += me.groups) {
          const F value = sampled ? sample(call.source, call, m, me.n, c)
                                  : read<F>(plain, me.n, c, y * call.width + x);
          sum += read<F>(call.grad, me.n, c, me.pixel) * value;
        }
      }
      return total(sum);
    };
    F mean = F(0);
    if (call.guide.normalize != Normalize::kNone) {
      for (int k = 0; k <= call.taps.count; ++k) mean += weights[k] * product(k);
    }
    for (int k = 0; k <= call.taps.count; ++k) write(k, product(k), mean);
    write_idle(mean);
  }
}

// ---- Edges ----

// The labels of a tile and its border in shared memory, then their Laplacian. Moves C + 1 elements
// a pixel for C comparisons: memory bounds it.
template <bool Sampled, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads) edges_kernel(const EdgesCall<T, F> call) {
  constexpr int width = kTileWidth + 2, rows = kTileRows + 2;
  __shared__ int32_t labels[width * rows];
  const Place me(call);
  for (int i = threadIdx.x; i < width * rows; i += kPixelThreads) {
    const int32_t x = blockIdx.x * kTileWidth - 1 + i % width;
    const int32_t y = (call.split.first_y + blockIdx.y) * kTileRows - 1 + i / width;
    int32_t best = 0;
    if (x >= 0 && x < call.width && y >= 0 && y < call.height) {
      Mixture<F> m{};
      if constexpr (Sampled) m = find_mixture(call.source, call, me.n, y, x);
      const auto value_of = [&](int32_t c) {
        if constexpr (Sampled) return sample(call.source, call, m, me.n, c);
        return read<F>(call.source.logits, me.n, c, y * call.width + x);
      };
      F most = value_of(0);
#pragma unroll 4
      for (int32_t c = 1; c < call.classes; ++c) {
        const F value = value_of(c);
        if (!(value <= most) && most == most) {  // as in torch.argmax NaN is above all
          most = value;
          best = c;
        }
      }
    }
    labels[i] = best;
  }
  __syncthreads();
  if (!me.inside) return;
  const int32_t* label = labels + (me.slot / kTileWidth + 1) * width + me.slot % kTileWidth + 1;
  int32_t laplacian = -9 * label[0];
#pragma unroll
  for (int k = 0; k < Window3::kCount; ++k) {
    laplacian += label[Window3::offset(k).y * width + Window3::offset(k).x];
  }
  const F response =
      call.sigmoid ? F(1) / (F(1) + ::exp(-F(laplacian))) : F(laplacian != 0 ? 1 : 0);
  narrow(response, call.out.at(me.n, 0, me.pixel));
}

// ---- Launches ----

// `tiled`: a tile is sampled together. `divisible`: the classes of a pixel may go to several
// blocks.
inline Split split_for(int64_t images, int64_t classes, int64_t height, int64_t width,
                       bool channels_last, bool tiled, bool divisible) {
  const int64_t wanted = ceil_div(kManyThreads, images * height * width);  // threads a pixel
  const int64_t rounds = std::max<int64_t>(1, ceil_div<int64_t>(classes, kTogether));
  int64_t groups = 1, chunks = 1;
  if (tiled) {
    chunks = divisible ? std::min(rounds, wanted) : 1;
  } else if (channels_last) {
    groups = floor_power(std::clamp<int64_t>(classes, 1, 16));
  } else if (divisible) {
    chunks = std::min(rounds, wanted);
  } else {
    groups = ceil_power(std::min<int64_t>({rounds, wanted, 8}));
  }
  const int64_t columns =
      tiled ? kTileWidth
            : std::min(ceil_power(width), std::min<int64_t>(kTileWidth, kPixelThreads / groups));
  const int64_t turns = ceil_div(classes, groups * kTogether);
  const int64_t chunk = std::max<int64_t>(1, ceil_div(turns, chunks)) * groups * kTogether;
  return {log2_of(groups),
          log2_of(columns),
          static_cast<int32_t>(chunk),
          static_cast<int32_t>(std::max<int64_t>(1, ceil_div(classes, chunk))),
          0,
          0};
}

template <typename T, typename F, typename Flow>
Geometry geometry(const Sampled<T, F, Flow>& s, bool tiled, bool divisible) {
  const View<const T>& x = s.logits;
  check("logits", x);
  return {s.channels_last, static_cast<int32_t>(x.c), static_cast<int32_t>(x.h),
          static_cast<int32_t>(x.w),
          split_for(x.n, x.c, x.h, x.w, s.channels_last, tiled, divisible)};
}

template <typename Run>
void lift(bool value, const Run& run) {
  value ? run(std::true_type()) : run(std::false_type());
}

// Double precision is for tests, which one window compiled in will do for.
template <typename F, typename Run>
void with_window(const Stencil& stencil, const Run& run) {
  if (stencil.shape == Shape::kWindow3) return run(Window3());
  if constexpr (std::is_same_v<F, float>) {
    if (stencil.shape == Shape::kWindow5) return run(Window5());
  }
  run(AnyWindow());
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& given, const Context& context) {
  const bool channels_last = given.source.channels_last;
  with_window<F>(given.stencil, [&](auto window) {
    lift(given.source.flow.data, [&](auto sampled) {
      const Geometry g = geometry(given.source, sampled() && kFixed<decltype(window)>, true);
      const ForwardCall<T, F> call{g,
                                   Taps(given.stencil),
                                   {{given.guide, channels_last}, given.normalize, given.eps},
                                   Source<T, F>(given.source),
                                   {given.intra, channels_last},
                                   {given.out, channels_last}};
      launch_split(filter_kernel<decltype(window), sampled(), T, F>, given.out, call, context);
    });
  });
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& given, const Context& context) {
  const bool channels_last = given.source.channels_last;
  const View<const T>& like = given.source.logits;
  const Guide<T, F> guide{{given.guide, channels_last}, given.normalize, given.eps};
  const Taps taps(given.stencil);
  const Flat<const T> grad(given.grad, channels_last);
  with_window<F>(given.stencil, [&](auto window) {
    using Window = decltype(window);
    if (given.d_guide.data) {
      lift(given.source.flow.data, [&](auto sampled) {
        const ProductsCall<T, F> call{geometry(given.source, sampled() && kFixed<Window>, false),
                                      taps,
                                      guide,
                                      Source<T, F>(given.source),
                                      grad,
                                      {given.intra, channels_last},
                                      {given.d_guide, channels_last}};
        launch_split(products_kernel<Window, sampled(), T, F>, like, call, context);
      });
    }
    if (!given.d_logits.data && !given.d_source.data && !given.d_intra.data) return;
    const int64_t plane = like.h * like.w, pixels = like.n * plane;
    F* normalizers;
    const Tensor held = context.scratch(2 * pixels, &normalizers);
    const NormalizeCall<T, F> normalize{taps.channels, pixels,      plane,
                                        guide,         normalizers, normalizers + pixels};
    launch(normalize_kernel<T, F>,
           dim3(static_cast<uint32_t>(ceil_div<int64_t>(pixels, kPixelThreads))),
           dim3(kPixelThreads), 0, context.stream(), normalize);
    const AdjointCall<T, F> call{geometry(given.source, false, true),
                                 taps,
                                 guide,
                                 normalizers,
                                 normalizers + pixels,
                                 grad,
                                 {given.d_logits, channels_last},
                                 {given.d_source, channels_last},
                                 {given.d_intra, channels_last}};
    // (The places and weights of 17 neighbours are more than the registers hold.)
    using Gathered = std::conditional_t<std::is_same_v<Window, Window5>, AnyWindow, Window>;
    launch_split(adjoint_kernel<Gathered, T, F>, like, call, context);
  });
}

template <typename T, typename F, typename Flow>
void edges(const Edges<T, F, Flow>& given, const Context& context) {
  Geometry g = geometry(given.source, true, false);
  const EdgesCall<T, F> call{
      g, Source<T, F>(given.source), given.sigmoid, {given.out, given.source.channels_last}};
  lift(given.source.flow.data, [&](auto sampled) {
    launch_split(edges_kernel<sampled(), T, F>, given.out, call, context);
  });
}

}  // namespace
}  // namespace vsegops::guided_filter

#include "operators.h"  // registers them
