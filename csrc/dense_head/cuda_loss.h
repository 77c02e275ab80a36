// The CUDA kernels of the loss.
#pragma once

#include <optional>

#include "cuda_softmax.h"

namespace vsegops::dense_head {
namespace {

// What stands for a class in pixels that have none.
constexpr int32_t kIgnored = -1, kWrong = -2;

// The loss's arguments, as kernels take them.
template <typename F>
struct Terms {
  Target target;
  const F* weight;
  int64_t ignore_index;
  F smoothing;
  int32_t classes;

  template <typename T>
  explicit Terms(const Loss<T, F>& call)
      : target(call.target),
        weight(call.weight),
        ignore_index(call.ignore_index),
        smoothing(call.label_smoothing),
        classes(static_cast<int32_t>(call.logits.c)) {}

  __device__ int32_t label(int32_t n, int32_t y, int32_t x) const {
    const int64_t label = target.at(n, y, x);
    if (label == ignore_index) return kIgnored;
    return label >= 0 && label < classes ? static_cast<int32_t>(label) : kWrong;
  }
  // w of a label; NaN where it is wrong.
  __device__ F weight_of(int32_t label) const {
    if (label < 0) return label == kIgnored ? F(0) : F(NAN);
    return weight ? fetch(weight + label) : F(1);
  }
  __device__ F sharp(int32_t label) const { return (F(1) - smoothing) * weight_of(label); }
  __device__ F even_share() const { return smoothing / static_cast<F>(classes); }  // s / C
  __device__ F sum_of_weights() const {
    if (!weight) return static_cast<F>(classes);
    F sum = F(0);
    for (int32_t c = 0; c < classes; ++c) sum += fetch(weight + c);
    return sum;
  }
};

template <typename T, typename F>
struct LossCall {
  Tiling<T, F> tiling;
  Terms<F> terms;
  F* losses;         // or null, and then
  double2* partial;  // of each block: the sums of losses and weights
};

// The sums over a block's threads, in thread 0 and in a fixed order.
template <int Threads>
__device__ double2 sum_block(double2 mine) {
  __shared__ double2 sums[Threads];
  sums[threadIdx.x] = mine;
#pragma unroll 1
  for (int half = Threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      mine.x += sums[threadIdx.x + half].x;
      mine.y += sums[threadIdx.x + half].y;
      sums[threadIdx.x] = mine;
    }
  }
  return mine;
}

// Sums over the classes of a column: of w_c, and of w_c (Z_c - Z_0), which is a line as well.
template <typename F>
struct Weighted {
  F weight = F(0);
  Line<F> first{}, rest{};

  template <typename T>
  __device__ void add(const Column<T, F>& column, const Terms<F>& terms) {
    first = column.line(0);
    column.each(0, terms.classes, [&](int32_t c, const Line<F>& line) {
      const F w = terms.weight_of(c);
      weight += w;
      rest.start += w * (line.start - first.start);
      rest.slope += w * (line.slope - first.slope);
    });
  }

  // sum_c w_c l_c
  __device__ F loss(F log_sum, F y) const {
    return weight * (log_sum - (first.start + y * first.slope)) - (rest.start + y * rest.slope);
  }
};

// Moves each logit, each target and each loss once. A class costs two exponentials and some 20
// operations for each column of a cell, and a multiplication and an addition for each output pixel:
// some 5 operations a class and pixel at ratio 8. Arithmetic bounds it.
template <typename T, typename F>
__global__ void __launch_bounds__(kColumns, sizeof(F) == 4 ? 5 : 4)
    loss_kernel(const LossCall<T, F> call) {
  const Tiling<T, F>& tiling = call.tiling;
  const Terms<F>& terms = call.terms;
  const Rows<F> rows(tiling);
  double2 sums{0, 0};
  if (rows.row < rows.end) {
    const Column<T, F> column(tiling, rows);
    const Axis<F>&y_axis = tiling.upsampling.y, &x_axis = tiling.upsampling.x;
    Weighted<F> weighted;
    if (terms.smoothing != F(0)) weighted.add(column, terms);
    rows.each([&](auto number, int32_t first, int32_t count) {
      constexpr int R = decltype(number)::value;
      const F start = y_axis.base(first).fraction;
      const Softmax<R, F> softmax(column, terms.classes, start, tiling.step);
      if (!softmax.exact) return false;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= count || !column.inside) break;
        const int32_t label = terms.label(rows.n, first + r, column.x);
        const F log_sum = softmax.log_sum(r), weight = terms.weight_of(label);
        F loss = F(0);
        if (label != kIgnored) {
          const Line<F> line = column.line(max(label, 0));
          const F y = start + F(r) * tiling.step;
          loss = (F(1) - terms.smoothing) * weight * (log_sum - (line.start + y * line.slope));
          if (terms.smoothing != F(0)) loss += terms.even_share() * weighted.loss(log_sum, y);
        }
        sums.x += loss;
        sums.y += weight;
        if (call.losses) {
          call.losses[(int64_t(rows.n) * y_axis.output + first + r) * x_axis.output + column.x] =
              loss;
        }
      }
      return true;
    });
  }
  if (call.losses) return;
  sums = sum_block<kColumns>(sums);
  if (threadIdx.x == 0) {
    const int64_t line = int64_t(rows.n) * tiling.lines + rows.line;
    call.partial[line * tiling.tiles + blockIdx.x] = sums;
  }
}

// Sums up what the blocks of loss_kernel leave: 16 bytes for two additions, by one block.
constexpr int kSumThreads = 512;

template <typename F>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const double2* partial, int64_t count, F* sum, F* total) {
  double2 mine{0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) {
    const double2 other = partial[i];
    mine.x += other.x;
    mine.y += other.y;
  }
  mine = sum_block<kSumThreads>(mine);
  if (threadIdx.x == 0) {
    *sum = static_cast<F>(mine.x);
    *total = static_cast<F>(mine.y);
  }
}

template <typename T, typename F>
void loss(const LossForward<T, F>& given, const Context& context) {
  check("logits", given.logits);
  LossCall<T, F> call{Tiling<T, F>(given), Terms<F>(given), given.losses, nullptr};
  const int64_t pixels =
      given.logits.n * int64_t(given.upsampling.y.output) * given.upsampling.x.output;
  const int64_t blocks = pixels > 0 ? given.logits.n * call.tiling.lines * call.tiling.tiles : 0;
  std::optional<Tensor> partial;
  if (given.sum) partial.emplace(context.scratch(blocks, &call.partial));
  if (blocks > 0) launch_tiles(loss_kernel<T, F>, call, 0, context);
  if (!given.sum) return;
  launch(sum_kernel<F>, dim3(1), dim3(kSumThreads), 0, context.stream(), call.partial, blocks,
         given.sum, given.total);
}

}  // namespace
}  // namespace vsegops::dense_head
