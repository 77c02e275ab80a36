// Launches of the pooling kernels.
#pragma once

#include <optional>

#include "cuda_pool.h"

namespace vsegops::attention {
namespace {

template <typename T>
bool channels_last(const Columns<T>& x) {
  return x.stride_c < x.stride;
}

// Calls `run(V)` with how many neighbours are accessed together in lines of `length`.
template <typename T, typename Run>
void with_vector(int64_t length, const void* data, const Run& run) {
  if (length % kVector<T> == 0 && aligned(data)) {
    run(std::integral_constant<int, kVector<T>>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

// 32-bit arithmetic finds bins.
template <typename T>
void check_pyramid(const Pyramid& pyramid, const Columns<T>& x) {
  constexpr int64_t limit = int64_t(1) << 31;
  STD_TORCH_CHECK(x.n * x.c < limit && x.size < limit,
                  "input: expected fewer than 2^31 planes, and pixels of each, got ", x.n * x.c,
                  " and ", x.size);
  bool fits = pyramid.anchors() < limit;
  for (int i = 0; i < pyramid.levels; ++i) {
    const Level& level = pyramid.level[i];
    fits = fits && (pyramid.t + 1) * level.t < limit && (pyramid.h + 1) * level.h < limit &&
           (pyramid.w + 1) * level.w < limit;
  }
  STD_TORCH_CHECK(fits, "sizes: expected fewer than 2^31 bins, and pixels times bins along each",
                  " dimension");
}

// Shares the bands of a plane out among blocks, at most `most` for each.
template <typename T>
int32_t share_bands(PoolCall<T>* call, int64_t planes, int64_t most) {
  const int64_t bands = call->plan.bands(), blocks = ceil_div(kManyBlocks, planes);
  call->bands = static_cast<int32_t>(
      std::clamp<int64_t>(ceil_div(bands, blocks), 1, std::max<int64_t>(1, most)));
  return static_cast<int32_t>(ceil_div<int64_t>(bands, call->bands));
}

// Pixels of a plane are rows that blocks have a band of: how many rows of them.
template <int V>
int64_t rows_of_band(int64_t images, int64_t channels, int64_t height) {
  const int64_t chunks = images * ceil_div<int64_t>(channels, kChannels<V>);
  return std::max<int64_t>(1, height / ceil_div(kManyBlocks, chunks));
}

template <int V, typename T>
dim3 blocks_of_vectors(const PoolCall<T>& call, int64_t images) {
  const int64_t chunks = ceil_div<int64_t>(call.channels, kChannels<V>);
  const int64_t blocks = images * chunks * call.plan.bands();
  STD_TORCH_CHECK(blocks < int64_t(1) << 31, "input: too large, it needs ", blocks, " blocks");
  return dim3(static_cast<uint32_t>(blocks));
}

inline dim3 blocks_for(int64_t threads) {
  return dim3(static_cast<uint32_t>(ceil_div<int64_t>(threads, kPoolThreads)));
}

template <bool Last, typename T>
void means(const PoolCall<T>& call, int64_t count, const Context& context) {
  launch(pool_means_kernel<Last, T>, blocks_for(count), dim3(kPoolThreads), 0, context.stream(),
         call, count);
}

template <typename T>
void pool(const Pool<T>& given, const Context& context) {
  using F = compute_t<T>;
  const Columns<const T>& in = given.input;
  const Pyramid& pyramid = given.pyramid;
  check_pyramid(pyramid, in);
  const int64_t planes = in.n * in.c, count = planes * given.out.size;
  const bool last = channels_last(in);
  with_vector<T>(last ? in.c : pyramid.w, in.data, [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    PoolCall<T> call{};
    if (!make_plan(pyramid, last ? rows_of_band<V>(in.n, in.c, pyramid.h) : 0, &call.plan)) {
      return launch(pool_any_kernel<T>, blocks_for(32 * count), dim3(kPoolThreads), 0,
                    context.stream(), given);
    }
    const Axis& x = call.plan.x;
    call.input = in.data;
    call.out = given.out.data;
    call.channels = static_cast<int32_t>(in.c);
    call.anchors = static_cast<int32_t>(given.out.size);
    const int64_t sums = planes * call.plan.bands() * x.bins;
    if (last) {
      const Tensor held = context.scratch(sums, &call.sums);
      const size_t shared = (kStrip / 4 + x.bins) * kChannels<V> * sizeof(F);
      launch(pool_vectors_kernel<V, T>, blocks_of_vectors<V>(call, in.n), dim3(kPoolThreads),
             shared, context.stream(), call);
      means<true>(call, count, context);
    } else {
      const int64_t pitch = std::min(kStrip, x.size) | 1;
      const int32_t blocks = share_bands(&call, planes, kMostSummed / (x.bins * sizeof(F)));
      call.together = static_cast<int32_t>(
          std::clamp<int64_t>(kMostSummed / (pitch * sizeof(F)), 1, call.bands));
      std::optional<Tensor> held;
      if (blocks > 1) held.emplace(context.scratch(sums, &call.sums));
      const size_t shared = (call.together * pitch + call.bands * x.bins) * sizeof(F);
      launch(pool_planes_kernel<V, T>, dim3(static_cast<uint32_t>(planes), blocks),
             dim3(kPoolThreads), shared, context.stream(), call);
      if (blocks > 1) means<false>(call, count, context);
    }
  });
}

template <typename T>
void pool_backward(const PoolBackward<T>& given, const Context& context) {
  using F = compute_t<T>;
  const Columns<T>& out = given.d_input;
  const Pyramid& pyramid = given.pyramid;
  check_pyramid(pyramid, out);
  const int64_t planes = out.n * out.c;
  const bool last = channels_last(out);
  with_vector<T>(last ? out.c : pyramid.w, out.data, [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    PoolCall<T> call{};
    if (pyramid.w > kMostWidth ||
        !make_plan(pyramid, last ? rows_of_band<V>(out.n, out.c, pyramid.h) : 0, &call.plan)) {
      return launch(pool_any_backward_kernel<T>, blocks_for(planes * out.size), dim3(kPoolThreads),
                    0, context.stream(), given);
    }
    const Axis& x = call.plan.x;
    call.input = given.grad.data;
    call.stride_n = given.grad.stride_n;
    call.stride_c = given.grad.stride_c;
    call.stride = given.grad.stride;
    call.out = out.data;
    call.channels = static_cast<int32_t>(out.c);
    const size_t band = (x.bins + x.cells) * sizeof(F);  // bytes for one, of a channel
    if (last) {
      launch(pool_vectors_backward_kernel<V, T>, blocks_of_vectors<V>(call, out.n),
             dim3(kPoolThreads), band * kChannels<V> + x.size, context.stream(), call);
    } else {
      const int32_t blocks = share_bands(&call, planes, call.plan.bands());
      call.together = static_cast<int32_t>(std::clamp<int64_t>(kMostSummed / band, 1, call.bands));
      launch(pool_planes_backward_kernel<V, T>, dim3(static_cast<uint32_t>(planes), blocks),
             dim3(kPoolThreads), call.together * band + x.size, context.stream(), call);
    }
  });
}

}  // namespace
}  // namespace vsegops::attention
