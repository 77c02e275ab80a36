// Products of small matrices on tensor cores; all 32 lanes of a warp come together.
//
// Lane l has of a matrix the elements beside row l / 4 and columns 2 * (l % 4), + 1; two of 16 bits
// are in a register. With g = l / 4 and t = 2 * (l % 4):
//
//   a, 16 x 16:  a[g][t], a[g + 8][t], a[g][t + 8], a[g + 8][t + 8]    each with the next column
//   b, 16 x 8:   b[t][g], b[t + 8][g]                                  each with the next row
//   d, 16 x 8:   d[g][t], d[g][t + 1], d[g + 8][t], d[g + 8][t + 1]
#pragma once

#include "cuda.h"

#if defined(__CUDACC__)  // (elsewhere the header that comes before this one has them)
namespace vsegops {

// d += a * b, for half or bfloat16 elements, summed in float32.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>);
#define VSEGOPS_MMA(type)                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, Half>) {
    VSEGOPS_MMA("f16");
  } else {
    VSEGOPS_MMA("bf16");
  }
#undef VSEGOPS_MMA
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; `row`, of 16 bytes, is row l % 8 of
// matrix l / 8. Lane l gets elements g, t and g, t + 1 of each; t, g and t + 1, g if transposed.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
#define VSEGOPS_LDMATRIX(order)                                                            \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" order ".shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                    \
               : "r"(at)                                                                   \
               : "memory")
  if constexpr (Transposed) {
    VSEGOPS_LDMATRIX(".trans");
  } else {
    VSEGOPS_LDMATRIX("");
  }
#undef VSEGOPS_LDMATRIX
}

}  // namespace vsegops
#endif
