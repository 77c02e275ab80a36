// Attention and its gradients: one kernel, which forms weights of items by items, tile by tile, and
// sums up other items by them. The weights are never written to memory.
//
//   mode         left        right       weights                     summed, to
//   Forward      query       key         exp(x - most)               value,  out
//   Statistics   query,grad  key,value                               -       log of the sum, slope
//   ToQuery      query,grad  key,value   p * (grad.value - slope)    key,    d_query
//   ToKey        key,value   query,grad  p * (grad.value - slope)    query,  d_key
//   ToValue      key         query       p                           grad,   d_value
//
// with x = scale * query.key, p = exp(x - log of the sum of exp(x)), slope = sum of p * grad.value.
//
// A block has a tile of kItems left items and up to kSummed channels of the sums, in registers. The
// right items stream through a ring in shared memory, a chunk of channels at a time. The softmax is
// that of all tiles so far: sums are scaled down when a larger score comes.
//
// Operations: 2 C for each pair of items, C the channels of the products made (Ck + Cv forward, 2
// Ck + Cv or 2 Cv + Ck and more backward), for the fewest bytes 2 C for each item: some hundreds of
// operations a byte from some hundred anchors on. Tensor cores and the loads from shared memory
// that feed them bound the types of 16 bits, multiply-adds the others. With more than kSummed
// channels the scores are formed again for each part of them.
#pragma once

#include <cmath>

#include "cuda_stream.h"

namespace vsegops::attention {
namespace {

template <typename T, typename F>
__device__ __forceinline__ F exponential(F x) {
  if constexpr (kTensorCores<T>) return __expf(x);
  return std::exp(x);
}

// Joins a value of each of the four lanes that share an item.
template <typename F, typename Join>
__device__ __forceinline__ F join(F value, const Join& with) {
  value = with(value, __shfl_xor_sync(0xffffffff, value, 1));
  return with(value, __shfl_xor_sync(0xffffffff, value, 2));
}

// Calls `run(j, r, e, value)` for value (j, e) of the thread's item r.
template <typename F, int J, typename Run>
__device__ __forceinline__ void each(F (&values)[J][4], const Run& run) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) run(j, i / 2, i % 2, values[j][i]);
  }
}

// The sums of a block: a thread's in registers; what is not yet final is kept in float32.
template <typename T>
struct Sums {
  using F = compute_t<T>;
  using P = Products<T>;
  static constexpr int kChunks = kSummedChunks<T>;

  F of[kChunks][kDepth<T> / 8][4] = {};

  __device__ __forceinline__ void scale(int r, F factor) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int j = 0; j < kDepth<T> / 8; ++j) {
        of[c][j][2 * r] *= factor;
        of[c][j][2 * r + 1] *= factor;
      }
    }
  }

  __device__ __forceinline__ void load(const Matrix<const F>& from, const Task& task, T* shared) {
    F* const chunk = reinterpret_cast<F*>(shared);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= task.sums) break;
      begin_copy<kDepth<T>>(chunk, from, from.of(task.n, task.line), task.item0,
                            task.channel0 + c * kDepth<T>);
      commit_copies();
      wait_copies<0>();
      __syncthreads();
      each(of[c], [&](int j, int r, int e, F& value) {
        value = chunk[chunk_at<F>(item_of_thread(r), P::column(j, e), kDepth<T>)];
      });
      __syncthreads();
    }
  }

  // In turns through two parts of the shared memory, which is free. `to`: of an image and line.
  template <typename U>
  __device__ __forceinline__ void store(const Matrix<U>& m, U* to, const Task& task, T* shared) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= task.sums) break;
      U* const chunk = reinterpret_cast<U*>(shared) + c % 2 * kItems * kDepth<T>;
      each(of[c], [&](int j, int r, int e, F& value) {
        narrow(value, chunk + written_at<kDepth<T>>(m, item_of_thread(r), P::column(j, e)));
      });
      __syncthreads();
      write<kDepth<T>>(chunk, m, to, task.item0, task.channel0 + c * kDepth<T>);
    }
  }
};

template <typename M, typename T>
__global__ void __launch_bounds__(kThreads, 2) attend_kernel(const __grid_constant__ Call<T> call) {
  using F = compute_t<T>;
  using P = Products<T>;
  constexpr int kColumns = kItems / 8;
  T* const shared = dynamic_shared<T>();
  const Task task(M(), call);
  const Matrix<const T>& left = call.items[kLeft][kForScores];
  const Matrix<const T>& right = call.items[kRight][kForScores];
  const auto item = [&](int r) { return task.item0 + static_cast<int32_t>(item_of_thread(r)); };
  const auto state_of = [&](int32_t i) {
    return task.n * call.pixels_n + task.line * call.pixels_line + i * call.pixels;
  };

  // Of the softmax so far.
  F largest[2], sum[2], slope[2];
  const bool first_lane = threadIdx.x % 4 == 0;  // (the sums of the four lanes are added up)
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = -F(INFINITY);
    sum[r] = slope[r] = F(0);
    if (!M::kSoftmax || !call.before || item(r) >= left.items) continue;
    const State<F> state = call.before[state_of(item(r))];
    largest[r] = state.data[0];
    if (!first_lane) continue;
    sum[r] = M::kSlopes ? F(1) : state.data[1];
    slope[r] = M::kSlopes ? state.data[1] : F(0);
  }
  Sums<T> sums;
  if constexpr (M::kSums) {
    if (call.sums_before.data) sums.load(call.sums_before, task, shared);
  }

  Stream<M, T> stream(call, task, shared);
  F* const buffer = stream.behind() + threadIdx.x / 32 * P::kWeightElements;
  for (int32_t tile = task.first; tile < task.last; ++tile) {
    F x[kColumns][4] = {};  // scores, then weights
    for (int i = 0; i < task.scores; ++i) {
      const auto at = stream.next(i);
      P::add_scores(x, at.left, left.last, at.right, right.last);
    }
    const auto state = [&](int j, int i, int which) {
      const uint32_t pixel = M::kPixelsRight ? P::column(j, i % 2) : item_of_thread(i / 2);
      return stream.states(tile)[pixel].data[which];
    };
    F d[kColumns][4] = {};  // grad . value
    if constexpr (M::kSlopes) {
      P::park(buffer, x);
      for (int i = 0; i < task.slopes; ++i) {
        const auto at = stream.next(task.scores + i);
        P::add_scores(d, at.left, call.items[kLeft][kForSlopes].last, at.right,
                      call.items[kRight][kForSlopes].last);
      }
    }
    // The scores of j, scaled, for what counts.
    const auto finish = [&](int j, F(&score)[4]) {
      if (M::kSlopes) P::unpark(buffer, j, x[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t other = tile * kItems + static_cast<int32_t>(P::column(j, i % 2));
        const bool counts = other < right.items && !(call.skips_itself && other == item(i / 2));
        score[i] = counts ? call.scale * x[j][i] : -F(INFINITY);
      }
    };
    typename P::Weights weights(buffer);
    if constexpr (M::kSoftmax) {
      F base[2] = {largest[0], largest[1]};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        F score[4];
        finish(j, score);
#pragma unroll
        for (int i = 0; i < 4; ++i) base[i / 2] = max(base[i / 2], score[i]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const F before = largest[r];
        largest[r] = join(base[r], [](F a, F b) { return max(a, b); });
        base[r] = largest[r] == -F(INFINITY) ? F(0) : largest[r];  // (nothing counts so far)
        const F factor = exponential<T>(before - base[r]);
        sum[r] *= factor;
        slope[r] *= factor;
        if (M::kSums) sums.scale(r, factor);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        finish(j, x[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[j][i] = exponential<T>(x[j][i] - base[i / 2]);
          sum[i / 2] += x[j][i];
          if (M::kSlopes) slope[i / 2] += x[j][i] * d[j][i];
        }
        if (M::kSums) weights.put(j, x[j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        finish(j, x[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[j][i] = exponential<T>(x[j][i] - state(j, i, 0));
          if (M::kSlopes) x[j][i] *= d[j][i] - state(j, i, 1);
        }
        weights.put(j, x[j]);
      }
    }
    if constexpr (M::kSums) {
      for (int i = 0; i < task.sums; ++i) {
        const auto at = stream.next(0);
#pragma unroll
        for (int c = 0; c < Sums<T>::kChunks; ++c) {
          if (c == i) {
            P::add_weighted(sums.of[c], weights, at.right, call.items[kRight][kForSums].last);
          }
        }
      }
    }
  }

  if constexpr (M::kSoftmax) {
    const auto add = [](F a, F b) { return a + b; };
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = join(sum[r], add);
      slope[r] = join(slope[r], add);
      if (!call.after || !first_lane || task.channel0 > 0 || item(r) >= left.items) continue;
      State<F>& state = call.after[state_of(item(r))];
      state.data[0] = largest[r] + (M::kSlopes ? std::log(sum[r]) : F(0));
      state.data[1] = M::kSlopes && sum[r] > F(0) ? slope[r] / sum[r] : sum[r];
    }
  }
  if constexpr (M::kSums) {
    __syncthreads();  // (all copies have been waited for)
    if (call.sums_after.data) {
      sums.store(call.sums_after,
                 call.sums_after.of(task.n, task.line) + blockIdx.y * call.stride_slice, task,
                 shared);
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sums.scale(r, M::kSoftmax ? F(1) / sum[r] : M::kSlopes ? call.scale : F(1));
      }
      sums.store(call.out, call.out.of(task.n, task.line), task, shared);
    }
  }
}

}  // namespace
}  // namespace vsegops::attention
