// The dense head's operators: what cpu.cpp and cuda.cu register. Included by either after its
// kernels: `argmax`, `loss` and `loss_backward` of `vsegops::dense_head`, each of which takes a
// call and a Context.
#pragma once

#include <tuple>

#include "../common/dispatch.h"
#include "dense_head.h"

namespace vsegops::dense_head {

template <typename F>
Upsampling<F> upsampling(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  return {Axis<F>(logits.size(3), width, align_corners, 1),
          Axis<F>(logits.size(2), height, align_corners, 1)};
}

inline void check_logits(const Tensor& logits, int64_t height, int64_t width) {
  STD_TORCH_CHECK(logits.dim() == 4, "logits: expected [N, C, h, w]");
  STD_TORCH_CHECK(logits.size(1) > 0, "logits: expected at least one class");
  STD_TORCH_CHECK(height >= 0 && width >= 0, "size: expected no negative numbers");
  STD_TORCH_CHECK(logits.size(2) * logits.size(3) > 0 || logits.size(0) * height * width == 0,
                  "logits: expected at least one pixel to sample");
}

inline ScalarType loss_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::tuple<Tensor, Tensor> upsample_argmax(const Tensor& logits, int64_t height,
                                                  int64_t width, bool align_corners,
                                                  bool confidence) {
  check_logits(logits, height, width);
  const MemoryFormat layout = layout_of(logits);
  const bool wide = logits.size(1) > 256;
  const Tensor labels = empty(logits, {logits.size(0), height, width}, MemoryFormat::Contiguous,
                              wide ? ScalarType::Int : ScalarType::Byte);
  const Tensor sure = confidence ? empty(logits, {logits.size(0), height, width},
                                         MemoryFormat::Contiguous, loss_dtype(logits))
                                 : empty(logits, {0}, MemoryFormat::Contiguous, loss_dtype(logits));
  if (labels.numel() == 0) return {labels, sure};
  const Tensor read = dense(logits, layout);
  const Context context(logits);
  dispatch(logits.scalar_type(), logits.scalar_type(), [&](auto t, auto f, auto) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    Argmax<T, F> call{upsampling<F>(logits, height, width, align_corners),
                      layout == MemoryFormat::ChannelsLast, view<const T>(read)};
    if (wide) {
      call.wide_labels = data<int32_t>(labels);
    } else {
      call.labels = data<uint8_t>(labels);
    }
    if (confidence) call.confidence = data<F>(sure);
    argmax(call, context);
  });
  return {labels, sure};
}

// What forward and backward of the loss are given, checked.
struct __attribute__((visibility("hidden"))) LossArguments {
  const Tensor &logits, &target;
  const std::optional<Tensor>& weight;
  int64_t ignore_index;
  bool align_corners;
  double label_smoothing;
  MemoryFormat layout;
  Tensor dense_logits;

  LossArguments(const Tensor& given, const Tensor& classes, const std::optional<Tensor>& weights,
                int64_t ignored, bool align, double smoothing)
      : logits(given),
        target(classes),
        weight(weights),
        ignore_index(ignored),
        align_corners(align),
        label_smoothing(smoothing),
        layout(layout_of(given)),
        dense_logits(given) {
    STD_TORCH_CHECK(target.dim() == 3, "target: expected [N, H, W]");
    check_logits(logits, target.size(1), target.size(2));
    check_shape("target", target, {logits.size(0), target.size(1), target.size(2)});
    const ScalarType dtype = target.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::Char ||
                        dtype == ScalarType::Short || dtype == ScalarType::Int ||
                        dtype == ScalarType::Long,
                    "target: expected integers");
    if (weight.has_value()) {
      check_shape("weight", *weight, {logits.size(1)});
      STD_TORCH_CHECK(weight->scalar_type() == loss_dtype(logits),
                      "weight: expected the dtype of the loss");
      STD_TORCH_CHECK(weight->is_contiguous(), "weight: expected a contiguous tensor");
    }
    dense_logits = dense(logits, layout);
  }

  // Calls `run(call, Type<T>, Type<F>)` with a Call<T, F>.
  template <template <typename...> typename Call, typename Run>
  void dispatch(const Run& run) const {
    vsegops::dispatch(logits.scalar_type(), logits.scalar_type(), [&](auto t, auto f, auto) {
      using T = typename decltype(t)::type;
      using F = typename decltype(f)::type;
      Call<T, F> call;
      call.upsampling = upsampling<F>(logits, target.size(1), target.size(2), align_corners);
      call.channels_last = layout == MemoryFormat::ChannelsLast;
      call.logits = view<const T>(dense_logits);
      call.target = {target.data_ptr(), target.scalar_type(), target.stride(0), target.stride(1),
                     target.stride(2)};
      touches(target);
      if (weight.has_value()) call.weight = data<const F>(*weight);
      call.ignore_index = ignore_index;
      call.label_smoothing = static_cast<F>(label_smoothing);
      run(call, t, f);
    });
  }

 private:
  static void touches([[maybe_unused]] const Tensor& target) {
    switch (target.scalar_type()) {
      case ScalarType::Byte: VSEGOPS_TOUCHES(const uint8_t, target); break;
      case ScalarType::Char: VSEGOPS_TOUCHES(const int8_t, target); break;
      case ScalarType::Short: VSEGOPS_TOUCHES(const int16_t, target); break;
      case ScalarType::Int: VSEGOPS_TOUCHES(const int32_t, target); break;
      default: VSEGOPS_TOUCHES(const int64_t, target); break;
    }
  }
};

inline std::tuple<Tensor, Tensor> upsample_cross_entropy(const Tensor& logits, const Tensor& target,
                                                         const std::optional<Tensor>& weight,
                                                         int64_t ignore_index, bool align_corners,
                                                         double label_smoothing, bool reduce) {
  const LossArguments given(logits, target, weight, ignore_index, align_corners, label_smoothing);
  const auto made = [&](const std::vector<int64_t>& shape) {
    return empty(logits, shape, MemoryFormat::Contiguous, loss_dtype(logits));
  };
  const Tensor losses = reduce ? made({}) : made({target.size(0), target.size(1), target.size(2)});
  const Tensor total = reduce ? made({}) : made({0});
  const Context context(logits);
  given.dispatch<LossForward>([&](auto& call, auto, auto f) {
    using F = typename decltype(f)::type;
    if (reduce) {
      call.sum = data<F>(losses);
      call.total = data<F>(total);
    } else {
      call.losses = data<F>(losses);
    }
    loss(call, context);
  });
  return {losses, total};
}

inline Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                              const Tensor& target,
                                              const std::optional<Tensor>& weight,
                                              int64_t ignore_index, bool align_corners,
                                              double label_smoothing) {
  const LossArguments given(logits, target, weight, ignore_index, align_corners, label_smoothing);
  const bool reduced = grad.dim() == 0;
  if (!reduced) check_shape("grad", grad, {target.size(0), target.size(1), target.size(2)});
  STD_TORCH_CHECK(grad.scalar_type() == loss_dtype(logits), "grad: expected the dtype of the loss");
  const Tensor incoming = dense(grad, MemoryFormat::Contiguous);
  const Tensor d_logits =
      empty(logits, {logits.size(0), logits.size(1), logits.size(2), logits.size(3)}, given.layout);
  if (d_logits.numel() == 0) return d_logits;
  const Context context(logits);
  given.dispatch<LossBackward>([&](auto& call, auto t, auto f) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    call.grad = data<const F>(incoming);
    call.reduced = reduced;
    call.d_logits = view<T>(d_logits);
    loss_backward(call, context);
  });
  return d_logits;
}

}  // namespace vsegops::dense_head

VSEGOPS_LIBRARY_IMPL(m) {
  m.impl("upsample_argmax", TORCH_BOX(&vsegops::dense_head::upsample_argmax));
  m.impl("upsample_cross_entropy", TORCH_BOX(&vsegops::dense_head::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward",
         TORCH_BOX(&vsegops::dense_head::upsample_cross_entropy_backward));
}
