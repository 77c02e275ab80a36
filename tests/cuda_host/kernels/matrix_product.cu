// A product of two 16 x 16 matrices as attention would do it: copied to shared memory while the
// thread goes on, loaded as matrices, multiplied on tensor cores. What is beyond the input is zero.
#include "../../../csrc/common/async.h"
#include "../../../csrc/common/tensor_core.h"
#include "../test_kernel.h"

namespace {

template <bool kBFloat16>
__global__ void matrix_product_kernel(const float* in, float* out, int n) {
  using T = std::conditional_t<kBFloat16, vsegops::BFloat16, vsegops::Half>;
  __shared__ float raw[512];
  __shared__ __align__(16) T a[16][16], b[16][16];
  const int lane = threadIdx.x;
  for (int i = 4 * lane; i < 512; i += 128) {
    const auto from = reinterpret_cast<const float4*>(in + i);
    vsegops::copy_async(reinterpret_cast<float4*>(raw + i), from, i < n);
  }
  vsegops::commit_copies();
  vsegops::wait_copies<0>();
  __syncwarp();
  for (int i = lane; i < 256; i += 32) {
    vsegops::narrow(raw[i], &a[i / 16][i % 16]);
    vsegops::narrow(raw[i + 256], &b[i / 16][i % 16]);
  }
  __syncwarp();
  uint32_t left[4], right[4];
  vsegops::load_matrices<false>(left, &a[lane % 16][lane / 16 * 8]);
  vsegops::load_matrices<true>(right, &b[lane % 16][lane / 16 * 8]);
  for (int half = 0; half < 2; ++half) {
    float d[4] = {};
    const uint32_t columns[2] = {right[2 * half], right[2 * half + 1]};
    vsegops::multiply_add<T>(d, left, columns);
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4 + k / 2 * 8, column = half * 8 + lane % 4 * 2 + k % 2;
      out[row * 16 + column] = d[k];
    }
  }
}

}  // namespace

TEST_KERNEL(matrix_product, 1, 32, 0)
