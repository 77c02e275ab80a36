// The place of an image in a large tensor does not fit into 32 bits.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void index_overflow_kernel(const float* in, float* out, int n) {
  using Index = std::conditional_t<kFault, int32_t, int64_t>;
  const Index image = 4096 + blockIdx.x, plane = 1 << 20;
  const Index offset = image * plane;  // reported
  const int64_t before = int64_t(4096) << 20;
  out[(offset - before >> 20) * 32 + threadIdx.x] = in[threadIdx.x];
}

}  // namespace

TEST_KERNEL(index_overflow, 2, 32, 0)
