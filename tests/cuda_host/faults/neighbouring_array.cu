// A pointer runs out of one shared array into another that is in use.
#include "../test_kernel.h"

namespace {

__device__ float sum(const float* values, int count) {
  float total = 0;
  for (int i = 0; i < count; ++i) total += values[i];  // reported
  return total;
}

template <bool kFault>
__global__ void neighbouring_array_kernel(const float* in, float* out, int n) {
  __shared__ float low[32], high[32];
  low[threadIdx.x] = in[threadIdx.x];
  high[threadIdx.x] = in[threadIdx.x + 32];
  __syncthreads();
  const int count = kFault ? 33 : 32;
  out[threadIdx.x] = sum(low, count) + sum(high, count);
}

}  // namespace

TEST_KERNEL(neighbouring_array, 1, 32, 0)
