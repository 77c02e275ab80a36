// The dual warp family on a GPU: one kernel for each direction of each operator, which serves both
// layouts.
#include <cmath>
#include <optional>
#include <type_traits>

#include "../common/cuda_taps.h"
#include "dual_warp.h"

namespace vsegops::dual_warp {
namespace {

// One source, as a kernel's arguments.
template <typename T, typename F>
struct Side {
  Mapping<F> mapping;
  Either<T> flow;
  View<const T> input;
  F* d_input;  // like input, in the type that is summed in
  Either<T> d_flow;

  template <typename Flow>
  Side(const Source<T, F, Flow>& s, F* sums)
      : mapping(s.mapping), flow(s.flow), input(s.input), d_input(sums), d_flow(s.d_flow) {}
};

enum { kHighSide, kLowSide };  // places of the sides

template <typename T, typename F>
struct ForwardCall {
  Side<T, F> sides[2];
  View<const T> gate;
  View<T> out;
  Split split;
};
template <typename T, typename F>
struct BackwardCall {
  Side<T, F> sides[2];
  View<const T> gate, grad;
  View<T> d_gate;
  Split split;
};

// Where both sides sample; the factor of a point is the side's share in the output. Threads of the
// same pixel find the two sides side by side.
template <typename Call, typename F, typename Layout>
__device__ void find_sides(const Call& call, const Worker<Layout>& me,
                           Point<F> (&points)[2][kPixelThreads]) {
  for (int s = me.group; s < 2; s += me.groups) {
    Point<F> p{};
    if (me.inside) p = find(call.sides[s].mapping, call.sides[s].flow, call.gate, me);
    if (s == kLowSide) p.factor = F(1) - p.factor;
    points[s][me.slot] = p;
  }
  __syncthreads();
}

template <typename F>
__device__ Corners<F> shared_corners(const Mapping<F>& mapping, const Point<F>& p) {
  Corners<F> corners(mapping, p);
#pragma unroll
  for (int k = 0; k < 4; ++k) corners.weight[k] *= p.factor;
  return corners;
}

// ---- Forward ----
//
// Moves at least each element of both sources and the output once, for 8 multiply-adds an output:
// under 2 operations a byte in float32, so memory bounds it. The eight taps are read from the level
// 1 cache. (Three blocks a multiprocessor: with more the compiler spills.)
template <typename Layout, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads, 3) forward_kernel(const ForwardCall<T, F> call) {
  __shared__ Point<F> points[2][kPixelThreads];
  const Worker<Layout> me(call.split, call.out);
  find_sides(call, me, points);
  if (!me.inside) return;
  const Corners<F> high = shared_corners(call.sides[kHighSide].mapping, points[kHighSide][me.slot]);
  const Corners<F> low = shared_corners(call.sides[kLowSide].mapping, points[kLowSide][me.slot]);
  const Image<Layout, const T> from_high(call.sides[kHighSide].input, me.n);
  const Image<Layout, const T> from_low(call.sides[kLowSide].input, me.n);
  const Image<Layout, T> out(call.out, me.n);
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F sum[N] = {};
    const auto add = [&](const Image<Layout, const T>& from, const Corners<F>& taps) {
      F tap[4][N];
#pragma unroll
      for (int k = 0; k < 4; ++k) from.load(taps.pixel[k], c, tap[k]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += taps.weight[k] * tap[k][i];
      }
    };
    add(from_high, high);
    add(from_low, low);
    out.store(me.pixel, c, sum);
  });
}

// ---- Backward ----

// What one side does with the gradient at a pixel. `sums`: the slopes along u and v, before the
// share, and grad * A(source).
template <typename Layout, typename T, typename F>
struct Backwards {
  const Point<F> point;
  const Image<Layout, const T> input;
  const Scatter<Layout, F> scatter;
  F sums[3] = {};

  __device__ Backwards(const Side<T, F>& side, const Point<F>& p, const Worker<Layout>& me,
                       bool beside)
      : point(p),
        input(side.input, me.n),
        scatter(Image<Layout, F>(side.d_input, side.input, me.n), shared_corners(side.mapping, p),
                beside) {}

  template <int N>
  __device__ __forceinline__ void add(const Side<T, F>& side, bool summed, int32_t c,
                                      const F (&g)[N]) {
    if (summed) {
      F tap[4][N];
#pragma unroll
      for (int k = 0; k < 4; ++k) input.load(scatter.taps.pixel[k], c, tap[k]);
      add_slopes(point, tap, g, sums);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const F top = point.x[0] * tap[0][i] + point.x[1] * tap[1][i];
        const F bottom = point.x[0] * tap[2][i] + point.x[1] * tap[3][i];
        sums[2] += g[i] * (point.y[0] * top + point.y[1] * bottom);
      }
    }
    if (side.d_input) scatter.add(c, g);
  }

  // Writes the gradient of the flow; the sum of grad * A(source), in the threads of group 0.
  __device__ __forceinline__ F finish(const Side<T, F>& side, const Worker<Layout>& me) {
    sum_up(sums, me);
    if (side.d_flow.data && me.group == 0 && me.inside) {
      const int64_t at = side.d_flow.at(me.n, 0, me.y, me.x);
      side.d_flow.store(at, side.mapping.x.scale * point.factor * sums[0]);
      side.d_flow.store(at + side.d_flow.stride_c, side.mapping.y.scale * point.factor * sums[1]);
    }
    return sums[2];
  }
};

// Moves at least each element of grad and of both sources once, and twice each of their gradients
// in F (they are added to), for 8 multiply-adds to scatter and 40 for flows and gate: 2 operations
// a byte in float32, so memory bounds it; where the flows are rough, the atomic additions in the
// level 2 cache do.
//
// Gradients that are null cost a branch. One block sees all channels of a pixel where they are
// summed. The threads of pixels outside come along with a gradient of 0.
template <typename Layout, typename T, typename F>
__global__ void __launch_bounds__(kPixelThreads) backward_kernel(const BackwardCall<T, F> call) {
  __shared__ Point<F> points[2][kPixelThreads];
  const Worker<Layout> me(call.split, call.grad);
  find_sides(call, me, points);
  const bool beside = me.inside && (me.slot & ((1 << call.split.log_width) - 1));
  const bool gate = call.d_gate.data;
  const bool high_summed = gate || call.sides[kHighSide].d_flow.data;
  const bool low_summed = gate || call.sides[kLowSide].d_flow.data;
  Backwards<Layout, T, F> high(call.sides[kHighSide], points[kHighSide][me.slot], me, beside);
  Backwards<Layout, T, F> low(call.sides[kLowSide], points[kLowSide][me.slot], me, beside);
  const Image<Layout, const T> grad(call.grad, me.n);
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F g[N];
    grad.load(me.pixel, c, g);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = me.inside ? g[i] : F(0);
    high.add(call.sides[kHighSide], high_summed, c, g);
    low.add(call.sides[kLowSide], low_summed, c, g);
  });
  F difference = F(0);
  if (high_summed) difference += high.finish(call.sides[kHighSide], me);
  __syncthreads();  // (they share memory)
  if (low_summed) difference -= low.finish(call.sides[kLowSide], me);
  if (gate && me.group == 0 && me.inside) {
    narrow(difference, call.d_gate.data + call.d_gate.at(me.n, 0, me.y, me.x));
  }
}

// ---- Pooling ----

template <typename T>
struct PoolCall {
  Pool<T> pool;
  Split split;
};
template <typename T>
struct PoolBackwardCall {
  PoolBackward<T> pool;
  Split split;
};

// Whether x is the maximum of the two if it comes later: NaN counts as the largest.
template <typename F>
__device__ bool larger(F x, F than) {
  return x > than || (x != x && than == than);
}

// Reads each element once and writes two of each pixel, and the maximum's place if it is wanted,
// for an addition and a comparison: memory bounds it.
template <typename Layout, typename T>
__global__ void __launch_bounds__(kPixelThreads) pool_kernel(const PoolCall<T> call) {
  using F = compute_t<T>;
  const Worker<Layout> me(call.split, call.pool.input);
  const Image<Layout, const T> input(call.pool.input, me.n);
  F found[3] = {F(0), -F(INFINITY), F(0)};  // sum, maximum, the first channel that has it
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F x[N];
    input.load(me.pixel, c, x);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      found[0] += x[i];
      if (!larger(x[i], found[1])) continue;
      found[1] = x[i];
      found[2] = static_cast<F>(c + i);
    }
  });
  reduce(found, me, [](F(&mine)[3], const F(&other)[3]) {
    mine[0] += other[0];
    const bool first = !larger(mine[1], other[1]) && other[2] < mine[2];
    if (!larger(other[1], mine[1]) && !first) return;
    mine[1] = other[1];
    mine[2] = other[2];
  });
  if (me.group != 0 || !me.inside) return;
  const View<T>& out = call.pool.out;
  const int64_t at = out.at(me.n, call.pool.which, me.y, me.x);
  narrow(found[0] / static_cast<F>(call.pool.input.c), out.data + at);
  narrow(found[1], out.data + at + 2 * out.stride_c);
  const View<int32_t>& places = call.pool.places;
  if (!places.data) return;
  places.data[places.at(me.n, call.pool.which, me.y, me.x)] = static_cast<int32_t>(found[2]);
}

// Writes each element once, for a comparison: memory bounds it.
template <typename Layout, typename T>
__global__ void __launch_bounds__(kPixelThreads)
    pool_backward_kernel(const PoolBackwardCall<T> call) {
  using F = compute_t<T>;
  const Worker<Layout> me(call.split, call.pool.d_input);
  if (!me.inside) return;
  const View<const T>& grad = call.pool.grad;
  const int64_t at = grad.at(me.n, call.pool.which, me.y, me.x);
  const F each = widen(fetch(grad.data + at)) / static_cast<F>(call.pool.d_input.c);
  const F most = each + widen(fetch(grad.data + at + 2 * grad.stride_c));
  const View<const int32_t>& places = call.pool.places;
  const int32_t place = fetch(places.data + places.at(me.n, call.pool.which, me.y, me.x));
  const Image<Layout, T> d_input(call.pool.d_input, me.n);
  me.each([&](auto width, int32_t c) {
    constexpr int N = decltype(width)::value;
    F values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = c + i == place ? most : each;
    d_input.store(me.pixel, c, values);
  });
}

// ---- Launches ----

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& given, const Context& context) {
  check("high", given.high.input);
  check("low", given.low.input);
  ForwardCall<T, F> call{
      {Side<T, F>(given.high, nullptr), Side<T, F>(given.low, nullptr)}, given.gate, given.out, {}};
  with_layout<T>(
      given.channels_last, call.out.c,
      [&](auto layout) {
        using Layout = decltype(layout);
        call.split = split_for<Layout>(call.out, true);
        launch_split(forward_kernel<Layout, T, F>, call.out, call, context);
      },
      given.high.input.data, given.low.input.data, call.out.data);
}

// Memory in which the gradient of a source is summed in F: its own, or apart for half precision.
template <typename T, typename F>
class Sums {
 public:
  F* data;

  Sums(const View<T>& d_input, const Context& context)
      : data(reinterpret_cast<F*>(d_input.data)), d_input_(d_input), context_(context) {
    if (!d_input.data) return;
    if constexpr (!std::is_same_v<T, F>) held_.emplace(context.scratch(elements(), &data));
    zero(data, elements() * sizeof(F), context.stream());
  }

  // Makes them the gradient.
  void round() const {
    if constexpr (!std::is_same_v<T, F>) {
      if (d_input_.data) round_to(data, d_input_.data, elements(), context_.stream());
    }
  }

 private:
  int64_t elements() const { return d_input_.n * d_input_.c * d_input_.h * d_input_.w; }

  const View<T>& d_input_;
  const Context& context_;
  std::optional<Tensor> held_;
};

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& given, const Context& context) {
  check("high", given.high.input);
  check("low", given.low.input);
  const Sums<T, F> high(given.high.d_input, context), low(given.low.d_input, context);
  const bool summed = given.high.d_flow.data || given.low.d_flow.data || given.d_gate.data;
  if (given.gate.n * given.gate.h * given.gate.w > 0 && (summed || high.data || low.data)) {
    BackwardCall<T, F> call{{Side<T, F>(given.high, high.data), Side<T, F>(given.low, low.data)},
                            given.gate,
                            given.grad,
                            given.d_gate,
                            {}};
    with_layout<T>(
        given.channels_last, call.grad.c,
        [&](auto layout) {
          using Layout = decltype(layout);
          call.split = split_for<Layout>(call.grad, !summed);
          launch_split(backward_kernel<Layout, T, F>, call.grad, call, context);
        },
        call.grad.data, given.high.input.data, given.low.input.data, high.data, low.data);
  }
  high.round();
  low.round();
}

// Channels' numbers pass through float.
template <typename T>
void check_channels(const View<T>& x) {
  check("input", x);
  STD_TORCH_CHECK(x.c <= 1 << 24, "expected at most 2^24 channels, got ", x.c);
}

template <typename T>
void pool(const Pool<T>& given, const Context& context) {
  check_channels(given.input);
  PoolCall<T> call{given, {}};
  with_layout<T>(
      given.channels_last, given.input.c,
      [&](auto layout) {
        using Layout = decltype(layout);
        call.split = split_for<Layout>(given.input, false);
        launch_split(pool_kernel<Layout, T>, given.input, call, context);
      },
      given.input.data);
}

template <typename T>
void pool_backward(const PoolBackward<T>& given, const Context& context) {
  check_channels(given.d_input);
  PoolBackwardCall<T> call{given, {}};
  with_layout<T>(
      given.channels_last, given.d_input.c,
      [&](auto layout) {
        using Layout = decltype(layout);
        call.split = split_for<Layout>(given.d_input, true);
        launch_split(pool_backward_kernel<Layout, T>, given.d_input, call, context);
      },
      given.d_input.data);
}

}  // namespace
}  // namespace vsegops::dual_warp

#include "operators.h"  // registers them
