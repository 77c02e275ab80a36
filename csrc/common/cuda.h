// What CUDA kernels share: element types, vectors of them, atomic addition, launches.
//
// Kernels are plain CUDA C++ (no inline assembly, no code that depends on the architecture but for
// the wrappers here and in tensor_core.h), so that a C++ compiler can build them too, with a header
// before this one that supplies threadIdx, __syncthreads and the like, and what stands here for
// __CUDACC__ alone: their tests run without a GPU (docs/cuda-on-the-cpu.md).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>

#include "binding.h"
#include "macros.h"

namespace vsegops {

// ---- Element types, and the type that each is computed in. ----

using Half = __half;
using BFloat16 = __nv_bfloat16;

template <typename T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

VSEGOPS_HD float widen(float x) { return x; }
VSEGOPS_HD double widen(double x) { return x; }
VSEGOPS_HD float widen(Half x) { return __half2float(x); }
VSEGOPS_HD float widen(BFloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
VSEGOPS_HD void narrow(float x, float* out) { *out = x; }
VSEGOPS_HD void narrow(double x, double* out) { *out = x; }
VSEGOPS_HD void narrow(double x, float* out) { *out = static_cast<float>(x); }
VSEGOPS_HD void narrow(float x, Half* out) { *out = __float2half_rn(x); }
VSEGOPS_HD void narrow(float x, BFloat16* out) { *out = __float2bfloat16_rn(x); }

// ---- Memory ----

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T data[N];
};

// How many elements make 16 bytes, the widest access of a thread.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <int Bytes>
using Word = std::conditional_t<
    Bytes == 16, uint4,
    std::conditional_t<Bytes == 8, uint2, std::conditional_t<Bytes == 4, uint32_t, uint16_t>>>;

// Reads what nobody writes while the kernel runs: free to move before stores.
template <typename T>
__device__ __forceinline__ T fetch(const T* p) {
  const auto word = __ldg(reinterpret_cast<const Word<sizeof(T)>*>(p));
  T value;
  memcpy(static_cast<void*>(&value), &word, sizeof(T));
  return value;
}

// Adds N neighbours to memory, in any order among threads; N floats have to be aligned to vectors.
template <typename F, int N>
__device__ __forceinline__ void atomic_add(F* p, const F (&values)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<F, float> && N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      atomicAdd(reinterpret_cast<float4*>(p + i),
                make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < N; ++i) atomicAdd(p + i, values[i]);
  }
}

// ---- Launches ----

template <typename I>
VSEGOPS_HD I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// The largest power of two that is not above x, and the smallest that is not below; x >= 1.
inline int64_t floor_power(int64_t x) { return int64_t(1) << (63 - __builtin_clzll(x)); }
inline int64_t ceil_power(int64_t x) { return floor_power(2 * x - 1); }
inline int log2_of(int64_t power) { return __builtin_ctzll(power); }

constexpr int64_t kGridLimit = 65535;  // of blocks along y and z

// As many threads as the largest chips run at once: 132 to 160 multiprocessors of 2048.
constexpr int64_t kManyThreads = 1 << 18;
constexpr int64_t kManyBlocks = 2 * 132;  // blocks of much shared memory: two a multiprocessor

constexpr size_t kSharedUnasked = 48 << 10;  // bytes that a block gets without being asked for

#if defined(__CUDACC__)
// The dynamic shared memory of the block.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 vsegops_dynamic_shared[];
  return reinterpret_cast<T*>(vsegops_dynamic_shared);
}

// Launches a kernel; shared_bytes counts its dynamic shared memory.
template <typename... P>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            const std::type_identity_t<P>&... args) {
  if (shared_bytes > kSharedUnasked) {  // (an error shows at the launch)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  const char* name = "a kernel";
  cudaFuncGetName(&name, reinterpret_cast<const void*>(kernel));
  char* readable = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  const std::string known = readable ? readable : name;
  std::free(readable);
  STD_TORCH_CHECK(false, known, ": ", cudaGetErrorString(status));
}
#endif

inline void zero(void* data, int64_t bytes, void* stream) {
  if (bytes == 0) return;
  const cudaError_t status =
      cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(status == cudaSuccess, "cudaMemsetAsync: ", cudaGetErrorString(status));
}

// The flow, or its gradient: of the features' type or float32. (As a type of its own in each kernel
// it would nearly double their number.)
template <typename T>
struct Either {
  void* data;
  bool single;
  int64_t stride_n, stride_c, stride_h, stride_w;

  template <typename Flow>
  explicit Either(const View<Flow>& x)
      : data(const_cast<std::remove_const_t<Flow>*>(x.data)),
        single(!std::is_same_v<std::remove_const_t<Flow>, T>),
        stride_n(x.stride_n),
        stride_c(x.stride_c),
        stride_h(x.stride_h),
        stride_w(x.stride_w) {}

  __device__ int64_t at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return n * stride_n + c * stride_c + y * stride_h + x * stride_w;
  }
  __device__ compute_t<T> load(int64_t i) const {
    if (single) return fetch(static_cast<const float*>(data) + i);
    return widen(fetch(static_cast<const T*>(data) + i));
  }
  __device__ void store(int64_t i, compute_t<T> value) const {
    single ? narrow(value, static_cast<float*>(data) + i)
           : narrow(value, static_cast<T*>(data) + i);
  }
};

// ---- Rounding of an array that was summed up in float32. ----

constexpr int kRoundThreads = 256;

// Moves 6 bytes an element, for one operation: memory bounds it.
template <typename T>
__global__ void __launch_bounds__(kRoundThreads)
    round_kernel(const float* from, T* to, int64_t count) {
  const int64_t i = (int64_t(blockIdx.x) * kRoundThreads + threadIdx.x) * 4;
  if (i + 4 <= count) {
    const auto wide = fetch(reinterpret_cast<const Vec<float, 4>*>(from + i));
    Vec<T, 4> rounded;
#pragma unroll
    for (int k = 0; k < 4; ++k) narrow(wide.data[k], rounded.data + k);
    *reinterpret_cast<Vec<T, 4>*>(to + i) = rounded;
  } else {
    for (int64_t k = i; k < count; ++k) narrow(from[k], to + k);
  }
}

// to = from, rounded; both from PyTorch's allocator, which aligns them.
template <typename T>
void round_to(const float* from, T* to, int64_t count, void* stream) {
  if (count == 0) return;
  const int64_t blocks = ceil_div<int64_t>(count, 4 * kRoundThreads);
  launch(round_kernel<T>, dim3(static_cast<uint32_t>(blocks)), dim3(kRoundThreads), 0, stream, from,
         to, count);
}

}  // namespace vsegops
