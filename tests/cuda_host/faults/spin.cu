// A thread waits for another that cannot run before it returns.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void spin_kernel(const float* in, float* out, int n) {
  volatile float* raised = out;
  while (kFault && *raised != 1) {  // reported
  }
  out[threadIdx.x] = in[threadIdx.x];
}

}  // namespace

TEST_KERNEL(spin, 1, 1, 0)
