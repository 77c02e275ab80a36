// The guided filter's operators: what cpu.cpp and cuda.cu register. Included by either after its
// kernels, `forward`, `backward` and `edges` of `vsegops::guided_filter`, each of which takes a
// call and a Context.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/dispatch.h"
#include "guided_filter.h"

namespace vsegops::guided_filter {

// Bits of `wanted`, as in vsegops/ops/guided_filter/op.py.
enum Gradient { kLogits = 1, kIntra = 2, kGuide = 4, kFlow = 8 };

constexpr int64_t kMostOffsets = 256;  // as in vsegops/ops/guided_filter/__init__.py

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

// Tensors of one call, in the layout of the logits.
struct __attribute__((visibility("hidden"))) Source {
  MemoryFormat layout;
  Tensor logits;
  const std::optional<Tensor>& flow;

  Source(const Tensor& x, const std::optional<Tensor>& along)
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

  Tensor empty(int64_t channels) const {
    return vsegops::empty(logits, {logits.size(0), channels, logits.size(2), logits.size(3)},
                          layout);
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
Call<T, F, Flow> call_of(const Source& source, const Options& o, const Tensor& intra,
                         const Tensor& guide) {
  Call<T, F, Flow> call;
  call.stencil = Stencil(o.offsets, source.logits.size(2), source.logits.size(3));
  call.normalize = normalize_of(o.normalize);
  call.eps = static_cast<F>(o.eps);
  call.source = source.sampled<T, F, Flow>(o.sampling);
  call.intra = view<const T>(intra);
  call.guide = view<const T>(guide);
  return call;
}

inline Tensor guided_filter(const Tensor& logits, const Tensor& intra, const Tensor& guide,
                            const std::optional<Tensor>& flow, const std::vector<int64_t>& offsets,
                            const std::string& normalize, double eps, double scale_x,
                            double scale_y, bool semantic, const std::string& padding_mode) {
  const Options options{offsets, normalize, eps, {scale_x, scale_y, semantic, padding_mode}};
  const Source source(logits, flow);
  const Tensor blended = source.matching("intra", intra, logits.size(1));
  const Tensor guiding = source.matching("guide", guide, guide_channels(options));
  const Tensor out = source.empty(logits.size(1));
  if (out.numel() == 0) return out;
  const Context context(logits);
  source.dispatch([&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    auto call = call_of<Forward, T, F, Flow>(source, options, blended, guiding);
    call.out = view<T>(out);
    forward(call, context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> guided_filter_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& intra, const Tensor& guide,
    const std::optional<Tensor>& flow, const std::vector<int64_t>& offsets,
    const std::string& normalize, double eps, double scale_x, double scale_y, bool semantic,
    const std::string& padding_mode, int64_t wanted) {
  const Options options{offsets, normalize, eps, {scale_x, scale_y, semantic, padding_mode}};
  const Source source(logits, flow);
  const int64_t classes = logits.size(1), channels = guide_channels(options);
  const Tensor incoming = source.matching("grad", grad, classes);
  const Tensor blended = source.matching("intra", intra, classes);
  const Tensor guiding = source.matching("guide", guide, channels);
  const auto like = [&](Gradient bit, int64_t count) {
    return wanted & bit ? source.empty(count) : skipped(logits);
  };
  const Tensor d_logits = like(kLogits, classes), d_intra = like(kIntra, classes);
  const Tensor d_guide = like(kGuide, channels);
  if (!flow) wanted &= ~kFlow;
  const Tensor d_flow = wanted & kFlow
                            ? empty(*flow, {flow->size(0), 2, flow->size(2), flow->size(3)})
                            : skipped(flow ? *flow : logits);
  if (guiding.numel() == 0 || !wanted) return {d_logits, d_intra, d_guide, d_flow};
  const Context context(logits);
  source.dispatch([&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    auto call = call_of<Backward, T, F, Flow>(source, options, blended, guiding);
    call.grad = view<const T>(incoming);
    if (wanted & kLogits) call.d_logits = view<T>(d_logits);
    if (wanted & kIntra) call.d_intra = view<T>(d_intra);
    if (wanted & kGuide) call.d_guide = view<T>(d_guide);
    if (wanted & kFlow) call.d_flow = view<Flow>(d_flow);
    backward(call, context);
  });
  return {d_logits, d_intra, d_guide, d_flow};
}

inline Tensor label_edges(const Tensor& logits, const std::optional<Tensor>& flow, double scale_x,
                          double scale_y, bool semantic, const std::string& padding_mode,
                          const std::string& response) {
  STD_TORCH_CHECK(response == "binary" || response == "sigmoid", "response: ", response);
  const Source source(logits, flow);
  const Tensor out = source.empty(1);
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(logits.size(1) > 0, "logits: expected at least one class");
  const Context context(logits);
  source.dispatch([&](auto t, auto f, auto fl) {
    using T = typename decltype(t)::type;
    using F = typename decltype(f)::type;
    using Flow = typename decltype(fl)::type;
    Edges<T, F, Flow> call;
    call.source = source.sampled<T, F, Flow>({scale_x, scale_y, semantic, padding_mode});
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
