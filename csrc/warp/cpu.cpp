// The warp family on a CPU.
//
// Both directions go over tiles of output pixels: the taps of a tile are found once, vectorised
// over its pixels, and then used for all channels.
//
// Bounds, for C channels and P pixels in float32: forward 4 C P multiply-adds against 8 C P bytes
// (12 with a correction), so memory bounds it once the taps are found by vectors.
#include <algorithm>

#include "../common/cpu.h"
#include "warp.h"

namespace vsegops::warp {
namespace {

constexpr int64_t kForwardTile = 4096;  // pixels: taps and source rows of a tile stay in L2
constexpr int64_t kBackwardTile = 1024;
constexpr int64_t kStreamBytes = 4 << 20;  // outputs of this size leave the caches anyway

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory for the arrays of a tile, one block per thread.
class Arena {
 public:
  explicit Arena(size_t bytes) : next_(thread_scratch<char, Arena>(bytes + 64)) {
    next_ += (64 - reinterpret_cast<uintptr_t>(next_) % 64) % 64;
  }
  template <typename T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return array;
  }

 private:
  char* next_;
};

// Where the pixels of a tile sample, one entry per pixel. The four taps stand at
//   offset, offset + pair, offset + row, offset + row + pair      (pair, row: fixed by the sizes)
// and `top` holds the weights of the first two, `bottom` of the others.
template <typename F>
struct Tile {
  int32_t* offset;
  F* top;
  F* bottom;
  F* attention;
  // For the flow's gradient: d weight / d u and d weight / d v of the four taps.
  F* slope_u[4];
  F* slope_v[4];
  // Scratch of find_taps.
  F* flow_x;
  F* flow_y;

  static size_t bytes(int64_t pixels) { return (pixels + 64) * (15 * sizeof(F) + 4) + 15 * 64; }

  Tile(Arena& arena, int64_t pixels, bool slopes) {
    offset = arena.take<int32_t>(pixels);
    top = arena.take<F>(2 * pixels);
    bottom = arena.take<F>(2 * pixels);
    attention = arena.take<F>(pixels);
    flow_x = arena.take<F>(pixels);
    flow_y = arena.take<F>(pixels);
    for (int k = 0; k < 4; ++k) {
      slope_u[k] = slopes ? arena.take<F>(pixels) : nullptr;
      slope_v[k] = slopes ? arena.take<F>(pixels) : nullptr;
    }
  }
};

// Positions of the output's columns without flow.
template <typename F>
struct Columns {
  int32_t* index;
  F* fraction;

  static size_t bytes(int64_t width) { return width * (sizeof(F) + 4) + 2 * 64; }

  Columns(Arena& arena, const Axis<F>& axis)
      : index(arena.take<int32_t>(axis.output)), fraction(arena.take<F>(axis.output)) {
    for (int32_t x = 0; x < axis.output; ++x) {
      const Position<F> p = axis.base(x);
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
    for (int64_t k = 0; k < count; ++k) out[i + k] = static_cast<F>(widen(from[k * x.stride_w]));
  });
}

// The taps of `count` pixels of one row. A source of one column has its pairs along y instead, so
// that a pair is always two neighbours in memory.
template <bool Slopes, typename F>
void find_row_taps(const Mapping<F>& mapping, const Position<F> row, const int32_t* column_index,
                   const F* column_fraction, int64_t count, int64_t first, const Tile<F>& t) {
  const int32_t width = mapping.x.source;
  const bool column = width == 1;
  const F scale_u = mapping.x.scale, scale_v = mapping.y.scale;
  const F* __restrict flow_x = t.flow_x + first;
  const F* __restrict flow_y = t.flow_y + first;
  int32_t* __restrict offset = t.offset + first;
  F* __restrict top = t.top + 2 * first;
  F* __restrict bottom = t.bottom + 2 * first;
  for (int64_t i = 0; i < count; ++i) {
    const Taps<F> u = mapping.taps_x({column_index[i], column_fraction[i]}, flow_x[i]);
    const Taps<F> v = mapping.taps_y(row, flow_y[i]);
    offset[i] = v.low * width + u.low;
    top[2 * i] = u.weight_low * v.weight_low;
    top[2 * i + 1] = column ? u.weight_low * v.weight_high : u.weight_high * v.weight_low;
    bottom[2 * i] = column ? u.weight_high * v.weight_low : u.weight_low * v.weight_high;
    bottom[2 * i + 1] = u.weight_high * v.weight_high;
    if constexpr (Slopes) {
      const int64_t k = first + i;
      const int second = column ? 2 : 1, third = column ? 1 : 2;
      t.slope_u[0][k] = scale_u * (u.slope_low * v.weight_low);
      t.slope_u[second][k] = scale_u * (u.slope_high * v.weight_low);
      t.slope_u[third][k] = scale_u * (u.slope_low * v.weight_high);
      t.slope_u[3][k] = scale_u * (u.slope_high * v.weight_high);
      t.slope_v[0][k] = scale_v * (u.weight_low * v.slope_low);
      t.slope_v[second][k] = scale_v * (u.weight_high * v.slope_low);
      t.slope_v[third][k] = scale_v * (u.weight_low * v.slope_high);
      t.slope_v[3][k] = scale_v * (u.weight_high * v.slope_high);
    }
  }
}

// Fills the tile for pixels [begin, end) of image n, and up to a whole vector with pixels that
// sample nothing.
template <typename T, typename F, typename Flow>
void find_taps(const Mapping<F>& mapping, const View<const Flow>& flow,
               const View<const T>& attention, const Columns<F>& columns, int64_t n, int64_t begin,
               int64_t end, const Tile<F>& tile) {
  const int64_t count = end - begin;
  read_pixels(flow, n, 0, begin, end, tile.flow_x);
  read_pixels(flow, n, 1, begin, end, tile.flow_y);
  for_segments(flow.w, begin, end, [&](int64_t y, int64_t x, int64_t i, int64_t length) {
    const Position<F> row = mapping.y.base(static_cast<int32_t>(y));
    const auto find = tile.slope_u[0] ? find_row_taps<true, F> : find_row_taps<false, F>;
    find(mapping, row, columns.index + x, columns.fraction + x, length, i, tile);
  });
  if (attention.data) {
    read_pixels(attention, n, 0, begin, end, tile.attention);
  } else {
    std::fill_n(tile.attention, count, F(1));
  }
  for (int64_t i = count; i % kLanes<F> != 0; ++i) {
    tile.offset[i] = 0;
    tile.top[2 * i] = tile.top[2 * i + 1] = tile.bottom[2 * i] = tile.bottom[2 * i + 1] = F(0);
    tile.attention[i] = F(0);
    for (int k = 0; k < 4 && tile.slope_u[0]; ++k) tile.slope_u[k][i] = tile.slope_v[k][i] = F(0);
  }
}

// Distances between taps in memory, in pixels.
struct Steps {
  int64_t pair, row;

  template <typename F>
  explicit Steps(const Mapping<F>& m)
      : pair(m.x.source > 1 || m.y.source > 1),
        row(m.x.source > 1 && m.y.source > 1 ? m.x.source : 0) {}
};

// ---- Forward, contiguous: vectors over pixels. ----

// kLanes pairs of neighbours, from two vectors' worth of 64-bit (128-bit) loads each.
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

template <typename F, int... I>
VSEGOPS_HD Vector<F> add_neighbours(Vector<F> a, Vector<F> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, 2 * I + 1 ...);
}

// A(source) for kLanes pixels of the tile, from pixel i on.
template <typename F>
VSEGOPS_HD Vector<F> sample_planar(const F* source, int64_t row, const Tile<F>& tile, int64_t i) {
  constexpr int n = kLanes<F>;
  using Loads = std::make_integer_sequence<int, sizeof(F) == 4 ? n / 2 : n>;
  const auto half = [&](int64_t at) {
    const int32_t* offset = tile.offset + at;
    return load_pairs(source, offset, Loads()) * load(tile.top + 2 * at) +
           load_pairs(source + row, offset, Loads()) * load(tile.bottom + 2 * at);
  };
  return add_neighbours<F>(half(i), half(i + n / 2), std::make_integer_sequence<int, n>());
}

// One channel of a tile. `next_source` and `next_correction` are where the next channel's data
// stands, relative to this one's: it is fetched ahead.
template <bool Corrected, bool Stream, typename T, typename F>
void warp_plane(const F* source, int64_t row, const Tile<F>& tile, int64_t count,
                const T* correction, int64_t next_source, int64_t next_correction, T* out) {
  constexpr int n = kLanes<F>;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    __builtin_prefetch(source + tile.offset[i] + next_source);
    Vector<F> value = sample_planar(source, row, tile, i);
    if constexpr (Corrected) {
      __builtin_prefetch(correction + i + next_correction);
      value += load(tile.attention + i) * load(correction + i);
    }
    if constexpr (Stream) {
      stream<F>(value, out + i);
    } else {
      store(value, out + i);
    }
  }
  if (i < count) {
    F values[n];
    store(sample_planar(source, row, tile, i), values);
    for (int64_t k = i; k < count; ++k) {
      F value = values[k - i];
      if constexpr (Corrected) value += tile.attention[k] * widen(correction[k]);
      narrow(value, out + k);
    }
  }
}

template <typename T, typename F, typename Flow>
void forward_planar_tile(const Forward<T, F, Flow>& call, int64_t n, int64_t begin, int64_t end,
                         const Tile<F>& tile, bool streamed) {
  const int64_t count = end - begin;
  const int64_t plane = call.input.h * call.input.w, out_plane = call.out.h * call.out.w;
  const Steps steps(call.mapping);
  const T* source = call.input.data + n * call.input.c * plane;
  const int64_t at = n * call.out.c * out_plane + begin;
  T* out = call.out.data + at;
  const T* correction = call.correction.data ? call.correction.data + at : nullptr;
  // What the tile touches of the source has to be widened first for half precision; a single
  // pixel is copied as well, beside a zero, so that it makes a pair.
  const bool copied = !std::is_same_v<T, F> || plane == 1;
  int64_t first = 0, length = 0;
  F* copy = nullptr;
  if (copied) {
    const auto [low, high] = std::minmax_element(tile.offset, tile.offset + count);
    first = *low;
    length = std::min<int64_t>(*high + steps.row + steps.pair + 1, plane) - first;
    for (int64_t i = 0; i < count; ++i) tile.offset[i] -= static_cast<int32_t>(first);
    for (int64_t i = count; i % kLanes<F> != 0; ++i) tile.offset[i] = 0;
    copy = thread_scratch<F, Tile<T>>(length + 2 * kLanes<F>);
    std::fill_n(copy, length + 2 * kLanes<F>, F(0));
  }
  const auto run = [&](auto with_correction, auto with_stream) {
    for (int64_t c = 0; c < call.out.c; ++c) {
      const F* from;
      if (copied) {
        for (int64_t i = 0; i < length; ++i) copy[i] = widen(source[c * plane + first + i]);
        from = copy;
      } else {
        from = reinterpret_cast<const F*>(source + c * plane);
      }
      warp_plane<with_correction(), with_stream()>(
          from, steps.row, tile, count, correction ? correction + c * out_plane : nullptr,
          copied ? 0 : plane, out_plane, out + c * out_plane);
    }
  };
  const auto with_stream = [&](auto with_correction) {
    if constexpr (std::is_same_v<T, F>) {
      const bool aligned = reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0 &&
                           out_plane * sizeof(T) % kVectorBytes == 0;
      if (streamed && aligned) return run(with_correction, std::true_type());
    }
    run(with_correction, std::false_type());
  };
  correction ? with_stream(std::true_type()) : with_stream(std::false_type());
}

// ---- Forward, channels_last: vectors over channels. ----

template <bool Corrected, bool Stream, typename T, typename F>
void warp_pixels(const T* source, int64_t channels, const Steps& steps, const Tile<F>& tile,
                 int64_t count, const T* correction, T* out) {
  constexpr int n = kLanes<F>;
  for (int64_t i = 0; i < count; ++i) {
    const T* p = source + tile.offset[i] * channels;
    const T* q = p + steps.row * channels;
    const int64_t pair = steps.pair * channels;
    const F w00 = tile.top[2 * i], w01 = tile.top[2 * i + 1];
    const F w10 = tile.bottom[2 * i], w11 = tile.bottom[2 * i + 1], a = tile.attention[i];
    int64_t c = 0;
    for (; c + n <= channels; c += n) {
      Vector<F> value = w00 * load(p + c) + w01 * load(p + pair + c) + w10 * load(q + c) +
                        w11 * load(q + pair + c);
      if constexpr (Corrected) value += a * load(correction + c);
      if constexpr (Stream) {
        stream<F>(value, out + c);
      } else {
        store(value, out + c);
      }
    }
    for (; c < channels; ++c) {
      F value = w00 * widen(p[c]) + w01 * widen(p[pair + c]) + w10 * widen(q[c]) +
                w11 * widen(q[pair + c]);
      if constexpr (Corrected) value += a * widen(correction[c]);
      narrow(value, out + c);
    }
    out += channels;
    if constexpr (Corrected) correction += channels;
  }
}

template <typename T, typename F, typename Flow>
void forward_pixel_tile(const Forward<T, F, Flow>& call, int64_t n, int64_t begin, int64_t end,
                        const Tile<F>& tile, bool streamed) {
  const int64_t channels = call.input.c;
  const T* source = call.input.data + n * call.input.h * call.input.w * channels;
  const int64_t at = (n * call.out.h * call.out.w + begin) * channels;
  const T* correction = call.correction.data ? call.correction.data + at : nullptr;
  const Steps steps(call.mapping);
  const auto run = [&](auto with_correction, auto with_stream) {
    warp_pixels<with_correction(), with_stream()>(source, channels, steps, tile, end - begin,
                                                  correction, call.out.data + at);
  };
  const auto with_stream = [&](auto with_correction) {
    if constexpr (std::is_same_v<T, F>) {
      const bool aligned = reinterpret_cast<uintptr_t>(call.out.data) % kVectorBytes == 0 &&
                           channels * sizeof(T) % kVectorBytes == 0;
      if (streamed && aligned) return run(with_correction, std::true_type());
    }
    run(with_correction, std::false_type());
  };
  correction ? with_stream(std::true_type()) : with_stream(std::false_type());
}

void check_plane(int64_t h, int64_t w) {
  STD_TORCH_CHECK(h * w < (int64_t(1) << 31), "input: expected a height * width below 2^31, got ",
                  h, " * ", w);
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& call, const Context&) {
  check_plane(call.input.h, call.input.w);
  const int64_t pixels = call.out.h * call.out.w;
  // Few enough pixels a tile that every thread has some, in whole vectors.
  const int64_t share = ceil_div(call.out.n * pixels, torch::stable::get_num_threads());
  const int64_t size = std::min(kForwardTile, std::max<int64_t>(64, ceil_div(share, 64) * 64));
  const int64_t tiles = ceil_div(pixels, size);
  const bool streamed = call.out.n * call.out.c * pixels * int64_t(sizeof(T)) >= kStreamBytes;
  torch::stable::parallel_for(0, call.out.n * tiles, 1, [&](int64_t first, int64_t last) {
    Arena arena(Tile<F>::bytes(size) + Columns<F>::bytes(call.out.w));
    const Tile<F> tile(arena, size, false);
    const Columns<F> columns(arena, call.mapping.x);
    for (int64_t k = first; k < last; ++k) {
      const int64_t n = k / tiles, begin = k % tiles * size, end = std::min(begin + size, pixels);
      find_taps(call.mapping, call.flow, call.attention, columns, n, begin, end, tile);
      if (call.out.channels_last()) {
        forward_pixel_tile(call, n, begin, end, tile, streamed);
      } else {
        forward_planar_tile(call, n, begin, end, tile, streamed);
      }
    }
    if (streamed) stream_fence();
  });
}

// ---- Backward ----
//
// Channels are handled in panels: `width` channels of every pixel side by side, so that a tap is
// read, and its gradient added to, by whole vectors. Channels_last float and double tensors are
// such a panel as they stand; others are transposed or widened into scratch memory, a panel at a
// time. Chunks of channels run in parallel: each owns its part of d_input, so nothing is atomic and
// the order of all sums is fixed; what has to be summed over chunks is summed at the end.

template <typename F>
struct Panel {
  F* data;
  int64_t stride;  // from pixel to pixel
};

// Channels [c, c + width) of pixels [begin, end) of a plane-by-plane image into a panel that is
// kLanes wide, with zeros past the image's channels.
template <typename T, typename F>
void load_planes(const T* image, int64_t plane, int64_t width, int64_t begin, int64_t end, F* out) {
  constexpr int n = kLanes<F>;
  int64_t i = begin;
  for (; i + n <= end; i += n) {
    Vector<F> block[n];
    for (int k = 0; k < n; ++k) {
      block[k] = k < width ? load(image + k * plane + i) : Vector<F>{};
    }
    transpose<F>(block);
    for (int k = 0; k < n; ++k) store(block[k], out + (i - begin + k) * n);
  }
  for (; i < end; ++i) {
    for (int k = 0; k < n; ++k) {
      out[(i - begin) * n + k] = k < width ? F(widen(image[k * plane + i])) : F(0);
    }
  }
}

template <typename T, typename F>
void store_planes(const F* panel, int64_t plane, int64_t width, T* image) {
  constexpr int n = kLanes<F>;
  int64_t i = 0;
  for (; i + n <= plane; i += n) {
    Vector<F> block[n];
    for (int k = 0; k < n; ++k) block[k] = load(panel + (i + k) * n);
    transpose<F>(block);
    for (int k = 0; k < width && k < n; ++k) store(block[k], image + k * plane + i);
  }
  for (; i < plane; ++i) {
    for (int k = 0; k < width; ++k) narrow(panel[i * n + k], image + k * plane + i);
  }
}

// The same for an image that keeps its channels side by side, `channels` of them.
template <typename T, typename F>
void load_pixels(const T* image, int64_t channels, int64_t width, int64_t begin, int64_t end,
                 F* out) {
  constexpr int n = kLanes<F>;
  for (int64_t i = begin; i < end; ++i, out += n) {
    for (int k = 0; k < n; ++k) out[k] = k < width ? F(widen(image[i * channels + k])) : F(0);
  }
}

template <typename T, typename F>
void store_pixels(const F* panel, int64_t channels, int64_t width, int64_t count, T* image) {
  for (int64_t i = 0; i < count; ++i, panel += kLanes<F>) {
    for (int k = 0; k < width; ++k) narrow(panel[k], image + i * channels + k);
  }
}

// The sums of the elements of kLanes vectors, in one vector: a transposition that adds as it goes.
template <typename F>
VSEGOPS_HD Vector<F> sums(const Vector<F>* rows) {
  constexpr int n = kLanes<F>;
  Vector<F> partial[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) partial[i] = rows[i];
#pragma GCC unroll 4
  for (int count = n; count > 1; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) {
      Vector<F> low, high;
      interleave<F>(partial[i], partial[i + count / 2], &low, &high,
                    std::make_integer_sequence<int, n>());
      partial[i] = low + high;
    }
  }
  return partial[0];
}

// What the gradients of a pixel's flow and attention are made of, summed over the channels of a
// panel: grad * source at each of the four taps, and grad * correction.
constexpr int kProducts = 5;

// The pixels of a tile over the channels of a panel: adds grad, weighted, to the four taps in
// `d_source` (Scatter) and adds the slopes of u, v and attention to `d_u`, `d_v`, `d_attention`
// (Slopes, Attended).
template <bool Scatter, bool Slopes, bool Attended, typename F>
void scatter_tile(const Tile<F>& tile, int64_t count, const Steps& steps, int64_t width,
                  Panel<const F> grad, Panel<const F> source, Panel<const F> correction,
                  Panel<F> d_source, F* d_u, F* d_v, F* d_attention) {
  constexpr int n = kLanes<F>;
  const int64_t row = steps.row * source.stride, pair = steps.pair * source.stride;
  const int64_t d_row = steps.row * d_source.stride, d_pair = steps.pair * d_source.stride;
  for (int64_t first = 0; first < count; first += n) {
    alignas(64) Vector<F> products[kProducts][n] = {};
    const int64_t pixels = std::min<int64_t>(n, count - first);
    for (int64_t j = 0; j < pixels; ++j) {
      const int64_t i = first + j;
      const F* g = grad.data + i * grad.stride;
      const F* p = source.data + tile.offset[i] * source.stride;
      const F* added = correction.data + i * correction.stride;
      F* d = d_source.data + tile.offset[i] * d_source.stride;
      const F w00 = tile.top[2 * i], w01 = tile.top[2 * i + 1];
      const F w10 = tile.bottom[2 * i], w11 = tile.bottom[2 * i + 1];
      Vector<F> s00{}, s01{}, s10{}, s11{}, s{};
      int64_t c = 0;
      for (; c + n <= width; c += n) {
        const Vector<F> gradient = load(g + c);
        if constexpr (Slopes) {
          s00 += gradient * load(p + c);
          s01 += gradient * load(p + pair + c);
          s10 += gradient * load(p + row + c);
          s11 += gradient * load(p + row + pair + c);
        }
        if constexpr (Attended) s += gradient * load(added + c);
        if constexpr (Scatter) {  // one after the other: the taps of a thin source coincide
          store(load(d + c) + w00 * gradient, d + c);
          store(load(d + d_pair + c) + w01 * gradient, d + d_pair + c);
          store(load(d + d_row + c) + w10 * gradient, d + d_row + c);
          store(load(d + d_row + d_pair + c) + w11 * gradient, d + d_row + d_pair + c);
        }
      }
      for (; c < width; ++c) {
        const F gradient = g[c];
        if constexpr (Slopes) {
          s00[0] += gradient * p[c];
          s01[0] += gradient * p[pair + c];
          s10[0] += gradient * p[row + c];
          s11[0] += gradient * p[row + pair + c];
        }
        if constexpr (Attended) s[0] += gradient * added[c];
        if constexpr (Scatter) {
          d[c] += w00 * gradient;
          d[d_pair + c] += w01 * gradient;
          d[d_row + c] += w10 * gradient;
          d[d_row + d_pair + c] += w11 * gradient;
        }
      }
      if constexpr (Slopes) {
        products[0][j] = s00;
        products[1][j] = s01;
        products[2][j] = s10;
        products[3][j] = s11;
      }
      if constexpr (Attended) products[4][j] = s;
    }
    if constexpr (Slopes) {
      Vector<F> u{}, v{};
      for (int k = 0; k < 4; ++k) {
        const Vector<F> sum = sums<F>(products[k]);
        u += sum * load(tile.slope_u[k] + first);
        v += sum * load(tile.slope_v[k] + first);
      }
      store(load(d_u + first) + u, d_u + first);
      store(load(d_v + first) + v, d_v + first);
    }
    if constexpr (Attended) {
      store(load(d_attention + first) + sums<F>(products[4]), d_attention + first);
    }
  }
}

// d_correction = grad * attention for channels [c, c + width) of a tile.
template <typename T, typename F>
void scale_tile(const T* grad, const Tile<F>& tile, int64_t count, int64_t width,
                int64_t channel_stride, int64_t pixel_stride, T* out) {
  if (pixel_stride == 1) {
    for (int64_t c = 0; c < width; ++c, grad += channel_stride, out += channel_stride) {
      for (int64_t i = 0; i < count; ++i) narrow(tile.attention[i] * widen(grad[i]), out + i);
    }
  } else {
    for (int64_t i = 0; i < count; ++i, grad += pixel_stride, out += pixel_stride) {
      for (int64_t c = 0; c < width; ++c) narrow(tile.attention[i] * widen(grad[c]), out + c);
    }
  }
}

// One chunk of the channels of one image.
template <typename T, typename F, typename Flow>
class BackwardChunk {
 public:
  using Call = Backward<T, F, Flow>;

  // Elements of scratch memory that a chunk of `width` channels needs.
  static int64_t scratch(const Call& call, int64_t) {
    return direct(call) ? 0 : 2 * call.input.h * call.input.w * kLanes<F>;
  }

  BackwardChunk(const Call& call, int64_t n, F* scratch, F* totals)
      : call_(call),
        n_(n),
        source_pixels_(call.input.h * call.input.w),
        pixels_(call.grad.h * call.grad.w),
        source_panel_(scratch),
        d_source_panel_(scratch + source_pixels_ * kLanes<F>),
        d_u_(totals),
        d_v_(totals + padded(pixels_)),
        d_attention_(totals + 2 * padded(pixels_)) {}

  static int64_t padded(int64_t pixels) { return ceil_div(pixels, 64) * 64; }

  void run(int64_t first_channel, int64_t last_channel) {
    std::fill_n(d_u_, 3 * padded(pixels_), F(0));
    Arena arena(Tile<F>::bytes(kBackwardTile) + Columns<F>::bytes(call_.grad.w) +
                2 * (kBackwardTile * kLanes<F> * sizeof(F) + 64));
    const Tile<F> tile(arena, kBackwardTile, true);
    const Columns<F> columns(arena, call_.mapping.x);
    grad_panel_ = arena.take<F>(kBackwardTile * kLanes<F>);
    correction_panel_ = arena.take<F>(kBackwardTile * kLanes<F>);
    const int64_t step = direct(call_) ? last_channel - first_channel : kLanes<F>;
    for (int64_t c = first_channel; c < last_channel; c += step) {
      const int64_t width = std::min(step, last_channel - c);
      const Panel<const F> source = source_panel(c, width);
      const Panel<F> d_source = d_source_panel(c, width);
      for (int64_t begin = 0; begin < pixels_; begin += kBackwardTile) {
        const int64_t end = std::min(begin + kBackwardTile, pixels_);
        find_taps(call_.mapping, call_.flow, call_.attention, columns, n_, begin, end, tile);
        run_tile(tile, c, width, begin, end, source, d_source);
      }
      store_d_source(c, width);
    }
  }

 private:
  // Channels side by side already, and in the type that is computed in.
  static bool direct(const Call& call) {
    return std::is_same_v<T, F> && call.grad.channels_last();
  }
  bool pixelwise() const { return call_.grad.channels_last(); }

  // Channel c of image n, pixel 0.
  template <typename U>
  U* image(const View<U>& x, int64_t c) const {
    return x.data + n_ * x.c * x.h * x.w + (pixelwise() ? c : c * x.h * x.w);
  }
  template <typename U>
  F* as_panel(U* data) const {
    return reinterpret_cast<F*>(const_cast<std::remove_const_t<U>*>(data));
  }

  // Pixels [begin, end) of some channels as a panel: in place, or copied to `copy`.
  Panel<const F> load_panel(const View<const T>& x, int64_t c, int64_t width, int64_t begin,
                            int64_t end, F* copy) const {
    const T* from = image(x, c);
    if (direct(call_)) return {as_panel(from + begin * x.c), x.c};
    if (pixelwise()) {
      load_pixels(from, x.c, width, begin, end, copy);
    } else {
      load_planes(from, x.h * x.w, width, begin, end, copy);
    }
    return {copy, kLanes<F>};
  }

  Panel<const F> source_panel(int64_t c, int64_t width) const {
    if (!call_.d_flow.data) return {nullptr, 0};
    return load_panel(call_.input, c, width, 0, source_pixels_, source_panel_);
  }

  Panel<F> d_source_panel(int64_t c, int64_t width) const {
    if (!call_.d_input.data) return {nullptr, 0};
    if (!direct(call_)) {
      std::fill_n(d_source_panel_, source_pixels_ * kLanes<F>, F(0));
      return {d_source_panel_, kLanes<F>};
    }
    const int64_t channels = call_.d_input.c;
    F* data = as_panel(image(call_.d_input, c));
    for (int64_t i = 0; i < source_pixels_; ++i) std::fill_n(data + i * channels, width, F(0));
    return {data, channels};
  }

  void store_d_source(int64_t c, int64_t width) const {
    if (!call_.d_input.data || direct(call_)) return;
    if (pixelwise()) {
      store_pixels(d_source_panel_, call_.d_input.c, width, source_pixels_,
                   image(call_.d_input, c));
    } else {
      store_planes(d_source_panel_, source_pixels_, width, image(call_.d_input, c));
    }
  }

  void run_tile(const Tile<F>& tile, int64_t c, int64_t width, int64_t begin, int64_t end,
                const Panel<const F>& source, const Panel<F>& d_source) const {
    const int64_t count = end - begin, channels = call_.grad.c;
    if (call_.d_correction.data) {
      const int64_t at = pixelwise() ? begin * channels : begin;
      scale_tile(image(call_.grad, c) + at, tile, count, width, pixels_, pixelwise() ? channels : 1,
                 image(call_.d_correction, c) + at);
    }
    const bool scatter = call_.d_input.data, slopes = call_.d_flow.data;
    const bool attended = call_.d_attention.data;
    if (!scatter && !slopes && !attended) return;
    const Panel<const F> grad = load_panel(call_.grad, c, width, begin, end, grad_panel_);
    Panel<const F> correction{nullptr, 0};
    if (attended) {
      correction = load_panel(call_.correction, c, width, begin, end, correction_panel_);
    }
    const int64_t lanes = direct(call_) ? width : kLanes<F>;  // (a copied panel has no tail)
    const auto run = [&](auto with_scatter, auto with_slopes, auto with_attention) {
      scatter_tile<with_scatter(), with_slopes(), with_attention()>(
          tile, count, Steps(call_.mapping), lanes, grad, source, correction, d_source,
          d_u_ + begin, d_v_ + begin, d_attention_ + begin);
    };
    const auto lift = [](bool value, auto&& then) {
      value ? then(std::true_type()) : then(std::false_type());
    };
    lift(scatter, [&](auto a) {
      lift(slopes, [&](auto b) { lift(attended, [&](auto d) { run(a, b, d); }); });
    });
  }

  const Call& call_;
  const int64_t n_, source_pixels_, pixels_;
  F *source_panel_, *d_source_panel_;
  F *d_u_, *d_v_, *d_attention_;
  F *grad_panel_ = nullptr, *correction_panel_ = nullptr;
};

// Sums a total over the chunks of each image and writes it.
template <typename F, typename T>
void write_total(const F* totals, int64_t chunks, int64_t chunk_size, int64_t n, int64_t channel,
                 const View<T>& out) {
  const int64_t pixels = out.h * out.w;
  const F* first = totals + n * chunks * chunk_size;
  T* to = out.data + (n * out.c + channel) * pixels;
  for (int64_t i = 0; i < pixels; ++i) {
    F total = first[i];
    for (int64_t k = 1; k < chunks; ++k) total += first[i + k * chunk_size];
    if constexpr (std::is_same_v<T, float>) {
      to[i] = static_cast<float>(total);
    } else {
      narrow(total, to + i);
    }
  }
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& call, const Context& context) {
  using Chunk = BackwardChunk<T, F, Flow>;
  check_plane(call.input.h, call.input.w);
  const int64_t channels = call.input.c, images = call.grad.n;
  const int64_t groups = std::max<int64_t>(1, ceil_div(channels, kLanes<F>));
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = images ? ceil_div(threads, images) : 1;
  const int64_t width = ceil_div(groups, std::min(groups, wanted)) * kLanes<F>;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(channels, width));
  const int64_t scratch = Chunk::scratch(call, width);
  const int64_t totals = 3 * Chunk::padded(call.grad.h * call.grad.w);
  F* memory;
  const Tensor held = context.scratch(images * chunks * (scratch + totals) + 16, &memory);
  F* all_totals = memory + images * chunks * scratch;
  torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t begin = k % chunks * width;
      Chunk(call, k / chunks, memory + k * scratch, all_totals + k * totals)
          .run(begin, std::min(begin + width, channels));
    }
  });
  const int64_t plane = totals / 3;
  for (int64_t n = 0; n < images; ++n) {
    if (call.d_flow.data) {
      write_total(all_totals, chunks, totals, n, 0, call.d_flow);
      write_total(all_totals + plane, chunks, totals, n, 1, call.d_flow);
    }
    if (call.d_attention.data) {
      write_total(all_totals + 2 * plane, chunks, totals, n, 0, call.d_attention);
    }
  }
}

}  // namespace
}  // namespace vsegops::warp

#include "operators.h"
