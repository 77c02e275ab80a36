// The filter's CUDA kernels: forward, and backward to S, intra and the guide.
#pragma once

#include "cuda_pixels.h"

namespace vsegops::guided_filter {
namespace {

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

}  // namespace
}  // namespace vsegops::guided_filter
