// The softmax of blocks of anchors, online: what is known of earlier blocks is kept for each pixel
// and brought up to date by the next. Logits stand with anchors as rows and pixels as columns.
#pragma once

#include <limits>

#include "../common/cpu_gemm.h"

namespace vsegops::attention {
namespace {

// Of each pixel of a tile: the largest logit so far, the sum of exp(logit - largest), and for
// gradients the sum of that times `d_weight` (or null).
template <typename F>
struct Softmax {
  F *largest, *sum, *d_sum = nullptr;

  static Softmax take(Arena& arena, int64_t pixels, bool gradients) {
    return {arena.take<F>(pixels), arena.take<F>(pixels),
            gradients ? arena.take<F>(pixels) : nullptr};
  }
  static int64_t bytes(int64_t pixels) { return 3 * (pixels * sizeof(F) + 64); }

  void clear(int64_t pixels) const {
    // (Finite, because infinity less infinity is NaN.)
    std::fill_n(largest, pixels, std::numeric_limits<F>::lowest());
    std::fill_n(sum, pixels, F(0));
    if (d_sum) std::fill_n(d_sum, pixels, F(0));
  }
};

template <int V, typename F>
VSEGOPS_HD void find_largest(const Matrix<F>& logits, int64_t anchors, Vector<F> (&largest)[V]) {
  for (int64_t s = 0; s < anchors; ++s) {
    for (int v = 0; v < V; ++v) {
      const Vector<F> x = load(logits.row(s) + v * kLanes<F>);
      largest[v] = x > largest[v] ? x : largest[v];
    }
  }
}

// Logits become exp(logit - largest). `factor`, if not null, is what sums of earlier blocks have to
// be multiplied by.
template <typename F>
void exponentiate(const Matrix<F>& logits, int64_t anchors, int64_t pixels, const Softmax<F>& known,
                  F* factor) {
  for_panels<F>(pixels, [&](auto vectors, int64_t j) {
    constexpr int V = vectors();
    constexpr int n = kLanes<F>;
    const Matrix<F> part = logits.from(0, j);
    Vector<F> largest[V], sum[V];
    for (int v = 0; v < V; ++v) largest[v] = load(known.largest + j + v * n);
    find_largest<V>(part, anchors, largest);
    for (int v = 0; v < V; ++v) {
      const int64_t at = j + v * n;
      const Vector<F> less = exp(load(known.largest + at) - largest[v]);
      sum[v] = load(known.sum + at) * less;
      if (factor) store(less, factor + at);
      store(largest[v], known.largest + at);
    }
    for (int64_t s = 0; s < anchors; ++s) {
      for (int v = 0; v < V; ++v) {
        F* const x = part.row(s) + v * n;
        const Vector<F> e = exp(load(x) - largest[v]);
        sum[v] += e;
        store(e, x);
      }
    }
    for (int v = 0; v < V; ++v) store(sum[v], known.sum + j + v * n);
  });
}

// The same without changing the logits, and with the sum that a gradient needs.
template <typename F>
void survey(const Matrix<F>& logits, const Matrix<F>& d_weights, int64_t anchors, int64_t pixels,
            const Softmax<F>& known) {
  for_panels<F>(pixels, [&](auto vectors, int64_t j) {
    constexpr int V = vectors();
    constexpr int n = kLanes<F>;
    const Matrix<F> part = logits.from(0, j), d_part = d_weights.from(0, j);
    Vector<F> largest[V], sum[V], d_sum[V] = {};
    for (int v = 0; v < V; ++v) largest[v] = load(known.largest + j + v * n);
    find_largest<V>(part, anchors, largest);
    for (int v = 0; v < V; ++v) {
      const int64_t at = j + v * n;
      const Vector<F> less = exp(load(known.largest + at) - largest[v]);
      sum[v] = load(known.sum + at) * less;
      if (known.d_sum) d_sum[v] = load(known.d_sum + at) * less;
      store(largest[v], known.largest + at);
    }
    for (int64_t s = 0; s < anchors; ++s) {
      for (int v = 0; v < V; ++v) {
        const Vector<F> e = exp(load(part.row(s) + v * n) - largest[v]);
        sum[v] += e;
        if (known.d_sum) d_sum[v] += e * load(d_part.row(s) + v * n);
      }
    }
    for (int v = 0; v < V; ++v) {
      store(sum[v], known.sum + j + v * n);
      if (known.d_sum) store(d_sum[v], known.d_sum + j + v * n);
    }
  });
}

// After the survey of all blocks: logits become weights, w = exp(logit - largest) / sum, and
// `d_weights`, if there are any, the logits' gradients, w * (d_w - sum of w * d_w).
template <typename F>
void resolve(const Matrix<F>& logits, const Matrix<F>& d_weights, int64_t anchors, int64_t pixels,
             const Softmax<F>& known) {
  constexpr int n = kLanes<F>;
  for (int64_t j = 0; j < pixels; j += n) {
    const Vector<F> largest = load(known.largest + j), share = 1 / load(known.sum + j);
    const Vector<F> mean = known.d_sum ? load(known.d_sum + j) * share : Vector<F>{};
    for (int64_t s = 0; s < anchors; ++s) {
      const Vector<F> w = exp(load(logits.row(s) + j) - largest) * share;
      store(w, logits.row(s) + j);
      if (!known.d_sum) continue;
      F* const d = d_weights.row(s) + j;
      store(w * (load(d) - mean), d);
    }
  }
}

// Every row times `factor`, which has an entry for each column.
template <typename F>
void scale_columns(const Matrix<F>& x, int64_t rows, int64_t columns, const F* factor) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kLanes<F>) {
      store(load(x.row(i) + j) * load(factor + j), x.row(i) + j);
    }
  }
}

template <typename F>
void scale_all(const Matrix<F>& x, int64_t rows, int64_t columns, F factor) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kLanes<F>) {
      store(load(x.row(i) + j) * factor, x.row(i) + j);
    }
  }
}

}  // namespace
}  // namespace vsegops::attention
