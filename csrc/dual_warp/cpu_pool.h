// Mean and maximum over channels on a CPU: one addition and one comparison for each element, which
// is read once: memory bounds it. Backward knows the maximum's place, and writes the gradient once.
//
// A NaN is larger than every number, and the first of equals is the maximum, as in torch.max.
#pragma once

#include <limits>

#include "../common/cpu_sampling.h"
#include "../common/cpu_window.h"
#include "dual_warp.h"

namespace vsegops::dual_warp {
namespace {

constexpr int64_t kPoolTile = 1024;  // pixels: what is kept of them stays in L1

// The largest of some channels, and where it stands; for one pixel or for each lane.
template <typename V>
struct Largest {
  V value;
  index_t<V> channel;

  VSEGOPS_HD void see(V x, index_t<V> c) {
    const auto larger = ~(x <= value) & (value == value);  // (true of NaN, too)
    value = larger ? x : value;
    channel = larger ? c : channel;
  }
};

// What is known of each pixel of a tile, up to a whole vector.
template <typename F>
struct Pooled {
  F *sum, *largest;
  int32_t* channel;
};

template <typename F>
Pooled<F> take_pooled(Arena& arena) {
  return {arena.take<F>(kPoolTile), arena.take<F>(kPoolTile), arena.take<int32_t>(kPoolTile)};
}
template <typename F>
size_t pooled_bytes() {
  return kPoolTile * (2 * sizeof(F) + sizeof(int32_t));
}

// One vector of channel c, whose place is kept (Place).
template <bool Place, typename F>
VSEGOPS_HD void pool_vector(Vector<F> x, int32_t c, int64_t i, const Pooled<F>& to) {
  store(load(to.sum + i) + x, to.sum + i);
  Largest<Vector<F>> most{load(to.largest + i), {}};
  if constexpr (Place) most.channel = load_index<F>(to.channel + i);
  most.see(x, index_t<Vector<F>>{} + c);
  store(most.value, to.largest + i);
  if constexpr (Place) store_index(most.channel, to.channel + i);
}

// Pixels [begin, begin + count) of planes: vectors over pixels, one channel after the other.
template <bool Place, typename T, typename F>
void pool_planes(const Image<const T>& image, int64_t begin, int64_t count, const Pooled<F>& to) {
  constexpr int n = kLanes<F>;
  const int64_t padded = ceil_div(count, n) * n;
  std::fill_n(to.sum, padded, F(0));
  std::fill_n(to.largest, padded, -std::numeric_limits<F>::infinity());
  if constexpr (Place) std::fill_n(to.channel, padded, 0);
  for (int64_t c = 0; c < image.width; ++c) {
    const T* from = image.data + c * image.channel + begin;
    int64_t i = 0;
    for (; i + n <= count; i += n) {
      __builtin_prefetch(from + i + image.channel);
      pool_vector<Place, F>(load(from + i), static_cast<int32_t>(c), i, to);
    }
    if (i == count) continue;
    T last[n] = {};
    std::copy_n(from + i, count - i, last);
    pool_vector<Place, F>(load(last), static_cast<int32_t>(c), i, to);
  }
}

// 0, 1, 2, ...
template <typename F>
index_t<Vector<F>> lanes() {
  index_t<Vector<F>> lane;
  for (int k = 0; k < kLanes<F>; ++k) lane[k] = k;
  return lane;
}

// The same where the channels of a pixel are side by side: vectors over channels, whose lanes are
// brought together at the end.
template <bool Place, typename T, typename F>
void pool_pixels(const Image<const T>& image, int64_t begin, int64_t count, const Pooled<F>& to) {
  using V = Vector<F>;
  using Index = index_t<V>;
  constexpr int n = kLanes<F>;
  const V least = V{} - std::numeric_limits<F>::infinity();
  const Index lane = lanes<F>();
  for (int64_t i = 0; i < count; i += n) {
    V sum[n] = {};
    Largest<V> most[n] = {};
    const int64_t pixels = std::min<int64_t>(n, count - i);
    for (int64_t j = 0; j < pixels; ++j) {
      const T* from = image.data + (begin + i + j) * image.pixel;
      most[j] = {least, lane};
      int64_t c = 0;
      for (; c + n <= image.width; c += n) {
        const V x = load(from + c);
        sum[j] += x;
        most[j].see(x, lane + static_cast<int32_t>(c));
      }
      if (c == image.width) continue;
      T last[n] = {};
      std::copy_n(from + c, image.width - c, last);
      const V x = load(last);
      sum[j] += x;
      const auto present = lane < static_cast<int32_t>(image.width - c);
      most[j].see(present ? x : least, lane + static_cast<int32_t>(c));
    }
    V values[n];
    for (int j = 0; j < n; ++j) values[j] = most[j].value;
    const V largest = fold<F>(values, [](V a, V b) {
      Largest<V> best{a, {}};
      best.see(b, Index{});
      return best.value;
    });
    store(largest, to.largest + i);
    store(sums<F>(sum), to.sum + i);
    if constexpr (Place) {
      // The first of the lanes that have it.
      for (int j = 0; j < n; ++j) {
        const V x = values[j], y = V{} + largest[j];
        const auto has = (x == y) | ((x != x) & (y != y));
        values[j] = (V)(has ? most[j].channel : std::numeric_limits<int32_t>::max() + Index{});
      }
      store_index((Index)fold<F>(values,
                                 [](V a, V b) {
                                   const Index x = (Index)a, y = (Index)b;
                                   return (V)(x < y ? x : y);
                                 }),
                  to.channel + i);
    }
  }
}

template <bool Place, typename T, typename F>
void pool_tile(const Image<const T>& image, int64_t begin, int64_t count, const Pooled<F>& to) {
  image.planes() ? pool_planes<Place>(image, begin, count, to)
                 : pool_pixels<Place>(image, begin, count, to);
}

// Calls `run(arena, n, begin, end)` for tiles of pixels of `images`, in parallel.
template <typename F, typename Run>
void for_pool_tiles(int64_t images, int64_t pixels, const Run& run) {
  const int64_t tiles = ceil_div(pixels, kPoolTile);
  torch::stable::parallel_for(0, images * tiles, 1, [&](int64_t first, int64_t last) {
    Arena arena(pooled_bytes<F>());
    const Pooled<F> pooled = take_pooled<F>(arena);
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % tiles * kPoolTile;
      run(pooled, k / tiles, begin, std::min(begin + kPoolTile, pixels));
    }
    stream_fence();
  });
}

// The channels of the maxima of image n.
template <typename Call>
auto* places_of(const Call& call, int64_t n) {
  return call.places.data + call.places.at(n, call.which, 0, 0);
}

template <typename T>
void pool(const Pool<T>& call, const Context&) {
  using F = compute_t<T>;
  const View<const T>& input = call.input;
  const auto run = [&](auto place, const Pooled<F>& pooled, int64_t n, int64_t begin, int64_t end) {
    pool_tile<place()>(image_of(input, call.channels_last, n, 0, input.c), begin, end - begin,
                       pooled);
    if constexpr (place()) {
      std::copy_n(pooled.channel, end - begin, places_of(call, n) + begin);
    }
    const Image<T> out = image_of(call.out, call.channels_last, n, call.which, 4);
    for (int64_t i = 0; i < end - begin; ++i) {
      T* const to = out.data + (begin + i) * out.pixel;
      narrow(pooled.sum[i] / static_cast<F>(input.c), to);
      narrow(pooled.largest[i], to + 2 * out.channel);
    }
  };
  lift(call.places.data, [&](auto place) {
    for_pool_tiles<F>(input.n, input.h * input.w, [&](auto&&... tile) { run(place, tile...); });
  });
}

// Writes vectors `value(i)` to `count` elements, past the caches if `streamed`.
template <typename T, typename Value>
void write_vectors(T* out, int64_t count, bool streamed, const Value& value) {
  using F = compute_t<T>;
  constexpr int n = kLanes<F>;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, F>) {
    for (; streamed && is_aligned(out) && i + n <= count; i += n) stream<F>(value(i), out + i);
  }
  for (; i + n <= count; i += n) store(value(i), out + i);
  if (i == count) return;
  T last[n];
  store(value(i), last);
  std::copy_n(last, count - i, out + i);
}

// d_input = grad of the mean / C, and at the maximum also that of the maximum.
template <typename T>
void pool_backward(const PoolBackward<T>& call, const Context&) {
  using F = compute_t<T>;
  const View<T>& d_input = call.d_input;
  const bool past_caches =
      d_input.n * d_input.c * d_input.h * d_input.w * int64_t(sizeof(T)) >= kStreamBytes;
  for_pool_tiles<F>(
      d_input.n, d_input.h * d_input.w,
      [&](const Pooled<F>& pooled, int64_t n, int64_t begin, int64_t end) {
        const int64_t count = end - begin;
        std::copy_n(places_of(call, n) + begin, count, pooled.channel);
        // What every channel gets, and what the maximum does.
        F *const each = pooled.sum, *const most = pooled.largest;
        read_pixels(call.grad, n, call.which, begin, end, each);
        read_pixels(call.grad, n, call.which + 2, begin, end, most);
        for (int64_t i = 0; i < count; ++i) {
          each[i] /= static_cast<F>(d_input.c);
          most[i] += each[i];
        }
        const Image<T> to = image_of(d_input, call.channels_last, n, 0, d_input.c);
        if (to.planes()) {
          for (int64_t c = 0; c < to.width; ++c) {
            write_vectors(to.data + c * to.channel + begin, count, past_caches, [&](int64_t i) {
              const auto here = load_index<F>(pooled.channel + i) == static_cast<int32_t>(c);
              return here ? load(most + i) : load(each + i);
            });
          }
        } else {
          for (int64_t i = 0; i < count; ++i) {
            const Vector<F> common = Vector<F>{} + each[i], largest = Vector<F>{} + most[i];
            const auto place = lanes<F>() - pooled.channel[i];
            write_vectors(to.data + (begin + i) * to.pixel, to.width, past_caches, [&](int64_t c) {
              return place == -static_cast<int32_t>(c) ? largest : common;
            });
          }
        }
      });
}

}  // namespace
}  // namespace vsegops::dual_warp
