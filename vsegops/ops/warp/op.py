"""The warp operators as the dispatcher knows them: schema, fake, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..._determinism import atomic_on_cuda
from ..._layout import empty_like_layout, layout_of, skipped
from ..._register import Operator, only_wanted, register, wanted_bits

_OPTIONS = (
    "float scale_x, float scale_y, bool semantic, bool align_corners, str mode, str padding_mode"
)
#: Bits of a backward's `wanted`: the gradients it has to compute; the others come back empty.
INPUT, FLOW, CORRECTION, ATTENTION = 1, 2, 4, 8


def _fake_warp(input: Tensor, flow: Tensor, *_: Any) -> Tensor:
    shape = (*input.shape[:2], *flow.shape[2:])
    return empty_like_layout(input, shape)


def _fake_warp_backward(
    grad: Tensor, input: Tensor, flow: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    wanted = options[-1]
    return (
        empty_like_layout(input) if wanted & INPUT else skipped(input),
        flow.new_empty(flow.shape) if wanted & FLOW else skipped(flow),
    )


def _fake_correct_backward(
    grad: Tensor,
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = options[-1]
    return (
        *_fake_warp_backward(grad, previous, flow, *options),
        empty_like_layout(correction, layout=layout_of(previous))
        if wanted & CORRECTION
        else skipped(correction),
        attention.new_empty(attention.shape) if wanted & ATTENTION else skipped(attention),
    )


def _warp_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    input, flow, *options = inputs
    wanted = wanted_bits(needs[:2])
    if wanted & INPUT:
        atomic_on_cuda(ops, "flow_warp_backward", grad)
    gradients = ops.flow_warp_backward.default(grad, input, flow, *options, wanted)
    return *only_wanted(wanted, gradients), *(None for _ in options)


def _correct_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    previous, flow, correction, attention, *options = inputs
    wanted = wanted_bits(needs[:4])
    if attention is None:  # the gradient of the correction is grad itself
        warped: tuple[Tensor | None, ...] = (None, None)
        if any(needs[:2]):
            warped = _warp_backward(ops, needs, (previous, flow, *options), grad)[:2]
        return *warped, grad if needs[2] else None, None, *(None for _ in options)
    if wanted & INPUT:
        atomic_on_cuda(ops, "warp_correct_backward", grad)
    gradients = ops.warp_correct_backward.default(
        grad, previous, flow, correction, attention, *options, wanted
    )
    return *only_wanted(wanted, gradients), *(None for _ in options)


def _correct_saved(inputs: Sequence[Any]) -> Sequence[Any]:
    previous, flow, correction, attention, *options = inputs
    return previous, flow, None if attention is None else correction, attention, *options


register(
    "warp",
    Operator(
        name="flow_warp",
        schema=f"(Tensor input, Tensor flow, {_OPTIONS}) -> Tensor",
        fake=_fake_warp,
        backward=_warp_backward,
        autocast=("input",),
    ),
    Operator(
        name="flow_warp_backward",
        schema=f"(Tensor grad, Tensor input, Tensor flow, {_OPTIONS}, int wanted)"
        " -> (Tensor, Tensor)",
        fake=_fake_warp_backward,
    ),
    Operator(
        name="warp_correct",
        schema=f"(Tensor previous, Tensor flow, Tensor correction, Tensor? attention, {_OPTIONS})"
        " -> Tensor",
        fake=_fake_warp,
        backward=_correct_backward,
        saved=_correct_saved,
        autocast=("previous", "correction", "attention"),
    ),
    Operator(
        name="warp_correct_backward",
        schema="(Tensor grad, Tensor previous, Tensor flow, Tensor correction, Tensor attention,"
        f" {_OPTIONS}, int wanted) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_correct_backward,
    ),
)
