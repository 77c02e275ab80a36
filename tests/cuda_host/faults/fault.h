// Kernels with one fault, each beside itself without it: name_kernel<true> and
// name_kernel<false>, of
//
//   (const float* in, float* out, int n)    both of n floats
//
// TEST_KERNEL makes a C function of them that launches one and returns what was reported, or null.
// The line that a report has to name is marked `// reported`.
#pragma once

#include "../../../csrc/common/cuda.h"

#if defined(CUDA_HOST_CHECKED)
#define MAY_TOUCH(in, out, n)                                    \
  cuda_host::may_touch(in, (n) * sizeof(float), 4, false, "in"); \
  cuda_host::may_touch(out, (n) * sizeof(float), 4, true, "out");
#else
#define MAY_TOUCH(in, out, n)
#endif

#define TEST_KERNEL(name, grid, block, shared_bytes)                                              \
  extern "C" __attribute__((visibility("default"))) const char* name(bool fault, const float* in, \
                                                                     float* out, int n) {         \
    static std::string report;                                                                    \
    report.clear();                                                                               \
    try {                                                                                         \
      MAY_TOUCH(in, out, n)                                                                       \
      vsegops::launch(fault ? name##_kernel<true> : name##_kernel<false>, grid, block,            \
                      shared_bytes, nullptr, in, out, n);                                         \
    } catch (const std::exception& error) {                                                       \
      report = error.what();                                                                      \
    }                                                                                             \
    VSEGOPS_CALL_ENDS();                                                                          \
    return report.empty() ? nullptr : report.c_str();                                             \
  }
