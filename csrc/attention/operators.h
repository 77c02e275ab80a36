// The attention operators: what cpu.cpp and cuda.cu register. Included by either after its kernels:
// `pool`, `pool_backward`, `attend`, `attend_backward`, `criss_cross` and `criss_cross_backward` of
// `vsegops::attention`, each of which takes a call and a Context.
#pragma once

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "attention.h"

namespace vsegops::attention {

// Bits of `wanted`, as in vsegops/ops/attention/op.py.
enum Gradient { kQuery = 1, kKey = 2, kValue = 4 };

// `x` has to be dense in either layout, or to have three dimensions.
template <typename T>
Columns<T> columns(const Tensor& x) {
  VSEGOPS_TOUCHES(T, x);
  int64_t size = 1;
  for (int64_t d = 2; d < x.dim(); ++d) size *= x.size(d);
  const int64_t channels = x.size(1);
  T* const data = static_cast<T*>(x.data_ptr());
  if (x.dim() == 3) return {data, x.size(0), channels, size, x.stride(0), x.stride(1), x.stride(2)};
  const bool last = layout_of(x) != MemoryFormat::Contiguous;
  return {data, x.size(0), channels, size, channels * size, last ? 1 : size, last ? channels : 1};
}

// Calls `run(Type<T>)` for the dtype of the features.
template <typename Run>
void dispatch(ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Double: return run(Type<double>());
    case ScalarType::Float: return run(Type<float>());
    case ScalarType::Half: return run(Type<Half>());
    case ScalarType::BFloat16: return run(Type<BFloat16>());
    default: STD_TORCH_CHECK(false, "features: expected a floating dtype");
  }
}

inline void check_dtype(const char* name, const Tensor& x, const Tensor& first) {
  STD_TORCH_CHECK(x.scalar_type() == first.scalar_type(), name, ": expected the features' dtype");
}

inline std::vector<int64_t> shape_of(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < x.dim(); ++d) shape.push_back(x.size(d));
  return shape;
}

inline Pyramid pyramid_of(const std::vector<int64_t>& shape, const std::vector<int64_t>& sizes) {
  const size_t rank = shape.size() - 2;  // of what is pooled
  STD_TORCH_CHECK(shape.size() == 4 || shape.size() == 5,
                  "input: expected [N, C, H, W] or [N, C, T, H, W]");
  STD_TORCH_CHECK(!sizes.empty() && sizes.size() % rank == 0 && sizes.size() / rank <= kMaxLevels,
                  "sizes: expected 1 to ", kMaxLevels, " levels of ", rank, " sizes each");
  for (int64_t size : sizes) STD_TORCH_CHECK(size > 0, "sizes: expected positive numbers");
  for (size_t d = 2; d < shape.size(); ++d) {
    STD_TORCH_CHECK(shape[d] > 0, "input: expected at least one pixel to pool");
  }
  const auto triple = [&](const int64_t* of) {
    return rank == 3 ? Level{of[0], of[1], of[2]} : Level{1, of[0], of[1]};
  };
  const Level whole = triple(shape.data() + 2);
  Pyramid pyramid{whole.t, whole.h, whole.w};
  for (size_t i = 0; i < sizes.size(); i += rank) {
    pyramid.level[pyramid.levels++] = triple(sizes.data() + i);
  }
  return pyramid;
}

inline Tensor pyramid_pool(const Tensor& input, std::vector<int64_t> sizes) {
  const Pyramid pyramid = pyramid_of(shape_of(input), sizes);
  const Tensor out = empty(input, {input.size(0), input.size(1), pyramid.anchors()});
  if (out.numel() == 0) return out;
  const Tensor pooled = dense(input, layout_of(input));
  const Context context(input);
  dispatch(input.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    pool(Pool<T>{pyramid, columns<const T>(pooled), columns<T>(out)}, context);
  });
  return out;
}

inline Tensor pyramid_pool_backward(const Tensor& grad, std::vector<int64_t> shape,
                                    bool channels_last, std::vector<int64_t> sizes) {
  const Pyramid pyramid = pyramid_of(shape, sizes);
  check_shape("grad", grad, {shape[0], shape[1], pyramid.anchors()});
  const MemoryFormat last =
      shape.size() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
  const Tensor d_input = empty(grad, shape, channels_last ? last : MemoryFormat::Contiguous);
  if (d_input.numel() == 0) return d_input;
  const Context context(grad);
  dispatch(grad.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    pool_backward(PoolBackward<T>{pyramid, columns<const T>(grad), columns<T>(d_input)}, context);
  });
  return d_input;
}

// The query, the layout that outputs share with it, and the scale.
inline double check_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              std::optional<double> scale) {
  STD_TORCH_CHECK(query.dim() >= 3 && query.dim() <= 5, "query: expected [N, Ck, ...]");
  STD_TORCH_CHECK(key.dim() == 3, "key: expected [N, Ck, S]");
  STD_TORCH_CHECK(value.dim() == 3, "value: expected [N, Cv, S]");
  const int64_t n = query.size(0), anchors = key.size(2);
  STD_TORCH_CHECK(query.size(1) > 0, "query: expected at least one channel");
  STD_TORCH_CHECK(anchors > 0, "key: expected at least one anchor");
  check_shape("key", key, {n, query.size(1), anchors});
  check_shape("value", value, {n, value.size(1), anchors});
  check_dtype("key", key, query);
  check_dtype("value", value, query);
  return scale.has_value() ? *scale : 1 / std::sqrt(static_cast<double>(query.size(1)));
}

inline std::vector<int64_t> output_shape(const Tensor& query, const Tensor& value) {
  std::vector<int64_t> shape = shape_of(query);
  shape[1] = value.size(1);
  return shape;
}

inline Tensor asymmetric_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                   std::optional<double> scale) {
  const double factor = check_attention(query, key, value, scale);
  const MemoryFormat layout = layout_of(query);
  const Tensor out = empty(query, output_shape(query, value), layout);
  if (out.numel() == 0) return out;
  const Tensor asking = dense(query, layout);
  const Context context(query);
  dispatch(query.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    attend(Attention<T>{factor, columns<const T>(asking), columns<const T>(key),
                        columns<const T>(value), columns<T>(out)},
           context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor> asymmetric_attention_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
    std::optional<double> scale, int64_t wanted) {
  const double factor = check_attention(query, key, value, scale);
  const MemoryFormat layout = layout_of(query);
  STD_TORCH_CHECK(shape_of(grad) == output_shape(query, value),
                  "grad: its shape does not fit the other arguments'");
  check_dtype("grad", grad, query);
  const Tensor asking = dense(query, layout), incoming = dense(grad, layout);
  const auto like = [&](const Tensor& x, Gradient bit, MemoryFormat format) {
    return wanted & bit ? empty(x, shape_of(x), format) : skipped(x);
  };
  const Tensor d_query = like(query, kQuery, layout);
  const Tensor d_key = like(key, kKey, MemoryFormat::Contiguous);
  const Tensor d_value = like(value, kValue, MemoryFormat::Contiguous);
  const Context context(query);
  dispatch(query.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    AttentionBackward<T> call{factor, columns<const T>(asking), columns<const T>(key),
                              columns<const T>(value), columns<const T>(incoming)};
    if (wanted & kQuery) call.d_query = columns<T>(d_query);
    if (wanted & kKey) call.d_key = columns<T>(d_key);
    if (wanted & kValue) call.d_value = columns<T>(d_value);
    attend_backward(call, context);
  });
  return {d_query, d_key, d_value};
}

inline void check_criss_cross(const Tensor& query, const Tensor& key, const Tensor& value) {
  STD_TORCH_CHECK(query.dim() == 4, "query: expected [N, Ck, H, W]");
  STD_TORCH_CHECK(value.dim() == 4, "value: expected [N, Cv, H, W]");
  const int64_t n = query.size(0), h = query.size(2), w = query.size(3);
  STD_TORCH_CHECK(query.size(1) > 0, "query: expected at least one channel");
  check_shape("key", key, {n, query.size(1), h, w});
  check_shape("value", value, {n, value.size(1), h, w});
  check_dtype("key", key, query);
  check_dtype("value", value, query);
}

inline Tensor criss_cross_attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  check_criss_cross(query, key, value);
  const MemoryFormat layout = layout_of(query);
  const Tensor out = empty(query, output_shape(query, value), layout);
  if (out.numel() == 0) return out;
  const Tensor q = dense(query, layout), k = dense(key, layout), v = dense(value, layout);
  const Context context(query);
  dispatch(query.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    criss_cross(CrissCross<T>{layout != MemoryFormat::Contiguous, view<const T>(q),
                              view<const T>(k), view<const T>(v), view<T>(out)},
                context);
  });
  return out;
}

inline std::tuple<Tensor, Tensor, Tensor> criss_cross_attention_backward(const Tensor& grad,
                                                                         const Tensor& query,
                                                                         const Tensor& key,
                                                                         const Tensor& value,
                                                                         int64_t wanted) {
  check_criss_cross(query, key, value);
  check_shape("grad", grad, {value.size(0), value.size(1), value.size(2), value.size(3)});
  check_dtype("grad", grad, query);
  const MemoryFormat layout = layout_of(query);
  const Tensor q = dense(query, layout), k = dense(key, layout), v = dense(value, layout);
  const Tensor incoming = dense(grad, layout);
  const auto like = [&](const Tensor& x, Gradient bit) {
    return wanted & bit ? empty(x, shape_of(x), layout) : skipped(x);
  };
  const Tensor d_query = like(query, kQuery), d_key = like(key, kKey);
  const Tensor d_value = like(value, kValue);
  if (query.numel() == 0) return {d_query, d_key, d_value};
  const Context context(query);
  dispatch(query.scalar_type(), [&](auto t) {
    using T = typename decltype(t)::type;
    CrissCrossBackward<T> call{layout != MemoryFormat::Contiguous, view<const T>(q),
                               view<const T>(k), view<const T>(v), view<const T>(incoming)};
    if (wanted & kQuery) call.d_query = view<T>(d_query);
    if (wanted & kKey) call.d_key = view<T>(d_key);
    if (wanted & kValue) call.d_value = view<T>(d_value);
    criss_cross_backward(call, context);
  });
  return {d_query, d_key, d_value};
}

}  // namespace vsegops::attention

VSEGOPS_LIBRARY_IMPL(m) {
  m.impl("pyramid_pool", TORCH_BOX(&vsegops::attention::pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&vsegops::attention::pyramid_pool_backward));
  m.impl("asymmetric_attention", TORCH_BOX(&vsegops::attention::asymmetric_attention));
  m.impl("asymmetric_attention_backward",
         TORCH_BOX(&vsegops::attention::asymmetric_attention_backward));
  m.impl("criss_cross_attention", TORCH_BOX(&vsegops::attention::criss_cross_attention));
  m.impl("criss_cross_attention_backward",
         TORCH_BOX(&vsegops::attention::criss_cross_attention_backward));
}
