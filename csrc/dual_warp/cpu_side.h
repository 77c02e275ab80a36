// One of the two sources on a CPU, along the tiles of an image.
#pragma once

#include "../common/cpu_window.h"
#include "dual_warp.h"

namespace vsegops::dual_warp {
namespace {

// Multiplies the weights of the taps, and their slopes, by the share that the source has in the
// output: the gate, or what it leaves.
template <typename F>
void weigh(const Tile<F>& tile, int64_t count, bool rest) {
  constexpr int n = kLanes<F>;
  for (int64_t i = 0; i < count; i += n) {
    const Vector<F> gate = load(tile.factor + i), share = rest ? 1 - gate : gate;
    Vector<F> pairs[2];
    interleave<F>(share, share, pairs, pairs + 1, std::make_integer_sequence<int, n>());
    for (F* weights : {tile.top, tile.bottom}) {
      for (int half = 0; half < 2; ++half) {
        F* const at = weights + 2 * i + half * n;
        store(pairs[half] * load(at), at);
      }
    }
    if (!tile.slope_u[0]) continue;
    for (F* slopes : {tile.slope_u[0], tile.slope_u[1], tile.slope_v[0], tile.slope_v[1]}) {
      store(share * load(slopes + i), slopes + i);
    }
  }
}

template <typename T, typename F, typename Flow>
class Side {
 public:
  static size_t bytes(int64_t width, int64_t pixels) {
    return Tile<F>::bytes(pixels) + Columns<F>::bytes(width);
  }

  // Tiles have at most `pixels` pixels.
  Side(Arena& arena, const Source<T, F, Flow>& source, const View<const T>& gate, bool rest,
       int64_t pixels, bool slopes)
      : tile(arena, pixels, slopes),
        steps(source.mapping),
        source_(source),
        gate_(gate),
        rest_(rest),
        columns_(arena, source.mapping.x) {}

  // The taps of pixels [begin, end) of image n.
  void find(int64_t n, int64_t begin, int64_t end) const {
    find_taps(source_.mapping, source_.flow, gate_, columns_, n, begin, end, tile);
    weigh(tile, end - begin, rest_);
  }

  const Tile<F> tile;
  const Steps steps;

 private:
  const Source<T, F, Flow>& source_;
  const View<const T>& gate_;
  const bool rest_;
  const Columns<F> columns_;
};

}  // namespace
}  // namespace vsegops::dual_warp
