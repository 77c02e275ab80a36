// A tile with room for one neighbour of two.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void off_by_one_tile_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64 + (kFault ? 1 : 2)];
  if (threadIdx.x < 2) tile[threadIdx.x * 65] = 0;  // reported
  tile[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x] + tile[threadIdx.x + 1] + tile[threadIdx.x + 2];
}

}  // namespace

TEST_KERNEL(off_by_one_tile, 1, 64, 0)
