// Kernels that go over the pixels of [N, C, H, W] tensors of either layout: how the work is shared
// out among blocks and threads, and access to the channels of a pixel.
//
// A block has a tile of pixels and a chunk of their channels, and some threads for each pixel. What
// is found once a pixel goes through shared memory; along the channels the threads of a pixel take
// turns, a few at a time: a 16-byte vector of them (channels_last), or one from each of four planes
// (contiguous).
//
// 64-bit arithmetic makes the addresses of images and pixels, once a thread; what is counted inside
// a plane has 32 bits.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda.h"

namespace vsegops {

constexpr int kPixelThreads = 256;

// How the work is shared out: 2^log_groups threads for each pixel, tiles of kPixelThreads / groups
// pixels.
struct Split {
  int log_groups;
  int log_width;                 // of the tile
  int32_t chunk, chunks;         // channels of a block, blocks along the channels
  int32_t first_y, first_plane;  // of this launch, which has only so many blocks along y and z
};

// Contiguous: the channels of a pixel are a plane apart; threads side by side have pixels side by
// side, and each has four channels under way at a time.
struct Planes {
  static constexpr int kWidth = 4;
  static constexpr int64_t kMostGroups = 8;  // so that the threads of a warp have one channel

  static __device__ int slot(int thread, int log_groups) {
    return thread & ((kPixelThreads >> log_groups) - 1);
  }
  static __device__ int group(int thread, int log_groups) {
    return thread / (kPixelThreads >> log_groups);
  }
  static __device__ int64_t at(int32_t pixel, int32_t c, int32_t, int32_t plane) {
    return int64_t(c) * plane + pixel;
  }
  // Calls `run(N, c)` for the N channels from c on: kWidth, and one by one the last of all.
  template <typename Run>
  static __device__ void each(int32_t c, int32_t last, const Run& run) {
    if (c + kWidth <= last) return run(std::integral_constant<int, kWidth>(), c);
#pragma unroll 1
    for (; c < last; ++c) run(std::integral_constant<int, 1>(), c);
  }
};

// channels_last: V channels of a pixel make a vector; threads side by side have vectors of a pixel.
template <int V>
struct Vectors {
  static constexpr int kWidth = V;
  static constexpr int64_t kMostGroups = 8;  // (8 vectors of 16 bytes: a line of the cache)

  static __device__ int slot(int thread, int log_groups) { return thread >> log_groups; }
  static __device__ int group(int thread, int log_groups) {
    return thread & ((1 << log_groups) - 1);
  }
  static __device__ int64_t at(int32_t pixel, int32_t c, int32_t channels, int32_t) {
    return int64_t(pixel) * channels + c;
  }
  template <typename Run>
  static __device__ void each(int32_t c, int32_t, const Run& run) {
    run(std::integral_constant<int, V>(), c);
  }
};

// What a thread has to do.
template <typename Layout>
struct Worker {
  int slot, group;  // the pixel's place in the tile, the thread's among those of the pixel
  int slots, groups;
  bool inside;
  int32_t n, x, y, pixel;
  int32_t first, last;  // channels of the block

  template <typename T>
  __device__ Worker(const Split& split, const View<T>& out)
      : slot(Layout::slot(threadIdx.x, split.log_groups)),
        group(Layout::group(threadIdx.x, split.log_groups)),
        slots(kPixelThreads >> split.log_groups),
        groups(1 << split.log_groups) {
    const int width = 1 << split.log_width;
    x = blockIdx.x * width + (slot & (width - 1));
    y = (split.first_y + blockIdx.y) * (slots >> split.log_width) + (slot >> split.log_width);
    inside = x < out.w && y < out.h;
    pixel = inside ? y * static_cast<int32_t>(out.w) + x : 0;
    const uint32_t plane = split.first_plane + blockIdx.z;
    n = plane / split.chunks;
    first = (plane - n * split.chunks) * split.chunk;
    last = min(first + split.chunk, static_cast<int32_t>(out.c));
  }

  // Calls `run(N, c)` for the N channels from c on, until the threads of the pixel have all.
  template <typename Run>
  __device__ void each(const Run& run) const {
    const int32_t step = groups * Layout::kWidth;
#pragma unroll 1
    for (int32_t c = first + group * Layout::kWidth; c < last; c += step) {
      Layout::each(c, last, run);
    }
  }
};

// One image of a dense tensor.
template <typename Layout, typename T>
struct Image {
  T* data;
  int32_t channels, plane;

  template <typename U>
  __device__ Image(T* batch, const View<U>& like, int32_t n)
      : data(batch + n * like.c * like.h * like.w),
        channels(static_cast<int32_t>(like.c)),
        plane(static_cast<int32_t>(like.h * like.w)) {}
  __device__ Image(const View<T>& x, int32_t n) : Image(x.data, x, n) {}

  __device__ T* at(int32_t pixel, int32_t c) const {
    return data + Layout::at(pixel, c, channels, plane);
  }

  template <typename F, int N>
  __device__ void load(int32_t pixel, int32_t c, F (&values)[N]) const {
    if constexpr (std::is_same_v<Layout, Planes>) {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = widen(fetch(at(pixel, c + i)));
    } else {
      const auto v = fetch(reinterpret_cast<const Vec<std::remove_const_t<T>, N>*>(at(pixel, c)));
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = widen(v.data[i]);
    }
  }

  template <typename F, int N>
  __device__ void store(int32_t pixel, int32_t c, const F (&values)[N]) const {
    if constexpr (std::is_same_v<Layout, Planes>) {
#pragma unroll
      for (int i = 0; i < N; ++i) narrow(values[i], at(pixel, c + i));
    } else {
      Vec<T, N> v;
#pragma unroll
      for (int i = 0; i < N; ++i) narrow(values[i], v.data + i);
      *reinterpret_cast<Vec<T, N>*>(at(pixel, c)) = v;
    }
  }
};

// Joins `values` over the threads of each pixel, in a fixed order, for that of group 0.
template <int K, typename F, typename Layout, typename Join>
__device__ void reduce(F (&values)[K], const Worker<Layout>& me, const Join& join) {
  __shared__ F scratch[K][kPixelThreads + Layout::kMostGroups];
  const int pitch = me.slots + 1;  // (odd: fewer threads of a warp meet in a bank)
#pragma unroll
  for (int k = 0; k < K; ++k) scratch[k][me.group * pitch + me.slot] = values[k];
  __syncthreads();
  if (me.group != 0) return;
  for (int g = 1; g < me.groups; ++g) {
    F other[K];
#pragma unroll
    for (int k = 0; k < K; ++k) other[k] = scratch[k][g * pitch + me.slot];
    join(values, other);
  }
}

template <int K, typename F, typename Layout>
__device__ void sum_up(F (&values)[K], const Worker<Layout>& me) {
  reduce(values, me, [](F(&mine)[K], const F(&other)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) mine[k] += other[k];
  });
}

// ---- Launches ----

// Calls `run` with a constant of that value.
template <typename Run>
void lift(bool value, const Run& run) {
  value ? run(std::true_type()) : run(std::false_type());
}

// `divisible`: the channels of a pixel may go to several blocks.
template <typename Layout, typename T>
Split split_for(const View<T>& out, bool divisible) {
  constexpr bool planar = std::is_same_v<Layout, Planes>;
  const int64_t items = std::max<int64_t>(1, ceil_div<int64_t>(out.c, Layout::kWidth));
  const int64_t wanted = ceil_div(kManyThreads, out.n * out.h * out.w);  // threads a pixel
  int64_t groups = Layout::kMostGroups;
  if (planar) {
    groups = ceil_power(std::min({items, wanted, divisible ? groups / 2 : groups}));
  } else {
    groups = floor_power(std::min(items, groups));
  }
  const int64_t slots = kPixelThreads / groups;
  // Tiles of a few rows, which share the source's rows; a warp writes whole sectors.
  const int64_t width = std::min(planar ? 32 : slots / 4, ceil_power(out.w));
  const int64_t rounds = ceil_div(items, groups);
  const int64_t chunks = divisible ? std::min(rounds, ceil_div(wanted, groups)) : 1;
  const int64_t chunk = ceil_div(rounds, chunks) * groups * Layout::kWidth;
  return {log2_of(groups),
          log2_of(width),
          static_cast<int32_t>(chunk),
          static_cast<int32_t>(std::max<int64_t>(1, ceil_div(out.c, chunk))),
          0,
          0};
}

template <typename Call, typename T>
void launch_split(void (*kernel)(Call), const View<T>& out, Call call, const Context& context) {
  Split& split = call.split;
  const int64_t width = 1 << split.log_width,
                rows = kPixelThreads >> split.log_groups >> split.log_width;
  const int64_t columns = ceil_div(out.w, width), lines = ceil_div(out.h, rows);
  const int64_t planes = out.n * split.chunks;
  for (int64_t plane = 0; plane < planes; plane += kGridLimit) {
    for (int64_t line = 0; line < lines; line += kGridLimit) {
      split.first_plane = static_cast<int32_t>(plane);
      split.first_y = static_cast<int32_t>(line);
      const dim3 grid(static_cast<uint32_t>(columns),
                      static_cast<uint32_t>(std::min(kGridLimit, lines - line)),
                      static_cast<uint32_t>(std::min(kGridLimit, planes - plane)));
      launch(kernel, grid, dim3(kPixelThreads), 0, context.stream(), call);
    }
  }
}

// Calls `run(Layout())` for dense tensors of `channels` channels. `data`: all that is accessed by
// vectors; null ones do not count.
template <typename T, typename Run, typename... P>
void with_layout(bool channels_last, int64_t channels, const Run& run, const P*... data) {
  constexpr int width = kVector<T>;
  if (!channels_last) return run(Planes());
  if (channels % width == 0 && (aligned(data) && ...)) return run(Vectors<width>());
  run(Vectors<1>());
}

template <typename T>
void check(const char* name, const View<T>& x) {
  constexpr int64_t limit = int64_t(1) << 31;
  STD_TORCH_CHECK(x.h * x.w < limit && x.c < limit && x.n < limit, name,
                  ": expected fewer than 2^31 images, channels, and pixels an image, got [", x.n,
                  ", ", x.c, ", ", x.h, ", ", x.w, "]");
}

}  // namespace vsegops
