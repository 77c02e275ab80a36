// The last block has more threads than there are elements left.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void unguarded_tail_kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * 96 + threadIdx.x;
  if (!kFault && i >= n) return;
  out[i] = threadIdx.x;  // reported
}

}  // namespace

TEST_KERNEL(unguarded_tail, (n + 95) / 96, 96, 0)
