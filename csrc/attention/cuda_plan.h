// How pooling kernels see a pyramid: each axis is cut into cells, at every border of a bin, so that
// a bin is a run of cells. Rows of the input (one t, one y) that lie in the same cells of t and y
// make a band: what is pooled is first summed over the rows of a band.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/cuda.h"
#include "attention.h"

namespace vsegops::attention {
namespace {

// (A plan is an argument of a kernel: at most 4 KB.)
constexpr int kMostCells = 127, kMostBins = 136;

struct Axis {
  int32_t size, cells, bins;  // bins of all levels, one level after the other
  int32_t border[kMostCells + 1];
  uint8_t first[kMostBins], last[kMostBins];  // cells of a bin: [first, last)

  __device__ int32_t length(int bin) const { return border[last[bin]] - border[first[bin]]; }
};

// The bounds of bin i of k along an axis of size n; (n + 1) * k has to have a place in an I.
template <typename I>
VSEGOPS_HD I bin_begin(I i, I k, I n) {
  return i * n / k;
}
template <typename I>
VSEGOPS_HD I bin_end(I i, I k, I n) {
  return ceil_div((i + 1) * n, k);
}

// The bins that contain a place: [first, last].
struct Covering {
  int32_t first, last;

  __device__ Covering(int32_t place, int32_t k, int32_t n)
      : first(place * k / n), last(((place + 1) * k - 1) / n) {}
};

struct Plan {
  Axis t, y, x;
  int32_t levels;
  struct {
    int32_t t, h, w;
  } level[kMaxLevels];

  VSEGOPS_HD int32_t bands() const { return t.cells * y.cells; }
};

// A bin by its number among all anchors, and by those along the axes.
struct Bin {
  int32_t t, y, x;

  __device__ Bin(const Plan& plan, int32_t anchor) : t(0), y(0), x(0) {
    for (int i = 0; i < plan.levels; ++i) {
      const auto& level = plan.level[i];
      const int32_t bins = level.t * level.h * level.w;
      if (anchor < bins) {
        const int32_t row = anchor / level.w, it = row / level.h;
        x += anchor - row * level.w;
        y += row - it * level.h;
        t += it;
        return;
      }
      anchor -= bins;
      t += level.t;
      y += level.h;
      x += level.w;
    }
  }
};

// The mean over a bin, from sums over the pixels of bands in bins along x.
template <typename F>
__device__ F mean_of(const Plan& plan, int32_t anchor, const F* sums, int64_t stride_band,
                     int64_t stride_bin) {
  const Bin bin(plan, anchor);
  F sum = F(0);
  for (int t = plan.t.first[bin.t]; t < plan.t.last[bin.t]; ++t) {
#pragma unroll 4
    for (int y = plan.y.first[bin.y]; y < plan.y.last[bin.y]; ++y) {
      sum += sums[(t * plan.y.cells + y) * stride_band + bin.x * stride_bin];
    }
  }
  const F pixels = F(plan.t.length(bin.t)) * F(plan.y.length(bin.y)) * F(plan.x.length(bin.x));
  return sum / pixels;
}

// Calls `run(row)` for the rows of a band: their numbers in the image.
template <typename Run>
__device__ __forceinline__ void for_rows(const Plan& plan, int band, const Run& run) {
  const int t = band / plan.y.cells, y = band - t * plan.y.cells;
  for (int32_t it = plan.t.border[t]; it < plan.t.border[t + 1]; ++it) {
#pragma unroll 4
    for (int32_t iy = plan.y.border[y]; iy < plan.y.border[y + 1]; ++iy) {
      run(it * plan.y.size + iy);
    }
  }
}

// The gradients of all bins that contain a band and have the number `bin` along x, of an image and
// channel whose anchors' gradients start at `grad`: each over the number of pixels of its bin.
template <typename T>
__device__ compute_t<T> gradient_of(const Plan& plan, int band, int bin, const T* grad,
                                    int64_t stride) {
  using F = compute_t<T>;
  const int t = band / plan.y.cells, y = band - t * plan.y.cells;
  int32_t start = 0, x = bin, first_t = 0, first_y = 0, i = 0;
  while (x >= plan.level[i].w) {
    const auto& before = plan.level[i++];
    start += before.t * before.h * before.w;
    first_t += before.t;
    first_y += before.h;
    x -= before.w;
  }
  const auto& level = plan.level[i];
  const Covering along_t(plan.t.border[t], level.t, plan.t.size);
  const Covering along_y(plan.y.border[y], level.h, plan.y.size);
  const F length = F(plan.x.length(bin));
  F sum = F(0);
  for (int32_t it = along_t.first; it <= along_t.last; ++it) {
    for (int32_t iy = along_y.first; iy <= along_y.last; ++iy) {
      const int64_t anchor = start + (it * level.h + iy) * level.w + x;
      const F pixels = length * F(plan.t.length(first_t + it)) * F(plan.y.length(first_y + iy));
      sum += widen(fetch(grad + anchor * stride)) / pixels;
    }
  }
  return sum;
}

// ---- Making a plan ----

// `counts`: bins of each level; no cell becomes longer than `longest`. False where there are more
// cells or bins than a plan holds.
inline bool plan_axis(int64_t size, const std::vector<int64_t>& counts, int64_t longest,
                      Axis* axis) {
  std::vector<int64_t> borders = {0, size};
  int64_t bins = 0;
  for (int64_t k : counts) {
    bins += k;
    if (bins > kMostBins) return false;
    for (int64_t i = 0; i < k; ++i) {
      borders.push_back(bin_begin(i, k, size));
      borders.push_back(bin_end(i, k, size));
    }
  }
  for (int64_t at = longest; at < size; at += longest) borders.push_back(at);
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  if (borders.size() > kMostCells + 1) return false;
  axis->size = static_cast<int32_t>(size);
  axis->bins = static_cast<int32_t>(bins);
  axis->cells = static_cast<int32_t>(borders.size()) - 1;
  std::copy(borders.begin(), borders.end(), axis->border);
  const auto cell = [&](int64_t border) {
    return static_cast<uint8_t>(std::lower_bound(borders.begin(), borders.end(), border) -
                                borders.begin());
  };
  int bin = 0;
  for (int64_t k : counts) {
    for (int64_t i = 0; i < k; ++i, ++bin) {
      axis->first[bin] = cell(bin_begin(i, k, size));
      axis->last[bin] = cell(bin_end(i, k, size));
    }
  }
  return true;
}

// `rows`: as many as a band should have at most, if cells suffice; 0: any.
inline bool make_plan(const Pyramid& pyramid, int64_t rows, Plan* plan) {
  std::vector<int64_t> t, h, w;
  for (int i = 0; i < pyramid.levels; ++i) {
    const Level& level = pyramid.level[i];
    t.push_back(level.t);
    h.push_back(level.h);
    w.push_back(level.w);
  }
  if (!plan_axis(pyramid.t, t, pyramid.t, &plan->t)) return false;
  if (!plan_axis(pyramid.w, w, pyramid.w, &plan->x)) return false;
  const int64_t longest = rows > 0 ? std::min(rows, pyramid.h) : pyramid.h;
  if (!plan_axis(pyramid.h, h, longest, &plan->y) &&
      !plan_axis(pyramid.h, h, pyramid.h, &plan->y)) {
    return false;
  }
  plan->levels = pyramid.levels;
  for (int i = 0; i < pyramid.levels; ++i) {
    plan->level[i] = {static_cast<int32_t>(t[i]), static_cast<int32_t>(h[i]),
                      static_cast<int32_t>(w[i])};
  }
  return true;
}

}  // namespace
}  // namespace vsegops::attention
