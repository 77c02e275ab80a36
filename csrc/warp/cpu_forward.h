// Forward on a CPU: 4 C P multiply-adds against 8 C P bytes (12 with a correction) for C channels
// and P pixels of float32, so memory bounds it once the taps are found by vectors.
#pragma once

#include <tuple>

#include "../common/cpu_strips.h"
#include "../common/cpu_taps.h"
#include "warp.h"

namespace vsegops::warp {
namespace {

constexpr int64_t kForwardTile = 16384;  // pixels: taps and source rows of a tile stay in L2
constexpr int64_t kSparse = 4;  // so many source pixels for each of the tile are not worth widening

// ---- Forward, contiguous: vectors over pixels. ----

// A(source) for kLanes pixels of the tile, from pixel i on.
template <typename F>
VSEGOPS_HD Vector<F> sample_planar(const F* source, int64_t row, const Tile<F>& tile, int64_t i) {
  constexpr int n = kLanes<F>;
  using Lanes = std::make_integer_sequence<int, n>;
  const auto half = [&](int64_t at) {
    return load_pairs(source, tile.offset + at) * load(tile.top + 2 * at) +
           load_pairs(source + row, tile.offset + at) * load(tile.bottom + 2 * at);
  };
  const Vector<F> first = half(i), second = half(i + n / 2);
  return even<F>(first, second, Lanes()) + odd<F>(first, second, Lanes());
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
    __builtin_prefetch(source + tile.offset[i + n / 2] + next_source);
    Vector<F> value = sample_planar(source, row, tile, i);
    if constexpr (Corrected) {
      __builtin_prefetch(correction + i + next_correction);
      value += load(tile.factor + i) * load(correction + i);
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
      if constexpr (Corrected) value += tile.factor[k] * widen(correction[k]);
      narrow(value, out + k);
    }
  }
}

// The same, tap by tap: for a source of another type than F of which the tile touches little, and
// for one of a single pixel, which makes no pair.
template <typename T, typename F>
void warp_plane_sparsely(const T* source, const Steps& steps, const Tile<F>& tile, int64_t count,
                         const T* correction, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    const T* p = source + tile.offset[i];
    const T* q = p + steps.row;
    F value = tile.top[2 * i] * widen(p[0]) + tile.top[2 * i + 1] * widen(p[steps.pair]) +
              tile.bottom[2 * i] * widen(q[0]) + tile.bottom[2 * i + 1] * widen(q[steps.pair]);
    if (correction) value += tile.factor[i] * widen(correction[i]);
    narrow(value, out + i);
  }
}

// The first pixel of a plane that a tile of `count` pixels touches, and how many from there on.
template <typename F>
std::pair<int64_t, int64_t> touched(const Tile<F>& tile, int64_t count, const Steps& steps,
                                    int64_t plane) {
  const auto [low, high] = std::minmax_element(tile.offset, tile.offset + count);
  return {*low, std::min<int64_t>(*high + steps.row + steps.pair + 1, plane) - *low};
}

// The planes of an image in the type that is computed in. What a tile touches of them is widened
// first for half precision; a single pixel is copied as well, beside a zero, so that it makes a
// pair. The offsets of `tile`, `count` of them, change accordingly.
template <typename T, typename F>
class SourcePlanes {
 public:
  SourcePlanes(const T* source, int64_t plane, const Steps& steps, const Tile<F>& tile,
               int64_t count)
      : source_(source), plane_(plane) {
    if (std::is_same_v<T, F> && plane > 1) return;
    std::tie(first_, length_) = touched(tile, count, steps, plane);
    for (int64_t i = 0; i < count; ++i) tile.offset[i] -= static_cast<int32_t>(first_);
    copy_ = thread_scratch<F, SourcePlanes>(length_ + 2 * kLanes<F>);
    std::fill_n(copy_, length_ + 2 * kLanes<F>, F(0));
  }

  // Plane c; of a copy, until the next one is asked for.
  const F* operator[](int64_t c) const {
    const T* from = source_ + c * plane_ + first_;
    if (!copy_) return reinterpret_cast<const F*>(from);
    for (int64_t i = 0; i < length_; ++i) copy_[i] = widen(from[i]);
    return copy_;
  }

  // Where plane c + 1 stands, relative to plane c.
  int64_t next() const { return copy_ ? 0 : plane_; }

 private:
  const T* const source_;
  const int64_t plane_;
  int64_t first_ = 0, length_ = 0;
  F* copy_ = nullptr;
};

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
  const bool widened = !std::is_same_v<T, F>;
  if (plane == 1 || (widened && touched(tile, count, steps, plane).second > kSparse * count)) {
    for (int64_t c = 0; c < call.out.c; ++c) {
      warp_plane_sparsely(source + c * plane, steps, tile, count,
                          correction ? correction + c * out_plane : nullptr, out + c * out_plane);
    }
    return;
  }
  const SourcePlanes<T, F> planes(source, plane, steps, tile,
                                  ceil_div(count, kLanes<F>) * kLanes<F>);
  const auto run = [&](auto with_correction, auto with_stream) {
    for (int64_t c = 0; c < call.out.c; ++c) {
      warp_plane<with_correction(), with_stream()>(
          planes[c], steps.row, tile, count, correction ? correction + c * out_plane : nullptr,
          planes.next(), out_plane, out + c * out_plane);
    }
  };
  const auto with_stream = [&](auto with_correction) {
    if constexpr (std::is_same_v<T, F>) {
      const bool aligned = is_aligned(out) && out_plane * sizeof(T) % kVectorBytes == 0;
      if (streamed && aligned) return run(with_correction, std::true_type());
    }
    run(with_correction, std::false_type());
  };
  correction ? with_stream(std::true_type()) : with_stream(std::false_type());
}

// ---- Forward, channels_last: vectors over channels. ----

template <bool Corrected, bool Stream, typename T, typename F, typename Out>
void warp_pixels(const T* source, int64_t channels, const Steps& steps, const Tile<F>& tile,
                 int64_t count, const T* correction, Out* out, RowsAhead<T> source_ahead = {},
                 RowsAhead<T> correction_ahead = {}) {
  constexpr int n = kLanes<F>;
  for (int64_t i = 0; i < count; ++i) {
    source_ahead.step();
    if constexpr (Corrected) correction_ahead.step();
    const T* p = source + tile.offset[i] * channels;
    const T* q = p + steps.row * channels;
    const int64_t pair = steps.pair * channels;
    const F w00 = tile.top[2 * i], w01 = tile.top[2 * i + 1];
    const F w10 = tile.bottom[2 * i], w11 = tile.bottom[2 * i + 1], a = tile.factor[i];
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
void forward_strip_row(const Forward<T, F, Flow>& call, const StripRow& row, const Tile<F>& tile,
                       bool streamed) {
  const int64_t channels = call.input.c;
  const T* source = call.input.data + row.n * call.input.h * call.input.w * channels;
  const int64_t at = ((row.n * call.out.h + row.y) * call.out.w + row.x) * channels;
  const T* correction = call.correction.data ? call.correction.data + at : nullptr;
  const Steps steps(call.mapping);
  const auto run = [&](auto with_correction, auto with_stream) {
    warp_pixels<with_correction(), with_stream()>(
        source, channels, steps, tile, row.count, correction, call.out.data + at,
        RowsAhead<T>(call.input, call.mapping, row), RowsAhead<T>(call.correction, row));
  };
  const auto with_stream = [&](auto with_correction) {
    if constexpr (std::is_same_v<T, F>) {
      const bool aligned = is_aligned(call.out.data) && channels * sizeof(T) % kVectorBytes == 0;
      if (streamed && aligned) return run(with_correction, std::true_type());
    }
    run(with_correction, std::false_type());
  };
  correction ? with_stream(std::true_type()) : with_stream(std::false_type());
}

template <typename T, typename F, typename Flow>
void forward_pixels(const Forward<T, F, Flow>& call, bool streamed) {
  const Strips strips(call.out);
  torch::stable::parallel_for(0, strips.rows(), 1, [&](int64_t first, int64_t last) {
    Arena arena(Tile<F>::bytes(strips.columns()) + Columns<F>::bytes(call.out.w));
    const Tile<F> tile(arena, strips.columns(), false);
    const Columns<F> columns(arena, call.mapping.x);
    for (int64_t k = first; k < last; ++k) {
      const StripRow row = strips[k];
      const int64_t begin = row.y * call.out.w + row.x;
      find_taps(call.mapping, call.flow, call.attention, columns, row.n, begin, begin + row.count,
                tile);
      forward_strip_row(call, row, tile, streamed);
    }
    if (streamed) stream_fence();
  });
}

template <typename T, typename F, typename Flow>
void forward_planes(const Forward<T, F, Flow>& call, bool streamed) {
  const int64_t pixels = call.out.h * call.out.w;
  // Few enough pixels a tile that every thread has some, in whole vectors.
  const int64_t share = ceil_div(call.out.n * pixels, torch::stable::get_num_threads());
  const int64_t size = std::min(kForwardTile, std::max<int64_t>(64, ceil_div(share, 64) * 64));
  const int64_t tiles = ceil_div(pixels, size);
  torch::stable::parallel_for(0, call.out.n * tiles, 1, [&](int64_t first, int64_t last) {
    Arena arena(Tile<F>::bytes(size) + Columns<F>::bytes(call.out.w));
    const Tile<F> tile(arena, size, false);
    const Columns<F> columns(arena, call.mapping.x);
    for (int64_t k = first; k < last; ++k) {
      const int64_t n = k / tiles, begin = k % tiles * size, end = std::min(begin + size, pixels);
      find_taps(call.mapping, call.flow, call.attention, columns, n, begin, end, tile);
      forward_planar_tile(call, n, begin, end, tile, streamed);
    }
    if (streamed) stream_fence();
  });
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& call, const Context&) {
  check_plane(call.input.h, call.input.w);
  const bool streamed =
      call.out.n * call.out.c * call.out.h * call.out.w * int64_t(sizeof(T)) >= kStreamBytes;
  call.channels_last ? forward_pixels(call, streamed) : forward_planes(call, streamed);
}

}  // namespace
}  // namespace vsegops::warp
