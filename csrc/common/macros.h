// Words that a header needs to serve C++ and CUDA C++ alike.
#pragma once

#if defined(__CUDACC__)
#define VSEGOPS_HD __host__ __device__ __forceinline__
#else
#define VSEGOPS_HD inline __attribute__((always_inline))
#endif
