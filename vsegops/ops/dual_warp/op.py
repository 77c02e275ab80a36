"""The dual warp's operators as the dispatcher knows them: schema, fake, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._determinism import atomic_on_cuda
from ..._layout import empty_like_layout, layout_of, skipped
from ..._register import Operator, only_wanted, register, wanted_bits

_TENSORS = "Tensor high, Tensor low, Tensor high_flow, Tensor low_flow, Tensor gate"
_OPTIONS = (
    "float high_scale_x, float high_scale_y, bool high_semantic,"
    " float low_scale_x, float low_scale_y, bool low_semantic,"
    " bool align_corners, str padding_mode"
)
#: Bits of a backward's `wanted`: the gradients it has to compute; the others come back empty.
HIGH, LOW, HIGH_FLOW, LOW_FLOW, GATE = 1, 2, 4, 8, 16
FIRST, SECOND = 1, 2


def _fake_warp(high: Tensor, low: Tensor, *_: Any) -> Tensor:
    return empty_like_layout(low, layout=layout_of(high))


def _fake_warp_backward(
    grad: Tensor,
    high: Tensor,
    low: Tensor,
    high_flow: Tensor,
    low_flow: Tensor,
    gate: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    wanted = options[-1]
    d_features = (
        empty_like_layout(x, layout=layout_of(high)) if wanted & bit else skipped(x)
        for x, bit in ((high, HIGH), (low, LOW))
    )
    d_others = (
        x.new_empty(x.shape) if wanted & bit else skipped(x)
        for x, bit in ((high_flow, HIGH_FLOW), (low_flow, LOW_FLOW), (gate, GATE))
    )
    return *d_features, *d_others


def _warp_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    options = inputs[5:]
    wanted = wanted_bits(needs[:5])
    if wanted & (HIGH | LOW):
        atomic_on_cuda(ops, "gated_dual_warp_backward", grad)
    gradients = ops.gated_dual_warp_backward.default(grad, *inputs, wanted)
    return *only_wanted(wanted, gradients), *(None for _ in options)


def _fake_pool(first: Tensor, second: Tensor) -> Tensor:
    n, _, h, w = first.shape
    return empty_like_layout(first, (n, 4, h, w))


def empty_places(first: Tensor) -> Tensor:
    """Where the channels of the maxima of `first` and of its companion go."""
    n, _, h, w = first.shape
    return first.new_empty((n, 2, h, w), dtype=torch.int32)


def _fake_pool_with_places(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_pool(first, second), empty_places(first)


def _saved_of_pool(inputs: Sequence[Any]) -> Sequence[Any]:
    """The gradients' channels and layout: of the values only the maxima's places are needed."""
    first, second = inputs
    return first.shape[1], second.shape[1], layout_of(first) != torch.contiguous_format


def pool_gradients(
    grad: Tensor, first: int, second: int, channels_last: bool, wanted: int
) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of maps with so many channels; those not wanted are empty."""
    n, _, h, w = grad.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def made(channels: int, bit: int) -> Tensor:
        if not wanted & bit:
            return skipped(grad)
        return empty_like_layout(grad, (n, channels, h, w), layout=layout)

    return made(first, FIRST), made(second, SECOND)


def _fake_pool_backward(
    grad: Tensor, places: Tensor, first: int, second: int, channels_last: bool, wanted: int
) -> tuple[Tensor, Tensor]:
    return pool_gradients(grad, first, second, channels_last, wanted)


def _pool_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = wanted_bits(needs)
    *made, places = inputs
    gradients = ops.channel_pool_backward.default(grad, places, *made, wanted)
    return only_wanted(wanted, gradients)


register(
    "dual_warp",
    Operator(
        name="gated_dual_warp",
        schema=f"({_TENSORS}, {_OPTIONS}) -> Tensor",
        fake=_fake_warp,
        backward=_warp_backward,
        autocast=("high", "low", "gate"),
    ),
    Operator(
        name="gated_dual_warp_backward",
        schema=f"(Tensor grad, {_TENSORS}, {_OPTIONS}, int wanted)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_warp_backward,
    ),
    Operator(
        # and the channels of the maxima of both, [N, 2, H, W]
        name="channel_pool_with_places",
        schema="(Tensor first, Tensor second) -> (Tensor, Tensor)",
        fake=_fake_pool_with_places,
    ),
    Operator(
        name="channel_pool",
        schema="(Tensor first, Tensor second) -> Tensor",
        fake=_fake_pool,
        backward=_pool_backward,
        saved=_saved_of_pool,
        recorded="channel_pool_with_places",
        autocast=("first", "second"),
    ),
    Operator(
        name="channel_pool_backward",
        schema="(Tensor grad, Tensor places, SymInt first, SymInt second, bool channels_last,"
        " int wanted) -> (Tensor, Tensor)",
        fake=_fake_pool_backward,
    ),
)
