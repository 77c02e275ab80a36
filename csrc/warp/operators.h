// The warp operators: what cpu.cpp and cuda.cu register. Included by either after its kernels,
// `forward(Forward, Context)` and `backward(Backward, Context)` of `vsegops::warp`.
#pragma once

#include <string>
#include <tuple>

#include "../common/dispatch.h"
#include "gradients.h"
#include "warp.h"

namespace vsegops::warp {

// Bits of `wanted`, as in vsegops/ops/warp/op.py.
enum Gradient { kInput = 1, kFlow = 2, kCorrection = 4, kAttention = 8 };

struct Options {
  double scale_x, scale_y;
  bool semantic, align_corners;
  const std::string& mode;
  const std::string& padding_mode;
};

template <typename F>
Mapping<F> mapping(const Tensor& input, const Tensor& flow, const Options& o) {
  const auto axis = [&](int dim, double scale) {
    const int64_t source = input.size(dim), output = flow.size(dim);
    if (o.semantic) scale = Axis<F>::semantic_scale(source, output, o.align_corners);
    return Axis<F>(source, output, o.align_corners, scale);
  };
  STD_TORCH_CHECK(o.mode == "bilinear" || o.mode == "nearest", "mode: ", o.mode);
  return {axis(3, o.scale_x), axis(2, o.scale_y), o.mode == "nearest", padding_of(o.padding_mode)};
}

// `out`: the output or its gradient, where there is one.
inline void check_shapes(const Tensor& input, const Tensor& flow,
                         const std::optional<Tensor>& correction,
                         const std::optional<Tensor>& attention, const Tensor* out) {
  STD_TORCH_CHECK(input.dim() == 4, "input: expected [N, C, h, w]");
  STD_TORCH_CHECK(flow.dim() == 4, "flow: expected [N, 2, H, W]");
  const int64_t n = input.size(0), c = input.size(1), h = flow.size(2), w = flow.size(3);
  check_shape("flow", flow, {n, 2, h, w});
  if (correction) check_shape("correction", *correction, {n, c, h, w});
  if (attention) check_shape("attention", *attention, {n, 1, h, w});
  if (out) check_shape("grad", *out, {n, c, h, w});
  for (const auto* x :
       {correction ? &*correction : &input, attention ? &*attention : &input, out ? out : &input}) {
    STD_TORCH_CHECK(x->scalar_type() == input.scalar_type(), "expected features of one dtype");
  }
}

inline Tensor run_forward(const Tensor& input, const Tensor& flow,
                          const std::optional<Tensor>& correction,
                          const std::optional<Tensor>& attention, const Options& options) {
  check_shapes(input, flow, correction, attention, nullptr);
  const MemoryFormat layout = layout_of(input);
  const Tensor source = dense(input, layout);
  const Tensor added = correction ? dense(*correction, layout) : source;
  const Tensor out =
      empty(input, {input.size(0), input.size(1), flow.size(2), flow.size(3)}, layout);
  if (out.numel() == 0) return out;
  const Context context(input);
  dispatch(input.scalar_type(), flow.scalar_type(), [&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    Forward<T, F, Flow> call;
    call.mapping = mapping<F>(input, flow, options);
    call.channels_last = layout == MemoryFormat::ChannelsLast;
    call.input = view<const T>(source);
    call.flow = view<const Flow>(flow);
    if (correction) call.correction = view<const T>(added);
    if (attention) call.attention = view<const T>(*attention);
    call.out = view<T>(out);
    forward(call, context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(
    const Tensor& grad, const Tensor& input, const Tensor& flow,
    const std::optional<Tensor>& correction, const std::optional<Tensor>& attention,
    const Options& options, int64_t wanted) {
  check_shapes(input, flow, correction, attention, &grad);
  const MemoryFormat layout = layout_of(input);
  const Tensor incoming = dense(grad, layout);
  const Tensor source = dense(input, layout);
  const Tensor added = correction ? dense(*correction, layout) : source;
  const Context context(input);
  const auto like = [&](const Tensor& x, Gradient bit, MemoryFormat format) {
    return wanted & bit ? empty(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, format)
                        : skipped(x);
  };
  const Tensor d_input = like(input, kInput, layout);
  const Tensor d_flow = like(flow, kFlow, MemoryFormat::Contiguous);
  const Tensor d_correction = correction ? like(*correction, kCorrection, layout) : skipped(input);
  const Tensor d_attention =
      attention ? like(*attention, kAttention, MemoryFormat::Contiguous) : skipped(input);
  dispatch(input.scalar_type(), flow.scalar_type(), [&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    Backward<T, F, Flow> call;
    call.mapping = mapping<F>(input, flow, options);
    call.channels_last = layout == MemoryFormat::ChannelsLast;
    call.grad = view<const T>(incoming);
    call.input = view<const T>(source);
    call.flow = view<const Flow>(flow);
    if (correction) call.correction = view<const T>(added);
    if (attention) call.attention = view<const T>(*attention);
    if (wanted & kInput) call.d_input = view<T>(d_input);
    if (wanted & kFlow) call.d_flow = view<Flow>(d_flow);
    if (correction && wanted & kCorrection) call.d_correction = view<T>(d_correction);
    if (attention && wanted & kAttention) call.d_attention = view<T>(d_attention);
    backward(call, context);
  });
  return {d_input, d_flow, d_correction, d_attention};
}

inline Tensor flow_warp(const Tensor& input, const Tensor& flow, double scale_x, double scale_y,
                        bool semantic, bool align_corners, const Option& mode,
                        const Option& padding_mode) {
  return run_forward(input, flow, std::nullopt, std::nullopt,
                     {scale_x, scale_y, semantic, align_corners, mode, padding_mode});
}

inline Tensor warp_correct(const Tensor& previous, const Tensor& flow, const Tensor& correction,
                           const std::optional<Tensor>& attention, double scale_x, double scale_y,
                           bool semantic, bool align_corners, const Option& mode,
                           const Option& padding_mode) {
  return run_forward(previous, flow, correction, attention,
                     {scale_x, scale_y, semantic, align_corners, mode, padding_mode});
}

std::tuple<Tensor, Tensor> flow_warp_backward(const Tensor& grad, const Tensor& input,
                                              const Tensor& flow, double scale_x, double scale_y,
                                              bool semantic, bool align_corners, const Option& mode,
                                              const Option& padding_mode, int64_t wanted) {
  const auto [d_input, d_flow, d_correction, d_attention] =
      run_backward(grad, input, flow, std::nullopt, std::nullopt,
                   {scale_x, scale_y, semantic, align_corners, mode, padding_mode}, wanted);
  return {d_input, d_flow};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> warp_correct_backward(
    const Tensor& grad, const Tensor& previous, const Tensor& flow, const Tensor& correction,
    const Tensor& attention, double scale_x, double scale_y, bool semantic, bool align_corners,
    const Option& mode, const Option& padding_mode, int64_t wanted) {
  return run_backward(grad, previous, flow, correction, attention,
                      {scale_x, scale_y, semantic, align_corners, mode, padding_mode}, wanted);
}

}  // namespace vsegops::warp

VSEGOPS_LIBRARY_IMPL(m) {
  m.impl("flow_warp", TORCH_BOX(&vsegops::warp::flow_warp));
  m.impl("flow_warp_backward", TORCH_BOX(&vsegops::warp::flow_warp_backward));
  m.impl("warp_correct", TORCH_BOX(&vsegops::warp::warp_correct));
  m.impl("warp_correct_backward", TORCH_BOX(&vsegops::warp::warp_correct_backward));
}
