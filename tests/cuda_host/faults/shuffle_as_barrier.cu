// A shuffle makes lanes meet, but orders no memory.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void shuffle_as_barrier_kernel(const float* in, float* out, int n) {
  __shared__ float tile[32];
  const float mine = in[threadIdx.x];
  tile[threadIdx.x] = mine;
  const float other = __shfl_xor_sync(0xffffffff, mine, 1);
  if constexpr (!kFault) __syncwarp();
  out[threadIdx.x] = other + tile[threadIdx.x ^ 2];  // reported
}

}  // namespace

TEST_KERNEL(shuffle_as_barrier, 1, 32, 0)
