// Between the dispatcher and the kernels: tensors in, pointers, sizes and strides out.
//
// Bound through LibTorch's stable ABI, so that one build serves PyTorch 2.11 and later. The same
// operator code is compiled for the CPU (cpu.cpp) and for CUDA (cuda.cu): the two differ in the
// kernels that it calls and in the dispatcher key that it is registered for.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "macros.h"

// The namespace and dispatcher key that kernels are registered for: the compiler of CUDA sources
// and the tests' own builds say otherwise.
#ifndef VSEGOPS_NAMESPACE
#define VSEGOPS_NAMESPACE vsegops
#endif
#ifndef VSEGOPS_KEY
#if defined(__CUDACC__)
#define VSEGOPS_KEY CUDA
#else
#define VSEGOPS_KEY CPU
#endif
#endif
#define VSEGOPS_LIBRARY_IMPL_(space, key, m) STABLE_TORCH_LIBRARY_IMPL(space, key, m)
#define VSEGOPS_LIBRARY_IMPL(m) VSEGOPS_LIBRARY_IMPL_(VSEGOPS_NAMESPACE, VSEGOPS_KEY, m)

// The tests that run CUDA sources on the host are told which memory a call's kernels may touch.
#ifndef VSEGOPS_TOUCHES
#define VSEGOPS_TOUCHES(T, tensor)
#define VSEGOPS_CALL_ENDS()
#endif

namespace vsegops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A [N, C, H, W] tensor as kernels see it; strides count elements.
template <typename T>
struct View {
  T* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;

  // The place of an element.
  VSEGOPS_HD int64_t at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return in * stride_n + ic * stride_c + iy * stride_h + ix * stride_w;
  }
};

template <typename T>
View<T> view(const Tensor& x) {
  VSEGOPS_TOUCHES(T, x);
  return {static_cast<T*>(x.data_ptr()),
          x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3)};
}

// The elements of a dense tensor.
template <typename T>
T* data(const Tensor& x) {
  VSEGOPS_TOUCHES(T, x);
  return static_cast<T*>(x.data_ptr());
}

// vsegops/_layout.py decides the same way: channels_last if dense in that order and not in the
// contiguous one as well.
inline MemoryFormat layout_of(const Tensor& x) {
  if (x.is_contiguous()) return MemoryFormat::Contiguous;
  int64_t dense = 1;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != dense) return MemoryFormat::Contiguous;
    dense *= x.size(d);
  }
  return MemoryFormat::ChannelsLast;
}

// (Asked for first: a call into the dispatcher costs more than a look at the strides.)
inline Tensor dense(const Tensor& x, MemoryFormat layout) {
  const bool is_dense =
      layout == MemoryFormat::Contiguous ? x.is_contiguous() : layout_of(x) == layout;
  return is_dense ? x : torch::stable::contiguous(x, layout);
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape,
                    MemoryFormat layout = MemoryFormat::Contiguous,
                    std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::empty({shape.data(), shape.size()}, dtype.value_or(like.scalar_type()),
                              std::nullopt, like.device(), std::nullopt, layout);
}

// The Python functions check their arguments; this keeps whoever calls an operator itself from
// having memory read that is not his.
inline void check_shape(const char* name, const Tensor& x, std::initializer_list<int64_t> shape) {
  bool fits = x.dim() == static_cast<int64_t>(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) fits = fits && x.size(dim++) == size;
  STD_TORCH_CHECK(fits, name, ": its shape does not fit the other arguments'");
}

// What stands for a gradient that nobody wants.
inline Tensor skipped(const Tensor& like) { return empty(like, {0}); }

template <typename T>
struct Type {
  using type = T;
};

// Where a call runs: the device and stream it is bound to while this lives, and its memory.
class __attribute__((visibility("hidden"))) Context {
 public:
  explicit Context(const Tensor& like) : like_(like) {
#if defined(__CUDACC__)
    guard_.emplace(like.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream_));
#endif
  }
  Context(const Context&) = delete;
  ~Context() { VSEGOPS_CALL_ENDS(); }

  // Uninitialised memory from PyTorch's allocator; it lives as long as the returned tensor.
  template <typename T>
  Tensor scratch(int64_t count, T** data) const {
    const Tensor memory = empty(like_, {count * static_cast<int64_t>(sizeof(T))},
                                MemoryFormat::Contiguous, ScalarType::Byte);
    *data = static_cast<T*>(memory.data_ptr());
    VSEGOPS_TOUCHES(T, memory);
    return memory;
  }

  // A cudaStream_t; null on a CPU.
  void* stream() const { return stream_; }

 private:
  const Tensor& like_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

}  // namespace vsegops
