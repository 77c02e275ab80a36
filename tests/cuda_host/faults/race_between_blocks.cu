// Two blocks write the same element.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void race_between_blocks_kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * (kFault ? 63 : 64) + threadIdx.x;
  out[i] = blockIdx.x;  // reported
}

}  // namespace

TEST_KERNEL(race_between_blocks, 2, 64, 0)
