// Cross-entropy on a CPU: a multiply-add, an addition and a store for each class and output pixel,
// a logarithm and a look-up for each output pixel.
#pragma once

#include "cpu_loss_cells.h"
#include "cpu_rows.h"

namespace vsegops::dense_head {
namespace {

// One thread's rows of cells.
template <typename F>
class LossRows {
 public:
  LossRows(Arena& arena, const LossOptions<F>& options, int64_t classes, const Targets& targets,
           F* losses)
      : cells(arena, options, classes, targets), losses_(losses) {}

  LossCells<F> cells;

  // Row `row` of the cells of image n; the sums of its losses and of its weights. Lanes and rows of
  // cells are summed up apart, in an order that does not depend on the number of threads.
  void run(int64_t n, int32_t row, const F* top, const F* bottom, int64_t pitch, double* sums) {
    std::fill_n(sum_, kLanes<F>, 0.0);
    std::fill_n(total_, kLanes<F>, 0.0);
    cells.walk(
        n, row, top, bottom, pitch, cells.options.label_smoothing == 0,
        [&](auto phases) { std::fill_n(weights_, phases * kLanes<F>, F(1)); },
        [&](auto phases, const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line) {
          add<phases()>(chunk, y, labels, line);
        },
        [](int32_t) {});
    sums[0] = std::accumulate(sum_, sum_ + kLanes<F>, 0.0);
    sums[1] = std::accumulate(total_, total_ + kLanes<F>, 0.0);
  }

 private:
  template <int P>
  void add(const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line) {
    using V = Vector<F>;
    constexpr int n = kLanes<F>;
    const bool geometric = cells.exponentials.geometric;
    const F* const values = cells.exponentials.values;
    const F none = geometric ? 0 : 1;  // what is picked of what is ignored, and of no pixel
    const F* const class_weights = cells.options.weight;
    const F smoothing = cells.options.label_smoothing;
    V sum[P], smooth[P] = {};
    if (geometric) {
      cells.exponentials.template advance<P>(sum);
    } else {
      cells.exponentials.subtract_largest(chunk, P, y);
      for (int64_t c = 0; smoothing != 0 && c < cells.classes; ++c) {
        const F weight = class_weights ? class_weights[c] : F(1);
        for (int k = 0; k < P; ++k) smooth[k] += weight * load(values + (c * P + k) * n);
      }
    }
    F picked[P * n];
    if (!chunk.whole) std::fill_n(picked, P * n, none);
    for_pixels<P>(chunk, [&](int64_t x, int place) {
      picked[place] = values[int64_t(labels[x]) * (P * n) + place];
    });
    if (class_weights) {
      for_pixels<P>(chunk, [&](int64_t x, int place) {
        weights_[place] = class_weights[std::min<int64_t>(labels[x], cells.classes - 1)];
      });
    }
    if (!geometric) cells.exponentials.exponentiate(P, sum);
    V row_sum{}, row_total{};
    F losses[P * n];
    for (int k = 0; k < P; ++k) {
      const V target = load(picked + k * n), weight = load(weights_ + k * n);
      V loss = weight * (geometric ? log(sum[k] / target) : log(sum[k]) - target);
      if (smoothing != 0) {
        const V even = (cells.sum_of_weights * log(sum[k]) - smooth[k]) / F(cells.classes);
        loss += smoothing * (even - loss);
      }
      row_sum += loss = target != none ? loss : V{};
      row_total += target != none ? weight : V{};
      store(loss, losses + k * n);
    }
    if (losses_) {
      F* const row = losses_ + line * cells.columns.output + chunk.origin;
      for_pixels<P>(chunk, [&](int64_t x, int place) { row[x] = losses[place]; });
      return;
    }
    for (int i = 0; i < n; ++i) {
      sum_[i] += row_sum[i];
      total_[i] += row_total[i];
    }
  }

  F* const losses_;  // or null
  double sum_[kLanes<F>], total_[kLanes<F>];
  F weights_[kPhases<F> * kLanes<F>];  // of a row of a chunk
};

template <typename T, typename F>
void loss(const LossForward<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Axis<F>&rows = call.upsampling.y, &columns = call.upsampling.x;
  const Targets targets(call.target, x.c, call.ignore_index, rows.output);
  const int64_t count = x.n * (x.h + 1);
  double* const sums = thread_scratch<double, LossRows<F>>(2 * count);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Arena arena(LossCells<F>::bytes(call, x.c) + SourceRows<T, F>::bytes(x, columns), context);
    LossRows<F> losses(arena, call, x.c, targets, call.losses);
    SourceRows<T, F> source(arena, x, call.channels_last, columns);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = k / (x.h + 1), row = k % (x.h + 1);
      const F *top = source.row(n, row - 1), *bottom = source.row(n, row);
      losses.run(n, static_cast<int32_t>(row), top, bottom, source.pitch, sums + 2 * k);
    }
  });
  targets.check();
  if (!call.sum) return;
  double sum = 0, total = 0;
  for (int64_t k = 0; k < count; ++k) {
    sum += sums[2 * k];
    total += sums[2 * k + 1];
  }
  *call.sum = static_cast<F>(sum);
  *call.total = static_cast<F>(total);
}

}  // namespace
}  // namespace vsegops::dense_head
