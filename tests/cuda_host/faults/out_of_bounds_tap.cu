// The right-hand tap of the last pixel is outside.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void out_of_bounds_tap_kernel(const float* in, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += 64) {
    const int right = kFault ? i + 1 : min(i + 1, n - 1);
    out[i] = in[i] + in[right];  // reported
  }
}

}  // namespace

TEST_KERNEL(out_of_bounds_tap, 1, 64, 0)
