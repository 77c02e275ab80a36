// Four floats are read at once that do not start on 16 bytes.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void misaligned_vector_kernel(const float* in, float* out, int n) {
  const float4 v =
      *reinterpret_cast<const float4*>(in + (kFault ? 1 : 4) + 4 * threadIdx.x);  // reported
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

}  // namespace

TEST_KERNEL(misaligned_vector, 1, 16, 0)
