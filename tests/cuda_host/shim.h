// What a CUDA source sees when a C++ compiler builds it; included before everything else.
//
// CUDA's own headers supply types, half precision and vectors. Here is what they leave to nvcc:
// the words of the language, thread indices, barriers, warp exchanges, atomics, launches. The
// threads of a block take turns on one system thread, so nothing here has to be atomic or locked.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "runtime.h"

// ---- Words ----

#undef __launch_bounds__
#define __launch_bounds__(...)
// Thread-local memory stands in one place, which is filled before each block; AddressSanitizer
// guards static memory alone.
#undef __shared__
#if defined(CUDA_HOST_ASAN)
#define __shared__ static
#else
#define __shared__ thread_local
#endif

#define CUDA_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
// So that what they call can tell by its return address where in a kernel it is.
#define CUDA_HOST_INLINE inline __attribute__((always_inline))
// For functions that touch memory on a kernel's behalf and report it themselves.
#define CUDA_HOST_UNCHECKED __attribute__((no_sanitize("thread")))

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#if defined(CUDA_HOST_CHECKED)
// The compiler does not instrument the place where a function that was called leaves a class: such
// functions are inlined, and what CUDA's conversions return is copied.
#undef __device__
#define __device__ __attribute__((always_inline))
namespace cuda_host {
template <typename T>
CUDA_HOST_INLINE T copied(const T& value) {
  T copy;
  std::memcpy(static_cast<void*>(&copy), &value, sizeof(T));
  return copy;
}
#define __float2half_rn(x) cuda_host::copied(__float2half_rn(x))
#define __float2bfloat16_rn(x) cuda_host::copied(__float2bfloat16_rn(x))

// The memory of a tensor, from its first element to its last.
template <typename T, typename Tensor>
void touches(const Tensor& x) {
  int64_t last = 0;
  std::string shape;
  for (int64_t d = 0; d < x.dim(); ++d) {
    last += (x.size(d) - 1) * x.stride(d);
    shape += (d ? ", " : "[") + std::to_string(x.size(d));
  }
  if (x.numel() == 0) return;
  const size_t bytes = (last + 1) * x.element_size();
  may_touch(x.data_ptr(), bytes, sizeof(T), !std::is_const_v<T>, shape + "]");
}
}  // namespace cuda_host
#define VSEGOPS_TOUCHES(T, tensor) cuda_host::touches<T>(tensor)
#define VSEGOPS_CALL_ENDS() cuda_host::call_ends()
#endif

// ---- Barriers, votes, exchanges ----

inline void __syncthreads(CUDA_HOST_SITE) {
  cuda_host::meet_block("__syncthreads", {file, line}, false);
}
inline int __syncthreads_count(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_count", {file, line}, predicate);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_or", {file, line}, predicate) > 0;
}
inline int __syncthreads_and(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_and", {file, line}, !predicate) == 0;
}
void __syncwarp(unsigned mask = 0xffffffff, CUDA_HOST_SITE);
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_host {
// The lane that `from(lane in its segment)` names, or this one where that is outside [first, last].
template <typename T, typename From>
T shuffled(const char* what, Site site, unsigned mask, T value, int width, const From& from) {
  const int start = lane() & ~(width - 1), source = from(lane() - start);
  const bool inside = source >= 0 && source < width;
  shuffle(what, site, mask, &value, sizeof(T), inside ? start + source : lane());
  return value;
}
}  // namespace cuda_host

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::ballot("__ballot_sync", {file, line}, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::ballot("__any_sync", {file, line}, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::ballot("__all_sync", {file, line}, mask, predicate) == mask;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, CUDA_HOST_SITE) {
  return cuda_host::shuffled("__shfl_sync", {file, line}, mask, value, width,
                             [=](int) { return from & (width - 1); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CUDA_HOST_SITE) {
  return cuda_host::shuffled("__shfl_up_sync", {file, line}, mask, value, width,
                             [=](int lane) { return lane - static_cast<int>(by); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CUDA_HOST_SITE) {
  return cuda_host::shuffled("__shfl_down_sync", {file, line}, mask, value, width,
                             [=](int lane) { return lane + static_cast<int>(by); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, CUDA_HOST_SITE) {
  return cuda_host::shuffled("__shfl_xor_sync", {file, line}, mask, value, width,
                             [=](int lane) { return lane ^ by; });
}

// ---- Memory ----

template <typename T>
T __ldg(const T* p) {
  return *p;
}

namespace cuda_host {
// *p = change(*p); the value before.
template <typename T, typename Change>
CUDA_HOST_UNCHECKED __attribute__((noinline)) T atomic(T* p, const Change& change) {
  check(p, sizeof(T), Access::kAtomic, __builtin_return_address(0));
  T before;  // (copied as bytes: assignments of classes are functions, which would be checked)
  std::memcpy(static_cast<void*>(&before), p, sizeof(T));
  const T after = change(before);
  std::memcpy(static_cast<void*>(p), &after, sizeof(T));
  return before;
}
}  // namespace cuda_host

#define CUDA_HOST_ATOMIC(name, expression)                                 \
  template <typename T>                                                    \
  CUDA_HOST_INLINE T name(T* p, std::type_identity_t<T> value) {           \
    return cuda_host::atomic(p, [=](T old) -> T { return (expression); }); \
  }
CUDA_HOST_ATOMIC(atomicAdd, old + value)
CUDA_HOST_ATOMIC(atomicSub, old - value)
CUDA_HOST_ATOMIC(atomicMin, value < old ? value : old)
CUDA_HOST_ATOMIC(atomicMax, value > old ? value : old)
CUDA_HOST_ATOMIC(atomicAnd, old& value)
CUDA_HOST_ATOMIC(atomicOr, old | value)
CUDA_HOST_ATOMIC(atomicXor, old ^ value)
CUDA_HOST_ATOMIC(atomicExch, (static_cast<void>(old), value))
#undef CUDA_HOST_ATOMIC
CUDA_HOST_INLINE float2 atomicAdd(float2* p, float2 v) {
  return cuda_host::atomic(p, [=](float2 old) { return float2{old.x + v.x, old.y + v.y}; });
}
CUDA_HOST_INLINE float4 atomicAdd(float4* p, float4 v) {
  return cuda_host::atomic(
      p, [=](float4 old) { return float4{old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w}; });
}
template <typename T>
CUDA_HOST_INLINE T atomicCAS(T* p, std::type_identity_t<T> expected,
                             std::type_identity_t<T> value) {
  return cuda_host::atomic(p, [=](T old) { return old == expected ? value : old; });
}

// ---- Arithmetic ----

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return std::fmin(a, b);
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return std::fmax(a, b);
  return a < b ? b : a;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.f), 1.f); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }

// ---- What csrc/common has for nvcc alone. ----

namespace vsegops {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_host::dynamic_shared());
}

template <typename T>
CUDA_HOST_INLINE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   CUDA_HOST_SITE) {
  cuda_host::multiply_add({file, line}, d, a, b, std::is_same_v<T, __nv_bfloat16>);
}

template <bool Transposed>
CUDA_HOST_INLINE void load_matrices(uint32_t (&out)[4], const void* row, CUDA_HOST_SITE) {
  cuda_host::load_matrices({file, line}, out, row, Transposed);
}

template <typename... P>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*,
            const std::type_identity_t<P>&... args) {
  const auto run = [&]() CUDA_HOST_UNCHECKED { kernel(args...); };
  using Run = decltype(run);
  cuda_host::launch(
      grid, block, shared_bytes, [](const void* closure) { (*static_cast<Run*>(closure))(); },
      &run);
}

}  // namespace vsegops
