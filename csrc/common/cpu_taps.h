// Tiles of output pixels: the taps of a tile are found once, vectorised over its pixels, and then
// used for all channels.
#pragma once

#include <algorithm>

#include "cpu_sampling.h"
#include "cpu_scratch.h"

namespace vsegops {
namespace {

// Where the pixels of a tile sample, one entry per pixel. The four taps stand at
//   offset, offset + pair, offset + row, offset + row + pair      (pair, row: fixed by the sizes)
// and `top` holds the weights of the first two, `bottom` of the others.
template <typename F>
struct Tile {
  int32_t* offset;
  F* top;
  F* bottom;
  F* factor;  // of each pixel, as `find_taps` is given it
  // For the flow's gradient, along u and v: weights of the low and the high tap, and their slopes
  // (null where they are not needed).
  F* weight_u[2];
  F* weight_v[2];
  F* slope_u[2];
  F* slope_v[2];
  // Scratch of find_taps.
  F* flow_x;
  F* flow_y;

  // (Entries past the last pixel, for vectors that end beyond it.)
  static size_t bytes(int64_t pixels) {
    return padded(pixels) * (15 * sizeof(F) + sizeof(int32_t)) + 15 * 64;
  }
  static int64_t padded(int64_t pixels) { return pixels + kLanes<F>; }

  Tile(Arena& arena, int64_t pixels, bool slopes) {
    pixels = padded(pixels);
    offset = arena.take<int32_t>(pixels);
    top = arena.take<F>(2 * pixels);
    bottom = arena.take<F>(2 * pixels);
    factor = arena.take<F>(pixels);
    flow_x = arena.take<F>(pixels);
    flow_y = arena.take<F>(pixels);
    for (F** array : {weight_u, weight_v, slope_u, slope_v}) {
      array[0] = slopes ? arena.take<F>(pixels) : nullptr;
      array[1] = slopes ? arena.take<F>(pixels) : nullptr;
    }
  }

  // The same from pixel i on; for the scratch of find_taps, too, which has to fit what remains.
  Tile from(int64_t i) const {
    Tile tile = *this;
    tile.offset += i;
    tile.top += 2 * i;
    tile.bottom += 2 * i;
    tile.factor += i;
    tile.flow_x += i;
    tile.flow_y += i;
    for (F** array : {tile.weight_u, tile.weight_v, tile.slope_u, tile.slope_v}) {
      for (int k = 0; k < 2 && array[k]; ++k) array[k] += i;
    }
    return tile;
  }

  Tile without_slopes() const {
    Tile tile = *this;
    tile.slope_u[0] = nullptr;
    return tile;
  }
};

// Positions of the output's columns without flow, and kLanes unused ones.
template <typename F>
struct Columns {
  int32_t* index;
  F* fraction;

  static size_t bytes(int64_t width) {
    return (width + kLanes<F>)*(sizeof(F) + sizeof(int32_t)) + 2 * 64;
  }

  Columns(Arena& arena, const Axis<F>& axis)
      : index(arena.take<int32_t>(axis.output + kLanes<F>)),
        fraction(arena.take<F>(axis.output + kLanes<F>)) {
    for (int32_t x = 0; x < axis.output + kLanes<F>; ++x) {
      const Position<F> p = x < axis.output ? axis.base(x) : Position<F>{};
      index[x] = p.index;
      fraction[x] = p.fraction;
    }
  }
};

// Calls `segment(y, x, i, count)` for the runs of pixels within a row that make up [begin, end);
// `i` counts from `begin`.
template <typename Segment>
void for_segments(int64_t width, int64_t begin, int64_t end, const Segment& segment) {
  for (int64_t at = begin; at < end;) {
    const int64_t y = at / width, x = at % width;
    const int64_t count = std::min(width - x, end - at);
    segment(y, x, at - begin, count);
    at += count;
  }
}

// Reads pixels [begin, end) of one channel of image n into an array of the compute type.
template <typename T, typename F>
void read_pixels(const View<const T>& x, int64_t n, int64_t c, int64_t begin, int64_t end, F* out) {
  for_segments(x.w, begin, end, [&](int64_t y, int64_t x0, int64_t i, int64_t count) {
    const T* from = x.data + n * x.stride_n + c * x.stride_c + y * x.stride_h + x0 * x.stride_w;
    const auto read = [&](auto stride) {  // (a stride of 1 is a constant, for vectors)
      for (int64_t k = 0; k < count; ++k) out[i + k] = static_cast<F>(widen(from[k * stride]));
    };
    x.stride_w == 1 ? read(std::integral_constant<int64_t, 1>()) : read(x.stride_w);
  });
}

// The taps of `count` pixels of one row, and of some more up to a whole vector. A source of one
// column has its pairs along y instead, so that a pair is always two neighbours in memory.
template <bool Slopes, typename F>
void find_row_taps(const Mapping<F>& mapping, const Position<F> row, const int32_t* column_index,
                   const F* column_fraction, int64_t count, int64_t first, const Tile<F>& t) {
  using V = Vector<F>;
  constexpr int n = kLanes<F>;
  const int32_t width = mapping.x.source;
  const bool column = width == 1;
  const F scale_u = mapping.x.scale, scale_v = mapping.y.scale;
  const Position<V> row_base = {index_t<V>{} + row.index, V{} + row.fraction};
  for (int64_t i = 0; i < count; i += n) {
    const int64_t at = first + i;
    const Position<V> base = {load_index<F>(column_index + i), load(column_fraction + i)};
    const Taps<V> u = mapping.taps_x(base, load(t.flow_x + at));
    const Taps<V> v = mapping.taps_y(row_base, load(t.flow_y + at));
    store_index(v.low * width + u.low, t.offset + at);
    const V second = column ? u.weight_low * v.weight_high : u.weight_high * v.weight_low;
    const V third = column ? u.weight_high * v.weight_low : u.weight_low * v.weight_high;
    store_interleaved<F>(u.weight_low * v.weight_low, second, t.top + 2 * at);
    store_interleaved<F>(third, u.weight_high * v.weight_high, t.bottom + 2 * at);
    if constexpr (Slopes) {
      store(u.weight_low, t.weight_u[0] + at);
      store(u.weight_high, t.weight_u[1] + at);
      store(v.weight_low, t.weight_v[0] + at);
      store(v.weight_high, t.weight_v[1] + at);
      store(scale_u * u.slope_low, t.slope_u[0] + at);
      store(scale_u * u.slope_high, t.slope_u[1] + at);
      store(scale_v * v.slope_low, t.slope_v[0] + at);
      store(scale_v * v.slope_high, t.slope_v[1] + at);
    }
  }
}

// Fills the tile for pixels [begin, end) of image n, at least one, and up to a whole vector with
// pixels of weight 0 that stand where the last one does.
template <typename T, typename F, typename Flow>
void find_taps(const Mapping<F>& mapping, const View<const Flow>& flow, const View<const T>& factor,
               const Columns<F>& columns, int64_t n, int64_t begin, int64_t end,
               const Tile<F>& tile) {
  const int64_t count = end - begin;
  read_pixels(flow, n, 0, begin, end, tile.flow_x);
  read_pixels(flow, n, 1, begin, end, tile.flow_y);
  for_segments(flow.w, begin, end, [&](int64_t y, int64_t x, int64_t i, int64_t length) {
    const Position<F> row = mapping.y.base(static_cast<int32_t>(y));
    lift(tile.slope_u[0], [&](auto slopes) {
      find_row_taps<slopes()>(mapping, row, columns.index + x, columns.fraction + x, length, i,
                              tile);
    });
  });
  if (factor.data) {
    read_pixels(factor, n, 0, begin, end, tile.factor);
  } else {
    std::fill_n(tile.factor, count, F(1));
  }
  for (int64_t i = count; i % kLanes<F> != 0; ++i) {
    tile.offset[i] = tile.offset[count - 1];
    tile.top[2 * i] = tile.top[2 * i + 1] = tile.bottom[2 * i] = tile.bottom[2 * i + 1] = F(0);
    tile.factor[i] = F(0);
    for (int k = 0; k < 2 && tile.slope_u[0]; ++k) {
      tile.weight_u[k][i] = tile.weight_v[k][i] = tile.slope_u[k][i] = tile.slope_v[k][i] = F(0);
    }
  }
}

// Distances between taps in memory, in pixels.
struct Steps {
  int64_t pair, row;
  bool column;  // the source has one column: pairs are along y

  template <typename F>
  explicit Steps(const Mapping<F>& m)
      : pair(m.x.source > 1 || m.y.source > 1),
        row(m.x.source > 1 && m.y.source > 1 ? m.x.source : 0),
        column(m.x.source == 1) {}
};

// The pairs of neighbours at kLanes / 2 offsets, by loads of 64 bits (128 for double): faster than
// gathers where those are slow, and as fast where they are not.
template <int... I>
VSEGOPS_HD Vector<float> load_pairs(const float* source, const int32_t* offset,
                                    std::integer_sequence<int, I...>) {
  const Vector<uint64_t> pairs = {[&] {
    uint64_t pair;
    std::memcpy(&pair, source + offset[I], sizeof(pair));
    return pair;
  }()...};
  return (Vector<float>)pairs;
}
template <int... I>
VSEGOPS_HD Vector<double> load_pairs(const double* source, const int32_t* offset,
                                     std::integer_sequence<int, I...>) {
  return Vector<double>{source[offset[I / 2] + I % 2]...};
}
template <typename F>
VSEGOPS_HD Vector<F> load_pairs(const F* source, const int32_t* offset) {
  constexpr int n = kLanes<F>;
  return load_pairs(source, offset, std::make_integer_sequence<int, sizeof(F) == 4 ? n / 2 : n>());
}

inline void check_plane(int64_t h, int64_t w) {
  STD_TORCH_CHECK(h * w < (int64_t(1) << 31),
                  "the CPU kernels sample images of fewer than 2^31 pixels, got ", h, " * ", w);
}

}  // namespace
}  // namespace vsegops
