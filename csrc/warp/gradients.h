// The gradients of flow_warp, for families whose own end where what is sampled begins: operators.h
// has them, and is compiled into the same library.
#pragma once

#include <tuple>

#include "../common/binding.h"
#include "../common/option.h"

namespace vsegops::warp {

__attribute__((visibility("hidden"))) std::tuple<Tensor, Tensor> flow_warp_backward(
    const Tensor& grad, const Tensor& input, const Tensor& flow, double scale_x, double scale_y,
    bool semantic, bool align_corners, const Option& mode, const Option& padding_mode,
    int64_t wanted);

}  // namespace vsegops::warp
