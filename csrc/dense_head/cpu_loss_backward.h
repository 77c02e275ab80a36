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

// Per class, and for C, which stands for what is ignored.
template <typename F>
struct Masses {
  F* mass;   // m
  F* share;  // (1 - s) w / m
  F* even;   // s / C w

  static size_t bytes(int64_t classes) { return 3 * (classes + 17) * sizeof(F); }

  Masses(Arena& arena, const F* weight, int64_t classes, F smoothing)
      : mass(arena.take<F>(classes + 1)),
        share(arena.take<F>(classes + 1)),
        even(arena.take<F>(classes + 1)) {
    const F sum = copy_weights(weight, classes, mass);
    for (int64_t c = 0; c <= classes; ++c) {
      const F sharp = (1 - smoothing) * mass[c];
      even[c] = smoothing / F(classes) * mass[c];
      mass[c] = c < classes ? sharp + smoothing / F(classes) * sum : F(0);
      share[c] = sharp != 0 ? sharp / mass[c] : F(0);
    }
  }
};

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

template <typename F>
struct GradientRow {
  const int32_t* labels;
  const F* grad;  // the row's, or
  F reduced;      // one for all
  bool smoothed;
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
                   Exponentials<F>::bytes(classes_) + Masses<F>::bytes(classes_) +
                   4 * (classes_ + 1) * kVectorBytes +
                   (kRows * int64_t(columns_.output) + 16) * sizeof(int32_t),
               context),
        cells_(arena_, columns_),
        source_(arena_, call.logits, call.channels_last, columns_),
        gradient_(arena_, call.d_logits, call.channels_last, columns_),
        exponentials_(arena_, classes_, call.upsampling),
        masses_(arena_, call.weight, classes_, call.label_smoothing),
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
    const int32_t last = first_in(rows_, row + 1);
    for (int32_t y = first_in(rows_, row); y < last; y += kRows) {
      add_cells(n, row, y, std::min(kRows, last - y), upper, lower);
    }
  }

  void add_cells(int64_t n, int32_t row, int32_t first, int32_t count, F* upper, F* lower) {
    const F *top = source_.row(n, row - 1), *bottom = source_.row(n, row);
    const int64_t width = columns_.output;
    for (int32_t r = 0; r < count; ++r) targets_.read(n, first + r, labels_ + r * width);
    for (int32_t cell = 0; cell < cells_.pitch; cell += kLanes<F>) {
      exponentials_.read(top + cell, bottom + cell, source_.pitch);
      for_chunks(cells_, cell, [&](auto phases, const Chunk<F>& chunk) {
        constexpr int P = phases;
        exponentials_.template start<P>(chunk, count, rows_.base(first).fraction, true);
        for (Vector<F>* corner : corners_) std::fill_n(corner, classes_, Vector<F>{});
        for (int32_t r = 0; r < count; ++r) {
          const int32_t y = first + r;
          const F* grad =
              call_.reduced ? nullptr : call_.grad + (n * rows_.output + y) * width;
          add_row<P>(chunk, rows_.base(y).fraction,
                     {labels_ + r * width, grad, call_.reduced ? *call_.grad : F(1),
                      call_.label_smoothing != 0});
        }
        gradient_.add(upper, cell, corners_[0], corners_[1]);
        gradient_.add(lower, cell, corners_[2], corners_[3]);
      });
    }
  }

  template <int P>
  void add_row(const Chunk<F>& chunk, F y, const GradientRow<F>& row) {
    using V = Vector<F>;
    constexpr int n = kLanes<F>;
    V sum[P];
    if (exponentials_.geometric) {
      exponentials_.template advance<P>(sum);
    } else {
      exponentials_.template subtract_largest<P>(chunk, y);
      exponentials_.template exponentiate<P>(sum);
    }
    F sums[P * n], factors[P * n] = {}, grads[P * n] = {};
    for (int k = 0; k < P; ++k) store(sum[k], sums + k * n);
    subtract_target<P>(chunk, row, sums, factors, grads);
    V factor[P], right_factor[P], grad{}, right_grad{};
    for (int k = 0; k < P; ++k) {
      const V x = chunk.fraction(k), g = load(grads + k * n);
      factor[k] = load(factors + k * n) / sum[k];
      right_factor[k] = factor[k] * x;
      grad += g;
      right_grad += g * x;
    }
    const F* from = exponentials_.values;
    for (int64_t c = 0; c < classes_; ++c, from += P * n) {
      V all{}, right{};
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) {
        const V value = load(from + k * n);
        all += factor[k] * value;
        right += right_factor[k] * value;
      }
      if (row.smoothed) {
        all -= masses_.even[c] * grad;
        right -= masses_.even[c] * right_grad;
      }
      const V left = all - right;
      corners_[0][c] += left - y * left;
      corners_[1][c] += right - y * right;
      corners_[2][c] += y * left;
      corners_[3][c] += y * right;
    }
  }

  // The targets' part: of `exponentials_.values`, the factors g m, and g where it is not ignored.
  template <int P>
  void subtract_target(const Chunk<F>& chunk, const GradientRow<F>& row, const F* sums, F* factors,
                       F* grads) {
    constexpr int n = kLanes<F>;
    F* const values = exponentials_.values;
    for (int i = 0; i < n; ++i) {
      const int32_t* const labels = row.labels + chunk.begin[i];
      const F* const grad = row.grad ? row.grad + chunk.begin[i] : nullptr;
      const auto pixel = [&](int k) {
        const int64_t label = labels[k];
        const F g = grad ? grad[k] : row.reduced;
        factors[k * n + i] = g * masses_.mass[label];
        if (row.smoothed) grads[k * n + i] = label < classes_ ? g : F(0);
        values[(label * P + k) * n + i] -= sums[k * n + i] * masses_.share[label];
      };
      if (chunk.count[i] == P) {
#pragma GCC unroll 8
        for (int k = 0; k < P; ++k) pixel(k);
      } else {
        for (int k = 0; k < chunk.count[i]; ++k) pixel(k);
      }
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
  const Masses<F> masses_;
  int32_t* const labels_;
  Vector<F>* corners_[4];  // the gradients of the corners at hand: top left, top right, bottom ...
};

template <typename T, typename F>
void loss_backward(const LossBackward<T, F>& call, const Context& context) {
  const View<const T>& x = call.logits;
  const Targets targets(call.target, x.c, call.ignore_index, call.upsampling.x.output);
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
