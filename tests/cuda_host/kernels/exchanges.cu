// One element of the output for each lane and each exchange of a warp or a block.
#include "../test_kernel.h"

namespace {

template <bool kHalves>  // a warp as two of 16 lanes, in different branches of the code
__global__ void exchanges_kernel(const float* in, float* out, int n) {
  const int lane = threadIdx.x;
  const float mine = in[lane];
  constexpr unsigned kAll = 0xffffffff;
  if constexpr (kHalves) {
    if (lane < 16) {
      out[lane] = __shfl_sync(0x0000ffff, mine, 3, 16);
    } else {
      out[lane] = __shfl_xor_sync(0xffff0000, mine, 1);
    }
  } else {
    out[lane] = __shfl_sync(kAll, mine, lane / 2);
    out[32 + lane] = __shfl_up_sync(kAll, mine, 3);
    out[64 + lane] = __shfl_down_sync(kAll, mine, 5, 16);
    out[96 + lane] = __shfl_xor_sync(kAll, static_cast<double>(mine), 9);
    out[128 + lane] = __popc(__ballot_sync(kAll, lane % 3 == 0));
    out[160 + lane] = 2 * __any_sync(kAll, lane == 7) + __all_sync(kAll, lane < 31);
    out[192 + lane] = __syncthreads_count(lane < 11);
    out[224 + lane] = 2 * __syncthreads_or(lane == 40) + __syncthreads_and(lane < 32);
  }
}

}  // namespace

TEST_KERNEL(exchanges, 1, 32, 0)
