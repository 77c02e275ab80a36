// Threads return before a barrier that the others wait in (which hardware tolerates).
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void early_return_kernel(const float* in, float* out, int n) {
  if (kFault && threadIdx.x >= 48) return;
  __syncthreads();  // reported
  if (threadIdx.x < 48) out[threadIdx.x] = in[threadIdx.x];
}

}  // namespace

TEST_KERNEL(early_return, 1, 64, 0)
