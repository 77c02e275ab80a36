// The CUDA kernel of the label map's edges.
#pragma once

#include "cuda_pixels.h"

namespace vsegops::guided_filter {
namespace {

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

}  // namespace
}  // namespace vsegops::guided_filter
