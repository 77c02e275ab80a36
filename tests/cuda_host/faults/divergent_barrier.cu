// Half of the threads do not come to a barrier: they wait in another one.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void divergent_barrier_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  if (kFault && threadIdx.x < 32) {
    __syncthreads();  // reported
  }
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

}  // namespace

TEST_KERNEL(divergent_barrier, 1, 64, 0)
