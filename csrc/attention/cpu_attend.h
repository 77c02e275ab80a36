// Attention over anchors on a CPU: P pixels over S anchors are P S (Ck + Cv) multiply-adds forward
// and P S (3 Ck + 2 Cv) backward, and compute bounds it. A tile of pixels goes over blocks of
// anchors, so that of the P x S map only a block is ever there, in the caches.
//
// Anchors are packed once a call, for all threads. Pixels are columns: matrices are [C or S, tile].
#pragma once

#include "attention.h"
#include "cpu_softmax.h"

namespace vsegops::attention {
namespace {

constexpr int64_t kForwardBlock = 256;    // anchors
constexpr int64_t kBackwardBlock = 1024;  // where there are more, logits are computed twice
constexpr int64_t kMostChunks = 16;  // of the pixels, whose sums for the anchors are added up last

// The pixels [begin, begin + count) of an image, or its anchors: [C, count].
template <typename T>
Strided<T> channels_of(const Columns<T>& x, int64_t n, int64_t begin) {
  return {x.data + n * x.stride_n + begin * x.stride, x.stride_c, x.stride};
}
// [count, C].
template <typename T>
Strided<T> transposed(const Strided<T>& x) {
  return {x.data, x.column, x.row};
}

// An image's anchors or channels in panels, for each image of the batch.
template <typename F>
struct Packed {
  F* data;
  int64_t rows, depth;

  static int64_t elements(int64_t rows, int64_t depth) { return whole_tiles(rows) * depth; }
  // Rows from `row` on, which has to begin a panel, along the depth from k on.
  Panels<F> from(int64_t n, int64_t row, int64_t k) const {
    return Panels<F>::packed(data + n * elements(rows, depth), depth).from(row, k);
  }
};

// Anchors as rows, or channels.
enum class Rows { kAnchors, kChannels };

template <typename F, typename T>
Packed<F> pack_all(const Columns<const T>& x, Rows which, F* memory) {
  const bool anchors = which == Rows::kAnchors;
  const Packed<F> packed{memory, anchors ? x.size : x.c, anchors ? x.c : x.size};
  const int64_t panels = ceil_div(packed.rows, kTileRows);
  torch::stable::parallel_for(0, x.n * panels, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / panels, row = i % panels * kTileRows;
      const Strided<const T> from = channels_of(x, n, 0);
      pack(anchors ? transposed(from).from(row, 0) : from.from(row, 0),
           std::min<int64_t>(kTileRows, packed.rows - row), packed.depth,
           memory + (n * panels * kTileRows + row) * packed.depth);
    }
  });
  return packed;
}

template <typename F>
Matrix<F> take_matrix(Arena& arena, int64_t rows, int64_t columns) {
  const int64_t pitch = pitch_of<F>(columns);
  return {arena.take<F>(whole_tiles(rows) * pitch), pitch};
}
template <typename F>
int64_t matrix_bytes(int64_t rows, int64_t columns) {
  return whole_tiles(rows) * pitch_of<F>(columns) * sizeof(F) + 64;
}

template <typename T>
void attend(const Attention<T>& call, const Context& context) {
  using F = compute_t<T>;
  const int64_t anchors = call.key.size, pixels = call.query.size;
  const int64_t key_channels = call.key.c, value_channels = call.value.c;
  std::optional<Tensor> held;
  const int64_t keys = call.key.n * Packed<F>::elements(anchors, key_channels);
  const int64_t values = call.key.n * Packed<F>::elements(value_channels, anchors);
  F* const memory = kept_scratch<F, Packed<F>>(keys + values, context, &held);
  const Packed<F> key = pack_all(call.key, Rows::kAnchors, memory);
  const Packed<F> value = pack_all(call.value, Rows::kChannels, memory + keys);

  const int64_t block = std::min(anchors, kForwardBlock);
  // The wider, the longer the runs in memory, as long as every thread has some tiles.
  const int64_t share = call.query.n * pixels / (2 * torch::stable::get_num_threads());
  const int64_t tile = std::clamp<int64_t>(share / kTileWidth<F>, 1, 4) * kTileWidth<F>;
  const int64_t tiles = ceil_div(pixels, tile);
  const bool streamed = call.out.n * call.out.c * pixels * int64_t(sizeof(T)) >= kStreamBytes;
  torch::stable::parallel_for(0, call.query.n * tiles, 1, [&](int64_t first, int64_t last) {
    Arena arena(matrix_bytes<F>(key_channels, tile) + matrix_bytes<F>(block, tile) +
                    matrix_bytes<F>(value_channels, tile) + Softmax<F>::bytes(tile) +
                    tile * sizeof(F) + 64,
                context);
    const Matrix<F> query = take_matrix<F>(arena, key_channels, tile);
    const Matrix<F> weights = take_matrix<F>(arena, block, tile);
    const Matrix<F> out = take_matrix<F>(arena, value_channels, tile);
    const Softmax<F> softmax = Softmax<F>::take(arena, tile, false);
    F* const factor = arena.take<F>(tile);
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / tiles, begin = i % tiles * tile;
      const int64_t count = std::min(tile, pixels - begin), width = whole_vectors<F>(count);
      load_matrix(channels_of(call.query, n, begin), key_channels, count, query);
      scale_all(query, key_channels, width, static_cast<F>(call.scale));
      softmax.clear(width);
      for (int64_t s = 0; s < anchors; s += block) {
        const int64_t some = std::min(block, anchors - s);
        multiply(key.from(n, s, 0), some, key_channels, query, width, weights, false);
        exponentiate(weights, some, width, softmax, factor);
        if (s > 0) scale_columns(out, value_channels, width, factor);
        multiply(value.from(n, 0, s), value_channels, some, weights, width, out, s > 0);
      }
      for (int64_t j = 0; j < width; ++j) factor[j] = 1 / softmax.sum[j];
      scale_columns(out, value_channels, width, factor);
      store_matrix(out, value_channels, count, channels_of(call.out, n, begin), streamed);
    }
    if (streamed) stream_fence();
  });
}

// ---- Backward ----

// A tile of pixels; what it needs depends on the gradients that are wanted.
template <typename T>
class BackwardTile {
  using F = compute_t<T>;

 public:
  static int64_t bytes(const AttentionBackward<T>& call, int64_t tile, int64_t block) {
    const int64_t ck = call.key.c, cv = call.value.c;
    return 2 * matrix_bytes<F>(ck, tile) + matrix_bytes<F>(cv, tile) + matrix_bytes<F>(tile, ck) +
           matrix_bytes<F>(tile, cv) + 2 * matrix_bytes<F>(block, tile) + Softmax<F>::bytes(tile);
  }

  BackwardTile(const AttentionBackward<T>& call, const Packed<F>& key, const Packed<F>& value,
               const Packed<F>& key_channels, int64_t tile, int64_t block, Arena& arena)
      : call_(call),
        key_(key),
        value_(value),
        key_channels_(key_channels),
        block_(block),
        scores_(call.d_query.data || call.d_key.data),
        query_(take_matrix<F>(arena, call.key.c, tile)),
        query_rows_(take_matrix<F>(arena, tile, call.key.c)),
        grad_(take_matrix<F>(arena, call.value.c, tile)),
        grad_rows_(take_matrix<F>(arena, tile, call.value.c)),
        d_query_(take_matrix<F>(arena, call.key.c, tile)),
        weights_(take_matrix<F>(arena, block, tile)),
        d_weights_(take_matrix<F>(arena, block, tile)),
        softmax_(Softmax<F>::take(arena, tile, scores_)) {}

  // Adds to d_key and d_value, [S, C], if `add`; writes them otherwise.
  void run(int64_t n, int64_t begin, int64_t count, const Matrix<F>& d_key,
           const Matrix<F>& d_value, bool add) {
    const int64_t anchors = call_.key.size, ck = call_.key.c, cv = call_.value.c;
    const int64_t width = whole_vectors<F>(count);
    const F scale = static_cast<F>(call_.scale);
    const Strided<const T> query = channels_of(call_.query, n, begin);
    const Strided<const T> grad = channels_of(call_.grad, n, begin);
    load_matrix(query, ck, count, query_);
    scale_all(query_, ck, width, scale);
    if (scores_) load_matrix(grad, cv, count, grad_);
    if (call_.d_key.data) {
      load_matrix(transposed(query), count, ck, query_rows_);
      scale_all(query_rows_, count, ck, scale);
    }
    if (call_.d_value.data) load_matrix(transposed(grad), count, cv, grad_rows_);

    softmax_.clear(width);
    for (int64_t s = 0; s < anchors; s += block_) {
      const int64_t some = std::min(block_, anchors - s);
      similarities(n, s, some, width);
      survey(weights_, d_weights_, some, width, softmax_);
    }
    for (int64_t s = 0; s < anchors; s += block_) {
      const int64_t some = std::min(block_, anchors - s);
      if (anchors > block_) similarities(n, s, some, width);
      resolve(weights_, d_weights_, some, width, softmax_);
      if (call_.d_query.data) {
        multiply(key_channels_.from(n, 0, s), ck, some, d_weights_, width, d_query_, s > 0);
      }
      if (call_.d_key.data) {
        multiply(RowMajor<F>(d_weights_), some, count, query_rows_, ck, d_key.from(s, 0), add);
      }
      if (call_.d_value.data) {
        multiply(RowMajor<F>(weights_), some, count, grad_rows_, cv, d_value.from(s, 0), add);
      }
    }
    if (call_.d_query.data) {
      scale_all(d_query_, ck, width, scale);
      store_matrix(d_query_, ck, count, channels_of(call_.d_query, n, begin));
    }
  }

 private:
  void similarities(int64_t n, int64_t s, int64_t some, int64_t width) {
    multiply(key_.from(n, s, 0), some, call_.key.c, query_, width, weights_, false);
    if (!scores_) return;
    multiply(value_.from(n, s, 0), some, call_.value.c, grad_, width, d_weights_, false);
  }

  const AttentionBackward<T>& call_;
  const Packed<F> key_, value_, key_channels_;  // the last with channels as rows
  const int64_t block_;
  const bool scores_;  // whether gradients of the logits are needed
  const Matrix<F> query_, query_rows_, grad_, grad_rows_, d_query_, weights_, d_weights_;
  const Softmax<F> softmax_;
};

// Adds up what the chunks have for the anchors, [S, C] each, in their order.
template <typename T, typename F>
void reduce(const F* sums, int64_t chunks, int64_t step, int64_t pitch, const Columns<T>& out) {
  constexpr int64_t kRows = 64;
  const int64_t blocks = ceil_div(out.size, kRows);
  torch::stable::parallel_for(0, out.n * blocks, 1, [&](int64_t first, int64_t last) {
    Arena arena(kRows * pitch * sizeof(F));
    const Matrix<F> total{arena.take<F>(kRows * pitch), pitch};
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / blocks, begin = i % blocks * kRows;
      const int64_t rows = std::min(kRows, out.size - begin);
      const F* const from = sums + n * chunks * step + begin * pitch;
      for (int64_t j = 0; j < rows * pitch; j += kLanes<F>) {
        Vector<F> sum{};
        for (int64_t k = 0; k < chunks; ++k) sum += load(from + k * step + j);
        store(sum, total.data + j);
      }
      store_matrix(total, rows, out.c, transposed(channels_of(out, n, begin)));
    }
  });
}

template <typename T>
void attend_backward(const AttentionBackward<T>& call, const Context& context) {
  using F = compute_t<T>;
  const int64_t anchors = call.key.size, pixels = call.query.size, images = call.query.n;
  const int64_t ck = call.key.c, cv = call.value.c;
  const bool scores = call.d_query.data || call.d_key.data;
  // Two widths of a tile, so that anchors' sums are loaded and stored less often.
  const int64_t tile = 2 * kTileWidth<F>, block = std::min(anchors, kBackwardBlock);
  const int64_t tiles = ceil_div(pixels, tile);
  // The sums of all chunks take at most some times the memory of query and gradient.
  const int64_t most =
      std::min({ceil_div(kMostChunks, std::max<int64_t>(1, images)), tiles, 4 * pixels / anchors});
  const int64_t chunks = tiles == 0 ? 0 : std::max<int64_t>(1, most);
  const int64_t key_pitch = pitch_of<F>(ck), value_pitch = pitch_of<F>(cv);
  const int64_t key_step = call.d_key.data ? whole_tiles(anchors) * key_pitch : 0;
  const int64_t value_step = call.d_value.data ? whole_tiles(anchors) * value_pitch : 0;

  const int64_t packed_keys = images * Packed<F>::elements(anchors, ck);
  const int64_t packed_values = scores ? images * Packed<F>::elements(anchors, cv) : 0;
  const int64_t packed_channels = call.d_query.data ? images * Packed<F>::elements(ck, anchors) : 0;
  const int64_t packed = packed_keys + packed_values + packed_channels;
  std::optional<Tensor> held, held_sums;
  F* memory = kept_scratch<F, Packed<F>>(packed, context, &held);
  const Packed<F> key = pack_all(call.key, Rows::kAnchors, memory);
  Packed<F> value{}, key_channels{};
  if (scores) value = pack_all(call.value, Rows::kAnchors, memory + packed_keys);
  if (call.d_query.data) {
    key_channels = pack_all(call.key, Rows::kChannels, memory + packed_keys + packed_values);
  }
  F* const d_keys = kept_scratch<F, BackwardTile<T>>(images * chunks * (key_step + value_step),
                                                     context, &held_sums);
  F* const d_values = d_keys + images * chunks * key_step;

  torch::stable::parallel_for(0, images * chunks, 1, [&](int64_t first, int64_t last) {
    Arena arena(BackwardTile<T>::bytes(call, tile, block), context);
    BackwardTile<T> worker(call, key, value, key_channels, tile, block, arena);
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / chunks, chunk = i % chunks;
      const int64_t from = chunk * tiles / chunks, to = (chunk + 1) * tiles / chunks;
      for (int64_t k = from; k < to; ++k) {
        worker.run(n, k * tile, std::min(tile, pixels - k * tile),
                   {d_keys + i * key_step, key_pitch}, {d_values + i * value_step, value_pitch},
                   k > from);
      }
    }
  });
  if (call.d_key.data) reduce(d_keys, chunks, key_step, key_pitch, call.d_key);
  if (call.d_value.data) reduce(d_values, chunks, value_step, value_pitch, call.d_value);
}

}  // namespace
}  // namespace vsegops::attention
