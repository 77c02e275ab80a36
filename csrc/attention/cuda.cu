// The attention family on a GPU: launches. See cuda_attend.h and cuda_pool.h for the kernels,
// cuda_pool_launch.h for the launches of the latter.
#include <optional>
#include <utility>

#include "cuda_attend.h"
#include "cuda_pool_launch.h"

namespace vsegops::attention {
namespace {

// ---- Attention ----

template <typename T>
Call<T> call_for(double scale) {
  Call<T> call{};
  call.lines = 1;
  call.scale = static_cast<compute_t<T>>(scale);
  return call;
}

// `slices`: among how many blocks the right items are shared out.
template <typename M, typename T>
void attend(M, Call<T> call, int64_t images, const Context& context, int64_t slices = 1) {
  using F = compute_t<T>;
  const auto& [left, right] = call.items;
  const auto chunks = [](int32_t channels) { return ceil_div(channels, kDepth<T>); };
  const int held =
      chunks(left[kForScores].channels) + (M::kSlopes ? chunks(left[kForSlopes].channels) : 0);
  call.left_tiles = ceil_div(left[kForScores].items, kItems);
  call.slice =
      static_cast<int32_t>(ceil_div<int64_t>(ceil_div(right[kForScores].items, kItems), slices));
  call.holds_left = held <= kMostHeld;
  const int64_t tiles = images * call.lines * call.left_tiles;
  const int64_t parts = M::kSums ? ceil_div(call.out.channels, kSummed<T>) : 1;
  if (tiles == 0 || parts == 0) return;
  STD_TORCH_CHECK(tiles < int64_t(1) << 31 && parts <= kGridLimit, "expected fewer than 2^31 tiles",
                  " of ", kItems, " pixels and at most ", kGridLimit * kSummed<T>,
                  " channels, got ", tiles, " and ", call.out.channels);
  const size_t shared = (kStages + (call.holds_left ? held : kStages)) * kChunk<T> * sizeof(T) +
                        kStates<M> * sizeof(State<F>) +
                        kThreads / 32 * Products<T>::kWeightElements * sizeof(F);
  const dim3 grid(static_cast<uint32_t>(tiles), static_cast<uint32_t>(slices),
                  static_cast<uint32_t>(parts));
  launch(attend_kernel<M, T>, grid, dim3(kThreads), shared, context.stream(), call);
}

template <typename T>
void check_sizes(const char* name, const Columns<T>& x) {
  constexpr int64_t limit = (int64_t(1) << 31) - kItems;
  STD_TORCH_CHECK(x.n < limit && x.c < limit && x.size < limit, name,
                  ": expected fewer than 2^31 images, channels, and pixels an image, got ", x.n,
                  ", ", x.c, " and ", x.size);
}

template <typename T>
void attend(const Attention<T>& given, const Context& context) {
  check_sizes("query", given.query);
  check_sizes("key", given.key);
  check_sizes("value", given.value);
  Call<T> call = call_for<T>(given.scale);
  call.items[kLeft][kForScores] = matrix(given.query);
  call.items[kRight][kForScores] = matrix(given.key);
  call.items[kRight][kForSums] = matrix(given.value);
  call.out = matrix(given.out);
  attend(Forward(), call, given.query.n, context);
}

constexpr int kSumThreads = 256;

// to = factor * the sum of the slices, one after the other. Reads each of their elements once, for
// an addition: memory bounds it.
template <typename T, typename F>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const F* slices, int32_t count, F factor, T* to, int64_t elements) {
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= elements) return;
  F sum = F(0);
#pragma unroll 8
  for (int32_t k = 0; k < count; ++k) sum += fetch(slices + k * elements + i);
  narrow(factor * sum, to + i);
}

// The gradient of the anchors. There may be few of them: pixels are shared out among blocks, whose
// sums are then added up. (How many does not depend on which gradients are wanted.)
template <typename M, typename T>
void attend_anchors(M mode, Call<T> call, const Columns<T>& out, const Context& context) {
  using F = compute_t<T>;
  call.out = matrix(out);
  const int64_t tiles = ceil_div<int64_t>(call.items[kRight][kForScores].items, kItems);
  const int64_t alone =
      out.n * ceil_div<int64_t>(out.size, kItems) * ceil_div<int64_t>(out.c, kSummed<T>);
  if (alone == 0) return;
  const int64_t most = std::clamp<int64_t>(kManyBlocks / alone, 1, std::max<int64_t>(1, tiles));
  const int64_t slices =
      std::max<int64_t>(1, ceil_div(tiles, std::max<int64_t>(1, ceil_div(tiles, most))));
  if (slices == 1) return attend(mode, call, out.n, context);
  call.stride_slice = out.n * out.c * out.size;
  Columns<F> sums{nullptr, out.n, out.c, out.size, out.c * out.size, out.size, 1};
  const Tensor held = context.scratch(slices * call.stride_slice, &sums.data);
  call.sums_after = matrix(sums);
  attend(mode, call, out.n, context, slices);
  launch(sum_kernel<T, F>,
         dim3(static_cast<uint32_t>(ceil_div<int64_t>(call.stride_slice, kSumThreads))),
         dim3(kSumThreads), 0, context.stream(), sums.data, static_cast<int32_t>(slices),
         M::kSlopes ? call.scale : F(1), out.data, call.stride_slice);
}

template <typename T>
void attend_backward(const AttentionBackward<T>& given, const Context& context) {
  using F = compute_t<T>;
  check_sizes("query", given.query);
  check_sizes("key", given.key);
  check_sizes("value", given.value);
  const Matrix<const T> query = matrix(given.query), key = matrix(given.key);
  const Matrix<const T> value = matrix(given.value), grad = matrix(given.grad);
  const int64_t images = given.query.n;
  State<F>* states;
  const Tensor held = context.scratch(images * given.query.size, &states);
  Call<T> call = call_for<T>(given.scale);
  call.pixels_n = given.query.size;
  call.pixels = 1;
  auto& [left, right] = call.items;
  left[kForScores] = query;
  left[kForSlopes] = grad;
  right[kForScores] = right[kForSums] = key;
  right[kForSlopes] = value;
  call.after = states;
  attend(Statistics(), call, images, context);
  call.before = states;
  call.after = nullptr;
  if (given.d_query.data) {
    call.out = matrix(given.d_query);
    attend(ToQuery(), call, images, context);
  }
  left[kForScores] = key;
  left[kForSlopes] = value;
  right[kForScores] = right[kForSums] = query;
  right[kForSlopes] = grad;
  if (given.d_key.data) attend_anchors(ToKey(), call, given.d_key, context);
  right[kForSums] = grad;
  if (given.d_value.data) attend_anchors(ToValue(), call, given.d_value, context);
}

// ---- Criss-cross ----

// Columns or rows of pixels as the lines of a matrix.
template <typename T>
Matrix<T> lines_of(const View<T>& x, bool rows) {
  return planned(Matrix<T>{x.data, x.stride_n, rows ? x.stride_h : x.stride_w, x.stride_c,
                           rows ? x.stride_w : x.stride_h, static_cast<int32_t>(rows ? x.w : x.h),
                           static_cast<int32_t>(x.c)});
}

// channels_last is best for both columns and rows: what is contiguous is copied. Moves each element
// twice: memory bounds it.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ Matrix<const T> from, const __grid_constant__ Matrix<T> to,
                int32_t tiles, int32_t parts) {
  __shared__ __align__(16) T chunk[kChunk<T>];
  const uint32_t part = blockIdx.x / tiles;
  const int32_t item0 = (blockIdx.x - part * tiles) * kItems;
  const int32_t n = part / parts, channel0 = (part - n * parts) * kDepth<T>;
  const T* source = from.of(n, 0);
#pragma unroll 8
  for (int i = threadIdx.x; i < kChunk<T>; i += kThreads) {
    const int32_t place = i % kItems, line = i / kItems;
    const int32_t item = item0 + place, channel = channel0 + line;
    const bool inside = item < from.items && channel < from.channels;
    chunk[chunk_at<T>(place, line, kDepth<T>)] =
        inside ? fetch(source + item * from.stride + channel * from.stride_c) : static_cast<T>(0.f);
  }
  __syncthreads();
  write<kDepth<T>>(chunk, to, to.of(n, 0), item0, channel0);
}

template <typename T>
class Packed {
 public:
  View<const T> view;

  Packed(const View<const T>& x, bool channels_last, const Context& context) : view(x) {
    const int64_t pixels = x.h * x.w, elements = x.n * x.c * pixels;
    if (channels_last || elements == 0) return;
    T* data;
    held_.emplace(context.scratch(elements, &data));
    view = {data, x.n, x.c, x.h, x.w, x.c * pixels, 1, x.w * x.c, x.c};
    const Matrix<const T> from =
        matrix(Columns<const T>{x.data, x.n, x.c, pixels, x.c * pixels, pixels, 1});
    Matrix<T> to = matrix(Columns<T>{data, x.n, x.c, pixels, x.c * pixels, 1, x.c});
    to.last = true;
    const int64_t tiles = ceil_div<int64_t>(pixels, kItems);
    const int64_t parts = ceil_div<int64_t>(x.c, kDepth<T>);
    launch(pack_kernel<T>, dim3(static_cast<uint32_t>(tiles * parts * x.n)), dim3(kThreads), 0,
           context.stream(), from, to, static_cast<int32_t>(tiles), static_cast<int32_t>(parts));
  }

 private:
  std::optional<Tensor> held_;
};

template <typename T>
void check(const char* name, const View<T>& x) {
  constexpr int64_t limit = (int64_t(1) << 31) - kItems;
  STD_TORCH_CHECK(x.n < limit && x.c < limit && x.h * x.w < limit, name,
                  ": expected fewer than 2^31 images, channels, and pixels an image, got [", x.n,
                  ", ", x.c, ", ", x.h, ", ", x.w, "]");
}

// Along the columns, without the pixel itself, and then along the rows from where that has ended.
// `fill(call.items, rows)` names what is multiplied. Statistics have no `out`.
template <typename M, typename T, typename Fill>
void cross(M mode, Call<T> call, const View<const T>& pixels, const View<T>& out, const Fill& fill,
           const Context& context) {
  using F = compute_t<T>;
  const int64_t w = pixels.w, plane = pixels.h * w, c = out.c;
  View<F> sums{nullptr, out.n, c, out.h, out.w, plane * c, 1, w * c, c};
  const Tensor held = context.scratch(out.n * plane * c, &sums.data);
  State<F>* const states = call.after;
  call.pixels_n = plane;
  for (const bool rows : {false, true}) {
    fill(call.items, rows);
    call.lines = static_cast<int32_t>(rows ? pixels.h : w);
    call.pixels_line = rows ? w : 1;
    call.pixels = rows ? 1 : w;
    call.skips_itself = !rows;
    if (M::kSoftmax) call.before = rows ? states : nullptr;
    if (M::kSums) {
      call.out = lines_of(out, rows);
      call.sums_after = rows ? Matrix<F>{} : lines_of(sums, rows);
      if (rows)
        call.sums_before =
            lines_of<const F>({sums.data, out.n, c, out.h, out.w, plane * c, 1, w * c, c}, rows);
      if (rows) call.after = nullptr;
    }
    attend(mode, call, pixels.n, context);
  }
}

template <typename T>
void criss_cross(const CrissCross<T>& given, const Context& context) {
  check("query", given.query);
  check("value", given.value);
  const Packed<T> query(given.query, given.channels_last, context);
  const Packed<T> key(given.key, given.channels_last, context);
  const Packed<T> value(given.value, given.channels_last, context);
  Call<T> call = call_for<T>(1);
  const Tensor held = context.scratch(given.query.n * given.query.h * given.query.w, &call.after);
  cross(
      Forward(), call, query.view, given.out,
      [&](auto& items, bool rows) {
        items[kLeft][kForScores] = lines_of(query.view, rows);
        items[kRight][kForScores] = lines_of(key.view, rows);
        items[kRight][kForSums] = lines_of(value.view, rows);
      },
      context);
}

template <typename T>
void criss_cross_backward(const CrissCrossBackward<T>& given, const Context& context) {
  check("query", given.query);
  check("value", given.value);
  const Packed<T> query(given.query, given.channels_last, context);
  const Packed<T> key(given.key, given.channels_last, context);
  const Packed<T> value(given.value, given.channels_last, context);
  const Packed<T> grad(given.grad, given.channels_last, context);
  using Items = Matrix<const T>[2][3];
  // Pixels and what they attend to, on either side.
  const auto fill = [&](int pixels, const Packed<T>& summed) {
    return [&, pixels](Items& items, bool rows) {
      items[pixels][kForScores] = lines_of(query.view, rows);
      items[pixels][kForSlopes] = lines_of(grad.view, rows);
      items[1 - pixels][kForScores] = lines_of(key.view, rows);
      items[1 - pixels][kForSlopes] = lines_of(value.view, rows);
      items[kRight][kForSums] = lines_of(summed.view, rows);
    };
  };
  Call<T> call = call_for<T>(1);
  const Tensor held = context.scratch(given.query.n * given.query.h * given.query.w, &call.after);
  cross(Statistics(), call, query.view, View<T>{}, fill(kLeft, key), context);
  call.before = std::exchange(call.after, nullptr);
  if (given.d_query.data) {
    cross(ToQuery(), call, query.view, given.d_query, fill(kLeft, key), context);
  }
  if (given.d_key.data) {
    cross(ToKey(), call, query.view, given.d_key, fill(kRight, query), context);
  }
  if (given.d_value.data) {
    cross(ToValue(), call, query.view, given.d_value, fill(kRight, grad), context);
  }
}

}  // namespace
}  // namespace vsegops::attention

#include "operators.h"  // registers them
