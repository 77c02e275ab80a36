// Pyramid pooling on a CPU: one addition for each element, which is read once for all levels, so
// memory bounds it; backward writes each element once.
//
// The borders of all levels' bins divide each dimension into cells. Forward adds up each cell, and
// then a bin's cells; backward finds the gradient of each cell, which is that of its pixels.
//
// Cells and bins are vectors of a group's channels. Sums are compensated, but for strips short
// enough not to matter: the mean of many pixels may be small against them.
#pragma once

#include "../common/cpu_gemm.h"
#include "attention.h"
#include "cpu_cells.h"

namespace vsegops::attention {
namespace {

constexpr int64_t kPixelsAhead = 8;  // are fetched
constexpr int64_t kBinBlock = 64;    // bins that are transposed at a time

// A sum and what rounding has taken from it.
template <typename F>
struct Compensated {
  Vector<F> sum{}, excess{};

  VSEGOPS_HD void add(Vector<F> x) {
    const Vector<F> y = x - excess, more = sum + y;
    const Vector<F> beyond = (more - sum) - y;
    excess = beyond == beyond ? beyond : Vector<F>{};  // (an infinite sum has none)
    sum = more;
  }
};

// The channels that are handled together: some vectors, of one image.
template <typename F>
struct Groups {
  int64_t channels, vectors, count;

  template <typename T>
  explicit Groups(const Columns<T>& x) : channels(x.c) {
    // Planes are transposed, a vector of them; otherwise the longer the runs, the better.
    vectors = x.stride == 1 ? 1 : std::min<int64_t>(32, ceil_div(x.c, kLanes<F>));
    count = ceil_div(channels, width());
  }
  int64_t width() const { return vectors * kLanes<F>; }
};

// Columns of some rows, added up: vectors from `x` on. `next` is what will be read next.
template <int V, typename T, typename F>
VSEGOPS_HD void add_rows(const T* x, const int64_t* rows, int64_t count, int64_t next, F* to) {
  constexpr int n = kLanes<F>;
  Vector<F> sum[V] = {};
  for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      __builtin_prefetch(x + rows[r] + v * n + next);
      sum[v] += load(x + rows[r] + v * n);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(sum[v], to + v * n);
}

// The sums of the cells of a band, for the vector of channels from plane `x` on.
template <typename T, typename F>
void add_planes(const Pyramid& of, const Divisions& divisions, const Band& band, const T* x,
                const T* end, int64_t plane, int64_t channels, const Matrix<F>& columns,
                Compensated<F>* cells) {
  constexpr int n = kLanes<F>;
  const int64_t width = whole_vectors<F>(of.w);
  band.for_strips(of, [&](const int64_t* rows, int64_t count) {
    for (int64_t c = 0; c < channels; ++c) {
      const T* from = x + c * plane;
      F* const to = columns.row(c);
      int64_t j = 0;
      for (; j + 4 * n <= of.w; j += 4 * n) add_rows<4>(from + j, rows, count, plane, to + j);
      // (The last vector may reach into the next row.)
      const bool inside = end - from >= rows[count - 1] + width;
      for (; j < (inside ? width : of.w / n * n); j += n) {
        add_rows<1>(from + j, rows, count, plane, to + j);
      }
      for (; j < of.w; ++j) {
        to[j] = 0;
        for (int64_t r = 0; r < count; ++r) to[j] += widen(from[rows[r] + j]);
      }
    }
    int64_t cell = 0;
    for (int64_t j = 0; j < of.w; j += n) {
      Vector<F> block[n];
      for (int k = 0; k < n; ++k) block[k] = load(columns.row(k) + j);
      transpose<F>(block);
      for (int64_t k = 0; k < std::min<int64_t>(n, of.w - j); ++k) {
        cell += divisions.w[cell + 1] == j + k;
        cells[cell].add(block[k]);
      }
    }
  });
}

// Calls `run(V, v)` for the V vectors from v on, at most four of `vectors`.
template <typename Run>
void for_vectors(int64_t vectors, const Run& run) {
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4) run(std::integral_constant<int, 4>(), v);
  if (vectors - v == 1) run(std::integral_constant<int, 1>(), v);
  if (vectors - v == 2) run(std::integral_constant<int, 2>(), v);
  if (vectors - v == 3) run(std::integral_constant<int, 3>(), v);
}

// The same where channels stand side by side, `step` from pixel to pixel; cells are `pitch` vectors
// apart.
template <typename T, typename F>
void add_pixels(const Pyramid& of, const Divisions& divisions, const Band& band, const T* x,
                const T* end, int64_t step, int64_t channels, int64_t pitch,
                Compensated<F>* cells) {
  constexpr int n = kLanes<F>;
  const int64_t vectors = ceil_div(channels, n);
  band.for_strips(of, [&](const int64_t* rows, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      const T* const row = x + rows[r] * step;
      // (The last vector may reach into the next pixel.)
      const bool inside = end - row >= (of.w - 1) * step + vectors * n;
      for (int64_t cell = 0, i = 0; i < of.w;) {
        const int64_t stop = std::min(i + kStrip, divisions.w[cell + 1]);
        for_vectors(vectors, [&](auto some, int64_t first) {
          constexpr int V = some();
          Vector<F> sum[V] = {};
          for (int64_t k = i; k < stop; ++k) {
            const T* const from = row + k * step + first * n;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
              __builtin_prefetch(from + v * n + kPixelsAhead * step);
              sum[v] +=
                  inside ? load(from + v * n) : load_some(from + v * n, channels - (first + v) * n);
            }
          }
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) cells[cell * pitch + first + v].add(sum[v]);
        });
        i = stop;
        cell += i == divisions.w[cell + 1];
      }
    }
  });
}

template <typename T>
void pool(const Pool<T>& call, const Context& context) {
  using F = compute_t<T>;
  constexpr int n = kLanes<F>;
  const Columns<const T>& input = call.input;
  const Divisions divisions(call.pyramid);
  const Groups<F> groups(input);
  const int64_t bands = divisions.bands(), cells = divisions.cells(), across = divisions.w.cells();
  const T* const end = input.data + input.n * input.c * input.size;
  std::optional<Tensor> held;
  F* const sums =
      kept_scratch<F, Division>(input.n * groups.count * cells * groups.width(), context, &held);

  torch::stable::parallel_for(
      0, input.n * groups.count * bands, 1, [&](int64_t first, int64_t last) {
        const int64_t pitch = pitch_of<F>(call.pyramid.w), of_band = across * groups.vectors;
        Arena arena(n * pitch * sizeof(F) + of_band * sizeof(Compensated<F>) + 2 * 64);
        const Matrix<F> columns{arena.take<F>(n * pitch), pitch};
        Compensated<F>* const total = arena.take<Compensated<F>>(of_band);
        for (int64_t i = first; i < last; ++i) {
          const int64_t image = i / bands / groups.count;
          const int64_t c = i / bands % groups.count * groups.width();
          const int64_t channels = std::min(groups.width(), input.c - c);
          const T* const x = input.data + image * input.stride_n + c * input.stride_c;
          const Band band(divisions, i % bands);
          std::fill_n(total, of_band, Compensated<F>());
          if (input.stride == 1) {
            add_planes(call.pyramid, divisions, band, x, end, input.stride_c, channels, columns,
                       total);
          } else {
            add_pixels(call.pyramid, divisions, band, x, end, input.stride, channels,
                       groups.vectors, total);
          }
          for (int64_t k = 0; k < of_band; ++k) store(total[k].sum, sums + (i * of_band + k) * n);
        }
      });

  torch::stable::parallel_for(0, input.n * groups.count, 1, [&](int64_t first, int64_t last) {
    const int64_t width = groups.width();
    Arena arena(kBinBlock * width * sizeof(F));
    const Matrix<F> means{arena.take<F>(kBinBlock * width), width};
    for (int64_t i = first; i < last; ++i) {
      const int64_t c = i % groups.count * width;
      const F* const group = sums + i * cells * width;
      const Strided<T> out{
          call.out.data + i / groups.count * call.out.stride_n + c * call.out.stride_c,
          call.out.stride, call.out.stride_c};
      int64_t bins = 0;
      const auto flush = [&](int64_t count) {
        store_matrix(means, count, std::min(width, input.c - c), out.from(bins - count, 0));
      };
      for (const Bin& bin : divisions.bins) {
        for (int64_t v = 0; v < width; v += n) {
          Compensated<F> sum;
          divisions.for_runs(bin, [&](int64_t cell, int64_t count) {
            for (int64_t k = 0; k < count; ++k) sum.add(load(group + (cell + k) * width + v));
          });
          store(sum.sum / static_cast<F>(bin.pixels), means.row(bins % kBinBlock) + v);
        }
        if (++bins % kBinBlock == 0) flush(kBinBlock);
      }
      flush(bins % kBinBlock);
    }
  });
}

// ---- Backward ----

// Writes `count` elements, which repeat every `period`; `row` has them, and a vector more.
template <typename T, typename F>
void write_repeated(const F* row, int64_t period, int64_t count, T* to, bool streamed) {
  constexpr int n = kLanes<F>;
  int64_t i = 0, place = 0;
  const auto advance = [&](int64_t by) {
    i += by;
    place += by;
    while (place >= period) place -= period;
  };
  if constexpr (std::is_same_v<T, F>) {
    while (streamed && i < count && !is_aligned(to + i)) {
      to[i] = row[place];
      advance(1);
    }
    for (; streamed && i + n <= count; advance(n)) stream<F>(load(row + place), to + i);
  }
  for (; i + n <= count; advance(n)) store(load(row + place), to + i);
  if (i < count) store_some<F>(load(row + place), to + i, count - i);
}

// The pixels of a band, from the gradients of its cells: a vector of channels each.
template <typename T, typename F>
void write_planes(const Pyramid& of, const Divisions& divisions, const Band& band, const F* cells,
                  int64_t channels, T* to, int64_t plane, F* pixels, const Matrix<F>& rows,
                  bool streamed) {
  constexpr int n = kLanes<F>;
  for (int64_t cell = 0; cell < divisions.w.cells(); ++cell) {
    const Vector<F> value = load(cells + cell * n);
    for (int64_t i = divisions.w[cell]; i < divisions.w[cell + 1]; ++i)
      store(value, pixels + i * n);
  }
  load_matrix(Strided<const F>{pixels, 1, n}, channels, of.w, rows);
  for (int64_t c = 0; c < channels; ++c) {
    F* const row = rows.row(c);
    for (int64_t j = of.w; j < of.w + n; ++j) row[j] = row[j - of.w];
    for (int64_t t = band.t; t < band.t_end; ++t) {
      write_repeated(row, of.w, (band.y_end - band.y) * of.w,
                     to + c * plane + (t * of.h + band.y) * of.w, streamed);
    }
  }
}

template <typename T, typename F>
void write_pixels(const Pyramid& of, const Divisions& divisions, const Band& band, const F* cells,
                  int64_t pitch, int64_t channels, T* to, int64_t step, bool streamed) {
  constexpr int n = kLanes<F>;
  const int64_t vectors = ceil_div(channels, n);
  streamed = streamed && is_aligned(to) && step * sizeof(T) % kVectorBytes == 0;
  band.for_strips(of, [&](const int64_t* rows, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t cell = 0, i = 0; i < of.w; ++i) {
        cell += i == divisions.w[cell + 1];
        T* const pixel = to + (rows[r] + i) * step;
        for (int64_t v = 0; v < vectors; ++v) {
          const Vector<F> value = load(cells + (cell * pitch + v) * n);
          if constexpr (std::is_same_v<T, F>) {
            if (streamed && (v + 1) * n <= channels) {
              stream<F>(value, pixel + v * n);
              continue;
            }
          }
          store_some<F>(value, pixel + v * n, channels - v * n);
        }
      }
    }
  });
}

template <typename T>
void pool_backward(const PoolBackward<T>& call, const Context& context) {
  using F = compute_t<T>;
  constexpr int n = kLanes<F>;
  const Columns<T>& d_input = call.d_input;
  const Divisions divisions(call.pyramid);
  const Groups<F> groups(d_input);
  const int64_t bands = divisions.bands(), cells = divisions.cells(), across = divisions.w.cells();
  const int64_t width = groups.width(), anchors = call.grad.size;
  std::optional<Tensor> held;
  F* const values =
      kept_scratch<F, Division>(d_input.n * groups.count * cells * width, context, &held);

  torch::stable::parallel_for(0, d_input.n * groups.count, 1, [&](int64_t first, int64_t last) {
    Arena arena(kBinBlock * width * sizeof(F));
    const Matrix<F> block{arena.take<F>(kBinBlock * width), width};
    for (int64_t i = first; i < last; ++i) {
      const int64_t c = i % groups.count * width;
      F* const group = values + i * cells * width;
      std::fill_n(group, cells * width, F(0));
      const Strided<const T> grad{
          call.grad.data + i / groups.count * call.grad.stride_n + c * call.grad.stride_c,
          call.grad.stride, call.grad.stride_c};
      int64_t bins = 0;
      for (const Bin& bin : divisions.bins) {
        if (bins % kBinBlock == 0) {
          load_matrix(grad.from(bins, 0), std::min(kBinBlock, anchors - bins),
                      std::min(width, d_input.c - c), block);
        }
        const F* const from = block.row(bins++ % kBinBlock);
        for (int64_t v = 0; v < width; v += n) {
          const Vector<F> share = load(from + v) / static_cast<F>(bin.pixels);
          divisions.for_runs(bin, [&](int64_t cell, int64_t count) {
            for (int64_t k = 0; k < count; ++k) {
              F* const to = group + (cell + k) * width + v;
              store(load(to) + share, to);
            }
          });
        }
      }
    }
  });

  const bool streamed = d_input.n * d_input.c * d_input.size * int64_t(sizeof(T)) >= kStreamBytes;
  torch::stable::parallel_for(
      0, d_input.n * groups.count * bands, 1, [&](int64_t first, int64_t last) {
        const int64_t columns = call.pyramid.w, pitch = pitch_of<F>(columns + n);
        Arena arena((columns * n + n * pitch) * sizeof(F) + 2 * 64);
        F* const pixels = arena.take<F>(columns * n);
        const Matrix<F> rows{arena.take<F>(n * pitch), pitch};
        for (int64_t i = first; i < last; ++i) {
          const int64_t c = i / bands % groups.count * width;
          const int64_t channels = std::min(width, d_input.c - c);
          T* const to =
              d_input.data + i / bands / groups.count * d_input.stride_n + c * d_input.stride_c;
          const F* const from = values + i * across * width;
          const Band band(divisions, i % bands);
          if (d_input.stride == 1) {
            write_planes(call.pyramid, divisions, band, from, channels, to, d_input.stride_c,
                         pixels, rows, streamed);
          } else {
            write_pixels(call.pyramid, divisions, band, from, groups.vectors, channels, to,
                         d_input.stride, streamed);
          }
        }
        if (streamed) stream_fence();
      });
}

}  // namespace
}  // namespace vsegops::attention
