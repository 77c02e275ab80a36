// Dynamic shared memory is a row too small.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void dynamic_tail_kernel(const float* in, float* out, int n) {
  float* tile = vsegops::dynamic_shared<float>();
  const int count = kFault ? 65 : 64;
  for (int i = threadIdx.x; i < count; i += 32) {
    tile[i] = in[i];  // reported
  }
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

}  // namespace

TEST_KERNEL(dynamic_tail, 1, 32, 64 * sizeof(float))
