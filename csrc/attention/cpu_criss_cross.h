// Criss-cross attention on a CPU: P pixels over H + W positions are P (H + W) (Ck + Cv)
// multiply-adds forward. Backward, logits and the gradients of weights are needed before and after
// the softmax is known: P (2 W + H) (Ck + Cv), and P (H + W) (2 Ck + Cv) for the gradients. Compute
// bounds both.
//
// Along a line, pixels and positions are the same, and their map stays in the caches: positions are
// its rows. What the softmax knows of a pixel's row is kept, and its column completes it.
#pragma once

#include "attention.h"
#include "cpu_lines.h"
#include "cpu_softmax.h"

namespace vsegops::attention {
namespace {

// What the softmax knows of every pixel: largest, sum and d_sum, one array after the other.
template <typename F>
struct SoftmaxImages {
  F* data;
  int64_t plane, pixels;  // of an image, and of all

  void load(const Bundle& lines, int64_t i, const Softmax<F>& to) const {
    each(lines, i, to, [](F& here, F& there) { there = here; });
  }
  void store(const Bundle& lines, int64_t i, const Softmax<F>& from) const {
    each(lines, i, from, [](F& here, F& there) { here = there; });
  }

 private:
  template <typename Move>
  void each(const Bundle& lines, int64_t i, const Softmax<F>& line, const Move& move) const {
    F* here = data + lines.n * plane + lines.pixel(i);
    for (F* there : {line.largest, line.sum, line.d_sum}) {
      for (int64_t k = 0; there && k < lines.direction.length; ++k) {
        move(here[k * lines.direction.along], there[k]);
      }
      here += pixels;
    }
  }
};

// What a call is about, per image. Sums in F stand for outputs, in which they may not be exact
// enough, or are these.
template <typename T>
struct CrissCrossImages {
  Images<const T> query, key, value, grad;

  template <typename Call>
  explicit CrissCrossImages(const Call& call)
      : query(call.query, call.channels_last),
        key(call.key, call.channels_last),
        value(call.value, call.channels_last) {}
};

// Scratch memory for the lines of a direction, and what is done with them.
template <typename T>
class LineWorker {
  using F = compute_t<T>;

 public:
  static int64_t bytes(const Direction& direction, int64_t lines, bool gradients) {
    const int64_t length = direction.length, width = whole_vectors<F>(length);
    return Maps<F>::bytes(lines, kChunk, length) + 2 * Maps<F>::bytes(lines, length, kChunk) +
           (gradients ? 2 : 1) * Maps<F>::bytes(lines, length, length) + Softmax<F>::bytes(width) +
           lines * width * sizeof(F) + 64;
  }

  LineWorker(const Direction& direction, int64_t lines, const CrissCrossImages<T>& of,
             const SoftmaxImages<F>& known, bool gradients, Arena& arena)
      : columns_(direction.columns),
        length_(direction.length),
        width_(whole_vectors<F>(length_)),
        of_(of),
        known_(known),
        by_channel_(Maps<F>::take(arena, lines, kChunk, length_)),
        by_position_(Maps<F>::take(arena, lines, length_, kChunk)),
        out_(Maps<F>::take(arena, lines, length_, kChunk)),
        weights_(Maps<F>::take(arena, lines, length_, length_)),
        d_weights_(gradients ? Maps<F>::take(arena, lines, length_, length_) : Maps<F>{}),
        softmax_(Softmax<F>::take(arena, width_, gradients)),
        factor_(arena.take<F>(lines * width_)) {
    softmax_.clear(width_);
  }

  // Rows: `sums` become those of exp(logit - largest) * value.
  void begin(const Bundle& lines, const Images<F>& sums) const {
    correlate(lines, of_.key, of_.query, weights_);
    for (int64_t i = 0; i < lines.count; ++i) {
      softmax_.clear(width_);
      exponentiate(weights_[i], length_, width_, softmax_, factor_);
      known_.store(lines, i, softmax_);
    }
    spread(lines, to_pixels(weights_), of_.value, Images<const F>(), nullptr, sums);
  }

  // Columns: from what the rows have left to the output.
  void complete(const Bundle& lines, const Images<F>& sums, const Images<T>& out) const {
    correlate(lines, of_.key, of_.query, weights_);
    for (int64_t i = 0; i < lines.count; ++i) {
      F* const factor = factor_ + i * width_;
      known_.load(lines, i, softmax_);
      exclude(weights_[i]);
      exponentiate(weights_[i], length_, width_, softmax_, factor);
      set_diagonal(weights_[i], 0);
      for (int64_t p = 0; p < width_; ++p) {
        softmax_.sum[p] = 1 / softmax_.sum[p];
        factor[p] *= softmax_.sum[p];
      }
      scale_columns(weights_[i], length_, width_, softmax_.sum);
    }
    spread(lines, to_pixels(weights_), of_.value, sums, factor_, out);
  }

  // Logits and, for the gradients of queries and keys, the gradients of weights.
  void compare(const Bundle& lines) const {
    correlate(lines, of_.key, of_.query, weights_);
    if (columns_) {
      for (int64_t i = 0; i < lines.count; ++i) exclude(weights_[i]);
    }
    if (d_weights_.data) correlate(lines, of_.value, of_.grad, d_weights_);
  }

  // After `compare`: the softmax comes to know these lines.
  void survey(const Bundle& lines) const {
    for (int64_t i = 0; i < lines.count; ++i) {
      known_.load(lines, i, softmax_);
      attention::survey(weights_[i], d_weights_[i], length_, width_, softmax_);
      known_.store(lines, i, softmax_);
    }
  }

  // After `compare`, once the softmax knows all lines: what they add to the gradients.
  template <typename Out>
  void differentiate(const Bundle& lines, const Images<F> (&before)[3],
                     const Images<Out> (&gradients)[3]) const {
    for (int64_t i = 0; i < lines.count; ++i) {
      known_.load(lines, i, softmax_);
      resolve(weights_[i], d_weights_[i], length_, width_, softmax_);
      if (!columns_) continue;
      set_diagonal(weights_[i], 0);
      if (d_weights_.data) set_diagonal(d_weights_[i], 0);
    }
    const auto add = [&](int k, const auto& left, const Images<const T>& x) {
      if (gradients[k].data) spread(lines, left, x, before[k], nullptr, gradients[k]);
    };
    add(0, to_pixels(d_weights_), of_.key);
    add(1, to_positions(d_weights_), of_.query);
    add(2, to_positions(weights_), of_.grad);
  }

 private:
  // A pixel's column does not have the pixel itself.
  void exclude(const Matrix<F>& logits) const {
    set_diagonal(logits, -std::numeric_limits<F>::infinity());
  }
  void set_diagonal(const Matrix<F>& map, F value) const {
    for (int64_t i = 0; i < length_; ++i) map.row(i)[i] = value;
  }

  // map[s][p] = (channels of `position` at s) . (channels of `pixel` at p)
  void correlate(const Bundle& lines, const Images<const T>& position, const Images<const T>& pixel,
                 const Maps<F>& map) const {
    for (int64_t c = 0; c == 0 || c < position.channels; c += kChunk) {
      const int64_t channels = std::min(kChunk, position.channels - c);
      lines.load_positions(position, c, channels, by_position_);
      lines.load_channels(pixel, c, channels, by_channel_);
      for (int64_t i = 0; i < lines.count; ++i) {
        multiply(RowMajor<F>(by_position_[i]), length_, channels, by_channel_[i], width_, map[i],
                 c > 0);
      }
    }
  }

  // The left factor of `spread` for line i.
  static auto to_pixels(const Maps<F>& map) {
    return [map](int64_t i) { return Panels<F>::transposed(map[i]); };
  }
  static auto to_positions(const Maps<F>& map) {
    return [map](int64_t i) { return RowMajor<F>(map[i]); };
  }

  // out(p) = before(p) * factor(p) + sum over s of left(p, s) * x(s), both of one line. Without
  // data, `before` is 0; `factor` may be null.
  template <typename Left, typename Out>
  void spread(const Bundle& lines, const Left& left, const Images<const T>& x,
              const Images<const F>& before, const F* factor, const Images<Out>& out) const {
    for (int64_t c = 0; c < x.channels; c += kChunk) {
      const int64_t channels = std::min(kChunk, x.channels - c);
      lines.load_positions(x, c, channels, by_position_);
      if (before.data) lines.load_positions(before, c, channels, out_);
      for (int64_t i = 0; i < lines.count; ++i) {
        for (int64_t p = 0; factor && p < length_; ++p) {
          scale_all(out_[i].from(p, 0), 1, channels, factor[i * width_ + p]);
        }
        multiply(left(i), length_, length_, by_position_[i], channels, out_[i],
                 before.data != nullptr);
      }
      lines.store_positions(out_, out, c, channels);
    }
  }

  const bool columns_;
  const int64_t length_, width_;
  const CrissCrossImages<T>& of_;
  const SoftmaxImages<F>& known_;
  const Maps<F> by_channel_, by_position_, out_, weights_, d_weights_;
  const Softmax<F> softmax_;
  F* const factor_;
};

// Calls `run(worker, lines)` for all lines of a direction of `like`, in parallel.
template <typename T, typename Run>
void for_lines(const View<const T>& like, bool columns, bool channels_last,
               const CrissCrossImages<T>& of, const SoftmaxImages<compute_t<T>>& known,
               bool gradients, const Context& context, const Run& run) {
  const Direction direction(like, columns);
  const int64_t size = Bundle::size<compute_t<T>>(direction, channels_last);
  const int64_t bundles = ceil_div(direction.lines, size);
  torch::stable::parallel_for(0, like.n * bundles, 1, [&](int64_t first, int64_t last) {
    Arena arena(LineWorker<T>::bytes(direction, size, gradients), context);
    const LineWorker<T> worker(direction, size, of, known, gradients, arena);
    for (int64_t i = first; i < last; ++i) {
      const int64_t line = i % bundles * size;
      run(worker, Bundle{direction, i / bundles, line, std::min(size, direction.lines - line)});
    }
  });
}

// Sums for `out` in F: there, or in memory of their own.
template <typename F, typename T>
Images<F> sums_of(const View<T>& out, bool channels_last, F** memory) {
  if (!out.data) return {};
  if constexpr (std::is_same_v<T, F>) {
    return {out, channels_last};
  } else {
    F* const sums = *memory;
    *memory += out.n * out.c * out.h * out.w;
    return {sums, out, channels_last};
  }
}
template <typename F, typename T>
int64_t sums_elements(const View<T>& out) {
  return std::is_same_v<T, F> || !out.data ? 0 : out.n * out.c * out.h * out.w;
}

template <typename T>
void criss_cross(const CrissCross<T>& call, const Context& context) {
  using F = compute_t<T>;
  const bool last = call.channels_last;
  const int64_t plane = call.query.h * call.query.w, pixels = call.query.n * plane;
  std::optional<Tensor> held;
  F* memory = kept_scratch<F, Direction>(2 * pixels + sums_elements<F>(call.out), context, &held);
  const SoftmaxImages<F> known{memory, plane, pixels};
  memory += 2 * pixels;
  const Images<F> sums = sums_of<F>(call.out, last, &memory);
  const Images<T> out(call.out, last);
  const CrissCrossImages<T> of(call);
  for_lines(call.query, false, last, of, known, false, context,
            [&](const auto& worker, const Bundle& lines) { worker.begin(lines, sums); });
  for_lines(call.query, true, last, of, known, false, context,
            [&](const auto& worker, const Bundle& lines) { worker.complete(lines, sums, out); });
}

template <typename T>
void criss_cross_backward(const CrissCrossBackward<T>& call, const Context& context) {
  using F = compute_t<T>;
  const bool last = call.channels_last, scores = call.d_query.data || call.d_key.data;
  const int64_t plane = call.query.h * call.query.w, pixels = call.query.n * plane;
  const View<T>* const outputs[] = {&call.d_query, &call.d_key, &call.d_value};
  int64_t elements = 3 * pixels;
  for (const View<T>* x : outputs) elements += sums_elements<F>(*x);
  std::optional<Tensor> held;
  F* memory = kept_scratch<F, Direction>(elements, context, &held);
  const SoftmaxImages<F> known{memory, plane, pixels};
  memory += 3 * pixels;
  Softmax<F>{memory - 3 * pixels, memory - 2 * pixels, memory - pixels}.clear(pixels);
  Images<F> sums[3];
  Images<T> gradients[3];
  for (int k = 0; k < 3; ++k) {
    sums[k] = sums_of<F>(*outputs[k], last, &memory);
    gradients[k] = outputs[k]->data ? Images<T>(*outputs[k], last) : Images<T>();
  }
  CrissCrossImages<T> of(call);
  of.grad = Images<const T>(call.grad, last);
  const auto for_direction = [&](bool columns, const auto& run) {
    for_lines(call.query, columns, last, of, known, scores, context, run);
  };
  for_direction(false, [&](const auto& worker, const Bundle& lines) {
    worker.compare(lines);
    worker.survey(lines);
  });
  for_direction(true, [&](const auto& worker, const Bundle& lines) {
    worker.compare(lines);
    worker.survey(lines);
    worker.differentiate(lines, {}, sums);
  });
  for_direction(false, [&](const auto& worker, const Bundle& lines) {
    worker.compare(lines);
    worker.differentiate(lines, sums, gradients);
  });
}

}  // namespace
}  // namespace vsegops::attention
