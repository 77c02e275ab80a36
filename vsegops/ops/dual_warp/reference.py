"""The dual warp family in plain PyTorch: the executable definition, in float64 the truth.

The forwards are differentiable (outside the dispatcher); the backwards are written out, because
autograd cannot be used inside a registered kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._layout import skipped
from ..._register import only_wanted
from ..warp import op as warp
from ..warp.reference import Options, compute_dtype, flow_warp_backward, rounded_like, sample
from .op import GATE, HIGH, HIGH_FLOW, LOW, LOW_FLOW, pool_gradients


def _warp_options(*options: Any) -> tuple[Options, Options]:
    """The options of the two warps, of `high` and of `low`."""
    *scales, align_corners, padding_mode = options
    both = (align_corners, "bilinear", padding_mode)
    return Options._make((*scales[:3], *both)), Options._make((*scales[3:], *both))


def gated_dual_warp(
    high: Tensor, low: Tensor, high_flow: Tensor, low_flow: Tensor, gate: Tensor, *options: Any
) -> Tensor:
    high_options, low_options = _warp_options(*options)
    warped_high = sample(high, high_flow, high_options)
    warped_low = sample(low, low_flow, low_options)
    gate = gate.to(warped_low.dtype)
    return rounded_like(gate * warped_high + (1 - gate) * warped_low, high)


def gated_dual_warp_backward(
    grad: Tensor,
    high: Tensor,
    low: Tensor,
    high_flow: Tensor,
    low_flow: Tensor,
    gate: Tensor,
    *options_and_wanted: Any,
) -> tuple[Tensor, ...]:
    """Each warp gets the gradient times its share; d_gate = sum_c grad * (A(high) - A(low))."""
    *options, wanted = options_and_wanted
    grad, share = (x.to(compute_dtype(high)) for x in (grad, gate))
    high_options, low_options = _warp_options(*options)
    d_features, d_flows = [], []
    for x, flow, weight, own_options, feature, of_flow in (
        (high, high_flow, share, high_options, HIGH, HIGH_FLOW),
        (low, low_flow, 1 - share, low_options, LOW, LOW_FLOW),
    ):
        bits = (warp.INPUT if wanted & feature else 0) | (warp.FLOW if wanted & of_flow else 0)
        d_x, d_flow = flow_warp_backward(grad * weight, x, flow, *own_options, bits)
        d_features.append(rounded_like(d_x, high) if wanted & feature else d_x)
        d_flows.append(d_flow)
    d_gate = skipped(gate)
    if wanted & GATE:
        difference = sample(high, high_flow, high_options) - sample(low, low_flow, low_options)
        d_gate = (grad * difference).sum(1, keepdim=True).to(gate.dtype).contiguous()
    return *d_features, *d_flows, d_gate


def channel_pool_with_places(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    both = [x.to(compute_dtype(x)) for x in (first, second)]
    means = [x.mean(1) for x in both]
    largest, places = zip(*(x.max(1) for x in both), strict=True)
    pooled = rounded_like(torch.stack((*means, *largest), 1), first)
    return pooled, torch.stack(places, 1).int()


def channel_pool(first: Tensor, second: Tensor) -> Tensor:
    return channel_pool_with_places(first, second)[0]


def channel_pool_backward(
    grad: Tensor, places: Tensor, first: int, second: int, channels_last: bool, wanted: int
) -> tuple[Tensor, ...]:
    """The mean's gradient goes to every channel alike, the maximum's to the first maximum."""
    n, _, h, w = grad.shape
    gradients = pool_gradients(grad, first, second, channels_last, wanted)
    grad, places = grad.to(compute_dtype(grad)), places.long()
    for i, d_x in enumerate(only_wanted(wanted, gradients)):
        if d_x is not None:
            each = grad[:, i : i + 1] / d_x.shape[1]
            spread = each.expand(n, d_x.shape[1], h, w).clone()
            spread.scatter_add_(1, places[:, i : i + 1], grad[:, i + 2 : i + 3])
            d_x.copy_(spread)
    return gradients
