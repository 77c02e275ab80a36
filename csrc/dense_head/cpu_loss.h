// Cross-entropy on a CPU: a multiply-add, an addition and a store for each class and output pixel,
// a logarithm and a look-up for each output pixel.
#pragma once

#include <numeric>

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

// Of the weights of C classes, which are 1 where there are none.
template <typename F>
F sum_of(const F* weights, int64_t classes) {
  return static_cast<F>(weights ? std::accumulate(weights, weights + classes, 0.0) : classes);
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
                   Exponentials<F>::bytes(classes_) +
                   (kRows * int64_t(columns_.output) + 16) * sizeof(int32_t),
               context),
        cells_(arena_, columns_),
        source_(arena_, call.logits, call.channels_last, columns_),
        exponentials_(arena_, classes_, call.upsampling),
        labels_(arena_.take<int32_t>(kRows * int64_t(columns_.output))),
        sum_of_weights_(sum_of(call.weight, classes_)) {}

  // Row `row` of the cells of image n; the sums of its losses and weights.
  void run(int64_t n, int32_t row, double* sums) {
    Sums<F> lanes;
    for_rows(rows_, row, [&](int32_t first, int32_t count, const F* fractions) {
      const F *top = source_.row(n, row - 1), *bottom = source_.row(n, row);
      for (int32_t r = 0; r < count; ++r) {
        targets_.read(n, first + r, labels_ + r * columns_.output);
      }
      for (int32_t cell = 0; cell < cells_.pitch; cell += kLanes<F>) {
        exponentials_.read(top + cell, bottom + cell, source_.pitch);
        for_chunks(cells_, cell, [&](auto phases, const Chunk<F>& chunk) {
          constexpr int P = phases;
          exponentials_.template start<P>(chunk, count, fractions[0], call_.label_smoothing == 0);
          std::fill_n(weights_, P * kLanes<F>, F(1));
          for (int32_t r = 0; r < count; ++r) {
            const int32_t* const labels = labels_ + r * columns_.output;
            targets_.fetch(n, first + r + count, chunk.begin[0], P * kLanes<F>);
            add_row<P>(chunk, fractions[r], labels, (n * rows_.output + first + r), lanes);
          }
        });
      }
    });
    sums[0] = sums[1] = 0;
    for (int i = 0; i < kLanes<F>; ++i) {
      sums[0] += lanes.loss[i];
      sums[1] += lanes.total[i];
    }
  }

 private:
  template <int P>
  void add_row(const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line, Sums<F>& sums) {
    using V = Vector<F>;
    constexpr int n = kLanes<F>;
    const bool geometric = exponentials_.geometric;
    const F* const values = exponentials_.values;
    const F none = geometric ? 0 : 1;  // what is picked of what is ignored, and of no class
    const F* const class_weights = call_.weight;
    const F smoothing = call_.label_smoothing;
    V sum[P], smooth[P] = {};
    if (geometric) {
      exponentials_.template advance<P>(sum);
    } else {
      exponentials_.template subtract_largest<P>(chunk, y);
      for (int64_t c = 0; smoothing != 0 && c < classes_; ++c) {
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
        weights_[place] = class_weights[std::min<int64_t>(labels[x], classes_ - 1)];
      });
    }
    if (!geometric) exponentials_.template exponentiate<P>(sum);
    V row_sum{}, row_total{};
    F losses[P * n];
    for (int k = 0; k < P; ++k) {
      const V target = load(picked + k * n), weight = load(weights_ + k * n);
      V loss = weight * (geometric ? log(sum[k] / target) : log(sum[k]) - target);
      if (smoothing != 0) {
        const V even = (sum_of_weights_ * log(sum[k]) - smooth[k]) / F(classes_);
        loss += smoothing * (even - loss);
      }
      row_sum += loss = target != none ? loss : V{};
      row_total += target != none ? weight : V{};
      store(loss, losses + k * n);
    }
    if (call_.losses) {
      F* const row = call_.losses + line * columns_.output;
      for_pixels<P>(chunk, [&](int64_t x, int place) { row[x] = losses[place]; });
    } else {
      sums.add(row_sum, row_total);
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
  int32_t* const labels_;
  const F sum_of_weights_;
  F weights_[kPhases * kLanes<F>];  // of the pixels of a row of a chunk
};

template <typename T, typename F>
void loss(const LossForward<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Targets targets(call.target, x.c, call.ignore_index, call.upsampling.y.output,
                        call.upsampling.x.output);
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
