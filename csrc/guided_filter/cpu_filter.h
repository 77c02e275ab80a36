// Forward and backward of the filter on a CPU.
//
// For C classes, K guide channels and P pixels of float32 the forward moves (3 C + K) 4 P bytes for
// K C P multiply-adds: 0.7 of them a byte for 19 classes and 10 channels. The backward moves about
// twice that for twice the operations. Memory bounds both if what a row of the output reaches of S
// (and of grad, which is read in the same manner) stays in the level 2 cache, and the weights of
// some pixels in registers, over all classes.
//
// Bands of rows run in parallel. No result depends on where a band begins.
#pragma once

#include "cpu_loops.h"
#include "cpu_weights.h"

namespace vsegops::guided_filter {
namespace {

// Rows that are read at a time: what is sampled shares the rows that it touches.
constexpr int64_t kPlainStep = 2, kSampledStep = 8;

// The rows of some images, shared out: `run(n, begin, end)`, in whole steps.
template <typename Run>
void for_bands(int64_t images, int64_t height, int64_t step, const Run& run) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t steps = ceil_div(height, step);
  const int64_t bands = std::min(steps, ceil_div(threads, images));
  const int64_t rows = ceil_div(steps, bands) * step;
  torch::stable::parallel_for(0, images * bands, 1, [&](int64_t first, int64_t last) {
    run([&](const auto& body) {
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = k % bands * rows;
        if (begin < height) body(k / bands, begin, std::min(begin + rows, height));
      }
    });
  });
}

template <typename Call>
int64_t step_of(const Call& call) {
  return call.source.flow.data ? kSampledStep : kPlainStep;
}

template <typename F, typename Call>
typename Rows<F>::Sizes sizes_of(const Call& call, int64_t channels, bool reached,
                                 bool channels_last) {
  const auto& x = call.guide;
  return {channels,
          x.h,
          x.w,
          reached ? call.stencil.reach_y : 0,
          reached ? call.stencil.reach_x : 0,
          step_of(call),
          channels_last};
}

// Calls `run` with the window of a stencil.
template <typename Run>
void with_window(const Stencil& stencil, const Run& run) {
  switch (stencil.shape) {
    case Shape::kWindow3: return run(Window3());
    case Shape::kWindow5: return run(Window5());
    case Shape::kOther:
      return run(AnyWindow{stencil.offsets.data(), static_cast<int>(stencil.offsets.size())});
  }
}

// The output rows [y, end), one or some at a time.
template <bool Adjoint, typename F, typename Window, typename T, typename U>
void filter_rows(const Window& window, const View<const T>& intra, const View<U>& out,
                 bool channels_last, bool streamed, int64_t n, int64_t y, int64_t end,
                 const Rows<F>& source, const Rows<F>& weights) {
  const auto run = [&](auto rows, auto stream) {
    filter_planes<Adjoint, rows(), stream()>(window, out.c, out.w, y, source, weights,
                                             Lines<const T>(intra, channels_last, n, y),
                                             Lines<U>(out, channels_last, n, y));
    y += rows();
  };
  const auto in_steps = [&](auto stream) {
    using Together = std::integral_constant<int, kRowsAtOnce<Window>>;
    while (y + Together() <= end) run(Together(), stream);
    while (y < end) run(std::integral_constant<int, 1>(), stream);
  };
  if (channels_last) {
    for (; y < end; ++y) {
      filter_pixels<Adjoint>(window, out.c, out.w, y, source, weights,
                             Lines<const T>(intra, channels_last, n, y),
                             Lines<U>(out, channels_last, n, y));
    }
    return;
  }
  if constexpr (kFixed<Window> && std::is_same_v<U, F>) {
    if (streamed) return in_steps(std::true_type());
  }
  in_steps(std::false_type());
}

// Whether to write past the caches: whole vectors, of a call that moves more than they hold.
template <typename T, typename Call>
bool is_streamed(const Call& call, const View<T>& out) {
  const int64_t moved = (3 * out.c + call.guide.c) * out.n * out.h * out.w * int64_t(sizeof(T));
  return moved >= kStreamBytes && is_aligned(out.data) && out.w * sizeof(T) % kVectorBytes == 0;
}

template <typename T, typename F, typename Flow>
void forward(const Forward<T, F, Flow>& call, const Context& context) {
  check_plane(call.out.h, call.out.w);
  using Reading = Reader<T, F, Flow>;
  const bool channels_last = call.source.channels_last;
  const bool streamed = is_streamed(call, call.out);
  const int64_t step = step_of(call);
  const auto source_sizes = sizes_of<F>(call, call.out.c, true, channels_last);
  const auto weight_sizes = sizes_of<F>(call, call.guide.c + 1, false, false);
  for_bands(call.out.n, call.out.h, step, [&](const auto& for_each_band) {
    Arena arena(source_sizes.bytes() + weight_sizes.bytes() + Reading::bytes(call.source, step),
                context);
    Rows<F> source(arena, source_sizes), weights(arena, weight_sizes);
    const Reading reader(arena, call.source, step);
    const Weights<T, F> weigher(call);
    for_each_band([&](int64_t n, int64_t begin, int64_t end) {
      source.restart(begin);
      weights.restart(begin);
      for (int64_t y = begin; y < end; y += step) {
        source.advance(y, [&](int64_t a, int64_t b) { reader.fill(n, a, b, source); });
        weights.advance(y, [&](int64_t a, int64_t b) { weigher.fill(n, a, b, weights); });
        with_window(call.stencil, [&](const auto& window) {
          filter_rows<false>(window, call.intra, call.out, channels_last, streamed, n, y,
                             std::min(y + step, end), source, weights);
        });
      }
    });
    if (streamed) stream_fence();
  });
}

// `d_source`: the one of d_logits and d_source that is wanted.
template <typename U, typename T, typename F, typename Flow>
void filter_backward(const Backward<T, F, Flow>& call, const View<U>& d_source,
                     const Context& context) {
  using Reading = Reader<T, F, Flow>;
  const bool channels_last = call.source.channels_last;
  const int64_t step = step_of(call), classes = call.grad.c, width = call.grad.w;
  const auto source_sizes = sizes_of<F>(call, classes, true, channels_last);
  const auto grad_sizes = sizes_of<F>(call, classes, d_source.data, channels_last);
  const auto weight_sizes = sizes_of<F>(call, call.guide.c + 1, d_source.data, false);
  const bool streamed = d_source.data && !call.source.flow.data && is_streamed(call, d_source);
  const int64_t pitch = weight_sizes.pitch();
  for_bands(call.guide.n, call.guide.h, step, [&](const auto& for_each_band) {
    Arena arena(source_sizes.bytes() + grad_sizes.bytes() + weight_sizes.bytes() +
                    (call.guide.c * pitch + 64) * sizeof(F) + Reading::bytes(call.source, step),
                context);
    Rows<F> source(arena, source_sizes), grad(arena, grad_sizes), weights(arena, weight_sizes);
    F* const products = arena.take<F>(call.guide.c * pitch);
    const Reading reader(arena, call.source, step);
    const Weights<T, F> weigher(call);
    const Plain<T, F> incoming(call.grad, channels_last);
    const auto count = static_cast<int64_t>(call.stencil.offsets.size());
    for_each_band([&](int64_t n, int64_t begin, int64_t end) {
      source.restart(begin);
      grad.restart(begin);
      weights.restart(begin);
      for (int64_t y = begin; y < end; y += step) {
        const int64_t last = std::min(y + step, end);
        grad.advance(y, [&](int64_t a, int64_t b) { incoming.fill(n, a, b, grad); });
        weights.advance(y, [&](int64_t a, int64_t b) { weigher.fill(n, a, b, weights); });
        if (call.d_guide.data) {
          source.advance(y, [&](int64_t a, int64_t b) { reader.fill(n, a, b, source); });
        }
        for (int64_t i = y; call.d_intra.data && i < last; ++i) {
          scale_row(classes, width, channels_last, grad, grad.row(i),
                    weights.row(i) + count * weights.channel,
                    Lines<T>(call.d_intra, channels_last, n, i));
        }
        with_window(call.stencil, [&](const auto& window) {
          if (d_source.data) {
            filter_rows<true>(window, call.intra, d_source, channels_last, streamed, n, y, last,
                              grad, weights);
          }
          for (int64_t i = y; call.d_guide.data && i < last; ++i) {
            const Lines<const T> intra(call.intra, channels_last, n, i);
            if (channels_last) {
              multiply_pixels(window, classes, width, i, grad, source, intra, pitch, products);
            } else {
              multiply_planes(window, classes, width, i, grad, source, intra, pitch, products);
            }
            std::fill_n(products + (count + 1) * pitch, (call.guide.c - count - 1) * pitch, F(0));
            weigher.backward(n, i, weights.row(i), pitch, products, call.d_guide);
          }
        });
      }
    });
    if (streamed) stream_fence();
  });
}

template <typename T, typename F, typename Flow>
void backward(const Backward<T, F, Flow>& call, const Context& context) {
  check_plane(call.guide.h, call.guide.w);
  if (call.d_source.data) {
    filter_backward(call, call.d_source, context);
  } else {
    filter_backward(call, call.d_logits, context);
  }
}

}  // namespace
}  // namespace vsegops::guided_filter
