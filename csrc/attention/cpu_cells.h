// How a pyramid of bins divides what is pooled into cells: the borders of all levels' bins, along
// each dimension.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../common/cpu_scratch.h"
#include "attention.h"

namespace vsegops::attention {
namespace {

constexpr int64_t kStrip = 32;  // so many elements are added up without compensation

// A dimension, divided at the borders of the bins of all levels.
class Division {
 public:
  Division(const Pyramid& pyramid, int64_t size, int64_t Level::* bins) : size_(size) {
    for (int l = 0; l < pyramid.levels; ++l) {
      const int64_t count = pyramid.level[l].*bins;
      for (int64_t i = 0; i < count; ++i) {
        borders_.push_back(begin_of(i, count));
        borders_.push_back(end_of(i, count));
      }
    }
    std::sort(borders_.begin(), borders_.end());
    borders_.erase(std::unique(borders_.begin(), borders_.end()), borders_.end());
  }

  int64_t cells() const { return static_cast<int64_t>(borders_.size()) - 1; }
  // Where cell i begins, and the one before it ends.
  int64_t operator[](int64_t i) const { return borders_[i]; }

  int64_t begin_of(int64_t bin, int64_t bins) const { return bin * size_ / bins; }
  int64_t end_of(int64_t bin, int64_t bins) const { return ceil_div((bin + 1) * size_, bins); }
  // The cell that begins at a border.
  int64_t cell_at(int64_t border) const {
    return std::lower_bound(borders_.begin(), borders_.end(), border) - borders_.begin();
  }

 private:
  const int64_t size_;
  std::vector<int64_t> borders_;
};

// A range of cells along each dimension, and the pixels in it.
struct Bin {
  int64_t begin[3], end[3];
  int64_t pixels;
};

struct Divisions {
  const Division t, h, w;
  std::vector<Bin> bins;  // of all levels, in their order

  explicit Divisions(const Pyramid& of)
      : t(of, of.t, &Level::t), h(of, of.h, &Level::h), w(of, of.w, &Level::w) {
    bins.reserve(of.anchors());
    for (int l = 0; l < of.levels; ++l) {
      const Level& level = of.level[l];
      for (int64_t i = 0; i < level.t * level.h * level.w; ++i) {
        Bin bin{{}, {}, 1};
        place(t, i / (level.h * level.w), level.t, 0, &bin);
        place(h, i / level.w % level.h, level.h, 1, &bin);
        place(w, i % level.w, level.w, 2, &bin);
        bins.push_back(bin);
      }
    }
  }

  int64_t bands() const { return t.cells() * h.cells(); }  // cells with equal rows
  int64_t cells() const { return bands() * w.cells(); }

  // Calls `run(cell, count)` for the runs of cells of a bin, each `count` along the width.
  template <typename Run>
  void for_runs(const Bin& bin, const Run& run) const {
    for (int64_t i = bin.begin[0]; i < bin.end[0]; ++i) {
      for (int64_t j = bin.begin[1]; j < bin.end[1]; ++j) {
        run((i * h.cells() + j) * w.cells() + bin.begin[2], bin.end[2] - bin.begin[2]);
      }
    }
  }

 private:
  static void place(const Division& along, int64_t i, int64_t count, int d, Bin* bin) {
    const int64_t begin = along.begin_of(i, count), end = along.end_of(i, count);
    bin->begin[d] = along.cell_at(begin);
    bin->end[d] = along.cell_at(end);
    bin->pixels *= end - begin;
  }
};

// The frames and rows of one cell of each, as wide as the image.
struct Band {
  int64_t t, t_end, y, y_end;

  Band(const Divisions& divisions, int64_t i)
      : t(divisions.t[i / divisions.h.cells()]),
        t_end(divisions.t[i / divisions.h.cells() + 1]),
        y(divisions.h[i % divisions.h.cells()]),
        y_end(divisions.h[i % divisions.h.cells() + 1]) {}

  // Calls `run(rows, count)` with the pixels that rows begin with, at most kStrip of them.
  template <typename Run>
  void for_strips(const Pyramid& of, const Run& run) const {
    int64_t rows[kStrip], count = 0;
    for (int64_t frame = t; frame < t_end; ++frame) {
      for (int64_t row = y; row < y_end; ++row) {
        rows[count++] = (frame * of.h + row) * of.w;
        if (count == kStrip) run(rows, std::exchange(count, 0));
      }
    }
    if (count > 0) run(rows, count);
  }
};

}  // namespace
}  // namespace vsegops::attention
