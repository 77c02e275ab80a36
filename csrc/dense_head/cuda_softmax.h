// The sum of exponentials over the classes, for R rows of a thread's column.
//
// Down a cell a logit is linear, so its exponential is a geometric sequence: two exponentials a
// class make those of all rows, by a multiplication and an addition each. Where that would lose
// digits (`exact` says so) rows have to be taken one at a time, which is exact anywhere.
#pragma once

#include "cuda_cells.h"

namespace vsegops::dense_head {
namespace {

__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

template <int R, typename F>
class Softmax {
  // The shift stays below the largest logit by at most kHeadroom. Sums above kLeast and logits that
  // climb by at most kClimb from the first row to the last: what a term loses by underflow, at its
  // first row or later, is then less than exp(-87 + kClimb), which such a sum does not see.
  static constexpr F kHeadroom = 4, kClimb = 30, kLeast = F(4e-18);  // exp(-40)

 public:
  template <typename T>
  __device__ Softmax(const Column<T, F>& column, int32_t classes, F first, F step)
      : first_(first), step_(step) {
    F steepest = F(0);
    column.each(0, classes, [&](int32_t, const Line<F>& line) {
      const F rise = line.slope * step, value = line.start + first_ * line.slope;
      const F most = max(value, value + F(R - 1) * rise);
      steepest = max(steepest, rise);
      if (most > shift_ + kHeadroom) {
        const F factor = exponential(shift_ - most);
#pragma unroll
        for (int r = 0; r < R; ++r) sums_[r] *= factor;
        shift_ = most;
      }
      each(line, [&](int r, F e) { sums_[r] += e; });
    });
    if constexpr (R > 1) {
      exact = classes > 1 && F(R - 1) * steepest <= kClimb;  // (one class alone: exactly 1)
#pragma unroll
      for (int r = 0; r < R; ++r) exact = exact && sums_[r] >= kLeast;  // (not NaN)
    }
  }

  // log(sum_c exp(Z_c)) of a row.
  __device__ F log_sum(int r) const { return shift_ + ::log(sums_[r]); }

  // What `each` has to be multiplied by.
  __device__ F factor(int r) const { return F(1) / sums_[r]; }

  // Calls `run(r, e)` for each row: a class's exponential, its probability but for `factor`.
  template <typename Run>
  __device__ __forceinline__ void each(const Line<F>& line, const Run& run) const {
    F e = exponential(line.start + first_ * line.slope - shift_);
    const F ratio = R > 1 ? exponential(line.slope * step_) : F(1);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      run(r, e);
      e *= ratio;
    }
  }

  bool exact = true;

 private:
  const F first_, step_;
  F shift_ = -F(INFINITY);
  F sums_[R] = {};  // of exp(Z_c - shift)
};

}  // namespace
}  // namespace vsegops::dense_head
