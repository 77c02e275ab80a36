// What CUDA kernels share that sample along a flow: where a pixel samples, and the way back to
// there.
//
// First one thread of each pixel finds where it samples and leaves that in shared memory; then all
// threads of the pixel go along its channels.
#pragma once

#include "pixels.h"
#include "sampling.h"

namespace vsegops {

// Where a pixel samples: its taps stand at offset, + right, + down, + right + down.
template <typename F>
struct Point {
  int32_t offset;
  F x[2], y[2];  // weights
  F slope_x[2], slope_y[2];
  F factor;  // of the pixel, as `find` is given it
};

template <typename T, typename F, typename Layout>
__device__ Point<F> find(const Mapping<F>& mapping, const Either<T>& flow,
                         const View<const T>& factor, const Worker<Layout>& me) {
  const int64_t at = flow.at(me.n, 0, me.y, me.x);
  const F flow_x = flow.load(at), flow_y = flow.load(at + flow.stride_c);
  const Taps<F> u = mapping.taps_x(mapping.x.base(me.x), flow_x);
  const Taps<F> v = mapping.taps_y(mapping.y.base(me.y), flow_y);
  F value = F(1);
  if (factor.data) value = widen(fetch(factor.data + factor.at(me.n, 0, me.y, me.x)));
  return {v.low * mapping.x.source + u.low, {u.weight_low, u.weight_high},
          {v.weight_low, v.weight_high},    {u.slope_low, u.slope_high},
          {v.slope_low, v.slope_high},      value};
}

// The four taps of a point.
template <typename F>
struct Corners {
  int32_t pixel[4];
  F weight[4];

  __device__ Corners(const Mapping<F>& mapping, const Point<F>& p) {
    const int32_t right = mapping.x.source > 1, down = mapping.y.source > 1 ? mapping.x.source : 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pixel[k] = p.offset + (k & 1 ? right : 0) + (k & 2 ? down : 0);
      weight[k] = p.x[k & 1] * p.y[k >> 1];
    }
  }
};

// Adds g times the derivatives along u and v of what a pixel samples, given its taps, to sums[0]
// and sums[1].
template <typename F, int N>
__device__ void add_slopes(const Point<F>& p, const F (&tap)[4][N], const F (&g)[N], F* sums) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const F top = p.slope_x[0] * tap[0][i] + p.slope_x[1] * tap[1][i];
    const F bottom = p.slope_x[0] * tap[2][i] + p.slope_x[1] * tap[3][i];
    const F left = p.slope_y[0] * tap[0][i] + p.slope_y[1] * tap[2][i];
    const F right = p.slope_y[0] * tap[1][i] + p.slope_y[1] * tap[3][i];
    sums[0] += g[i] * (p.y[0] * top + p.y[1] * bottom);
    sums[1] += g[i] * (p.x[0] * left + p.x[1] * right);
  }
}

// Adds to the gradient of the input at the taps of a pixel, one vector at a time.
template <typename Layout, typename F>
struct Scatter {
  const Image<Layout, F> d_input;
  const Corners<F> taps;

  __device__ Scatter(const Image<Layout, F>& image, const Corners<F>& corners, bool)
      : d_input(image), taps(corners) {}

  template <int N>
  __device__ void add(int32_t c, const F (&grad)[N]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      F values[N];
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = taps.weight[k] * grad[i];
      if (taps.weight[k] != F(0)) atomic_add(d_input.at(taps.pixel[k], c), values);
    }
  }
};

// Where the flow is smooth, a pixel's right-hand taps are the left-hand ones of the pixel beside
// it, whose thread then adds both: half the atomic additions. All threads of a warp have to come.
template <typename F>
struct Scatter<Planes, F> {
  static constexpr unsigned kWarp = 0xffffffff;
  const Image<Planes, F> d_input;
  const Corners<F> taps;
  bool takes, gives;

  // `beside`: the lane before this one has the pixel to the left.
  __device__ Scatter(const Image<Planes, F>& image, const Corners<F>& corners, bool beside)
      : d_input(image), taps(corners) {
    const int32_t left = __shfl_up_sync(kWarp, corners.pixel[1], 1);
    takes = beside && left == corners.pixel[0] && corners.pixel[0] != corners.pixel[1];
    const bool taken = __shfl_down_sync(kWarp, static_cast<int>(takes), 1);
    gives = taken && (threadIdx.x & 31) != 31;
  }

  template <int N>
  __device__ void add(int32_t c, const F (&grad)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        F left = taps.weight[k] * grad[i], right = taps.weight[k + 1] * grad[i];
        const F from_left = __shfl_up_sync(kWarp, right, 1);
        if (takes) left += from_left;
        if (gives) right = F(0);
        if (left != F(0)) atomicAdd(d_input.at(taps.pixel[k], c + i), left);
        if (right != F(0)) atomicAdd(d_input.at(taps.pixel[k + 1], c + i), right);
      }
    }
  }
};

}  // namespace vsegops
