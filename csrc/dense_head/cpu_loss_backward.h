// The loss's gradient on a CPU: the exponentials once more, and two multiply-adds for each class
// and output pixel. With S = sum_k exp(Z_k) and the mass m = (1 - s) w_y + s / C sum_k w_k,
//
//   d_Z_c = g m / S * (exp(Z_c) - [c = y] S (1 - s) w_y / m) - g s / C w_c
//
// so that the target is one subtraction from one exponential. The adjoint of the sampling sums over
// the phases of a cell, lane by lane, and over its rows; corners are added to the rows of the
// gradient once per cell.
//
// A thread has rows of the gradient. Those of the cells between two threads are computed by both,
// so that every sum is one thread's and its order does not depend on their number.
#pragma once

#include "cpu_loss.h"

namespace vsegops::dense_head {
namespace {

// Two rows of the gradient, laid out as those of the logits: `upper` and `lower` of the cells.
template <typename T, typename F>
class GradientRows {
 public:
  F *upper, *lower;

  static size_t bytes(const View<T>& d, const Axis<F>& axis) {
    return 2 * (d.c * row_pitch(axis) + 16) * sizeof(F);
  }
  GradientRows(Arena& arena, const View<T>& d, bool channels_last, const Axis<F>& axis)
      : upper(arena.take<F>(d.c * row_pitch(axis))),
        lower(arena.take<F>(d.c * row_pitch(axis))),
        d_(d),
        channels_last_(channels_last),
        pitch_(row_pitch(axis)) {}

  void clear_lower() { std::fill_n(lower, d_.c * pitch_, F(0)); }

  // Adds the gradients of corners to `row`.
  void add(F* row, int32_t cell, const Vector<F>* left, const Vector<F>* right) const {
    // (Apart: these vectors overlap.)
    for (int64_t c = 0; c < d_.c; ++c) {
      F* const to = row + c * pitch_ + cell;
      store(load(to) + left[c], to);
    }
    for (int64_t c = 0; c < d_.c; ++c) {
      F* const to = row + c * pitch_ + cell + 1;
      store(load(to) + right[c], to);
    }
  }

  // `upper` is row y of image n.
  void write(int64_t n, int64_t y) const {
    for (int64_t c = 0; c < d_.c; ++c) {
      F* const plane = upper + c * pitch_;
      plane[1] += plane[0];
      plane[d_.w] += plane[d_.w + 1];
      if (channels_last_) continue;
      T* const to = d_.data + ((n * d_.c + c) * d_.h + y) * d_.w;
      int64_t i = 0;
      for (; i + kLanes<F> <= d_.w; i += kLanes<F>) store(load(plane + 1 + i), to + i);
      for (; i < d_.w; ++i) narrow(plane[1 + i], to + i);
    }
    if (channels_last_) {
      transpose_matrix<F>(upper + 1, pitch_, d_.c, d_.w, d_.data + (n * d_.h + y) * d_.w * d_.c,
                          d_.c);
    }
  }

 private:
  const View<T>& d_;
  const bool channels_last_;
  const int64_t pitch_;
};

template <typename T, typename F>
class LossBackwardPass {
 public:
  LossBackwardPass(const LossBackward<T, F>& call, const Context& context, const Targets& targets)
      : call_(call),
        targets_(targets),
        columns_(call.upsampling.x),
        rows_(call.upsampling.y),
        classes_(call.logits.c),
        arena_(Cells<F>::bytes(columns_) + SourceRows<T, F>::bytes(call.logits, columns_) +
                   GradientRows<T, F>::bytes(call.d_logits, columns_) +
                   Exponentials<F>::bytes(classes_) + 4 * (classes_ + 1) * kVectorBytes +
                   (kRows * int64_t(columns_.output) + 16) * sizeof(int32_t),
               context),
        cells_(arena_, columns_),
        source_(arena_, call.logits, call.channels_last, columns_),
        gradient_(arena_, call.d_logits, call.channels_last, columns_),
        exponentials_(arena_, classes_, call.upsampling),
        even_(call.label_smoothing / F(classes_)),
        even_mass_(even_ * sum_of(call.weight, classes_)),
        labels_(arena_.take<int32_t>(kRows * int64_t(columns_.output))) {
    for (Vector<F>*& corner : corners_) corner = arena_.take<Vector<F>>(classes_);
  }

  // Rows [begin, end) of the gradient of image n.
  void run(int64_t n, int32_t begin, int32_t end) {
    gradient_.clear_lower();
    for (int32_t row = begin; row <= end; ++row) {
      std::swap(gradient_.upper, gradient_.lower);
      gradient_.clear_lower();
      add_cells(n, row);
      if (row > begin) gradient_.write(n, row - 1);
    }
  }

 private:
  // Row `row` of the cells of image n.
  void add_cells(int64_t n, int32_t row) {
    // What is above the first row of pixels or below the last is that row itself.
    F* const upper = row > 0 ? gradient_.upper : gradient_.lower;
    F* const lower = row < rows_.source ? gradient_.lower : gradient_.upper;
    for_rows(rows_, row, [&](int32_t first, int32_t count, const F* fractions) {
      const F *top = source_.row(n, row - 1), *bottom = source_.row(n, row);
      for (int32_t r = 0; r < count; ++r) {
        targets_.read(n, first + r, labels_ + r * columns_.output);
      }
      for (int32_t cell = 0; cell < cells_.pitch; cell += kLanes<F>) {
        exponentials_.read(top + cell, bottom + cell, source_.pitch);
        for_chunks(cells_, cell, [&](auto phases, const Chunk<F>& chunk) {
          constexpr int P = phases;
          exponentials_.template start<P>(chunk, count, fractions[0], true);
          std::fill_n(weights_, P * kLanes<F>, F(1));
          std::fill_n(grads_, P * kLanes<F>, call_.reduced ? *call_.grad : F(0));
          for (Vector<F>* corner : corners_) std::fill_n(corner, classes_, Vector<F>{});
          for (int32_t r = 0; r < count; ++r) {
            targets_.fetch(n, first + r + count, chunk.begin[0], P * kLanes<F>);
            add_row<P>(chunk, fractions[r], labels_ + r * columns_.output,
                       n * rows_.output + first + r);
          }
          gradient_.add(upper, cell, corners_[0], corners_[1]);
          gradient_.add(lower, cell, corners_[2], corners_[3]);
        });
      }
    });
  }

  template <int P>
  void add_row(const Chunk<F>& chunk, F y, const int32_t* labels, int64_t line) {
    using V = Vector<F>;
    constexpr int n = kLanes<F>;
    F* const values = exponentials_.values;
    const F* const class_weights = call_.weight;
    V sum[P];
    if (exponentials_.geometric) {
      exponentials_.template advance<P>(sum);
    } else {
      exponentials_.template subtract_largest<P>(chunk, y);
      exponentials_.template exponentiate<P>(sum);
    }
    if (class_weights) {
      for_pixels<P>(chunk, [&](int64_t x, int place) {
        weights_[place] = class_weights[std::min<int64_t>(labels[x], classes_ - 1)];
      });
    }
    if (!call_.reduced) {
      const F* const grad = call_.grad + line * columns_.output;
      for_pixels<P>(chunk, [&](int64_t x, int place) { grads_[place] = grad[x]; });
    }
    F parts[P * n], picked[P * n];
    V mass[P];
    for (int k = 0; k < P; ++k) {
      const V sharp = (1 - call_.label_smoothing) * load(weights_ + k * n);
      mass[k] = sharp + even_mass_;
      store(sharp != 0 ? sum[k] * (sharp / mass[k]) : V{}, parts + k * n);
    }
    if (!chunk.whole) std::fill_n(picked, P * n, F(0));
    for_pixels<P>(chunk, [&](int64_t x, int place) {
      F* const value = values + int64_t(labels[x]) * (P * n) + place;
      picked[place] = *value;
      *value -= parts[place];
    });
    V factor[P], right_factor[P], even{}, right_even{};
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      const V x = chunk.fraction(k);
      const V grad = load(picked + k * n) != 0 ? load(grads_ + k * n) : V{};
      factor[k] = grad * mass[k] / sum[k];
      right_factor[k] = factor[k] * x;
      even += even_ * grad;
      right_even += even_ * grad * x;
    }
    const F* from = values;
    for (int64_t c = 0; c < classes_; ++c, from += P * n) {
      V all{}, right{};
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) {
        const V value = load(from + k * n);
        all += factor[k] * value;
        right += right_factor[k] * value;
      }
      if (even_ != 0) {
        const F weight = class_weights ? class_weights[c] : F(1);
        all -= weight * even;
        right -= weight * right_even;
      }
      const V left = all - right;
      corners_[0][c] += left - y * left;
      corners_[1][c] += right - y * right;
      corners_[2][c] += y * left;
      corners_[3][c] += y * right;
    }
  }

  const LossBackward<T, F>& call_;
  const Targets& targets_;
  const Axis<F>&columns_, &rows_;
  const int64_t classes_;
  Arena arena_;
  const Cells<F> cells_;
  SourceRows<T, F> source_;
  GradientRows<T, F> gradient_;
  Exponentials<F> exponentials_;
  const F even_, even_mass_;  // s / C; times the sum of all weights
  int32_t* const labels_;
  // Of the pixels of a row of a chunk.
  F weights_[kPhases * kLanes<F>], grads_[kPhases * kLanes<F>];
  Vector<F>* corners_[4];  // the gradients of the corners at hand: top left, top right, bottom ...
};

template <typename T, typename F>
void loss_backward(const LossBackward<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Targets targets(call.target, x.c, call.ignore_index, call.upsampling.y.output,
                        call.upsampling.x.output);
  // Enough rows at a time that those computed twice do not count.
  const int64_t least = 8;
  torch::stable::parallel_for(0, x.n * x.h, least, [&](int64_t begin, int64_t end) {
    LossBackwardPass<T, F> pass(call, context, targets);
    for (int64_t k = begin; k < end;) {
      const int64_t n = k / x.h, row = k % x.h, count = std::min(x.h - row, end - k);
      pass.run(n, static_cast<int32_t>(row), static_cast<int32_t>(row + count));
      k += count;
    }
  });
  targets.check();
}

}  // namespace
}  // namespace vsegops::dense_head
