// How both directions of the loss go over the cells, one thread's part.
#pragma once

#include <numeric>

#include "cpu_exponentials.h"
#include "cpu_targets.h"

namespace vsegops::dense_head {
namespace {

template <typename F>
struct LossCells {
  const LossOptions<F>& options;
  const Targets& targets;
  const int64_t classes;
  const Axis<F>&rows, &columns;
  const Cells<F> cells;
  Exponentials<F> exponentials;
  const F sum_of_weights;  // of the classes

  static size_t bytes(const LossOptions<F>& options, int64_t classes) {
    const Axis<F>& columns = options.upsampling.x;
    return Cells<F>::bytes(columns) + Exponentials<F>::bytes(classes) +
           (kRows * labels_pitch(columns) + 16) * sizeof(int32_t);
  }

  LossCells(Arena& arena, const LossOptions<F>& given, int64_t c, const Targets& target)
      : options(given),
        targets(target),
        classes(c),
        rows(given.upsampling.y),
        columns(given.upsampling.x),
        cells(arena, columns),
        exponentials(arena, c, given.upsampling),
        sum_of_weights(given.weight
                           ? static_cast<F>(std::accumulate(given.weight, given.weight + c, 0.0))
                           : static_cast<F>(c)),
        labels_(arena.take<int32_t>(kRows * labels_pitch(columns))) {}

  // Row `row` of the cells of image n, whose corners stand at `top` and `bottom`. For each chunk:
  // `enter(phases)`; `add(phases, chunk, y, labels, line)` for each output row, with its fraction,
  // the labels from the chunk's origin on, and its number over all images; `leave(cell)`.
  template <typename Enter, typename Add, typename Leave>
  void walk(int64_t n, int32_t row, const F* top, const F* bottom, int64_t pitch, bool geometric,
            const Enter& enter, const Add& add, const Leave& leave) {
    for_rows(rows, row, [&](int32_t first, int32_t count, const F* fractions) {
      for (int32_t cell = 0; cell < cells.pitch; cell += kLanes<F>) {
        const int32_t x = cells.first[cell], width = cells.first[cell + kLanes<F>] - x;
        for (int32_t r = 0; r < count; ++r) {
          targets.read(n, first + r, x, width, labels_ + r * width);
        }
        exponentials.read(top + cell, bottom + cell, pitch);
        for_chunks(cells, cell, [&](auto phases, const Chunk<F>& chunk) {
          exponentials.start(chunk, phases, count, fractions[0], geometric);
          enter(phases);
          for (int32_t r = 0; r < count; ++r) {
            targets.fetch(n, first + r, x + width, width);
            add(phases, chunk, fractions[r], labels_ + r * width, n * rows.output + first + r);
          }
          leave(cell);
        });
      }
    });
  }

 private:
  // Columns of kLanes cells, at most.
  static int64_t labels_pitch(const Axis<F>& columns) {
    return std::min<int64_t>(columns.output, Cells<F>::most_phases(columns) * kLanes<F>);
  }

  int32_t* const labels_;
};

}  // namespace
}  // namespace vsegops::dense_head
