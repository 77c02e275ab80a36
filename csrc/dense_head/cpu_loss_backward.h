// The loss's gradient on a CPU: the exponentials once more, and two multiply-adds for each class
// and output pixel. With S = sum_k exp(Z_k) and the mass m = (1 - s) w_y + s / C sum_k w_k,
//
//   d_Z_c = g m / S * (exp(Z_c) - [c = y] S (1 - s) w_y / m) - g s / C w_c
//
// so that the target is one subtraction from one exponential. The adjoint of the sampling sums over
// the phases of a cell, lane by lane, and over its rows; corners are added to the rows of the
// gradient once a cell.
//
// A thread has rows of the gradient. The cells between those of two threads are computed by both,
// so that every sum is one thread's and its order does not depend on their number.
#pragma once

#include "cpu_loss_cells.h"
#include "cpu_rows.h"

namespace vsegops::dense_head {
namespace {

// One thread's rows of cells.
template <typename F>
class GradientCells {
 public:
  LossCells<F> cells;

  static size_t bytes(const LossOptions<F>& options, int64_t classes) {
    return LossCells<F>::bytes(options, classes) + 4 * classes * kVectorBytes + 64;
  }

  // `grad`: one number, or [N, H, W].
  GradientCells(Arena& arena, const LossOptions<F>& options, int64_t classes,
                const Targets& targets, const F* grad, bool reduced)
      : cells(arena, options, classes, targets),
        grad_(grad),
        reduced_(reduced),
        even_(options.label_smoothing / F(classes)),
        even_mass_(even_ * cells.sum_of_weights),
        sums_(arena.take<Sums>(classes)) {}

  // Row `row` of the cells of image n; adds to the rows of the gradient above and below.
  void run(int64_t n, int32_t row, const F* top, const F* bottom, int64_t pitch, F* upper,
           F* lower) {
    cells.walk(
        n, row, top, bottom, pitch, true,
        [&](auto phases) {
          constexpr int count = phases * kLanes<F>;
          const F sharp = 1 - cells.options.label_smoothing;  // times the weight
          std::fill_n(masses_, count, sharp + even_mass_);
          std::fill_n(shares_, count, sharp / (sharp + even_mass_));
          std::fill_n(grads_, count, reduced_ ? *grad_ : F(0));
          std::fill_n(sums_, cells.classes, Sums{});
        },
        [&](auto phases, const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line) {
          add<phases()>(chunk, y, labels, line);
        },
        [&](int32_t cell) {
          // First all left corners, then all right ones: these vectors overlap.
          for (int64_t c = 0; c < cells.classes; ++c) {
            const Sums s = sums_[c];
            const int64_t at = c * pitch + cell;
            const Vector<F> left = s.lower - s.lower_right;
            store(load(upper + at) + (s.all - s.right - left), upper + at);
            store(load(lower + at) + left, lower + at);
          }
          for (int64_t c = 0; c < cells.classes; ++c) {
            const Sums s = sums_[c];
            const int64_t at = c * pitch + cell + 1;
            store(load(upper + at) + (s.right - s.lower_right), upper + at);
            store(load(lower + at) + s.lower_right, lower + at);
          }
        });
  }

 private:
  // Of d_Z over the pixels of a cell; weighted by x, by y, and by both.
  struct Sums {
    Vector<F> all, right, lower, lower_right;
  };

  template <int P>
  void add(const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line) {
    using V = Vector<F>;
    constexpr int n = kLanes<F>;
    Exponentials<F>& exponentials = cells.exponentials;
    F* const values = exponentials.values;
    V sum[P];
    if (exponentials.geometric) {
      exponentials.template advance<P>(sum);
    } else {
      exponentials.subtract_largest(chunk, P, y);
      exponentials.exponentiate(P, sum);
    }
    if (cells.options.weight) weigh<P>(chunk, labels);
    if (!reduced_) {
      const F* const grad = grad_ + line * cells.columns.output + chunk.origin;
      for_pixels<P>(chunk, [&](int64_t x, int place) { grads_[place] = grad[x]; });
    }
    F parts[P * n], picked[P * n];
    for (int k = 0; k < P; ++k) store(sum[k] * load(shares_ + k * n), parts + k * n);
    if (!chunk.whole) std::fill_n(picked, P * n, F(0));
    for_pixels<P>(chunk, [&](int64_t x, int place) {
      F* const value = values + int64_t(labels[x]) * (P * n) + place;
      picked[place] = *value;  // 0 if it is ignored
      *value -= parts[place];
    });
    V factor[P], right_factor[P], even{}, even_right{};
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      const V x = chunk.fraction(k);
      const V grad = load(picked + k * n) != 0 ? load(grads_ + k * n) : V{};
      factor[k] = grad * load(masses_ + k * n) / sum[k];
      right_factor[k] = factor[k] * x;
      even += even_ * grad;
      even_right += even_ * grad * x;
    }
    const F* from = values;
    for (int64_t c = 0; c < cells.classes; ++c, from += P * n) {
      V all{}, right{};
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) {
        const V value = load(from + k * n);
        all += factor[k] * value;
        right += right_factor[k] * value;
      }
      if (even_ != 0) {
        const F weight = cells.options.weight ? cells.options.weight[c] : F(1);
        all -= weight * even;
        right -= weight * even_right;
      }
      Sums& sums = sums_[c];
      sums = {sums.all + all, sums.right + right, sums.lower + y * all,
              sums.lower_right + y * right};
    }
  }

  // The masses of pixels with weighted targets, and the targets' shares in them.
  template <int P>
  void weigh(const Chunk<F>& chunk, const int32_t* labels) {
    constexpr int n = kLanes<F>;
    F weights[P * n] = {};
    for_pixels<P>(chunk, [&](int64_t x, int place) {
      weights[place] = cells.options.weight[std::min<int64_t>(labels[x], cells.classes - 1)];
    });
    for (int k = 0; k < P; ++k) {
      const Vector<F> sharp = (1 - cells.options.label_smoothing) * load(weights + k * n);
      const Vector<F> mass = sharp + even_mass_;
      store(mass, masses_ + k * n);
      store(sharp != 0 ? sharp / mass : Vector<F>{}, shares_ + k * n);
    }
  }

  const F* const grad_;
  const bool reduced_;
  const F even_, even_mass_;  // s / C; times the sum of all weights
  Sums* const sums_;          // [C]
  // Of a row of a chunk.
  F masses_[kPhases<F> * kLanes<F>], shares_[kPhases<F> * kLanes<F>],
      grads_[kPhases<F> * kLanes<F>];
};

template <typename T, typename F>
void loss_backward(const LossBackward<T, F>& call, const Context& context) {
  constexpr int64_t kLeastRows = 8;  // of a thread, so that those computed twice do not count
  const View<const T>& x = call.logits;
  const Axis<F>&rows = call.upsampling.y, &columns = call.upsampling.x;
  const Targets targets(call.target, x.c, call.ignore_index, rows.output);
  torch::stable::parallel_for(0, x.n * x.h, kLeastRows, [&](int64_t begin, int64_t end) {
    Arena arena(GradientCells<F>::bytes(call, x.c) + SourceRows<T, F>::bytes(x, columns) +
                    GradientRows<T, F>::bytes(call.d_logits, columns),
                context);
    GradientCells<F> cells(arena, call, x.c, targets, call.grad, call.reduced);
    SourceRows<T, F> source(arena, x, call.channels_last, columns);
    GradientRows<T, F> gradient(arena, call.d_logits, call.channels_last, columns);
    for (int64_t n = begin / x.h; n * x.h < end; ++n) {
      const int64_t first = std::max(begin - n * x.h, int64_t(0)),
                    last = std::min(end - n * x.h, x.h);
      gradient.advance();
      for (int64_t row = first; row <= last; ++row) {
        gradient.advance();
        // What is above the first row of pixels or below the last is that row itself.
        F* const upper = row > 0 ? gradient.upper : gradient.lower;
        F* const lower = row < x.h ? gradient.lower : gradient.upper;
        const F *top = source.row(n, row - 1), *bottom = source.row(n, row);
        cells.run(n, static_cast<int32_t>(row), top, bottom, source.pitch, upper, lower);
        if (row > first) gradient.write(n, row - 1);
      }
    }
  });
  targets.check();
}

}  // namespace
}  // namespace vsegops::dense_head
