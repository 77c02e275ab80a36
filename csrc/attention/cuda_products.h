// Products of chunks by a warp, which has kWarpItems items of the left one: on tensor cores for
// elements of 16 bits, by multiply-adds otherwise (TF32 would not be exact enough).
//
// Lane l has, of sums of 16 items by 8 J columns, d[j][e] of item l / 4 and d[j][2 + e] of item
// l / 4 + 8, e = 0, 1, in the column that `column(j, e)` names.
#pragma once

#include "../common/tensor_core.h"
#include "cuda_tiles.h"

namespace vsegops::attention {
namespace {

__device__ __forceinline__ uint32_t lane_of_thread() { return threadIdx.x & 31; }
__device__ __forceinline__ uint32_t first_item_of_warp() { return threadIdx.x / 32 * kWarpItems; }
__device__ __forceinline__ uint32_t item_of_thread(uint32_t r) {
  return first_item_of_warp() + lane_of_thread() / 4 + 8 * r;
}

template <typename T, bool TensorCores = kTensorCores<T>>
struct Products;

// A warp loads 2.5 (scores) or 2 KB (weighted sums) of shared memory for 8 products of 16 x 8 x 16.
template <typename T>
struct Products<T, true> {
  static constexpr int kWeightElements = 0;  // of shared memory, for a warp's scores and weights

  static __device__ __forceinline__ uint32_t column(uint32_t j, uint32_t e) {
    return 8 * j + 2 * (lane_of_thread() & 3) + e;
  }

  // d += left right^T: over the channels, item by item.
  static __device__ __forceinline__ void add_scores(float (&d)[kItems / 8][4], const T* left,
                                                    bool left_last, const T* right,
                                                    bool right_last) {
#pragma unroll 1
    for (int k = 0; k < kDepth<T>; k += 16) {
      uint32_t a[4];
      load_left(a, left, left_last, k);
#pragma unroll
      for (int j = 0; j < kItems / 8; j += 2) {
        add(d[j], d[j + 1], a, right, !right_last, k, 8 * j);
      }
    }
  }

  static __device__ __forceinline__ void park(float*, const float (&)[kItems / 8][4]) {}
  static __device__ __forceinline__ void unpark(const float*, int, float (&)[4]) {}

  // Weights of 16 items by kItems, rounded, as the left matrix of a product.
  struct Weights {
    uint32_t a[kItems / 16][4];

    __device__ __forceinline__ explicit Weights(float*) {}
    __device__ __forceinline__ void put(int j, const float (&w)[4]) {
      a[j / 2][j % 2 * 2] = pair(w[0], w[1]);
      a[j / 2][j % 2 * 2 + 1] = pair(w[2], w[3]);
    }
  };

  // d += weights right: over the items, channel by channel.
  static __device__ __forceinline__ void add_weighted(float (&d)[kDepth<T> / 8][4],
                                                      const Weights& weights, const T* right,
                                                      bool right_last) {
#pragma unroll
    for (int k = 0; k < kItems; k += 16) {
#pragma unroll
      for (int j = 0; j < kDepth<T> / 8; j += 2) {
        add(d[j], d[j + 1], weights.a[k / 16], right, right_last, k, 8 * j);
      }
    }
  }

 private:
  static __device__ __forceinline__ uint32_t pair(float first, float second) {
    Vec<T, 2> rounded;
    narrow(first, rounded.data);
    narrow(second, rounded.data + 1);
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof(bits));
    return bits;
  }

  static __device__ __forceinline__ void load(uint32_t (&out)[4], const T* chunk, uint32_t line,
                                              uint32_t place, bool transposed) {
    const T* row = chunk + chunk_at<T>(line, place, kItems);
    transposed ? load_matrices<true>(out, row) : load_matrices<false>(out, row);
  }

  // The items of the warp by channels k to k + 15.
  static __device__ __forceinline__ void load_left(uint32_t (&a)[4], const T* chunk, bool last,
                                                   uint32_t k) {
    const uint32_t lane = lane_of_thread(), item = first_item_of_warp();
    const uint32_t along = lane & 15, across = lane / 16 * 8;
    const uint32_t line = last ? item + along : k + across + (lane & 7);
    const uint32_t place = last ? k + across : item + (lane & 8);
    load(a, chunk, line, place, !last);
  }

  // The two products with rows k to k + 15, columns j to j + 15 of the right matrix. `by_rows`: the
  // lines of the chunk are rows of it.
  static __device__ __forceinline__ void add(float (&first)[4], float (&second)[4],
                                             const uint32_t (&a)[4], const T* chunk, bool by_rows,
                                             uint32_t k, uint32_t j) {
    const uint32_t lane = lane_of_thread();
    const uint32_t low = lane & 7, middle = lane & 8, high = lane / 16 * 8;
    uint32_t b[4];
    load(b, chunk, by_rows ? k + middle + low : j + high + low, by_rows ? j + high : k + middle,
         by_rows);
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    multiply_add<T>(first, a, left);
    multiply_add<T>(second, a, right);
  }
};

// A thread loads 18 vectors of 16 bytes for 128 multiply-adds of floats; what a warp loads at once
// lies within 128 bytes.
template <typename T>
struct Products<T, false> {
  static constexpr int kPitch = kItems + 4;
  static constexpr int kWeightElements = kWarpItems * kPitch;

  static __device__ __forceinline__ uint32_t column(uint32_t j, uint32_t e) {
    return j / 2 * 16 + 4 * (lane_of_thread() & 3) + j % 2 * 2 + e;
  }

  static __device__ __forceinline__ void add_scores(T (&d)[kItems / 8][4], const T* left, bool,
                                                    const T* right, bool) {
    const uint32_t item = item_of_thread(0);
#pragma unroll 1
    for (int k = 0; k < kDepth<T>; k += kStep) {
      T a[2][kStep];
      load(a[0], left, item, k);
      load(a[1], left, item + 8, k);
#pragma unroll
      for (int j = 0; j < kItems / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          __syncwarp();  // (not all are fetched at once)
          T b[kStep];
          load(b, right, column(j, e), k);
#pragma unroll
          for (int i = 0; i < kStep; ++i) {
            d[j][e] += a[0][i] * b[i];
            d[j][2 + e] += a[1][i] * b[i];
          }
        }
      }
    }
  }

  // A tile's scores give their registers to others for a while: back come the four of j. (A barrier
  // keeps the compiler from fetching all at once, which takes more registers than there are.)
  static __device__ __forceinline__ void park(T* to, const T (&x)[kItems / 8][4]) {
    Weights parked(to);
#pragma unroll
    for (int j = 0; j < kItems / 8; ++j) parked.put(j, x[j]);
  }
  static __device__ __forceinline__ void unpark(const T* from, int j, T (&x)[4]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = from[place_of(j, i)];
  }

  // In shared memory of the warp's own. (Barriers between the products order it for all lanes.)
  struct Weights {
    T* const at;

    __device__ __forceinline__ explicit Weights(T* to) : at(to) {}
    __device__ __forceinline__ void put(int j, const T (&w)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[place_of(j, i)] = w[i];
    }
  };

  static __device__ __forceinline__ void add_weighted(T (&d)[kDepth<T> / 8][4],
                                                      const Weights& weights, const T* right,
                                                      bool) {
    const T* item = weights.at + lane_of_thread() / 4 * kPitch;
#pragma unroll 1  // (more of them take more registers than there are)
    for (int k = 0; k < kItems; ++k) {
      const T a[2] = {item[k], item[8 * kPitch + k]};
#pragma unroll
      for (int c = 0; c < kDepth<T> / 4; c += kStep) {  // columns of the lane
        T b[kStep];
        load(b, right, k, column(c / 2, c % 2));
#pragma unroll
        for (int e = 0; e < kStep; ++e) {
          d[(c + e) / 2][(c + e) % 2] += a[0] * b[e];
          d[(c + e) / 2][2 + (c + e) % 2] += a[1] * b[e];
        }
      }
    }
  }

 private:
  static constexpr int kStep = kVector<T>;

  static __device__ __forceinline__ uint32_t place_of(uint32_t j, uint32_t i) {
    return (lane_of_thread() / 4 + i / 2 * 8) * kPitch + column(j, i % 2);
  }

  static __device__ __forceinline__ void load(T (&out)[kStep], const T* at) {
    const auto v = *reinterpret_cast<const Vec<T, kStep>*>(at);
#pragma unroll
    for (int i = 0; i < kStep; ++i) out[i] = v.data[i];
  }
  static __device__ __forceinline__ void load(T (&out)[kStep], const T* chunk, uint32_t line,
                                              uint32_t place) {
    load(out, chunk + chunk_at<T>(line, place, kDepth<T>));
  }
};

}  // namespace
}  // namespace vsegops::attention
