// The warp family on a GPU: one kernel for each direction, which serves both layouts.
//
// First one thread of each pixel finds where it samples and leaves that in shared memory; then all
// threads of the pixel go along its channels.
#include <optional>
#include <type_traits>

#include "../common/cuda_taps.h"
#include "warp.h"

namespace vsegops::warp {
namespace {

// The arguments of a kernel.
template <typename T, typename F>
struct ForwardCall {
  Mapping<F> mapping;
  Either<T> flow;
  View<const T> input, correction, attention;
  View<T> out;
  Split split;
};
template <typename T, typename F>
struct BackwardCall {
  Mapping<F> mapping;
  Either<T> flow;
  View<const T> grad, input, correction, attention;
  F* d_input;  // like input, in the type that is summed in
  Either<T> d_flow;
  View<T> d_correction, d_attention;
  Split split;
};

// ---- Forward ----
//
// Moves at least each element of input, correction and output once, for 4 multiply-adds (5 with a
// correction) an output: under 1 operation a byte in float32, so memory bounds it. The four taps
// are read from the level 1 cache, which has about twice the bandwidth that this takes. (Four
// blocks a multiprocessor, with 16 reads under way in each thread: left to itself the compiler
// spills for the sake of more.)
template <typename Layout, bool Corrected, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads, 4) forward_kernel(const ForwardCall<T, F> call) {
  __shared__ Point<F> points[kPixelThreads];
  const Worker<Layout> me(call.split, call.out);
  if (me.inside && me.group == 0) {
    points[me.slot] = find(call.mapping, call.flow, call.attention, me);
  }
  __syncthreads();
  if (!me.inside) return;
  const Corners<F> taps(call.mapping, points[me.slot]);
  const F attention = points[me.slot].factor;
  const Image<Layout, const T> input(call.input, me.n), correction(call.correction, me.n);
  const Image<Layout, T> out(call.out, me.n);
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F added[N], tap[4][N], sum[N];
    if constexpr (Corrected) correction.load(me.pixel, c, added);
#pragma unroll
    for (int k = 0; k < 4; ++k) input.load(taps.pixel[k], c, tap[k]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[i] = Corrected ? attention * added[i] : F(0);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[i] += taps.weight[k] * tap[k][i];
    }
    out.store(me.pixel, c, sum);
  });
}

// ---- Backward ----

// Moves at least each element of grad and input, and twice each of d_input in F (it is added to),
// for 4 multiply-adds to scatter and 14 for the flow: 2 operations a byte in float32, so memory
// bounds it; where the flow is rough, the atomic additions in the level 2 cache do.
//
// Gradients that are null cost a branch. One block sees all channels of a pixel where they are
// summed (Slopes, d_attention). The threads of pixels outside come along with a gradient of 0.
template <typename Layout, bool Scattered, bool Slopes, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads) backward_kernel(const BackwardCall<T, F> call) {
  __shared__ Point<F> points[kPixelThreads];
  const Worker<Layout> me(call.split, call.grad);
  if (me.group == 0) {
    points[me.slot] = me.inside ? find(call.mapping, call.flow, call.attention, me) : Point<F>{};
  }
  __syncthreads();
  const Point<F> p = points[me.slot];
  const Corners<F> taps(call.mapping, p);
  const Image<Layout, const T> grad(call.grad, me.n), input(call.input, me.n);
  const Image<Layout, const T> correction(call.correction, me.n);
  const Image<Layout, T> d_correction(call.d_correction, me.n);
  const Image<Layout, F> d_input(call.d_input, call.input, me.n);
  const bool beside = me.inside && (me.slot & ((1 << call.split.log_width) - 1));
  const Scatter<Layout, F> scatter(d_input, taps, beside);
  F sums[3] = {};  // d/dx, d/dy, d/dattention
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F g[N];
    grad.load(me.pixel, c, g);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = me.inside ? g[i] : F(0);
    if constexpr (Slopes) {
      F tap[4][N];
#pragma unroll
      for (int k = 0; k < 4; ++k) input.load(taps.pixel[k], c, tap[k]);
      add_slopes(p, tap, g, sums);
    }
    if (call.d_attention.data) {
      F added[N];
      correction.load(me.pixel, c, added);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[2] += g[i] * added[i];
    }
    if (call.d_correction.data && me.inside) {
      F scaled[N];
#pragma unroll
      for (int i = 0; i < N; ++i) scaled[i] = p.factor * g[i];
      d_correction.store(me.pixel, c, scaled);
    }
    if constexpr (Scattered) scatter.add(c, g);
  });
  if (!Slopes && !call.d_attention.data) return;
  sum_up(sums, me);
  if (me.group != 0 || !me.inside) return;
  if constexpr (Slopes) {
    const int64_t at = call.d_flow.at(me.n, 0, me.y, me.x);
    call.d_flow.store(at, call.mapping.x.scale * sums[0]);
    call.d_flow.store(at + call.d_flow.stride_c, call.mapping.y.scale * sums[1]);
  }
  if (call.d_attention.data) {
    narrow(sums[2], call.d_attention.data + call.d_attention.at(me.n, 0, me.y, me.x));
  }
}

// ---- Launches ----

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& given, const Context& context) {
  check("input", given.input);
  check("flow", given.out);
  ForwardCall<T, F> call{given.mapping,
                         Either<T>(given.flow),
                         given.input,
                         given.correction,
                         given.attention,
                         given.out,
                         {}};
  with_layout<T>(
      given.channels_last, call.out.c,
      [&](auto layout) {
        using Layout = decltype(layout);
        call.split = split_for<Layout>(call.out, true);
        lift(call.correction.data, [&](auto corrected) {
          launch_split(forward_kernel<Layout, corrected(), T, F>, call.out, call, context);
        });
      },
      call.input.data, call.correction.data, call.out.data);
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& given, const Context& context) {
  check("input", given.input);
  check("flow", given.grad);
  const int64_t elements = given.input.n * given.input.c * given.input.h * given.input.w;
  const int64_t pixels = given.grad.n * given.grad.h * given.grad.w;
  // d_input is summed in F: in place, or in memory of its own for half precision.
  constexpr bool kInPlace = std::is_same_v<T, F>;
  F* sums = reinterpret_cast<F*>(given.d_input.data);
  std::optional<Tensor> held;
  if (given.d_input.data) {
    if (!kInPlace) held.emplace(context.scratch(elements, &sums));
    zero(sums, elements * sizeof(F), context.stream());
  }
  const bool slopes = given.d_flow.data && !given.mapping.nearest;
  if (given.d_flow.data && !slopes) {  // positions are rounded: there is no slope
    zero(given.d_flow.data, 2 * pixels * sizeof(Flow), context.stream());
  }
  const bool summed = slopes || given.d_attention.data;
  if (pixels > 0 && (summed || given.d_input.data || given.d_correction.data)) {
    BackwardCall<T, F> call{
        given.mapping,      Either<T>(given.flow), given.grad, given.input,
        given.correction,   given.attention,       sums,       Either<T>(given.d_flow),
        given.d_correction, given.d_attention,     {}};
    with_layout<T>(
        given.channels_last, call.grad.c,
        [&](auto layout) {
          using Layout = decltype(layout);
          call.split = split_for<Layout>(call.grad, !summed);
          lift(given.d_input.data, [&](auto scattered) {
            lift(slopes, [&](auto with_slopes) {
              launch_split(backward_kernel<Layout, scattered(), with_slopes(), T, F>, call.grad,
                           call, context);
            });
          });
        },
        call.grad.data, call.input.data, call.correction.data, call.d_correction.data, sums);
  }
  if constexpr (!kInPlace) {
    if (given.d_input.data) round_to(sums, given.d_input.data, elements, context.stream());
  }
}

}  // namespace
}  // namespace vsegops::warp

#include "operators.h"  // registers them
