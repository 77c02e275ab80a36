// From options and dtypes, as the dispatcher has them, to types: what families that sample along a
// flow share.
#pragma once

#include <string>

#include "binding.h"
#include "option.h"
#include "sampling.h"

namespace vsegops {

inline Padding padding_of(const std::string& mode) {
  STD_TORCH_CHECK(mode == "zeros" || mode == "border", "padding_mode: ", mode);
  return mode == "border" ? Padding::kBorder : Padding::kZeros;
}

// Calls `run(Type<T>, Type<F>, Type<Flow>)` for the dtypes of the features and the flow.
template <typename Run>
void dispatch(ScalarType features, ScalarType flow, const Run& run) {
  const auto with_flow = [&](auto t, auto f) {
    using T = typename decltype(t)::type;
    if (flow == ScalarType::Float) {
      run(t, f, Type<float>());
    } else {
      STD_TORCH_CHECK(flow == features, "flow: its dtype is neither the features' nor float32");
      run(t, f, Type<T>());
    }
  };
  switch (features) {
    case ScalarType::Double: return with_flow(Type<double>(), Type<double>());
    case ScalarType::Float: return with_flow(Type<float>(), Type<float>());
    case ScalarType::Half: return with_flow(Type<Half>(), Type<float>());
    case ScalarType::BFloat16: return with_flow(Type<BFloat16>(), Type<float>());
    default: STD_TORCH_CHECK(false, "features: expected a floating dtype");
  }
}

}  // namespace vsegops
