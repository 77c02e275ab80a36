// What all kernels of the dense head share on a CPU: the logits cut into cells.
//
// A cell lies between four neighbouring pixels of the logits, and the output pixels in it are
// interpolated from these alone. Cell j of an axis is between pixels j - 1 and j, clamped to those
// that there are: what is outside lies in cells 0 and `source`, between a pixel and itself.
//
// Lanes are cells side by side, and the output columns of a cell are its phases: the corners are
// read by contiguous vectors at any ratio, gradients are summed up without a scatter, and along the
// phases and rows of a cell the logits are linear.
#pragma once

#include "../common/cpu_taps.h"
#include "dense_head.h"

namespace vsegops::dense_head {
namespace {

// Phases at a time, so that what is kept of each stays in registers.
template <typename F>
constexpr int kPhases = kLanes<F> == 16 ? 8 : 4;

// From one output pixel to the next, in pixels of the logits.
template <typename F>
double step_of(const Axis<F>& axis) {
  if (!axis.align_corners) return double(axis.source) / axis.output;
  return axis.output > 1 ? (axis.source - 1.0) / (axis.output - 1.0) : 0.0;
}

// The first output pixel in this cell or a later one.
template <typename F>
int32_t first_in(const Axis<F>& axis, int32_t cell) {
  int32_t low = 0, high = axis.output;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (axis.base(middle).index + 1 < cell) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Rows at a time.
constexpr int32_t kRows = 8;

// Calls `run(y, count, fractions)` for the output rows from y on in a row of cells, up to kRows at
// a time.
template <typename F, typename Run>
void for_rows(const Axis<F>& axis, int32_t cell, const Run& run) {
  const int32_t last = first_in(axis, cell + 1);
  for (int32_t y = first_in(axis, cell); y < last; y += kRows) {
    const int32_t count = std::min(kRows, last - y);
    F fractions[kRows];
    for (int32_t r = 0; r < count; ++r) fractions[r] = axis.base(y + r).fraction;
    run(y, count, fractions);
  }
}

// The output columns by cell. There are empty cells up to a whole vector.
template <typename F>
struct Cells {
  int32_t pitch;   // cells
  int32_t* first;  // [pitch + 1]: the first column of each
  F* fraction;     // [phase][pitch]; past the last phase of a cell that of its last one

  static int32_t padded(const Axis<F>& axis) {
    return ceil_div(axis.source + 1, kLanes<F>) * kLanes<F>;
  }
  static int64_t most_phases(const Axis<F>& axis) {
    return axis.source > 1 ? axis.output / (axis.source - 1) + 2 : axis.output;
  }
  static size_t bytes(const Axis<F>& axis) {
    return (padded(axis) + 17) * sizeof(int32_t) +
           (most_phases(axis) * padded(axis) + 16) * sizeof(F);
  }

  Cells(Arena& arena, const Axis<F>& axis)
      : pitch(padded(axis)),
        first(arena.take<int32_t>(pitch + 1)),
        fraction(arena.take<F>(most_phases(axis) * pitch)) {
    int32_t x = 0;
    for (int32_t cell = 0; cell <= pitch; ++cell) {
      first[cell] = x;
      for (; x < axis.output && cell < pitch; ++x) {
        const Position<F> p = axis.base(x);
        if (p.index + 1 != cell) break;
        fraction[int64_t(x - first[cell]) * pitch + cell] = p.fraction;
      }
      phases_ = std::max(phases_, x - first[cell]);
    }
    for (int32_t cell = 0; cell < pitch; ++cell) {
      const int32_t count = first[cell + 1] - first[cell];
      for (int64_t k = count; k < phases_; ++k) {
        fraction[k * pitch + cell] = count ? fraction[(count - 1) * int64_t(pitch) + cell] : F(0);
      }
    }
  }

  // Columns of kLanes cells, at most.
  int64_t most_columns() const { return int64_t(phases_) * kLanes<F>; }

 private:
  int32_t phases_ = 0;
};

// Some phases of kLanes cells.
template <typename F>
struct Chunk {
  const F* const fractions;
  const int64_t pitch;
  // The output columns of each lane, from `origin` on, the first of all phases. `whole`: all lanes
  // have as many phases, and one's are beside the other's.
  const int32_t origin;
  int32_t begin[kLanes<F>], count[kLanes<F>];
  bool whole = true;

  Chunk(const Cells<F>& cells, int32_t cell, int32_t phase, int32_t phases)
      : fractions(cells.fraction + int64_t(phase) * cells.pitch + cell),
        pitch(cells.pitch),
        origin(cells.first[cell]) {
    for (int i = 0; i < kLanes<F>; ++i) {
      begin[i] = cells.first[cell + i] - origin + phase;
      count[i] = std::clamp(cells.first[cell + i + 1] - origin - begin[i], 0, phases);
      whole &= count[i] == phases && begin[i] == i * phases;
    }
  }
  VSEGOPS_HD Vector<F> fraction(int k) const { return load(fractions + k * pitch); }
};

// Calls `run(column, place)` for the output pixels of a row; columns count from the origin, and
// phase k of lane i is in place k * kLanes + i.
template <int P, typename F, typename Run>
VSEGOPS_HD void for_pixels(const Chunk<F>& chunk, const Run& run) {
  for (int i = 0; i < kLanes<F>; ++i) {
    const int64_t column = chunk.begin[i];
    if (chunk.count[i] == P) {
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) run(column + k, k * kLanes<F> + i);
    } else {
      for (int k = 0; k < chunk.count[i]; ++k) run(column + k, k * kLanes<F> + i);
    }
  }
}

template <int P, typename Run>
void with_count(int count, const Run& run) {
  if constexpr (P > 1) {
    if (count < P) return with_count<P - 1>(count, run);
  }
  run(std::integral_constant<int, P>());
}

// Calls `run(phases, chunk)` for the phases of kLanes cells, the last ones first; `phases` is a
// constant, and less than kPhases for the last alone.
template <typename F, typename Run>
void for_chunks(const Cells<F>& cells, int32_t cell, const Run& run) {
  int32_t most = 0;
  for (int i = 0; i < kLanes<F>; ++i) {
    most = std::max(most, cells.first[cell + i + 1] - cells.first[cell + i]);
  }
  for (int32_t end = most; end > 0;) {
    const int32_t phase = (end - 1) / kPhases<F> * kPhases<F>;
    with_count<kPhases<F>>(end - phase,
                           [&](auto phases) { run(phases, Chunk<F>(cells, cell, phase, phases)); });
    end = phase;
  }
}

// The logits between the corners of kLanes cells:
//   value + y * down + x * (right + y * both)   for x, y in [0, 1)
// Corners that are equal give exactly their value.
template <typename F>
struct Corners {
  Vector<F> value, down, right, both;

  static VSEGOPS_HD Corners of(Vector<F> top_left, Vector<F> top_right, Vector<F> bottom_left,
                               Vector<F> bottom_right) {
    const Vector<F> right = top_right - top_left;
    return {top_left, bottom_left - top_left, right, (bottom_right - bottom_left) - right};
  }
  VSEGOPS_HD Vector<F> start(F y) const { return value + y * down; }
  VSEGOPS_HD Vector<F> slope(F y) const { return right + y * both; }
};

template <typename F>
VSEGOPS_HD Vector<F> least(Vector<F> a, Vector<F> b) {
  return a < b ? a : b;
}
template <typename F>
VSEGOPS_HD Vector<F> most(Vector<F> a, Vector<F> b) {
  return a > b ? a : b;
}

// Whether a condition holds in any lane.
template <typename V>
VSEGOPS_HD bool any(V condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition);
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#else
  uint64_t words[sizeof(V) / 8], all = 0;
  std::memcpy(words, &condition, sizeof(V));
  for (uint64_t word : words) all |= word;
  return all;
#endif
}

}  // namespace
}  // namespace vsegops::dense_head
