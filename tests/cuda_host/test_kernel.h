// Small kernels that Python calls: name_kernel<choice>, of
//
//   (const float* in, float* out, int n)    n floats in, 256 out
//
// TEST_KERNEL makes a C function of them that launches one and returns what was reported, or null.
#pragma once

#include "../../csrc/common/cuda.h"

#if defined(CUDA_HOST_CHECKED)
#define MAY_TOUCH(in, out, n)                                  \
  cuda_host::may_touch(in, n * sizeof(float), 4, false, "in"); \
  cuda_host::may_touch(out, 256 * sizeof(float), 4, true, "out");
#else
#define MAY_TOUCH(in, out, n)
#endif

#define TEST_KERNEL(name, grid, block, shared_bytes)                                               \
  extern "C" __attribute__((visibility("default"))) const char* name(bool choice, const float* in, \
                                                                     float* out, int n) {          \
    static std::string report;                                                                     \
    report.clear();                                                                                \
    try {                                                                                          \
      MAY_TOUCH(in, out, n)                                                                        \
      vsegops::launch(choice ? name##_kernel<true> : name##_kernel<false>, grid, block,            \
                      shared_bytes, nullptr, in, out, n);                                          \
    } catch (const std::exception& error) {                                                        \
      report = error.what();                                                                       \
    }                                                                                              \
    VSEGOPS_CALL_ENDS();                                                                           \
    return report.empty() ? nullptr : report.c_str();                                              \
  }
