// As missing_syncthreads, with structures that a function returns.
#include "../test_kernel.h"

namespace {

struct Point {
  int index;
  double weight[4];
};

__device__ Point find(int i, float value) { return {i, {value, 2, 3, 4}}; }

template <bool kFault>
__global__ void unordered_structs_kernel(const float* in, float* out, int n) {
  __shared__ Point points[64];
  points[threadIdx.x] = find(threadIdx.x, in[threadIdx.x]);
  if constexpr (!kFault) __syncthreads();
  const Point other = points[63 - threadIdx.x];  // reported
  out[threadIdx.x] = other.weight[0] + other.weight[3];
}

}  // namespace

TEST_KERNEL(unordered_structs, 1, 64, 0)
