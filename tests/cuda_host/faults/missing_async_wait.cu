// An asynchronous copy is read without waiting for it.
#include "../../../csrc/common/async.h"
#include "../test_kernel.h"

namespace {

template <bool kFault>
__global__ void missing_async_wait_kernel(const float* in, float* out, int n) {
  __shared__ float tile[64];
  vsegops::copy_async(&tile[threadIdx.x], &in[threadIdx.x]);
  vsegops::commit_copies();
  if constexpr (!kFault) vsegops::wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // reported
}

}  // namespace

TEST_KERNEL(missing_async_wait, 1, 64, 0)
