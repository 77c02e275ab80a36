// Products of matrices that stand in a thread's scratch memory, and copies to and from it.
//
//   C (+)= A B      C: rows x width, A: rows x depth, B: depth x width
//
// C is computed in tiles of kTileRows x kTileWidth<F>, held in registers: for each step of the
// depth a few vectors of B, and elements of A that are spread over all lanes. (AVX-512: 8 + 3 loads
// for 24 multiply-adds.) B and C are row-major. Matrices in scratch memory have room for whole
// tiles: C has rows up to a multiple of kTileRows, and A may be read that far; B and C have columns
// up to a whole vector. What stands in the surplus of A's rows and B's columns reaches nothing
// else.
#pragma once

#include <algorithm>

#include "cpu_scratch.h"
#include "panels.h"

namespace vsegops {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif
template <typename F>
constexpr int kTileWidth = kTileVectors * kLanes<F>;

inline int64_t whole_tiles(int64_t rows) { return round_up(rows, kTileRows); }
template <typename F>
int64_t whole_vectors(int64_t columns) {
  return round_up(columns, kLanes<F>);
}
// From row to row: an odd number of vectors, so that rows do not meet in a few lines of the cache.
template <typename F>
int64_t pitch_of(int64_t columns) {
  return (ceil_div(columns, kLanes<F>) | 1) * kLanes<F>;
}

// Row-major, as B and C are.
template <typename F>
struct Matrix {
  F* data;
  int64_t stride;

  F* row(int64_t i) const { return data + i * stride; }
  Matrix from(int64_t i, int64_t j) const { return {row(i) + j, stride}; }
};

// A, row-major.
template <typename F>
struct RowMajor {
  const F* data;
  int64_t stride;

  RowMajor(const Matrix<F>& x) : data(x.data), stride(x.stride) {}
  const F* tile(int64_t i) const { return data + i * stride; }
  VSEGOPS_HD const F* at(const F* tile, int64_t i, int64_t k) const {
    return tile + i * stride + k;
  }
};

// A, kTileRows rows side by side: packed in panels, or else a matrix that stands transposed.
template <typename F>
struct Panels {
  const F* data;
  int64_t panel;  // from kTileRows rows to the next
  int64_t step;   // along the depth

  static Panels packed(const F* data, int64_t depth) {
    return {data, depth * kTileRows, kTileRows};
  }
  static Panels transposed(const Matrix<F>& x) { return {x.data, kTileRows, x.stride}; }
  // `row` has to be a multiple of kTileRows.
  Panels from(int64_t row, int64_t k) const { return {tile(row) + k * step, panel, step}; }
  const F* tile(int64_t i) const { return data + i / kTileRows * panel; }
  VSEGOPS_HD const F* at(const F* tile, int64_t i, int64_t k) const { return tile + k * step + i; }
};

template <int V, typename A, typename F>
void multiply_tile(const A a, const F* rows, int64_t depth, const Matrix<F> b, const Matrix<F> c,
                   bool add) {
  constexpr int n = kLanes<F>;
  Vector<F> sum[kTileRows][V] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) __builtin_prefetch(c.data + i * c.stride);
  const F* from = b.data;
  for (int64_t k = 0; k < depth; ++k, from += b.stride) {
    Vector<F> right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = load(from + v * n);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const F left = *a.at(rows, i, k);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      F* const to = c.data + i * c.stride + v * n;
      store(add ? load(to) + sum[i][v] : sum[i][v], to);
    }
  }
}

// Calls `run(V, j)` for the V vectors from column j on: kTileVectors, or the fewer that remain.
template <typename F, typename Run>
void for_panels(int64_t width, const Run& run) {
  int64_t j = 0;
  for (; j + kTileWidth<F> <= width; j += kTileWidth<F>) {
    run(std::integral_constant<int, kTileVectors>(), j);
  }
  const int64_t rest = ceil_div(width - j, kLanes<F>);
  if (rest == 1) run(std::integral_constant<int, 1>(), j);
  if constexpr (kTileVectors > 2) {
    if (rest == 2) run(std::integral_constant<int, 2>(), j);
  }
  if (rest == kTileVectors) run(std::integral_constant<int, kTileVectors>(), j);
}

// C (+)= A B, adding if `add`.
template <typename A, typename F>
void multiply(const A& a, int64_t rows, int64_t depth, const Matrix<F>& b, int64_t width,
              const Matrix<F>& c, bool add) {
  for_panels<F>(width, [&](auto vectors, int64_t j) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      multiply_tile<vectors()>(a, a.tile(i), depth, b.from(0, j), c.from(i, j), add);
    }
  });
}

// ---- Copies ----

// A part of a tensor as a matrix: element (i, j) stands at i * row + j * column.
template <typename T>
struct Strided {
  T* data;
  int64_t row, column;

  Strided from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

// `count` elements, and zeros.
template <typename T, typename F = compute_t<std::remove_const_t<T>>>
Vector<F> load_some(const T* from, int64_t count) {
  constexpr int n = kLanes<F>;
  if (count >= n) return load(from);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<T, float>) return (Vector<F>)_mm512_maskz_loadu_ps(mask, from);
  if constexpr (std::is_same_v<T, double>) return (Vector<F>)_mm512_maskz_loadu_pd(mask, from);
#endif
  F some[n] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = widen(from[i]);
  return load(some);
}

template <typename F, typename T>
void store_some(Vector<F> x, T* to, int64_t count) {
  constexpr int n = kLanes<F>;
  if (count >= n) return store(x, to);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(to, mask, (__m512)x);
  if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(to, mask, (__m512d)x);
#endif
  F some[n];
  store(x, some);
  for (int64_t i = 0; i < count; ++i) narrow(some[i], to + i);
}

// Zeros follow the columns, up to a whole vector.
template <typename T, typename F>
void load_matrix(const Strided<const T>& from, int64_t rows, int64_t columns, const Matrix<F>& to) {
  constexpr int n = kLanes<F>;
  if (from.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; j += n) {
        store(load_some(from.data + i * from.row + j, columns - j), to.row(i) + j);
      }
    }
  } else if (from.row == 1) {
    for (int64_t j = 0; j < columns; j += n) {
      for (int64_t i = 0; i < rows; i += n) {
        const T* const at = from.data + i + j * from.column;
        Vector<F> block[n];
        if (i + n <= rows && j + n <= columns) {
#pragma GCC unroll 16
          for (int k = 0; k < n; ++k) block[k] = load(at + k * from.column);
        } else {
          for (int k = 0; k < n; ++k) {
            const bool inside = j + k < columns;
            block[k] = inside ? load_some(at + k * from.column, rows - i) : Vector<F>{};
          }
        }
        transpose<F>(block);
        F* const row = to.row(i) + j;
        if (i + n <= rows) {
#pragma GCC unroll 16
          for (int k = 0; k < n; ++k) store(block[k], row + k * to.stride);
        } else {
          for (int k = 0; k < rows - i; ++k) store(block[k], row + k * to.stride);
        }
      }
    }
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      const T* source = from.data + i * from.row;
      for (int64_t j = 0; j < whole_vectors<F>(columns); ++j) {
        to.row(i)[j] = j < columns ? F(widen(source[j * from.column])) : F(0);
      }
    }
  }
}

// Past the caches if `streamed` and every vector is aligned.
template <typename T, typename F>
void store_matrix(const Matrix<F>& from, int64_t rows, int64_t columns, const Strided<T>& to,
                  bool streamed = false) {
  constexpr int n = kLanes<F>;
  const auto write = [&](Vector<F> x, T* out, int64_t count) {
    if constexpr (std::is_same_v<T, F>) {
      if (streamed && count >= n) return stream<F>(x, out);
    }
    store_some<F>(x, out, count);
  };
  streamed = streamed && is_aligned(to.data) &&
             std::max(to.row, to.column) * sizeof(T) % kVectorBytes == 0;
  if (to.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; j += n) {
        write(load(from.row(i) + j), to.data + i * to.row + j, columns - j);
      }
    }
  } else if (to.row == 1) {
    for (int64_t j = 0; j < columns; j += n) {
      for (int64_t i = 0; i < rows; i += n) {
        const int64_t count = std::min<int64_t>(n, rows - i);
        Vector<F> block[n];
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) {
          block[k] = load(from.row(i + std::min<int64_t>(k, count - 1)) + j);
        }
        transpose<F>(block);
        T* const at = to.data + i + j * to.column;
        if (count == n && j + n <= columns) {
#pragma GCC unroll 16
          for (int k = 0; k < n; ++k) write(block[k], at + k * to.column, n);
        } else {
          for (int k = 0; k < n && j + k < columns; ++k) write(block[k], at + k * to.column, count);
        }
      }
    }
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        narrow(from.row(i)[j], to.data + i * to.row + j * to.column);
      }
    }
  }
}

// Panels::packed of `from`. Zeros follow the rows, up to a multiple of kTileRows.
template <typename T, typename F>
void pack(const Strided<const T>& from, int64_t rows, int64_t depth, F* to) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t count = std::min<int64_t>(kTileRows, rows - i);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t r = 0; r < kTileRows; ++r) {
        *to++ = r < count ? F(widen(from.data[(i + r) * from.row + k * from.column])) : F(0);
      }
    }
  }
}

}  // namespace
}  // namespace vsegops
