// The dual warp's operators: what cpu.cpp and cuda.cu register. Included by either after its
// kernels, `forward`, `backward`, `pool` and `pool_backward` of `vsegops::dual_warp`, each of which
// takes a call and a Context.
#pragma once

#include <string>
#include <tuple>

#include "../common/dispatch.h"
#include "dual_warp.h"

namespace vsegops::dual_warp {

// Bits of `wanted`, as in vsegops/ops/dual_warp/op.py.
enum Gradient { kHigh = 1, kLow = 2, kHighFlow = 4, kLowFlow = 8, kGate = 16 };
enum PoolGradient { kFirst = 1, kSecond = 2 };

struct Scale {
  double x, y;
  bool semantic;
};

struct Options {
  Scale high, low;
  bool align_corners;
  const std::string& padding_mode;
};

// The tensors of one call, checked and in the layout of `high`.
struct __attribute__((visibility("hidden"))) Arguments {
  MemoryFormat layout;
  Tensor high, low;
  const Tensor &high_flow, &low_flow, &gate;
  const Options& options;

  Arguments(const Tensor& coarse, const Tensor& fine, const Tensor& coarse_flow,
            const Tensor& fine_flow, const Tensor& weight, const Options& given)
      : layout(layout_of(coarse)),
        high(coarse),
        low(fine),
        high_flow(coarse_flow),
        low_flow(fine_flow),
        gate(weight),
        options(given) {
    STD_TORCH_CHECK(high.dim() == 4, "high: expected [N, C, h, w]");
    STD_TORCH_CHECK(low.dim() == 4, "low: expected [N, C, H, W]");
    const int64_t n = high.size(0), h = low.size(2), w = low.size(3);
    check_shape("low", low, {n, high.size(1), h, w});
    check_shape("high_flow", high_flow, {n, 2, h, w});
    check_shape("low_flow", low_flow, {n, 2, h, w});
    check_shape("gate", gate, {n, 1, h, w});
    check_dtype(low);
    check_dtype(gate);
    STD_TORCH_CHECK(low_flow.scalar_type() == high_flow.scalar_type(),
                    "expected flows of one dtype");
    STD_TORCH_CHECK(high.size(2) * high.size(3) > 0 || n * h * w == 0,
                    "high: expected at least one pixel to sample");
    high = dense(high, layout);
    low = dense(low, layout);
  }

  void check_dtype(const Tensor& x) const {
    STD_TORCH_CHECK(x.scalar_type() == high.scalar_type(), "expected features of one dtype");
  }

  // Calls `run(call)` with a Call<T, F, Flow> that has its sources and the gate.
  template <template <typename...> typename Call, typename Run>
  void dispatch(const Run& run) const {
    vsegops::dispatch(high.scalar_type(), high_flow.scalar_type(), [&](auto t, auto f, auto fl) {
      using T = typename decltype(t)::type;
      using F = typename decltype(f)::type;
      using Flow = typename decltype(fl)::type;
      Call<T, F, Flow> call;
      call.channels_last = layout == MemoryFormat::ChannelsLast;
      call.high = source<T, F, Flow>(high, high_flow, options.high);
      call.low = source<T, F, Flow>(low, low_flow, options.low);
      call.gate = view<const T>(gate);
      run(call);
    });
  }

 private:
  template <typename T, typename F, typename Flow>
  Source<T, F, Flow> source(const Tensor& input, const Tensor& flow, const Scale& scale) const {
    Source<T, F, Flow> made;
    made.mapping = {axis<F>(input.size(3), flow.size(3), scale.x, scale.semantic),
                    axis<F>(input.size(2), flow.size(2), scale.y, scale.semantic), false,
                    padding_of(options.padding_mode)};
    made.input = view<const T>(input);
    made.flow = view<const Flow>(flow);
    return made;
  }

  template <typename F>
  Axis<F> axis(int64_t size, int64_t output, double scale, bool semantic) const {
    const bool align = options.align_corners;
    return {size, output, align, semantic ? Axis<F>::semantic_scale(size, output, align) : scale};
  }
};

inline Tensor gated_dual_warp(const Tensor& high, const Tensor& low, const Tensor& high_flow,
                              const Tensor& low_flow, const Tensor& gate, double high_scale_x,
                              double high_scale_y, bool high_semantic, double low_scale_x,
                              double low_scale_y, bool low_semantic, bool align_corners,
                              const Option& padding_mode) {
  const Options options{{high_scale_x, high_scale_y, high_semantic},
                        {low_scale_x, low_scale_y, low_semantic},
                        align_corners,
                        padding_mode};
  const Arguments given(high, low, high_flow, low_flow, gate, options);
  const Tensor out = empty(low, {low.size(0), low.size(1), low.size(2), low.size(3)}, given.layout);
  if (out.numel() == 0) return out;
  const Context context(high);
  given.dispatch<Forward>([&](auto& call) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.gate.data)>>;
    call.out = view<T>(out);
    forward(call, context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_dual_warp_backward(
    const Tensor& grad, const Tensor& high, const Tensor& low, const Tensor& high_flow,
    const Tensor& low_flow, const Tensor& gate, double high_scale_x, double high_scale_y,
    bool high_semantic, double low_scale_x, double low_scale_y, bool low_semantic,
    bool align_corners, const Option& padding_mode, int64_t wanted) {
  const Options options{{high_scale_x, high_scale_y, high_semantic},
                        {low_scale_x, low_scale_y, low_semantic},
                        align_corners,
                        padding_mode};
  const Arguments given(high, low, high_flow, low_flow, gate, options);
  check_shape("grad", grad, {low.size(0), low.size(1), low.size(2), low.size(3)});
  given.check_dtype(grad);
  const Tensor incoming = dense(grad, given.layout);
  const Context context(high);
  const auto like = [&](const Tensor& x, Gradient bit, MemoryFormat format) {
    return wanted & bit ? empty(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, format)
                        : skipped(x);
  };
  const Tensor d_high = like(high, kHigh, given.layout), d_low = like(low, kLow, given.layout);
  const Tensor d_high_flow = like(high_flow, kHighFlow, MemoryFormat::Contiguous);
  const Tensor d_low_flow = like(low_flow, kLowFlow, MemoryFormat::Contiguous);
  const Tensor d_gate = like(gate, kGate, MemoryFormat::Contiguous);
  given.dispatch<Backward>([&](auto& call) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(call.gate.data)>>;
    using Flow = std::remove_pointer_t<decltype(call.high.d_flow.data)>;
    call.grad = view<const T>(incoming);
    if (wanted & kHigh) call.high.d_input = view<T>(d_high);
    if (wanted & kLow) call.low.d_input = view<T>(d_low);
    if (wanted & kHighFlow) call.high.d_flow = view<Flow>(d_high_flow);
    if (wanted & kLowFlow) call.low.d_flow = view<Flow>(d_low_flow);
    if (wanted & kGate) call.d_gate = view<T>(d_gate);
    backward(call, context);
  });
  return {d_high, d_low, d_high_flow, d_low_flow, d_gate};
}

inline void check_pooled(const Tensor& first, const Tensor& second) {
  STD_TORCH_CHECK(first.dim() == 4, "first: expected [N, C, H, W]");
  STD_TORCH_CHECK(second.dim() == 4, "second: expected [N, D, H, W]");
  check_shape("second", second, {first.size(0), second.size(1), first.size(2), first.size(3)});
  STD_TORCH_CHECK(first.size(1) > 0 && second.size(1) > 0, "expected at least one channel");
  STD_TORCH_CHECK(second.scalar_type() == first.scalar_type(), "expected features of one dtype");
}

// `places`: null, or where the maxima's channels go.
inline Tensor pool_both(const Tensor& first, const Tensor& second, const Tensor* places) {
  const MemoryFormat layout = layout_of(first);
  const Tensor out = empty(first, {first.size(0), 4, first.size(2), first.size(3)}, layout);
  if (out.numel() == 0) return out;
  const Context context(first);
  dispatch(first.scalar_type(), first.scalar_type(), [&](auto t, auto, auto) {
    using T = typename decltype(t)::type;
    int which = 0;
    for (const Tensor* x : {&first, &second}) {
      const Tensor input = dense(*x, layout);
      pool(Pool<T>{which++, layout == MemoryFormat::ChannelsLast, view<const T>(input),
                   view<T>(out), places ? view<int32_t>(*places) : View<int32_t>()},
           context);
    }
  });
  return out;
}

inline Tensor channel_pool(const Tensor& first, const Tensor& second) {
  check_pooled(first, second);
  return pool_both(first, second, nullptr);
}

inline std::tuple<Tensor, Tensor> channel_pool_with_places(const Tensor& first,
                                                           const Tensor& second) {
  check_pooled(first, second);
  const Tensor places = empty(first, {first.size(0), 2, first.size(2), first.size(3)},
                              MemoryFormat::Contiguous, ScalarType::Int);
  return {pool_both(first, second, &places), places};
}

inline std::tuple<Tensor, Tensor> channel_pool_backward(const Tensor& grad, const Tensor& places,
                                                        int64_t first, int64_t second,
                                                        bool channels_last, int64_t wanted) {
  STD_TORCH_CHECK(grad.dim() == 4, "grad: expected [N, 4, H, W]");
  const int64_t n = grad.size(0), h = grad.size(2), w = grad.size(3);
  check_shape("grad", grad, {n, 4, h, w});
  check_shape("places", places, {n, 2, h, w});
  STD_TORCH_CHECK(places.scalar_type() == ScalarType::Int, "places: expected int32");
  STD_TORCH_CHECK(places.device() == grad.device(), "places: expected them where grad is");
  STD_TORCH_CHECK(first > 0 && second > 0, "expected at least one channel");
  const Context context(grad);
  const Tensor channels = dense(places, MemoryFormat::Contiguous);
  const auto run = [&](int which, int64_t c, PoolGradient bit) {
    if (!(wanted & bit)) return skipped(grad);
    const Tensor d_input = empty(
        grad, {n, c, h, w}, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    if (d_input.numel() == 0) return d_input;
    dispatch(grad.scalar_type(), grad.scalar_type(), [&](auto t, auto, auto) {
      using T = typename decltype(t)::type;
      pool_backward(PoolBackward<T>{which, channels_last, view<const T>(grad),
                                    view<const int32_t>(channels), view<T>(d_input)},
                    context);
    });
    return d_input;
  };
  return {run(0, first, kFirst), run(1, second, kSecond)};
}

}  // namespace vsegops::dual_warp

VSEGOPS_LIBRARY_IMPL(m) {
  m.impl("gated_dual_warp", TORCH_BOX(&vsegops::dual_warp::gated_dual_warp));
  m.impl("gated_dual_warp_backward", TORCH_BOX(&vsegops::dual_warp::gated_dual_warp_backward));
  m.impl("channel_pool", TORCH_BOX(&vsegops::dual_warp::channel_pool));
  m.impl("channel_pool_with_places", TORCH_BOX(&vsegops::dual_warp::channel_pool_with_places));
  m.impl("channel_pool_backward", TORCH_BOX(&vsegops::dual_warp::channel_pool_backward));
}
