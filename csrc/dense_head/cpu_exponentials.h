// The exponentials that both directions of the loss need: per cell and class, at every output
// pixel, up to a factor that the classes of a pixel share.
//
// From each corner's logits the largest is subtracted first, which changes no loss. Within a cell
// logits are linear along a row and along a column, so their exponentials are geometric sequences:
// four exponentials a cell and class, then a multiply-add for each pixel. Their ratios are kept
// less 1, so that no error grows by them. A cell whose logits differ so much that an exponential
// underflows at a corner, or falls too far in one step, or of few pixels, takes an exponential for
// each pixel instead, after its own largest logit has been subtracted.
#pragma once

#include <limits>

#include "cpu_cells.h"

namespace vsegops::dense_head {
namespace {

template <typename F>
class Exponentials {
 public:
  const F step_x, step_y;  // from pixel to pixel, in pixels of the logits
  // [C + 1][P][kLanes]; class C stands for what is ignored.
  F* const values;
  bool geometric;

  static size_t bytes(int64_t classes) {
    return (classes * 8 + (classes + 1) * kPhases<F>)*kVectorBytes + 3 * 64;
  }
  Exponentials(Arena& arena, int64_t classes, const Upsampling<F>& upsampling)
      : step_x(static_cast<F>(step_of(upsampling.x))),
        step_y(static_cast<F>(step_of(upsampling.y))),
        values(arena.take<F>((classes + 1) * kPhases<F> * kLanes<F>)),
        classes_(classes),
        corners_(arena.take<Corners<F>>(classes)),
        sequences_(arena.take<Corners<F>>(classes)) {}

  // The corners of the cells from the one on, whose top left ones `top` points to.
  void read(const F* top, const F* bottom, int64_t pitch) {
    using V = Vector<F>;
    const V lowest = V{} - std::numeric_limits<F>::infinity();
    V largest[4] = {lowest, lowest, lowest, lowest};
    for (int64_t c = 0; c < classes_; ++c) {
      const F *a = top + c * pitch, *b = bottom + c * pitch;
      largest[0] = most<F>(largest[0], load(a));
      largest[1] = most<F>(largest[1], load(a + 1));
      largest[2] = most<F>(largest[2], load(b));
      largest[3] = most<F>(largest[3], load(b + 1));
    }
    auto near = V{} == V{};
    for (int64_t c = 0; c < classes_; ++c) {
      const F *a = top + c * pitch, *b = bottom + c * pitch;
      const V corner[4] = {load(a) - largest[0], load(a + 1) - largest[1], load(b) - largest[2],
                           load(b + 1) - largest[3]};
      corners_[c] = Corners<F>::of(corner[0], corner[1], corner[2], corner[3]);
      for (const V& x : corner) near &= x > -kReach;
      const V right = most<F>(abs(corner[1] - corner[0]), abs(corner[3] - corner[2]));
      const V down = most<F>(abs(corner[2] - corner[0]), abs(corner[3] - corner[1]));
      near &= (step_x * right < kFall) & (step_y * down < kFall);
    }
    near_ = !any(~near);
  }

  // Begins with the first of some rows, up to kRows.
  void start(const Chunk<F>& chunk, int phases, int32_t rows, F y, bool allowed) {
    using V = Vector<F>;
    geometric = allowed && near_ && rows * phases >= kFew;
    if (!geometric) return;
    const V x = chunk.fraction(0);
    for (int64_t c = 0; c < classes_; ++c) {
      const Corners<F> z = corners_[c];
      sequences_[c] = {exp(z.start(y) + x * z.slope(y)), expm1(step_y * (z.down + x * z.both)),
                       expm1(step_x * z.slope(y)), expm1(step_y * step_x * z.both)};
    }
  }

  // The next row of a geometric sequence, 0 for what is ignored, and the sums of the classes.
  template <int P>
  VSEGOPS_HD void advance(Vector<F>* sums) {
    using V = Vector<F>;
    V sum[P] = {};
    F* to = values;
    for (int64_t c = 0; c < classes_; ++c, to += P * kLanes<F>) {
      Corners<F> s = sequences_[c];
      V value = s.value;
#pragma GCC unroll 8
      for (int k = 0; k < P; ++k) {
        store(value, to + k * kLanes<F>);
        sum[k] += value;
        value += value * s.right;
      }
      sequences_[c].value = s.value + s.value * s.down;
      sequences_[c].right = s.right + s.both + s.right * s.both;
    }
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) {
      sums[k] = sum[k];
      store(V{}, to + k * kLanes<F>);
    }
  }

  // The logits of a row less the largest of each pixel, 1 for what is ignored; then their
  // exponentials, and the sums.
  void subtract_largest(const Chunk<F>& chunk, int phases, F y) {
    using V = Vector<F>;
    V largest[kPhases<F>];
    for (int k = 0; k < phases; ++k) largest[k] = V{} - std::numeric_limits<F>::infinity();
    F* to = values;
    for (int64_t c = 0; c < classes_; ++c, to += phases * kLanes<F>) {
      const V start = corners_[c].start(y), slope = corners_[c].slope(y);
      for (int k = 0; k < phases; ++k) {
        const V value = start + chunk.fraction(k) * slope;
        largest[k] = most<F>(largest[k], value);
        store(value, to + k * kLanes<F>);
      }
    }
    to = values;
    for (int64_t c = 0; c < classes_; ++c) {
      for (int k = 0; k < phases; ++k, to += kLanes<F>) store(load(to) - largest[k], to);
    }
    for (int k = 0; k < phases; ++k, to += kLanes<F>) store(V{} + 1, to);
  }
  void exponentiate(int phases, Vector<F>* sums) {
    for (int k = 0; k < phases; ++k) sums[k] = Vector<F>{};
    F* to = values;
    for (int64_t c = 0; c < classes_; ++c) {
      for (int k = 0; k < phases; ++k, to += kLanes<F>) {
        const Vector<F> value = exp(load(to));
        store(value, to);
        sums[k] += value;
      }
    }
    for (int k = 0; k < phases; ++k, to += kLanes<F>) store(Vector<F>{}, to);
  }

 private:
  static constexpr F kReach = 60;
  static constexpr F kFall = 3;  // exp(-3) less 1, rounded, is exp(-3) to 10 roundings
  static constexpr int32_t kFew = 6;

  static VSEGOPS_HD Vector<F> abs(Vector<F> x) { return most<F>(x, -x); }

  const int64_t classes_;
  Corners<F>* const corners_;    // [C]
  Corners<F>* const sequences_;  // [C]: exponentials, and their ratios less 1
  bool near_;
};

}  // namespace
}  // namespace vsegops::dense_head
