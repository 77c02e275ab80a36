// Cross-entropy on a CPU: a multiply-add, an addition and a store for each class and output pixel,
// a logarithm and a look-up for each output pixel.
#pragma once

#include "cpu_exponentials.h"
#include "cpu_targets.h"

namespace vsegops::dense_head {
namespace {

// Sums of losses and of weights. Lanes and rows of cells are summed up apart and in a fixed order,
// whatever the number of threads.
template <typename F>
struct Sums {
  double loss[kLanes<F>] = {}, total[kLanes<F>] = {};

  void add(Vector<F> losses, Vector<F> weights) {
    for (int i = 0; i < kLanes<F>; ++i) {
      loss[i] += losses[i];
      total[i] += weights[i];
    }
  }
};

// What one row of a chunk needs, beside its exponentials.
template <typename F>
struct LossRow {
  const int32_t* labels;
  const F* weights;  // [C + 1], of which the last, 0, is for what is ignored
  F sum_of_weights;
  F smoothing, classes;
  F* losses;  // the row's, or null
};

// `weights` stays 0 in lanes without a pixel.
template <int P, typename F>
void pick(const Chunk<F>& chunk, const LossRow<F>& row, const F* values, F* picked, F* weights,
          F* counted, int32_t none) {
  constexpr int n = kLanes<F>;
  for (int i = 0; i < n; ++i) {
    const int32_t* const labels = row.labels + chunk.begin[i];
    const auto pixel = [&](int k) {
      const int64_t label = labels[k];
      picked[k * n + i] = values[(label * P + k) * n + i];
      weights[k * n + i] = row.weights[label];
      if (counted) counted[k * n + i] = label != none;
    };
    if (chunk.count[i] == P) {
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) pixel(k);
    } else {
      for (int k = 0; k < chunk.count[i]; ++k) pixel(k);
    }
  }
}

template <int P, typename F>
void loss_row(Exponentials<F>& exponentials, const Chunk<F>& chunk, F y, const LossRow<F>& row, int64_t classes, Sums<F>& sums) {
  using V = Vector<F>;
  constexpr int n = kLanes<F>;
  F picked[P * n], weights[P * n] = {}, counted[P * n] = {}, losses[P * n];
  V sum[P], smooth[P] = {};
  std::fill_n(picked, P * n, F(1));
  const bool smoothed = row.smoothing != 0;
  if (exponentials.geometric) {
    exponentials.template advance<P>(sum);
  } else {
    exponentials.template subtract_largest<P>(chunk, y);
  }
  pick<P>(chunk, row, exponentials.values, picked, weights, smoothed ? counted : nullptr, static_cast<int32_t>(classes));
  if (smoothed) {
    for (int64_t c = 0; c < classes; ++c) {
      for (int k = 0; k < P; ++k) {
        smooth[k] += row.weights[c] * load(exponentials.values + (c * P + k) * n);
      }
    }
  }
  if (!exponentials.geometric) exponentials.template exponentiate<P>(sum);
  V row_sum{}, row_total{};
  for (int k = 0; k < P; ++k) {
    const V weight = load(weights + k * n), of_target = load(picked + k * n);
    V loss = exponentials.geometric ? log(sum[k] / of_target) : log(sum[k]) - of_target;
    loss = weight != 0 ? weight * loss : V{};
    if (smoothed) {
      const V even = (row.sum_of_weights * log(sum[k]) - smooth[k]) / row.classes;
      loss = load(counted + k * n) != 0 ? loss + row.smoothing * (even - loss) : V{};
    }
    row_sum += loss;
    row_total += weight;
    if (row.losses) store(loss, losses + k * n);
  }
  if (row.losses) {
    scatter_columns(chunk, losses, row.losses);
  } else {
    sums.add(row_sum, row_total);
  }
}

// The weights of C classes and 0; and their sum.
template <typename F>
F copy_weights(const F* weight, int64_t classes, F* weights) {
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) sum += weights[c] = weight ? weight[c] : F(1);
  weights[classes] = 0;
  return static_cast<F>(sum);
}

template <typename T, typename F>
class LossPass {
 public:
  LossPass(const LossForward<T, F>& call, const Context& context, const Targets& targets)
      : call_(call),
        targets_(targets),
        columns_(call.upsampling.x),
        rows_(call.upsampling.y),
        classes_(call.logits.c),
        arena_(Cells<F>::bytes(columns_) + SourceRows<T, F>::bytes(call.logits, columns_) +
                   Exponentials<F>::bytes(classes_) + (classes_ + 17) * sizeof(F) +
                   (kRows * int64_t(columns_.output) + 16) * sizeof(int32_t),
               context),
        cells_(arena_, columns_),
        source_(arena_, call.logits, call.channels_last, columns_),
        exponentials_(arena_, classes_, call.upsampling),
        weights_(arena_.take<F>(classes_ + 1)),
        labels_(arena_.take<int32_t>(kRows * int64_t(columns_.output))),
        sum_of_weights_(copy_weights(call.weight, classes_, weights_)) {}

  // Row `row` of the cells of image n; the sums of its losses and weights.
  void run(int64_t n, int32_t row, double* sums) {
    const int32_t first = first_in(rows_, row), last = first_in(rows_, row + 1);
    Sums<F> lanes;
    for (int32_t y = first; y < last; y += kRows) {
      run(n, row, y, std::min(kRows, last - y), lanes);
    }
    sums[0] = sums[1] = 0;
    for (int i = 0; i < kLanes<F>; ++i) {
      sums[0] += lanes.loss[i];
      sums[1] += lanes.total[i];
    }
  }

 private:
  void run(int64_t n, int32_t row, int32_t first, int32_t count, Sums<F>& sums) {
    const F *top = source_.row(n, row - 1), *bottom = source_.row(n, row);
    const int64_t width = columns_.output;
    for (int32_t r = 0; r < count; ++r) targets_.read(n, first + r, labels_ + r * width);
    for (int32_t cell = 0; cell < cells_.pitch; cell += kLanes<F>) {
      exponentials_.read(top + cell, bottom + cell, source_.pitch);
      for_chunks(cells_, cell, [&](auto phases, const Chunk<F>& chunk) {
        constexpr int P = phases;
        exponentials_.template start<P>(chunk, count, rows_.base(first).fraction,
                                        call_.label_smoothing == 0);
        for (int32_t r = 0; r < count; ++r) {
          const int32_t y = first + r;
          F* const losses = call_.losses ? call_.losses + (n * rows_.output + y) * width : nullptr;
          loss_row<P>(exponentials_, chunk, rows_.base(y).fraction,
                      {labels_ + r * width, weights_, sum_of_weights_, call_.label_smoothing,
                       F(classes_), losses},
                      classes_, sums);
        }
      });
    }
  }

  const LossForward<T, F>& call_;
  const Targets& targets_;
  const Axis<F>&columns_, &rows_;
  const int64_t classes_;
  Arena arena_;
  const Cells<F> cells_;
  SourceRows<T, F> source_;
  Exponentials<F> exponentials_;
  F* const weights_;
  int32_t* const labels_;
  const F sum_of_weights_;
};

template <typename T, typename F>
void loss(const LossForward<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Targets targets(call.target, x.c, call.ignore_index, call.upsampling.x.output);
  const int64_t count = x.n * (x.h + 1);
  double* const sums = thread_scratch<double, Sums<F>>(2 * count);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    LossPass<T, F> pass(call, context, targets);
    for (int64_t k = begin; k < end; ++k) {
      pass.run(k / (x.h + 1), static_cast<int32_t>(k % (x.h + 1)), sums + 2 * k);
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
