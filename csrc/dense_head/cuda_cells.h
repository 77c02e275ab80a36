// What the kernels of the dense head share on a GPU: the logits cut into cells, and blocks of
// output pixels in them.
//
// A cell lies between four neighbouring pixels of the logits, and the output pixels in it are
// interpolated from these alone. Cell k of an axis is between pixels k - 1 and k, clamped to those
// that there are: what is outside lies in cells 0 and `source`, between a pixel and itself.
//
// A block has kColumns output columns, one a thread, in rows that lie in one row of cells. A thread
// interpolates a class along x, above and below, once for all its rows, of which it has up to kRows
// in registers: an output pixel then costs a class one multiply-add. Any ratio works, downwards
// too.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/pixels.h"
#include "dense_head.h"

namespace vsegops::dense_head {
namespace {

constexpr int kColumns = 128;   // of a block, and its threads
constexpr int kBlockRows = 16;  // of a block, at most
template <typename F>
constexpr int kRows = 32 / sizeof(F);  // of a thread at a time
template <typename F>
constexpr int kBatch = 16 / sizeof(F);  // classes under way at a time

// ---- Cells of an axis ----

// The first output pixel in this cell or a later one: Axis::base turned around, in integers.
template <typename Signed, typename F>
__device__ int32_t first_in_as(const Axis<F>& axis, int32_t cell) {
  // (2 x + 1) n >= (2 cell - 1) m, or x (n - 1) >= (cell - 1) (m - 1)
  const Signed n = axis.source, m = axis.output, k = cell;
  const Signed divisor = axis.align_corners ? n - 1 : 2 * n;
  const Signed dividend = axis.align_corners ? (k - 1) * (m > 1 ? m - 1 : 1) : (2 * k - 1) * m - n;
  if (dividend <= 0) return 0;
  if (divisor == 0) return axis.output;
  const Signed x = (dividend - 1) / divisor + 1;
  return static_cast<int32_t>(x < m ? x : m);
}
template <typename F>
__device__ int32_t first_in(const Axis<F>& axis, int32_t cell) {
  const bool small = axis.source < 1 << 14 && axis.output < 1 << 14;
  return small ? first_in_as<int32_t>(axis, cell) : first_in_as<int64_t>(axis, cell);
}

// The position, clamped to the pixels that there are.
template <typename F>
__device__ Position<F> clamped(const Axis<F>& axis, int32_t x) {
  Position<F> p = axis.base(x);
  if (p.index < 0) p = {0, F(0)};
  if (p.index >= axis.source - 1) p = {axis.source - 1, F(0)};
  return p;
}

// ---- How the work is shared out ----

// As a kernel's argument.
template <typename T, typename F>
struct Tiling {
  Upsampling<F> upsampling;
  View<const T> logits;
  F step;                           // from an output row to the next, in pixels of the logits
  int32_t parts;                    // blocks along the rows of a cell
  int32_t lines, tiles;             // blocks along y, and along x
  int32_t first_line, first_image;  // of this launch, which has only so many blocks along y and z

  template <typename Call>
  explicit Tiling(const Call& call) : upsampling(call.upsampling), logits(call.logits) {
    const Axis<F>& y = upsampling.y;
    const int64_t n = y.source, m = y.output;
    step = static_cast<F>(!y.align_corners ? double(n) / m : m > 1 ? (n - 1.0) / (m - 1.0) : 0.0);
    const int64_t most = n > 1 ? m / (n - 1) + 2 : m;  // rows in a cell
    parts = static_cast<int32_t>(ceil_div<int64_t>(most, kBlockRows));
    lines = static_cast<int32_t>((n + 1) * parts);
    tiles = ceil_div(upsampling.x.output, kColumns);
  }
};

// Output rows [row, end) of image n, all in one row of cells; none in many a block.
template <typename F>
struct Rows {
  int32_t n, line, cell, row, end;

  template <typename T>
  __device__ explicit Rows(const Tiling<T, F>& tiling)
      : n(tiling.first_image + blockIdx.z), line(tiling.first_line + blockIdx.y) {
    const Axis<F>& axis = tiling.upsampling.y;
    cell = line / tiling.parts;
    row = first_in(axis, cell) + (line - cell * tiling.parts) * kBlockRows;
    end = min(first_in(axis, cell + 1), row + kBlockRows);
  }

  // Calls `run(R, first, count)` for the rows, a few at a time: R, a constant, is at least `count`.
  // Where `run` returns false it is called once more, for one row at a time.
  template <typename Run>
  __device__ __forceinline__ void each(const Run& run) const {
    int32_t most = kRows<F>;
#pragma unroll 1
    for (int32_t first = row; first < end;) {
      const int32_t count = min(end - first, most);
      bool done = true;
      if (kRows<F> > 4 && count > 4) {
        done = run(std::integral_constant<int, kRows<F>>(), first, count);
      } else if (count > 2) {
        done = run(std::integral_constant<int, 4>(), first, count);
      } else if (count > 1) {
        done = run(std::integral_constant<int, 2>(), first, count);
      } else {
        run(std::integral_constant<int, 1>(), first, count);
      }
      if (done) {
        first += count;
      } else {
        most = 1;
      }
    }
  }
};

// The fractions of R rows. (Those past the last one are there to be computed, not to be used.)
template <int R, typename F>
struct Fractions {
  F at[R];

  __device__ Fractions(const Axis<F>& axis, int32_t first, F step) {
    const F start = axis.base(first).fraction;
#pragma unroll
    for (int r = 0; r < R; ++r) at[r] = start + F(r) * step;
  }
};

// ---- Logits ----

// A class in a thread's column of a cell: at fraction y its logit is start + y * slope. Corners
// that are equal give exactly their value.
template <typename F>
struct Line {
  F start, slope;
};

// A thread's column of a row of cells.
template <typename T, typename F>
struct Column {
  int32_t x;
  bool inside;  // else it is a copy of the last column
  F fraction;
  const T *top, *bottom;  // left, of class 0
  int32_t right;
  int64_t stride;  // from class to class

  __device__ Column(const Tiling<T, F>& tiling, const Rows<F>& rows)
      : x(blockIdx.x * kColumns + threadIdx.x), inside(x < tiling.upsampling.x.output) {
    const View<const T>& logits = tiling.logits;
    const Axis<F>& axis = tiling.upsampling.x;
    x = min(x, axis.output - 1);
    const Position<F> p = clamped(axis, x);
    fraction = p.fraction;
    const int32_t upper = max(rows.cell - 1, 0),
                  lower = min(rows.cell, tiling.upsampling.y.source - 1);
    top = logits.data + logits.at(rows.n, 0, upper, p.index);
    bottom = logits.data + logits.at(rows.n, 0, lower, p.index);
    right = p.index + 1 < axis.source ? static_cast<int32_t>(logits.stride_w) : 0;
    stride = logits.stride_c;
  }

  __device__ Line<F> line(int32_t c) const {
    const T *a = top + c * stride, *p = bottom + c * stride;
    const F top_left = widen(fetch(a)), bottom_left = widen(fetch(p));
    const F above = top_left + fraction * (widen(fetch(a + right)) - top_left);
    const F below = bottom_left + fraction * (widen(fetch(p + right)) - bottom_left);
    return {above, below - above};
  }

  // Calls `run(c, line)` for classes [first, last), in order.
  template <typename Run>
  __device__ __forceinline__ void each(int32_t first, int32_t last, const Run& run) const {
    int32_t c = first;
#pragma unroll 1
    for (; c + kBatch<F> <= last; c += kBatch<F>) {
      Line<F> lines[kBatch<F>];
#pragma unroll
      for (int k = 0; k < kBatch<F>; ++k) lines[k] = line(c + k);
#pragma unroll
      for (int k = 0; k < kBatch<F>; ++k) run(c + k, lines[k]);
    }
#pragma unroll 1
    for (; c < last; ++c) run(c, line(c));
  }
};

// ---- Launches ----

// Launches a kernel whose argument has a `tiling`, a block for each tile of each line of blocks.
template <typename Call>
void launch_tiles(void (*kernel)(Call), Call call, size_t shared_bytes, const Context& context) {
  auto& tiling = call.tiling;
  const int64_t images = tiling.logits.n;
  for (int64_t n = 0; n < images; n += kGridLimit) {
    for (int64_t line = 0; line < tiling.lines; line += kGridLimit) {
      tiling.first_image = static_cast<int32_t>(n);
      tiling.first_line = static_cast<int32_t>(line);
      const dim3 grid(static_cast<uint32_t>(tiling.tiles),
                      static_cast<uint32_t>(std::min(kGridLimit, tiling.lines - line)),
                      static_cast<uint32_t>(std::min(kGridLimit, images - n)));
      launch(kernel, grid, dim3(kColumns), shared_bytes, context.stream(), call);
    }
  }
}

}  // namespace
}  // namespace vsegops::dense_head
