// Lanes exchange values through shared memory, without waiting for each other.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void missing_syncwarp_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  if constexpr (!kFault) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];  // reported
}

}  // namespace

TEST_KERNEL(missing_syncwarp, 1, 64, 0)
