// A tile is read before all threads have written it.
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void missing_syncthreads_kernel(const float* in, float* out, int n) {
  __shared__ float tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  if constexpr (!kFault) __syncthreads();
  out[threadIdx.x] = tile[127 - threadIdx.x];  // reported
}

}  // namespace

TEST_KERNEL(missing_syncthreads, 1, 128, 0)
