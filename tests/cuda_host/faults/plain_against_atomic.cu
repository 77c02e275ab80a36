// One thread adds without an atomic operation, the others with one.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void plain_against_atomic_kernel(const float* in, float* out, int n) {
  if (kFault && threadIdx.x == 7) {
    out[0] += in[7];  // reported
  } else {
    atomicAdd(&out[0], in[threadIdx.x]);  // reported
  }
}

}  // namespace

TEST_KERNEL(plain_against_atomic, 1, 64, 0)
