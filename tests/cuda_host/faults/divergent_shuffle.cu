// The mask of a shuffle names lanes that do not come.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void divergent_shuffle_kernel(const float* in, float* out, int n) {
  float mine = in[threadIdx.x];
  if (threadIdx.x < 16) {
    mine += __shfl_down_sync(kFault ? 0xffffffff : 0xffff, mine, 8, 16);  // reported
  }
  __syncthreads();
  out[threadIdx.x] = mine;
}

}  // namespace

TEST_KERNEL(divergent_shuffle, 1, 32, 0)
