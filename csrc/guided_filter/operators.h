// The guided filter's operators: what cpu.cpp and cuda.cu register. Included by either after its
// kernels, `forward`, `backward` and `edges` of `vsegops::guided_filter`, each of which takes a
// call and a Context.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/dispatch.h"
#include "../warp/gradients.h"
#include "guided_filter.h"

namespace vsegops::guided_filter {

// Bits of `wanted`, as in vsegops/ops/guided_filter/op.py.
enum Gradient { kLogits = 1, kIntra = 2, kGuide = 4, kFlow = 8 };

struct Sampling {
  double scale_x, scale_y;
  bool semantic;
  const std::string& padding_mode;
};

struct Options {
  const std::vector<int64_t>& offsets;
  const std::string& normalize;
  double eps;
  Sampling sampling;
};

// The tensors of a call, in the layout of the logits.
struct __attribute__((visibility("hidden"))) Arguments {
  MemoryFormat layout;
  Tensor logits;
  const std::optional<Tensor>& flow;

  Arguments(const Tensor& x, const std::optional<Tensor>& along)
      : layout(layout_of(x)), logits(x), flow(along) {
    STD_TORCH_CHECK(x.dim() == 4, "logits: expected 4 dimensions, got ", x.dim());
    STD_TORCH_CHECK(
        !flow || (flow->dim() == 4 && flow->size(0) == x.size(0) && flow->size(1) == 2 &&
                  flow->size(2) == x.size(2) && flow->size(3) == x.size(3)),
        "flow: expected [N, 2, H, W] beside logits [N, C, H, W]");
    logits = dense(x, layout);
  }

  // `x` in that layout, and of the dtype and sizes [N, channels, H, W].
  Tensor matching(const char* name, const Tensor& x, int64_t channels) const {
    STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == logits.size(0) && x.size(1) == channels &&
                        x.size(2) == logits.size(2) && x.size(3) == logits.size(3) &&
                        x.scalar_type() == logits.scalar_type(),
                    name, ": expected [", logits.size(0), ", ", channels, ", ", logits.size(2),
                    ", ", logits.size(3), "] of the dtype of logits");
    return dense(x, layout);
  }

  Tensor empty(int64_t channels, std::optional<ScalarType> dtype = std::nullopt) const {
    return vsegops::empty(logits, {logits.size(0), channels, logits.size(2), logits.size(3)},
                          layout, dtype);
  }

  template <typename T, typename F, typename Flow>
  Sampled<T, F, Flow> sampled(const Sampling& s) const {
    Sampled<T, F, Flow> source;
    source.channels_last = layout == MemoryFormat::ChannelsLast;
    source.logits = view<const T>(logits);
    const auto axis = [&](int dim, double scale) {
      const int64_t size = logits.size(dim);
      return Axis<F>(size, size, true,
                     s.semantic ? Axis<F>::semantic_scale(size, size, true) : scale);
    };
    source.mapping = {axis(3, s.scale_x), axis(2, s.scale_y), false, padding_of(s.padding_mode)};
    if (flow) source.flow = view<const Flow>(*flow);
    return source;
  }

  // Calls `run(Type<T>, Type<F>, Type<Flow>)`; what has no flow counts as having one of its own
  // dtype.
  template <typename Run>
  void dispatch(const Run& run) const {
    const ScalarType own = logits.scalar_type();
    vsegops::dispatch(own, flow ? flow->scalar_type() : own, run);
  }
};

inline Normalize normalize_of(const std::string& name) {
  if (name == "sum") return Normalize::kSum;
  if (name == "softmax") return Normalize::kSoftmax;
  STD_TORCH_CHECK(name == "none", "normalize: ", name);
  return Normalize::kNone;
}

inline int64_t guide_channels(const Options& o) {
  const auto numbers = static_cast<int64_t>(o.offsets.size());
  STD_TORCH_CHECK(numbers > 0 && numbers % 2 == 0 && numbers <= 2 * kMostOffsets,
                  "offsets: expected 1 to ", kMostOffsets, " pairs, got ", numbers, " numbers");
  return numbers / 2 + 1;
}

// What Forward and Backward have in common.
template <template <typename...> typename Call, typename T, typename F, typename Flow>
Call<T, F, Flow> call_of(const Arguments& given, const Options& o, const Tensor& intra,
                         const Tensor& guide) {
  Call<T, F, Flow> call;
  call.stencil = Stencil(o.offsets, given.logits.size(2), given.logits.size(3));
  call.normalize = normalize_of(o.normalize);
  call.eps = static_cast<F>(o.eps);
  call.source = given.sampled<T, F, Flow>(o.sampling);
  call.intra = view<const T>(intra);
  call.guide = view<const T>(guide);
  return call;
}

inline Tensor guided_filter(const Tensor& logits, const Tensor& intra, const Tensor& guide,
                            const std::optional<Tensor>& flow, const std::vector<int64_t>& offsets,
                            const Option& normalize, double eps, double scale_x, double scale_y,
                            bool semantic, const Option& padding_mode) {
  const Options options{offsets, normalize, eps, {scale_x, scale_y, semantic, padding_mode}};
  const Arguments given(logits, flow);
  const Tensor blended = given.matching("intra", intra, logits.size(1));
  const Tensor guiding = given.matching("guide", guide, guide_channels(options));
  const Tensor out = given.empty(logits.size(1));
  if (out.numel() == 0) return out;
  const Context context(logits);
  given.dispatch([&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    auto call = call_of<Forward, T, F, Flow>(given, options, blended, guiding);
    call.out = view<T>(out);
    forward(call, context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> guided_filter_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& intra, const Tensor& guide,
    const std::optional<Tensor>& flow, const std::vector<int64_t>& offsets, const Option& normalize,
    double eps, double scale_x, double scale_y, bool semantic, const Option& padding_mode,
    int64_t wanted) {
  const Options options{offsets, normalize, eps, {scale_x, scale_y, semantic, padding_mode}};
  const Arguments given(logits, flow);
  const int64_t classes = logits.size(1), channels = guide_channels(options);
  const Tensor incoming = given.matching("grad", grad, classes);
  const Tensor blended = given.matching("intra", intra, classes);
  const Tensor guiding = given.matching("guide", guide, channels);
  const auto like = [&](int64_t bit, int64_t count) {
    return wanted & bit ? given.empty(count) : skipped(logits);
  };
  const Tensor d_intra = like(kIntra, classes), d_guide = like(kGuide, channels);
  // With a flow the gradient goes on from S, in the type that is computed in.
  const ScalarType own = logits.scalar_type();
  const ScalarType compute = own == ScalarType::Double ? own : ScalarType::Float;
  const bool sampled = flow && wanted & (kLogits | kFlow);
  const Tensor d_source = sampled ? given.empty(classes, compute) : like(kLogits, classes);
  if (guiding.numel() > 0) {
    const Context context(logits);
    given.dispatch([&](auto t, auto f, auto fl) {
      using T = typename decltype(t)::type;
      using F = typename decltype(f)::type;
      using Flow = typename decltype(fl)::type;
      auto call = call_of<Backward, T, F, Flow>(given, options, blended, guiding);
      call.grad = view<const T>(incoming);
      if (sampled) {
        call.d_source = view<F>(d_source);
      } else if (wanted & kLogits) {
        call.d_logits = view<T>(d_source);
      }
      if (wanted & kIntra) call.d_intra = view<T>(d_intra);
      if (wanted & kGuide) call.d_guide = view<T>(d_guide);
      backward(call, context);
    });
  }
  if (!sampled) return {d_source, d_intra, d_guide, skipped(flow ? *flow : logits)};
  const auto as = [](const Tensor& x, ScalarType dtype) {
    return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  };
  const Tensor along = own == compute ? *flow : as(*flow, compute);
  const int64_t gradients = (wanted & kLogits ? 1 : 0) | (wanted & kFlow ? 2 : 0);
  const auto [d_logits, d_flow] =
      warp::flow_warp_backward(d_source, as(given.logits, compute), along, scale_x, scale_y,
                               semantic, true, "bilinear", padding_mode, gradients);
  return {as(d_logits, own), d_intra, d_guide, as(d_flow, flow->scalar_type())};
}

inline Tensor label_edges(const Tensor& logits, const std::optional<Tensor>& flow, double scale_x,
                          double scale_y, bool semantic, const Option& padding_mode,
                          const Option& response) {
  STD_TORCH_CHECK(response == "binary" || response == "sigmoid", "response: ", response);
  const Arguments given(logits, flow);
  const Tensor out = given.empty(1);
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(logits.size(1) > 0, "logits: expected at least one class");
  const Context context(logits);
  given.dispatch([&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    Edges<T, F, Flow> call;
    call.source = given.sampled<T, F, Flow>({scale_x, scale_y, semantic, padding_mode});
    call.sigmoid = response == "sigmoid";
    call.out = view<T>(out);
    edges(call, context);
  });
  return out;
}

}  // namespace vsegops::guided_filter

VSEGOPS_LIBRARY_IMPL(m) {
  m.impl("guided_filter", TORCH_BOX(&vsegops::guided_filter::guided_filter));
  m.impl("guided_filter_backward", TORCH_BOX(&vsegops::guided_filter::guided_filter_backward));
  m.impl("label_edges", TORCH_BOX(&vsegops::guided_filter::label_edges));
}
