// Labels on a CPU: a multiply-add, a comparison and two selections for each class and output pixel.
// A class that lies below another at all four corners of all cells of a vector is left out, which
// on smooth logits leaves a few.
#pragma once

#include <limits>

#include "cpu_rows.h"

namespace vsegops::dense_head {
namespace {

// Memory of one thread.
template <typename F>
struct ArgmaxScratch {
  Corners<F>* corners;  // [C]
  Vector<F>* highest;   // [C]: of the corners
  int32_t* classes;     // those that may win
  int32_t count = 0;

  static size_t bytes(int64_t classes) {
    return classes * (5 * kVectorBytes + sizeof(int32_t)) + 3 * 64;
  }
  ArgmaxScratch(Arena& arena, int64_t c)
      : corners(arena.take<Corners<F>>(c)),
        highest(arena.take<Vector<F>>(c)),
        classes(arena.take<int32_t>(c)) {}

  // The corners of the cells from the one on, whose top left ones `top` points to.
  void read(const F* top, const F* bottom, int64_t pitch, int64_t classes_total) {
    constexpr F kRounding = 32 * std::numeric_limits<F>::epsilon();  // of `Corners`, amply
    using V = Vector<F>;
    V floor = V{} - std::numeric_limits<F>::infinity(), largest{};
    for (int64_t c = 0; c < classes_total; ++c, top += pitch, bottom += pitch) {
      const V a = load(top), b = load(top + 1), p = load(bottom), q = load(bottom + 1);
      corners[c] = Corners<F>::of(a, b, p, q);
      highest[c] = most<F>(most<F>(a, b), most<F>(p, q));
      const V lowest = least<F>(least<F>(a, b), least<F>(p, q));
      floor = most<F>(floor, lowest);
      largest = most<F>(largest, most<F>(highest[c], -lowest));
    }
    floor -= kRounding * largest;
    count = 0;
    for (int64_t c = 0; c < classes_total; ++c) {
      if (any(~(highest[c] < floor))) classes[count++] = static_cast<int32_t>(c);
    }
  }
};

template <int P, typename F>
struct Best {
  Vector<F> value[P];
  index_t<Vector<F>> label[P];
};

template <int P, typename F>
VSEGOPS_HD Best<P, F> find_best(const ArgmaxScratch<F>& cells, F y, const Chunk<F>& chunk) {
  using V = Vector<F>;
  V x[P];
  Best<P, F> best;
#pragma GCC unroll 8
  for (int k = 0; k < P; ++k) {
    x[k] = chunk.fraction(k);
    best.value[k] = V{} - std::numeric_limits<F>::infinity();
    best.label[k] = index_t<V>{};
  }
  for (int32_t i = 0; i < cells.count; ++i) {
    const int32_t c = cells.classes[i];
    const V start = cells.corners[c].start(y), slope = cells.corners[c].slope(y);
    const index_t<V> label = index_t<V>{} + c;
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      const V value = start + x[k] * slope;
      const auto better = value > best.value[k];
      best.value[k] = better ? value : best.value[k];
      best.label[k] = better ? label : best.label[k];
    }
  }
  return best;
}

// The probability of the best class: 1 / sum_c exp(Z_c - Z_best).
template <int P, typename F>
void find_confidence(const ArgmaxScratch<F>& cells, int64_t classes, F y, const Chunk<F>& chunk,
                     const Best<P, F>& best, F* confidence) {
  using V = Vector<F>;
  V sum[P] = {};
  for (int64_t c = 0; c < classes; ++c) {
    const V start = cells.corners[c].start(y), slope = cells.corners[c].slope(y);
    for (int k = 0; k < P; ++k) {
      sum[k] += exp(start + chunk.fraction(k) * slope - best.value[k]);
    }
  }
  for (int k = 0; k < P; ++k) store(1 / sum[k], confidence + k * kLanes<F>);
}

// Labels of a byte, to the columns of a row: four at a time. What is written past the end of a cell
// belongs to the cells to its right, which are written later: chunks and words go to the left,
// lanes and vectors of cells to the right.
template <int P, typename F>
VSEGOPS_HD void store_bytes(const Chunk<F>& chunk, const index_t<Vector<F>>* labels, int64_t width,
                            uint8_t* row) {
  constexpr int n = kLanes<F>, words = (P + 3) / 4;
  index_t<Vector<F>> packed[words];
#pragma GCC unroll 2
  for (int w = 0; w < words; ++w) {
    packed[w] = labels[4 * w];
    for (int k = 1; k < std::min(4, P - 4 * w); ++k) packed[w] |= labels[4 * w + k] << (8 * k);
  }
  if constexpr (P == 8 && std::is_same_v<F, float>) {
    if (chunk.whole) {
      return store_interleaved<float>((Vector<float>)packed[0], (Vector<float>)packed[1],
                                      reinterpret_cast<float*>(row));
    }
  }
  int32_t bytes[words * n];
  for (int w = 0; w < words; ++w) store_index(packed[w], bytes + w * n);
  for (int w = words; w-- > 0;) {
    for (int i = 0; i < n; ++i) {
      const int64_t x = chunk.begin[i] + 4 * w;
      if (chunk.count[i] <= 4 * w) continue;
      if (x + 4 <= width) {
        std::memcpy(row + x, bytes + w * n + i, 4);
      } else {
        std::memcpy(row + x, bytes + w * n + i, width - x);
      }
    }
  }
}

// What is written; see Argmax.
template <typename F>
struct Labels {
  uint8_t* labels;
  int32_t* wide_labels;
  F* confidence;
};

// Some cells, in `count` output rows, of which `first` is counted over all images.
template <typename F>
void label_cells(const Labels<F>& out, int64_t classes, int64_t width, int64_t first, int32_t count,
                 const F* fractions, const ArgmaxScratch<F>& scratch, const Cells<F>& cells,
                 int32_t cell) {
  for_chunks(cells, cell, [&](auto phases, const Chunk<F>& chunk) {
    constexpr int P = phases;
    for (int32_t r = 0; r < count; ++r) {
      const F fraction = fractions[r];
      const int64_t at = (first + r) * width + chunk.origin;
      const Best<P, F> best = find_best<P>(scratch, fraction, chunk);
      if (out.labels) {
        store_bytes<P>(chunk, best.label, width - chunk.origin, out.labels + at);
      } else {
        int32_t labels[P * kLanes<F>];
        for (int k = 0; k < P; ++k) store_index(best.label[k], labels + k * kLanes<F>);
        int32_t* const row = out.wide_labels + at;
        for_pixels<P>(chunk, [&](int64_t x, int place) { row[x] = labels[place]; });
      }
      if (out.confidence) {
        F confidence[P * kLanes<F>];
        find_confidence<P>(scratch, classes, fraction, chunk, best, confidence);
        F* const row = out.confidence + at;
        for_pixels<P>(chunk, [&](int64_t x, int place) { row[x] = confidence[place]; });
      }
    }
  });
}

template <typename T, typename F>
void argmax(const Argmax<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Axis<F>&rows = call.upsampling.y, &columns = call.upsampling.x;
  const Labels<F> out{call.labels, call.wide_labels, call.confidence};
  torch::stable::parallel_for(0, x.n * (x.h + 1), 1, [&](int64_t begin, int64_t end) {
    Arena arena(Cells<F>::bytes(columns) + SourceRows<T, F>::bytes(x, columns) +
                    ArgmaxScratch<F>::bytes(x.c),
                context);
    const Cells<F> cells(arena, columns);
    SourceRows<T, F> source(arena, x, call.channels_last, columns);
    ArgmaxScratch<F> scratch(arena, x.c);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = k / (x.h + 1);
      const int32_t row = static_cast<int32_t>(k % (x.h + 1));
      for_rows(rows, row, [&](int32_t first, int32_t count, const F* fractions) {
        const F *top = source.row(n, row - 1), *bottom = source.row(n, row);
        for (int32_t cell = 0; cell < cells.pitch; cell += kLanes<F>) {
          scratch.read(top + cell, bottom + cell, source.pitch, x.c);
          label_cells(out, x.c, columns.output, n * rows.output + first, count, fractions, scratch,
                      cells, cell);
        }
      });
    }
  });
}

}  // namespace
}  // namespace vsegops::dense_head
