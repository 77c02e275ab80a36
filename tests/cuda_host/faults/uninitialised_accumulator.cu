// A sum in shared memory that nobody has set to zero.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void uninitialised_accumulator_kernel(const float* in, float* out, int n) {
  __shared__ float total;
  if (!kFault && threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, in[threadIdx.x]);  // reported
  __syncthreads();
  if (threadIdx.x == 0) out[0] = total;
}

}  // namespace

TEST_KERNEL(uninitialised_accumulator, 1, 64, 0)
