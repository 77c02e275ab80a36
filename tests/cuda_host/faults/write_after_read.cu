// The tile's next contents are written while other threads still read the last ones.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void write_after_read_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  float sum = 0;
  for (int first = 0; first < n; first += 64) {
    tile[threadIdx.x] = in[first + threadIdx.x];  // reported
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if constexpr (!kFault) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

}  // namespace

TEST_KERNEL(write_after_read, 1, 64, 0)
