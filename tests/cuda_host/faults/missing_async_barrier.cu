// Waiting for asynchronous copies is for the own ones: others need a barrier.
#include "../../../csrc/common/async.h"
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void missing_async_barrier_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  vsegops::copy_async(&tile[threadIdx.x], &in[threadIdx.x]);
  vsegops::commit_copies();
  vsegops::wait_copies<0>();
  if constexpr (!kFault) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // reported
}

}  // namespace

TEST_KERNEL(missing_async_barrier, 1, 64, 0)
