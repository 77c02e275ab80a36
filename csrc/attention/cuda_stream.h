// What a block of the attention kernel does, and how the items that it multiplies come to it.
#pragma once

#include "cuda_products.h"

namespace vsegops::attention {
namespace {

// The modes of the kernel: see cuda_attend.h.
struct Forward {
  static constexpr bool kSoftmax = true, kSlopes = false, kSums = true, kPixelsRight = false;
};
struct Statistics {
  static constexpr bool kSoftmax = true, kSlopes = true, kSums = false, kPixelsRight = false;
};
struct ToQuery {
  static constexpr bool kSoftmax = false, kSlopes = true, kSums = true, kPixelsRight = false;
};
struct ToKey {
  static constexpr bool kSoftmax = false, kSlopes = true, kSums = true, kPixelsRight = true;
};
struct ToValue {
  static constexpr bool kSoftmax = false, kSlopes = false, kSums = true, kPixelsRight = true;
};

constexpr int kStages = 4;    // of the ring
constexpr int kMostHeld = 8;  // chunks of left items that stay in shared memory

template <typename T>
constexpr int kSummedChunks = std::is_same_v<T, float>    ? 8
                              : std::is_same_v<T, double> ? 2
                                                          : 4;
template <typename T>
constexpr int kSummed = kSummedChunks<T> * kDepth<T>;  // channels of a block's sums

// Forward: the largest score and the sum of exp(x - largest), of the items seen so far. Backward:
// the logarithm of the whole sum of exp(x), and the slope.
template <typename F>
using State = Vec<F, 2>;

// How many of them a block has in shared memory.
template <typename M>
constexpr int kStates = M::kSoftmax       ? 0
                        : M::kPixelsRight ? 2 * kItems
                                          : kItems;

enum { kLeft, kRight };                     // sides of a product
enum { kForScores, kForSlopes, kForSums };  // what is multiplied

template <typename T>
struct Call {
  using F = compute_t<T>;
  Matrix<const T> items[2][3];  // by side; those for the sums are right ones
  Matrix<T> out;
  int32_t lines, left_tiles;  // of an image, of a line
  int32_t slice;              // right tiles of a block
  F scale;
  bool skips_itself;  // an item is not weighed against that of its own number
  bool holds_left;    // all channels of the left items stay in shared memory
  const State<F>* before;
  State<F>* after;
  int64_t pixels_n, pixels_line, pixels;  // strides of states
  // Sums that are not final. Null: there are none before; they are final.
  Matrix<const F> sums_before;
  Matrix<F> sums_after;
  int64_t stride_slice;  // of sums_after
};

// What a block does. Blocks along x have other left items, along y other right ones, along z other
// channels of the sums.
struct Task {
  int32_t n, line, item0, channel0;  // of the left tile and of the sums
  int32_t first, last;               // right tiles
  int scores, slopes, sums;          // chunks of the products

  template <typename M, typename T>
  __device__ Task(M, const Call<T>& call) {
    const uint32_t lines = blockIdx.x / call.left_tiles;
    item0 = static_cast<int32_t>(blockIdx.x - lines * call.left_tiles) * kItems;
    n = static_cast<int32_t>(lines / call.lines);
    line = static_cast<int32_t>(lines) - n * call.lines;
    channel0 = blockIdx.z * kSummed<T>;
    const Matrix<const T>(&right)[3] = call.items[kRight];
    first = blockIdx.y * call.slice;
    last = min(first + call.slice, ceil_div(right[kForScores].items, kItems));
    const auto chunks = [](int32_t channels) { return ceil_div(channels, kDepth<T>); };
    scores = chunks(right[kForScores].channels);
    slopes = M::kSlopes ? chunks(right[kForSlopes].channels) : 0;
    sums = M::kSums ? min(chunks(call.out.channels - channel0), kSummedChunks<T>) : 0;
  }
};

// The chunks of the right items in the order of their use, some ahead of it; with those for scores
// and slopes the same channels of the left items; with the first of a tile its pixels' states.
template <typename M, typename T>
class Stream {
 public:
  using F = compute_t<T>;

  __device__ Stream(const Call<T>& call, const Task& task, T* shared)
      : call_(call),
        task_(task),
        ring_(shared),
        held_(shared + kStages * kChunk<T>),
        states_(reinterpret_cast<State<F>*>(
            held_ + (call.holds_left ? task.scores + task.slopes : kStages) * kChunk<T>)),
        tile_(task.first) {
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) begin();
  }

  struct Chunks {
    const T *left, *right;
  };

  // The next ones. `held`: the left chunk's place among all of a tile's.
  __device__ __forceinline__ Chunks next(int held) {
    wait_copies<kStages - 2>();
    __syncthreads();
    const int slot = (slot_ + 1) % kStages;
    begin();  // (where the last ones were)
    return {held_ + (call_.holds_left ? held : slot) * kChunk<T>, ring_ + slot * kChunk<T>};
  }

  // Of the pixels, where all of the softmax is known: the left items, or a tile's right ones; zeros
  // beyond. (A tile takes two steps and more, so that the one after the next is not begun before
  // these have been read.)
  __device__ const State<F>* states(int32_t tile) const { return states_ + place_of(tile); }

  // The shared memory behind all that.
  __device__ F* behind() const { return reinterpret_cast<F*>(states_ + kStates<M>); }

 private:
  __device__ __forceinline__ void begin() {
    if (tile_ < task_.last) {
      const int before_sums = task_.scores + task_.slopes;
      const int what = step_ < task_.scores  ? kForScores
                       : step_ < before_sums ? kForSlopes
                                             : kForSums;
      const int chunk = step_ - (what == kForScores   ? 0
                                 : what == kForSlopes ? task_.scores
                                                      : before_sums);
      const int32_t channel0 = chunk * kDepth<T> + (what == kForSums ? task_.channel0 : 0);
      const bool with_left = what != kForSums && !(call_.holds_left && later_);
#pragma unroll 1
      for (int side = with_left ? kLeft : kRight; side <= kRight; ++side) {
        const Matrix<const T>& x = call_.items[side][what];
        T* const chunk = side == kRight ? ring_ + slot_ * kChunk<T>
                                        : held_ + (call_.holds_left ? step_ : slot_) * kChunk<T>;
        begin_copy<kDepth<T>>(chunk, x, x.of(task_.n, task_.line),
                              side == kRight ? tile_ * kItems : task_.item0, channel0);
      }
      if (!M::kSoftmax && step_ == 0 && threadIdx.x < kItems && (M::kPixelsRight || !later_)) {
        constexpr int side = M::kPixelsRight ? kRight : kLeft;
        const int32_t item = (M::kPixelsRight ? tile_ * kItems : task_.item0) + threadIdx.x;
        const int64_t at =
            task_.n * call_.pixels_n + task_.line * call_.pixels_line + item * call_.pixels;
        copy_async(states_ + place_of(tile_) + threadIdx.x, call_.before + at,
                   item < call_.items[side][kForScores].items);
      }
      if (++step_ == before_sums + task_.sums) {
        step_ = 0;
        ++tile_;
        later_ = true;
      }
    }
    commit_copies();
    slot_ = (slot_ + 1) % kStages;
  }

  static __device__ int place_of(int32_t tile) { return M::kPixelsRight ? tile % 2 * kItems : 0; }

  const Call<T>& call_;
  const Task& task_;
  T *ring_, *held_;
  State<F>* states_;
  int tile_, step_ = 0, slot_ = 0;
  bool later_ = false;  // than the first tile
};

}  // namespace
}  // namespace vsegops::attention
