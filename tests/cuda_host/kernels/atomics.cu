// Every type that is added to atomically, and every atomic operation on integers, by 64 threads.
#include "../test_kernel.h"

namespace {

struct Cells {
  double wide;
  unsigned long long large;
  float single;
  int sum, least, most, bits, mask, last;
  unsigned exchanged, claimed;
  __half2 half_pair;
  __nv_bfloat162 bfloat16_pair;
  __half half;
  __nv_bfloat16 bfloat16;
};

template <bool>
__global__ void atomics_kernel(const float* in, float* out, int n) {
  __shared__ Cells cells;
  const int i = threadIdx.x;
  if (i == 0) cells = Cells{};
  if (i == 0) cells.mask = -1;
  __syncthreads();
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(out + 128), make_float4(1, 2, 3, i));
  atomicAdd(reinterpret_cast<float2*>(out + 132), make_float2(4, i));
#endif
  atomicAdd(&cells.wide, 0.5);
  atomicAdd(&cells.large, 1ull << 33);
  atomicAdd(&cells.single, 0.25f);
  atomicAdd(&cells.sum, i);
  atomicSub(&cells.sum, 1);
  atomicMin(&cells.least, -i);
  atomicMax(&cells.most, i);
  atomicOr(&cells.bits, 1 << i % 5);
  atomicXor(&cells.last, i);
  atomicAnd(&cells.mask, ~(1 << i % 3));
  atomicExch(&cells.exchanged, 9u);
  atomicCAS(&cells.claimed, 0u, 7u);
  atomicAdd(&cells.half_pair, __floats2half2_rn(1, 2));
  atomicAdd(&cells.bfloat16_pair, __floats2bfloat162_rn(3, 4));
  atomicAdd(&cells.half, __float2half_rn(5));
  atomicAdd(&cells.bfloat16, __float2bfloat16_rn(2));
  __syncthreads();
  const float results[] = {static_cast<float>(cells.wide),
                           static_cast<float>(cells.large >> 33),
                           cells.single,
                           static_cast<float>(cells.sum),
                           static_cast<float>(cells.least),
                           static_cast<float>(cells.most),
                           static_cast<float>(cells.bits),
                           static_cast<float>(cells.last),
                           static_cast<float>(cells.mask),
                           static_cast<float>(cells.exchanged),
                           static_cast<float>(cells.claimed),
                           __low2float(cells.half_pair),
                           __high2float(cells.half_pair),
                           __low2float(cells.bfloat16_pair),
                           __high2float(cells.bfloat16_pair),
                           __half2float(cells.half),
                           __bfloat162float(cells.bfloat16)};
  if (i == 0) {
    for (int k = 0; k < 17; ++k) out[k] = results[k];
  }
}

}  // namespace

TEST_KERNEL(atomics, 1, 64, 0)
