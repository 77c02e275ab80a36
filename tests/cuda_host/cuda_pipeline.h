// In place of CUDA's header: asynchronous copies, which are made when the thread waits for them.
#pragma once

#include "shim.h"

CUDA_HOST_INLINE void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes,
                                              size_t zeros = 0) {
  cuda_host::copy_async(shared, global, bytes, zeros);
}
CUDA_HOST_INLINE void __pipeline_commit() { cuda_host::commit_copies(); }
CUDA_HOST_INLINE void __pipeline_wait_prior(size_t pending) { cuda_host::wait_copies(pending); }
