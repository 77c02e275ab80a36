// As unguarded_tail, in half precision: what a function returns is stored.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void unguarded_halves_kernel(const float* in, float* out, int n) {
  const int i = blockIdx.x * 96 + threadIdx.x;
  if (!kFault && i >= 2 * n) return;
  vsegops::narrow(1.f, reinterpret_cast<vsegops::Half*>(out) + i);  // reported
}

}  // namespace

TEST_KERNEL(unguarded_halves, (2 * n + 95) / 96, 96, 0)
