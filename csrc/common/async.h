// Copies from global to shared memory that go on while the thread does something else.
//
//   copy_async(&tile[i], &source[i], inside);  ...  commit_copies();
//   wait_copies<0>();  __syncthreads();  // then every thread sees what all have copied
#pragma once

#include <cuda_pipeline.h>

#include "cuda.h"

namespace vsegops {

// Begins to copy 4, 8 or 16 bytes, as one thread; zeros where not `inside`: `from` is not read
// then.
template <typename T>
__device__ __forceinline__ void copy_async(T* shared, const T* from, bool inside = true) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  __pipeline_memcpy_async(shared, from, sizeof(T), inside ? 0 : sizeof(T));
}

// Makes a group of the copies that this thread has begun.
__device__ __forceinline__ void commit_copies() { __pipeline_commit(); }

// Waits until at most `Pending` groups of this thread, the last ones, are under way.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
  __pipeline_wait_prior(Pending);
}

}  // namespace vsegops
