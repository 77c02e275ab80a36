// The guided filter family on a GPU: launches. See cuda_pixels.h for how the work is shared out.
#include <type_traits>

#include "cuda_edges.h"
#include "cuda_filter.h"

namespace vsegops::guided_filter {
namespace {

// `tiled`: a tile is sampled together. `divisible`: the classes of a pixel may go to several
// blocks.
inline Split split_for(int64_t images, int64_t classes, int64_t height, int64_t width,
                       bool channels_last, bool tiled, bool divisible) {
  const int64_t wanted = ceil_div(kManyThreads, images * height * width);  // threads a pixel
  const int64_t rounds = std::max<int64_t>(1, ceil_div<int64_t>(classes, kTogether));
  int64_t groups = 1, chunks = 1;
  if (tiled) {
    chunks = divisible ? std::min(rounds, wanted) : 1;
  } else if (channels_last) {
    groups = floor_power(std::clamp<int64_t>(classes, 1, 16));
  } else if (divisible) {
    chunks = std::min(rounds, wanted);
  } else {
    groups = ceil_power(std::min<int64_t>({rounds, wanted, 8}));
  }
  const int64_t columns =
      tiled ? kTileWidth
            : std::min(ceil_power(width), std::min<int64_t>(kTileWidth, kPixelThreads / groups));
  const int64_t turns = ceil_div(classes, groups * kTogether);
  const int64_t chunk = std::max<int64_t>(1, ceil_div(turns, chunks)) * groups * kTogether;
  return {log2_of(groups),
          log2_of(columns),
          static_cast<int32_t>(chunk),
          static_cast<int32_t>(std::max<int64_t>(1, ceil_div(classes, chunk))),
          0,
          0};
}

template <typename T, typename F, typename Flow>
Geometry geometry(const Sampled<T, F, Flow>& s, bool tiled, bool divisible) {
  const View<const T>& x = s.logits;
  check("logits", x);
  return {s.channels_last, static_cast<int32_t>(x.c), static_cast<int32_t>(x.h),
          static_cast<int32_t>(x.w),
          split_for(x.n, x.c, x.h, x.w, s.channels_last, tiled, divisible)};
}

template <typename Run>
void lift(bool value, const Run& run) {
  value ? run(std::true_type()) : run(std::false_type());
}

// Double precision is for tests, which one window compiled in will do for.
template <typename F, typename Run>
void with_window(const Stencil& stencil, const Run& run) {
  if (stencil.shape == Shape::kWindow3) return run(Window3());
  if constexpr (std::is_same_v<F, float>) {
    if (stencil.shape == Shape::kWindow5) return run(Window5());
  }
  run(AnyWindow());
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& given, const Context& context) {
  const bool channels_last = given.source.channels_last;
  with_window<F>(given.stencil, [&](auto window) {
    lift(given.source.flow.data, [&](auto sampled) {
      const Geometry g = geometry(given.source, sampled() && kFixed<decltype(window)>, true);
      const ForwardCall<T, F> call{g,
                                   Taps(given.stencil),
                                   {{given.guide, channels_last}, given.normalize, given.eps},
                                   Source<T, F>(given.source),
                                   {given.intra, channels_last},
                                   {given.out, channels_last}};
      launch_split(filter_kernel<decltype(window), sampled(), T, F>, given.out, call, context);
    });
  });
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& given, const Context& context) {
  const bool channels_last = given.source.channels_last;
  const View<const T>& like = given.source.logits;
  const Guide<T, F> guide{{given.guide, channels_last}, given.normalize, given.eps};
  const Taps taps(given.stencil);
  const Flat<const T> grad(given.grad, channels_last);
  with_window<F>(given.stencil, [&](auto window) {
    using Window = decltype(window);
    if (given.d_guide.data) {
      lift(given.source.flow.data, [&](auto sampled) {
        const ProductsCall<T, F> call{geometry(given.source, sampled() && kFixed<Window>, false),
                                      taps,
                                      guide,
                                      Source<T, F>(given.source),
                                      grad,
                                      {given.intra, channels_last},
                                      {given.d_guide, channels_last}};
        launch_split(products_kernel<Window, sampled(), T, F>, like, call, context);
      });
    }
    if (!given.d_logits.data && !given.d_source.data && !given.d_intra.data) return;
    const int64_t plane = like.h * like.w, pixels = like.n * plane;
    F* normalizers;
    const Tensor held = context.scratch(2 * pixels, &normalizers);
    const NormalizeCall<T, F> normalize{taps.channels, pixels,      plane,
                                        guide,         normalizers, normalizers + pixels};
    launch(normalize_kernel<T, F>,
           dim3(static_cast<uint32_t>(ceil_div<int64_t>(pixels, kPixelThreads))),
           dim3(kPixelThreads), 0, context.stream(), normalize);
    const AdjointCall<T, F> call{geometry(given.source, false, true),
                                 taps,
                                 guide,
                                 normalizers,
                                 normalizers + pixels,
                                 grad,
                                 {given.d_logits, channels_last},
                                 {given.d_source, channels_last},
                                 {given.d_intra, channels_last}};
    // (The places and weights of 17 neighbours are more than the registers hold.)
    using Gathered = std::conditional_t<std::is_same_v<Window, Window5>, AnyWindow, Window>;
    launch_split(adjoint_kernel<Gathered, T, F>, like, call, context);
  });
}

template <typename T, typename F, typename Flow>
void edges(const Edges<T, F, Flow>& given, const Context& context) {
  Geometry g = geometry(given.source, true, false);
  const EdgesCall<T, F> call{
      g, Source<T, F>(given.source), given.sigmoid, {given.out, given.source.channels_last}};
  lift(given.source.flow.data, [&](auto sampled) {
    launch_split(edges_kernel<sampled(), T, F>, given.out, call, context);
  });
}

}  // namespace
}  // namespace vsegops::guided_filter

#include "operators.h"  // registers them
