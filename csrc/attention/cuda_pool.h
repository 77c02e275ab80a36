// Pyramid pooling: forward reads each input once, for an addition a level; backward writes each
// gradient once, for an addition a level: memory bounds them. All in a fixed order.
//
// Contiguous: a block has a plane, or a part of its bands. channels_last: a block has a band of an
// image, and some of its channels. Sums over a band's rows, then over bins along x, are in shared
// memory; what blocks share in goes through global memory, a fraction of the input's size.
#pragma once

#include "cuda_plan.h"

namespace vsegops::attention {
namespace {

constexpr int kPoolThreads = 256;
constexpr int kStrip = 256;            // pixels of a row that are summed together
constexpr int kMostSummed = 32 << 10;  // bytes of sums over bands, of each kind, in a block
constexpr int kMostWidth = 16 << 10;   // pixels of a row whose cells a block keeps

template <typename T>
struct PoolCall {
  using F = compute_t<T>;
  Plan plan;
  const T* input;  // or grad, [N, C, S] of any strides
  T* out;          // or d_input
  F* sums;         // over bands and bins along x; null: a block has all of a plane
  int32_t channels, anchors;
  int32_t bands, together;             // of a block; how many of them are summed at a time
  int64_t stride_n, stride_c, stride;  // of grad
};

// Sums V neighbours each of the rows of a band.
template <int V, typename T, typename F>
__device__ __forceinline__ void sum_rows(const Plan& plan, int band, const T* at,
                                         int64_t stride_row, F (&sums)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) sums[i] = F(0);
  for_rows(plan, band, [&](int32_t row) {
    const auto v = fetch(reinterpret_cast<const Vec<T, V>*>(at + row * stride_row));
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] += widen(v.data[i]);
  });
}

// The part of bin `bin` along x that lies in [x0, x0 + width), from x0 on.
struct Part {
  int32_t first, last;

  __device__ Part(const Axis& x, int bin, int32_t x0, int32_t width)
      : first(max(x.border[x.first[bin]] - x0, 0)), last(min(x.border[x.last[bin]] - x0, width)) {}
};

template <int V, typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_planes_kernel(const __grid_constant__ PoolCall<T> call) {
  using F = compute_t<T>;
  const Plan& plan = call.plan;
  const Axis& x = plan.x;
  const int32_t plane = blockIdx.x, first = blockIdx.y * call.bands;
  const int bands = min(call.bands, plan.bands() - first);
  const int pitch = min(kStrip, x.size) | 1;  // (odd: bands lie in different banks)
  F* const columns = dynamic_shared<F>();
  F* const sums = columns + call.together * pitch;  // [bin][band]
  const T* const input = call.input + int64_t(plane) * plan.t.size * plan.y.size * x.size;
  for (int band0 = 0; band0 < bands; band0 += call.together) {
    const int count = min(call.together, bands - band0);
    for (int32_t x0 = 0; x0 < x.size; x0 += kStrip) {
      const int32_t width = min(kStrip, x.size - x0), vectors = width / V;
      for (int i = threadIdx.x; i < count * vectors; i += kPoolThreads) {
        const int band = i / vectors, vector = i - band * vectors;
        F found[V];
        sum_rows(plan, first + band0 + band, input + x0 + vector * V, x.size, found);
        // (Neighbours go apart, so that threads side by side write side by side.)
#pragma unroll
        for (int k = 0; k < V; ++k) columns[band * pitch + k * vectors + vector] = found[k];
      }
      __syncthreads();
      for (int i = threadIdx.x; i < count * x.bins; i += kPoolThreads) {
        const int bin = i / count, band = i - bin * count;
        const Part part(x, bin, x0, width);
        F& sum = sums[bin * call.bands + band0 + band];
        F more = x0 == 0 ? F(0) : sum;
        for (int32_t k = part.first; k < part.last; ++k) {
          more += columns[band * pitch + k % V * vectors + k / V];
        }
        sum = more;
      }
      __syncthreads();
    }
  }
  if (!call.sums) {
    for (int i = threadIdx.x; i < call.anchors; i += kPoolThreads) {
      narrow(mean_of(plan, i, sums, 1, call.bands), call.out + int64_t(plane) * call.anchors + i);
    }
    return;
  }
  F* const to = call.sums + (int64_t(plane) * plan.bands() + first) * x.bins;
  for (int i = threadIdx.x; i < bands * x.bins; i += kPoolThreads) {
    const int band = i / x.bins, bin = i - band * x.bins;
    to[i] = sums[bin * call.bands + band];
  }
}

// Threads side by side that have a pixel's channels, and channels of a block.
template <int V>
constexpr int kLanesOfPixel = V == 1 ? 32 : 8;
template <int V>
constexpr int kChannels = kLanesOfPixel<V> * V;

struct Share {
  int32_t n, band, channel0;
};

template <int V, typename T>
__device__ __forceinline__ Share share_of_block(const PoolCall<T>& call) {
  const int32_t bands = call.plan.bands(), chunks = ceil_div(call.channels, kChannels<V>);
  const int32_t part = blockIdx.x / bands, n = part / chunks;
  return {n, static_cast<int32_t>(blockIdx.x) - part * bands, (part - n * chunks) * kChannels<V>};
}

template <int V, typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_vectors_kernel(const __grid_constant__ PoolCall<T> call) {
  using F = compute_t<T>;
  constexpr int lanes = kLanesOfPixel<V>, slots = kPoolThreads / lanes, strip = kStrip / 4;
  const Plan& plan = call.plan;
  const Axis& x = plan.x;
  const auto [n, band, channel0] = share_of_block<V>(call);
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;
  const int32_t channels = call.channels;
  F* const columns = dynamic_shared<F>();          // [pixel][channel]
  F* const sums = columns + strip * kChannels<V>;  // [bin][channel]
  const int64_t row = int64_t(x.size) * channels;
  const int32_t channel = channel0 + lane * V;
  const T* const input = call.input + n * (plan.t.size * plan.y.size * row) + channel;
  for (int32_t x0 = 0; x0 < x.size; x0 += strip) {
    const int32_t width = min(strip, x.size - x0);
    for (int i = slot; i < width && channel < channels; i += slots) {
      F found[V];
      sum_rows(plan, band, input + int64_t(x0 + i) * channels, row, found);
#pragma unroll
      for (int k = 0; k < V; ++k) columns[i * kChannels<V> + lane * V + k] = found[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kChannels<V> * x.bins; i += kPoolThreads) {
      const int bin = i / kChannels<V>, c = i % kChannels<V>;
      if (channel0 + c >= channels) continue;
      const Part part(x, bin, x0, width);
      F more = x0 == 0 ? F(0) : sums[i];
      for (int32_t k = part.first; k < part.last; ++k) more += columns[k * kChannels<V> + c];
      sums[i] = more;
    }
    __syncthreads();
  }
  F* const to = call.sums + (int64_t(n) * plan.bands() + band) * x.bins * channels + channel0;
  for (int i = threadIdx.x; i < kChannels<V> * x.bins; i += kPoolThreads) {
    const int bin = i / kChannels<V>, c = i % kChannels<V>;
    if (channel0 + c < channels) to[int64_t(bin) * channels + c] = sums[i];
  }
}

// The means, from the sums that the blocks of either kernel have left. `Last`: as channels_last.
template <bool Last, typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_means_kernel(const __grid_constant__ PoolCall<T> call, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (i >= count) return;
  const Plan& plan = call.plan;
  const int64_t size = Last ? call.channels : call.anchors, other = i / size;  // (fastest: `size`)
  const auto inner = static_cast<int32_t>(i - other * size);
  const int64_t sums = int64_t(plan.bands()) * plan.x.bins;
  if constexpr (Last) {
    const int64_t n = other / call.anchors;
    const auto anchor = static_cast<int32_t>(other - n * call.anchors);
    const int64_t bin = call.channels;
    narrow(mean_of(plan, anchor, call.sums + n * sums * bin + inner, plan.x.bins * bin, bin),
           call.out + (n * call.channels + inner) * call.anchors + anchor);
  } else {
    narrow(mean_of(plan, inner, call.sums + other * sums, plan.x.bins, 1), call.out + i);
  }
}

// ---- Backward ----

// The cell of each pixel of a row.
__device__ __forceinline__ void fill_cells(const Axis& x, uint8_t* cells) {
  for (int cell = threadIdx.x / 32; cell < x.cells; cell += kPoolThreads / 32) {
    for (int32_t i = x.border[cell] + threadIdx.x % 32; i < x.border[cell + 1]; i += 32) {
      cells[i] = static_cast<uint8_t>(cell);
    }
  }
}

// The sum of `of(bin)` over the bins along x that contain the cell.
template <typename F, typename Of>
__device__ __forceinline__ F sum_of_bins(const Axis& x, int cell, const Of& of) {
  F sum = F(0);
  for (int bin = 0; bin < x.bins; ++bin) {
    if (x.first[bin] <= cell && cell < x.last[bin]) sum += of(bin);
  }
  return sum;
}

template <int V, typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_planes_backward_kernel(const __grid_constant__ PoolCall<T> call) {
  using F = compute_t<T>;
  const Plan& plan = call.plan;
  const Axis& x = plan.x;
  const int32_t plane = blockIdx.x, first = blockIdx.y * call.bands;
  const int bands = min(call.bands, plan.bands() - first);
  const int32_t n = plane / call.channels, c = plane - n * call.channels;
  const T* const grad = call.input + n * call.stride_n + c * call.stride_c;
  T* const out = call.out + int64_t(plane) * plan.t.size * plan.y.size * x.size;
  F* const sums = dynamic_shared<F>();              // [bin][band]
  F* const values = sums + x.bins * call.together;  // [band][cell]
  uint8_t* const cells = reinterpret_cast<uint8_t*>(values + call.together * x.cells);
  fill_cells(x, cells);
  for (int band0 = 0; band0 < bands; band0 += call.together) {
    const int count = min(call.together, bands - band0);
    for (int i = threadIdx.x; i < count * x.bins; i += kPoolThreads) {
      const int bin = i / count, band = i - bin * count;
      sums[i] = gradient_of(plan, first + band0 + band, bin, grad, call.stride);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * x.cells; i += kPoolThreads) {
      const int band = i / x.cells, cell = i - band * x.cells;
      values[i] = sum_of_bins<F>(x, cell, [&](int bin) { return sums[bin * count + band]; });
    }
    __syncthreads();
    for (int band = threadIdx.x / 32; band < count; band += kPoolThreads / 32) {
      const F* const mine = values + band * x.cells;
      for (int32_t i = threadIdx.x % 32 * V; i < x.size; i += 32 * V) {
        Vec<T, V> v;
#pragma unroll
        for (int k = 0; k < V; ++k) narrow(mine[cells[i + k]], v.data + k);
        for_rows(plan, first + band0 + band, [&](int32_t row) {
          *reinterpret_cast<Vec<T, V>*>(out + int64_t(row) * x.size + i) = v;
        });
      }
    }
    __syncthreads();
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_vectors_backward_kernel(const __grid_constant__ PoolCall<T> call) {
  using F = compute_t<T>;
  constexpr int lanes = kLanesOfPixel<V>, slots = kPoolThreads / lanes;
  const Plan& plan = call.plan;
  const Axis& x = plan.x;
  const auto [n, band, channel0] = share_of_block<V>(call);
  const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;
  const int32_t channels = call.channels;
  F* const sums = dynamic_shared<F>();             // [bin][channel]
  F* const values = sums + x.bins * kChannels<V>;  // [cell][channel]
  uint8_t* const cells = reinterpret_cast<uint8_t*>(values + x.cells * kChannels<V>);
  fill_cells(x, cells);
  for (int i = threadIdx.x; i < kChannels<V> * x.bins; i += kPoolThreads) {
    const int bin = i / kChannels<V>, c = channel0 + i % kChannels<V>;
    const T* const grad = call.input + n * call.stride_n + c * call.stride_c;
    sums[i] = c < channels ? gradient_of(plan, band, bin, grad, call.stride) : F(0);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kChannels<V> * x.cells; i += kPoolThreads) {
    const int cell = i / kChannels<V>, c = i % kChannels<V>;
    values[i] = sum_of_bins<F>(x, cell, [&](int bin) { return sums[bin * kChannels<V> + c]; });
  }
  __syncthreads();
  const int64_t row = int64_t(x.size) * channels;
  const int32_t channel = channel0 + lane * V;
  if (channel >= channels) return;
  T* const out = call.out + n * (plan.t.size * plan.y.size * row) + channel;
  for (int32_t i = slot; i < x.size; i += slots) {
    Vec<T, V> v;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      narrow(values[cells[i] * kChannels<V> + lane * V + k], v.data + k);
    }
    for_rows(plan, band, [&](int32_t y) {
      *reinterpret_cast<Vec<T, V>*>(out + y * row + int64_t(i) * channels) = v;
    });
  }
}

// ---- Pyramids that no plan holds: more bins, wider rows. Correct, and no more. ----

// Sizes along one axis.
struct Along {
  int32_t bins, size;

  __device__ Along(int64_t k, int64_t n)
      : bins(static_cast<int32_t>(k)), size(static_cast<int32_t>(n)) {}
  __device__ int32_t begin(int32_t i) const { return bin_begin(i, bins, size); }
  __device__ int32_t end(int32_t i) const { return bin_end(i, bins, size); }
  __device__ int32_t length(int32_t i) const { return end(i) - begin(i); }
  __device__ Covering at(int32_t place) const { return {place, bins, size}; }
};

// A warp has a bin of a channel.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_any_kernel(const __grid_constant__ Pool<T> call) {
  using F = compute_t<T>;
  const Pyramid& p = call.pyramid;
  const int64_t i = (int64_t(blockIdx.x) * kPoolThreads + threadIdx.x) / 32;
  if (i >= call.out.n * call.out.c * call.out.size) return;
  const int64_t plane = i / call.out.size, n = plane / call.out.c, c = plane - n * call.out.c;
  auto anchor = static_cast<int32_t>(i - plane * call.out.size);
  const Level* level = p.level;
  while (anchor >= level->t * level->h * level->w) {
    anchor -= static_cast<int32_t>(level->t * level->h * level->w);
    ++level;
  }
  const Along t(level->t, p.t), y(level->h, p.h), x(level->w, p.w);
  const int32_t row = anchor / x.bins, ix = anchor - row * x.bins;
  const int32_t it = row / y.bins, iy = row - it * y.bins;
  const T* const input = call.input.data + n * call.input.stride_n + c * call.input.stride_c;
  F sum = F(0);
  for (int32_t at = t.begin(it); at < t.end(it); ++at) {
    for (int32_t line = y.begin(iy); line < y.end(iy); ++line) {
      for (int32_t k = x.begin(ix) + threadIdx.x % 32; k < x.end(ix); k += 32) {
        const int32_t pixel = (at * y.size + line) * x.size + k;
        sum += widen(fetch(input + pixel * call.input.stride));
      }
    }
  }
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffff, sum, by);
  if (threadIdx.x % 32 == 0) {
    narrow(sum / (F(t.length(it)) * F(y.length(iy)) * F(x.length(ix))), call.out.data + i);
  }
}

// A thread has a pixel of a channel.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_any_backward_kernel(const __grid_constant__ PoolBackward<T> call) {
  using F = compute_t<T>;
  const Pyramid& p = call.pyramid;
  const Columns<T>& out = call.d_input;
  const int64_t i = int64_t(blockIdx.x) * kPoolThreads + threadIdx.x;
  if (i >= out.n * out.c * out.size) return;
  const int64_t plane = i / out.size, n = plane / out.c, c = plane - n * out.c;
  const auto pixel = static_cast<int32_t>(i - plane * out.size);
  const auto w = static_cast<int32_t>(p.w), h = static_cast<int32_t>(p.h);
  const int32_t row = pixel / w, frame = row / h;
  const T* grad = call.grad.data + n * call.grad.stride_n + c * call.grad.stride_c;
  F sum = F(0);
  for (const Level* level = p.level; level < p.level + p.levels; ++level) {
    const Along t(level->t, p.t), y(level->h, p.h), x(level->w, p.w);
    const Covering ts = t.at(frame), ys = y.at(row - frame * h), xs = x.at(pixel - row * w);
    for (int32_t it = ts.first; it <= ts.last; ++it) {
      for (int32_t iy = ys.first; iy <= ys.last; ++iy) {
        const F rows = F(t.length(it)) * F(y.length(iy));
        for (int32_t ix = xs.first; ix <= xs.last; ++ix) {
          const int32_t anchor = (it * y.bins + iy) * x.bins + ix;
          sum += widen(fetch(grad + anchor * call.grad.stride)) / (rows * F(x.length(ix)));
        }
      }
    }
    grad += level->t * level->h * level->w * call.grad.stride;
  }
  narrow(sum, out.data + n * out.stride_n + c * out.stride_c + pixel * out.stride);
}

}  // namespace
}  // namespace vsegops::attention
