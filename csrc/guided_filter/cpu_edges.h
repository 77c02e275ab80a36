// The edges of the label map on a CPU: 4 C bytes a pixel of float32 for as many comparisons, so
// that memory bounds it. Labels are kept for a few rows only.
#pragma once

#include "cpu_filter.h"

namespace vsegops::guided_filter {
namespace {

// The best class so far of some pixels, as torch.argmax has it: the lowest of equals and, as NaN is
// above all, the first NaN.
template <typename F>
class Best {
 public:
  VSEGOPS_HD void offer(Vector<F> other, int64_t c) {
    const Index better = c == 0 ? ~Index{} : ~(other <= value_) & (value_ == value_);
    value_ = better ? other : value_;
    index_ = better ? Index{} + static_cast<Integer>(c) : index_;
  }
  VSEGOPS_HD void write(int64_t count, int32_t* labels) const {
    for (int64_t i = 0; i < count; ++i) labels[i] = static_cast<int32_t>(index_[i]);
  }

 private:
  using Integer = std::conditional_t<sizeof(F) == 8, int64_t, int32_t>;
  using Index = Vector<Integer>;
  Vector<F> value_{};
  Index index_{};
};

// The labels of a row: its elements stand `channel` and `pixel` apart.
template <typename F, typename T>
void label_row(const T* row, int64_t channel, int64_t pixel, int64_t classes, int64_t width,
               bool channels_last, int32_t* labels) {
  for_vectors<F>(width, [&](int64_t x, int64_t pixels, int64_t) {
    Best<F> best;
    if (channels_last) {
      for_vectors<F>(classes, [&](int64_t c, int64_t lanes, int64_t done) {
        Vector<F> block[kLanes<F>] = {};
        for (int64_t i = 0; i < pixels; ++i) {
          block[i] = load_some<F>(row + (x + i) * pixel + c, lanes);
        }
        transpose<F>(block);
        for (int64_t i = done; i < lanes; ++i) best.offer(block[i], c + i);
      });
    } else {
      for (int64_t c = 0; c < classes; ++c) {
        best.offer(load_some<F>(row + c * channel + x, pixels), c);
      }
    }
    best.write(pixels, labels + x);
  });
}

// The response of the Laplacian to three rows of labels; `scratch` has room for a padded row.
template <typename F, typename T>
void edge_row(const int32_t* above, const int32_t* here, const int32_t* below, int64_t width,
              bool sigmoid, F* scratch, T* out) {
  for (int64_t x = 0; x < width; ++x) {
    int32_t sum = -9 * here[x];
    for (int dx = -1; dx <= 1; ++dx) sum += above[x + dx] + here[x + dx] + below[x + dx];
    scratch[x] = static_cast<F>(sum);
  }
  for_vectors<F>(width, [&](int64_t x, int64_t count, int64_t) {
    const Vector<F> laplacian = load(scratch + x), one = Vector<F>{} + F(1);
    const Vector<F> value =
        sigmoid ? one / (one + exp(-laplacian)) : (laplacian != F(0) ? one : Vector<F>{});
    store_some<F>(value, out + x, count);
  });
}

template <typename T, typename F, typename Flow>
void edges(const Edges<T, F, Flow>& call, const Context& context) {
  using Reading = Reader<T, F, Flow>;
  const View<const T>& x = call.source.logits;
  check_plane(x.h, x.w);
  const bool channels_last = call.source.channels_last, sampled = call.source.flow.data;
  const int64_t step = kSampledStep;
  const typename Rows<F>::Sizes source_sizes{sampled ? x.c : 0, x.h, x.w, 0, 0, step,
                                             channels_last};
  const Rows<int32_t>::Sizes label_sizes{1, x.h, x.w, 1, 1, step, false};
  for_bands(x.n, x.h, step, [&](const auto& for_each_band) {
    Arena arena(source_sizes.bytes() + label_sizes.bytes() + Reading::bytes(call.source, step) +
                    (x.w + 2 * kLanes<F>)*sizeof(F) + 64,
                context);
    const Rows<F> source(arena, source_sizes);
    Rows<int32_t> labels(arena, label_sizes);
    const Reading reader(arena, call.source, step);
    F* const scratch = arena.take<F>(x.w + kLanes<F>);
    for_each_band([&](int64_t n, int64_t begin, int64_t end) {
      labels.restart(begin);
      for (int64_t y = begin; y < end; y += step) {
        labels.advance(y, [&](int64_t a, int64_t b) {
          if (sampled) reader.fill(n, a, b, source);
          for (int64_t i = a; i < b; ++i) {
            if (sampled) {
              label_row<F>(source.row(i), source.channel, source.pixel, x.c, x.w, channels_last,
                           labels.place(i));
            } else {
              const Lines<const T> line(x, channels_last, n, i);
              label_row<F>(line.data, line.channel, line.pixel, x.c, x.w, channels_last,
                           labels.place(i));
            }
          }
        });
        for (int64_t i = y; i < std::min(y + step, end); ++i) {
          edge_row(labels.row(i - 1), labels.row(i), labels.row(i + 1), x.w, call.sigmoid, scratch,
                   Lines<T>(call.out, false, n, i).data);
        }
      }
    });
  });
}

}  // namespace
}  // namespace vsegops::guided_filter
