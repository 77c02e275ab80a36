// The CUDA kernels of the loss's gradient, by the adjoint of the interpolation:
//
//   cells_kernel:   what the output pixels of a block give to the pixels of the logits above and
//                   below them, once for each block: a few times the size of the logits
//   gather_kernel:  the sum of these over the blocks that touch a pixel
//
// Both sum in a fixed order, without atomics.
#pragma once

#include "cuda_loss.h"

namespace vsegops::dense_head {
namespace {

// The gradients of the pixels above and below a row of cells.
template <typename F>
struct alignas(2 * sizeof(F)) Sides {
  F top, bottom;
};

template <typename T, typename F>
struct GradientCall {
  Tiling<T, F> tiling;
  Terms<F> terms;
  const F* grad;
  bool reduced;
  int32_t chunk;      // classes at a time, as many as shared memory has room for
  int32_t pitch;      // places for the pixels of the logits along x that a block touches
  Sides<F>* partial;  // [image][line][class][tile][pitch]
  View<T> d_logits;
};

// ---- Where a block's columns go ----

// The first output column at this pixel or a later one, clamped.
template <typename F>
__device__ int32_t first_at(const Axis<F>& axis, int32_t pixel) {
  return pixel <= 0 ? 0 : pixel >= axis.source ? axis.output : first_in(axis, pixel + 1);
}

// The pixels along x that a tile of columns touches are `first` and more.
template <typename F>
struct Touched {
  int32_t begin, end;    // columns
  int32_t first, count;  // pixels

  __device__ Touched(const Axis<F>& axis, int32_t tile)
      : begin(tile * kColumns), end(min(axis.output, begin + kColumns)) {
    first = clamped(axis, begin).index;
    count = min(clamped(axis, end - 1).index + 1, axis.source - 1) - first + 1;
  }
};

// A column's place in shared memory: neighbouring pixels at ratio 8 or 4 do not meet in a bank.
constexpr int kPitch = kColumns + kColumns / 8;
__device__ __forceinline__ int place_of(int column) { return column + column / 8; }

// Adds up the columns of each touched pixel for `classes` classes from c0 on, and adds these to
// the block's partial sums, or sets them.
template <typename T, typename F>
__device__ void flush(const GradientCall<T, F>& call, const Rows<F>& rows, const Sides<F>* sums,
                      const F* fractions, int32_t c0, int32_t classes, bool set) {
  const Axis<F>& axis = call.tiling.upsampling.x;
  const Touched<F> touched(axis, blockIdx.x);
  const int32_t groups = max(1, kColumns / touched.count);
  const int64_t line = int64_t(rows.n) * call.tiling.lines + rows.line;
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < touched.count * groups; i += kColumns) {
    const int32_t group = i / touched.count, slot = i - group * touched.count;
    const int32_t pixel = touched.first + slot;
    const auto bound = [&](int32_t p) {
      return min(max(first_at(axis, p), touched.begin), touched.end) - touched.begin;
    };
    const int32_t begin = bound(pixel - 1), middle = bound(pixel), end = bound(pixel + 1);
#pragma unroll 1
    for (int32_t c = group; c < classes; c += groups) {
      const Sides<F>* from = sums + c * kPitch;
      Sides<F> sum{F(0), F(0)};
      const auto add = [&](int32_t column, F weight) {
        const Sides<F> value = from[place_of(column)];
        sum.top += weight * value.top;
        sum.bottom += weight * value.bottom;
      };
      for (int32_t x = begin; x < middle; ++x) add(x, fractions[x]);
      for (int32_t x = middle; x < end; ++x) add(x, F(1) - fractions[x]);
      Sides<F>* to =
          call.partial +
          ((line * call.terms.classes + c0 + c) * call.tiling.tiles + blockIdx.x) * call.pitch +
          slot;
      if (!set) {
        sum.top += to->top;
        sum.bottom += to->bottom;
      }
      *to = sum;
    }
  }
}

// Moves each logit and target once and, at ratio 8, writes a seventh of a byte for each class and
// output pixel. A column of a cell costs a class some 50 operations, of them four exponentials, and
// each output pixel a multiplication and an addition for the sum of the exponentials, then a
// multiplication and two multiply-adds: some 12 operations a class and pixel. Arithmetic bounds it.
template <typename T, typename F>
__global__ void __launch_bounds__(kColumns, 3) cells_kernel(const GradientCall<T, F> call) {
  __shared__ F fractions[kColumns];
  Sides<F>* const sums = dynamic_shared<Sides<F>>();  // [class][column]
  const Tiling<T, F>& tiling = call.tiling;
  const Terms<F>& terms = call.terms;
  const Rows<F> rows(tiling);
  if (rows.row >= rows.end) return;
  const Column<T, F> column(tiling, rows);
  const Axis<F>&y_axis = tiling.upsampling.y, &x_axis = tiling.upsampling.x;
  Sides<F>* const mine = sums + place_of(threadIdx.x);
  fractions[threadIdx.x] = column.fraction;
  const F even = terms.even_share(), all = even != F(0) ? even * terms.sum_of_weights() : F(0);
  rows.each([&](auto number, int32_t first, int32_t count) {
    constexpr int R = decltype(number)::value;
    const F start = y_axis.base(first).fraction, step = tiling.step;
    const Softmax<R, F> softmax(column, terms.classes, start, step);
    if (__syncthreads_or(!softmax.exact)) return false;
    // (Asked for twice: kept in between they would cost registers.)
    const auto label_of = [&](int r) {
      const bool counts = column.inside && r < count;
      return counts ? terms.label(rows.n, first + r, column.x) : kIgnored;
    };
    const auto grad_of = [&](int r) {
      const int64_t row = int64_t(rows.n) * y_axis.output + first + r;
      return fetch(call.grad + (call.reduced ? 0 : row * x_axis.output + column.x));
    };
    F factor[R], lower_factor[R];  // of the exponentials
    F grads = F(0), lower_grads = F(0);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      factor[r] = lower_factor[r] = F(0);
      const int32_t label = label_of(r);
      if (label == kIgnored) continue;
      const F g = grad_of(r), y = start + F(r) * step;
      factor[r] = g * (terms.sharp(label) + all) * softmax.factor(r);
      lower_factor[r] = factor[r] * y;
      grads += g;
      lower_grads += g * y;
    }
#pragma unroll 1
    for (int32_t c0 = 0; c0 < terms.classes; c0 += call.chunk) {
      const int32_t classes = min(call.chunk, terms.classes - c0);
      column.each(c0, c0 + classes, [&](int32_t c, const Line<F>& line) {
        F sum = F(0), lower = F(0);
        softmax.each(line, [&](int r, F e) {
          sum += factor[r] * e;
          lower += lower_factor[r] * e;
        });
        if (even != F(0)) {
          const F share = even * terms.weight_of(c);
          sum -= share * grads;
          lower -= share * lower_grads;
        }
        mine[(c - c0) * kPitch] = {sum - lower, lower};
      });
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int32_t label = label_of(r), c = label - c0;
        if (label < 0 || c < 0 || c >= classes) continue;
        const F share = grad_of(r) * terms.sharp(label), lower = share * (start + F(r) * step);
        Sides<F>& side = mine[c * kPitch];
        side.top -= share - lower;
        side.bottom -= lower;
      }
      __syncthreads();
      flush(call, rows, sums, fractions, c0, classes, first == rows.row);
      __syncthreads();
    }
    return true;
  });
}

// ---- Gather ----

constexpr int kGatherThreads = 128, kGatherClasses = 4;

// A pixel of the logits a thread, kGatherClasses classes. Moves as many sums as cells_kernel leaves
// and each gradient once, for an addition each: memory bounds it, or the level 2 cache.
template <typename T, typename F>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const GradientCall<T, F> call, int32_t first_chunk) {
  const Tiling<T, F>& tiling = call.tiling;
  const Axis<F>&y_axis = tiling.upsampling.y, &x_axis = tiling.upsampling.x;
  const View<T>& d = call.d_logits;
  const uint32_t pixel = blockIdx.x * kGatherThreads + threadIdx.x;
  if (pixel >= d.h * d.w) return;
  const int32_t i = pixel / static_cast<uint32_t>(x_axis.source);
  const int32_t j = pixel - static_cast<uint32_t>(i) * x_axis.source;
  const int32_t n = tiling.first_image + blockIdx.z;
  const int32_t c0 = (first_chunk + blockIdx.y) * kGatherClasses;
  const int32_t begin = first_at(x_axis, j - 1), end = first_at(x_axis, j + 1);
  const int32_t first_tile = begin / kColumns, last_tile = (end - 1) / kColumns;
  F sums[kGatherClasses] = {};
  // Below the row of cells i, and above the next one; beyond the border, both.
  for (int32_t cell = i; cell <= i + 1; ++cell) {
    const bool top = cell > i || cell == 0, bottom = cell == i || cell == y_axis.source;
    const int32_t rows = first_in(y_axis, cell + 1) - first_in(y_axis, cell);
    for (int32_t part = 0; part * kBlockRows < rows; ++part) {
      const int64_t line = int64_t(n) * tiling.lines + cell * tiling.parts + part;
      for (int32_t tile = first_tile; begin < end && tile <= last_tile; ++tile) {
        const int32_t slot = j - Touched<F>(x_axis, tile).first;
#pragma unroll
        for (int k = 0; k < kGatherClasses; ++k) {
          if (c0 + k >= d.c) break;
          const Sides<F> from = fetch(
              call.partial + ((line * d.c + c0 + k) * tiling.tiles + tile) * call.pitch + slot);
          sums[k] += (top ? from.top : F(0)) + (bottom ? from.bottom : F(0));
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kGatherClasses; ++k) {
    if (c0 + k < d.c) narrow(sums[k], d.data + d.at(n, c0 + k, i, j));
  }
}

template <typename T, typename F>
void launch_gather(GradientCall<T, F> call, const Context& context) {
  const View<T>& d = call.d_logits;
  const int64_t chunks = ceil_div<int64_t>(d.c, kGatherClasses);
  for (int64_t n = 0; n < d.n; n += kGridLimit) {
    for (int64_t chunk = 0; chunk < chunks; chunk += kGridLimit) {
      call.tiling.first_image = static_cast<int32_t>(n);
      const dim3 grid(static_cast<uint32_t>(ceil_div<int64_t>(d.h * d.w, kGatherThreads)),
                      static_cast<uint32_t>(std::min(kGridLimit, chunks - chunk)),
                      static_cast<uint32_t>(std::min(kGridLimit, d.n - n)));
      launch(gather_kernel<T, F>, grid, dim3(kGatherThreads), 0, context.stream(), call,
             static_cast<int32_t>(chunk));
    }
  }
}

// The most pixels along x that kColumns output columns touch.
template <typename F>
int64_t most_touched(const Axis<F>& axis) {
  const int64_t span = axis.align_corners && axis.output > 1
                           ? (kColumns - 1) * (axis.source - int64_t(1)) / (axis.output - 1)
                           : (kColumns - 1) * int64_t(axis.source) / axis.output;
  return std::min<int64_t>(axis.source, span + 3);
}

template <typename T, typename F>
void loss_backward(const LossBackward<T, F>& given, const Context& context) {
  constexpr int64_t kSharedBytes = 28 << 10;  // for 24 classes of float32
  check("logits", given.logits);
  const View<const T>& x = given.logits;
  if (given.upsampling.x.output == 0 || given.upsampling.y.output == 0) {
    return zero(given.d_logits.data, x.n * x.c * x.h * x.w * sizeof(T), context.stream());
  }
  const int64_t room = kSharedBytes / static_cast<int64_t>(kPitch * sizeof(Sides<F>));
  const int64_t chunk = ceil_div(x.c, ceil_div(x.c, room));
  GradientCall<T, F> call{Tiling<T, F>(given),
                          Terms<F>(given),
                          given.grad,
                          given.reduced,
                          static_cast<int32_t>(chunk),
                          static_cast<int32_t>(most_touched(given.upsampling.x)),
                          nullptr,
                          given.d_logits};
  const Tiling<T, F>& tiling = call.tiling;
  const Tensor partial =
      context.scratch(x.n * tiling.lines * x.c * tiling.tiles * call.pitch, &call.partial);
  launch_tiles(cells_kernel<T, F>, call, chunk * kPitch * sizeof(Sides<F>), context);
  launch_gather(call, context);
}

}  // namespace
}  // namespace vsegops::dense_head
