// The CUDA kernel of the labels.
#pragma once

#include "cuda_softmax.h"

namespace vsegops::dense_head {
namespace {

template <typename T, typename F>
struct ArgmaxCall {
  Tiling<T, F> tiling;
  uint8_t* labels;
  int32_t* wide_labels;
  F* confidence;
};

// Moves each logit and each label once, for a multiply-add, a comparison and two selections a class
// and output pixel: some 40 operations a byte, so arithmetic bounds it. The corners come from the
// level 1 cache, four reads a class for up to kRows pixels.
template <bool Sure, typename T, typename F>
__global__ void __launch_bounds__(kColumns, sizeof(F) == 4 ? 7 : 4)
    argmax_kernel(const ArgmaxCall<T, F> call) {
  const Tiling<T, F>& tiling = call.tiling;
  const Rows<F> rows(tiling);
  if (rows.row >= rows.end) return;
  const Column<T, F> column(tiling, rows);
  if (!column.inside) return;
  const int32_t classes = static_cast<int32_t>(tiling.logits.c);
  const Axis<F>&y_axis = tiling.upsampling.y, &x_axis = tiling.upsampling.x;
  rows.each([&](auto number, int32_t first, int32_t count) {
    constexpr int R = decltype(number)::value;
    const Fractions<R, F> y(y_axis, first, tiling.step);
    F best[R];
    int32_t label[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      best[r] = -F(INFINITY);
      label[r] = 0;
    }
    column.each(0, classes, [&](int32_t c, const Line<F>& line) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const F value = line.start + y.at[r] * line.slope;
        if (value > best[r]) {
          best[r] = value;
          label[r] = c;
        }
      }
    });
    const int64_t at = (int64_t(rows.n) * y_axis.output + first) * x_axis.output + column.x;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= count) break;
      const int64_t place = at + int64_t(r) * x_axis.output;
      if (call.labels) {
        call.labels[place] = static_cast<uint8_t>(label[r]);
      } else {
        call.wide_labels[place] = label[r];
      }
    }
    if constexpr (Sure) {
      const Softmax<R, F> softmax(column, classes, y.at[0], tiling.step);
      if (!softmax.exact) return false;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= count) break;
        call.confidence[at + int64_t(r) * x_axis.output] =
            exponential(best[r] - softmax.log_sum(r));
      }
    }
    return true;
  });
}

template <typename T, typename F>
void argmax(const Argmax<T, F>& given, const Context& context) {
  check("logits", given.logits);
  const ArgmaxCall<T, F> call{Tiling<T, F>(given), given.labels, given.wide_labels,
                              given.confidence};
  lift(given.confidence != nullptr, [&](auto sure) {
    launch_tiles(argmax_kernel<decltype(sure)::value, T, F>, call, 0, context);
  });
}

}  // namespace
}  // namespace vsegops::dense_head
