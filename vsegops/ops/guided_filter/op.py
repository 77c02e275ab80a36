"""The guided filter's operators as the dispatcher knows them: schema, fake, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..._determinism import atomic_on_cuda
from ..._layout import empty_like_layout, layout_of, skipped
from ..._register import Operator, only_wanted, register, wanted_bits

#: An offset that is outside every image: an empty tap.
NOWHERE = 2**30

#: `offsets` are dy and dx of each tap in turn. `semantic` is that of align_corners=True: the
#: positions themselves do not depend on align_corners where sizes are equal.
_OPTIONS = (
    "int[] offsets, str normalize, float eps,"
    " float scale_x, float scale_y, bool semantic, str padding_mode"
)
#: Bits of the backward's `wanted`: the gradients it has to compute; the others come back empty.
LOGITS, INTRA, GUIDE, FLOW = 1, 2, 4, 8


def _fake_filter(logits: Tensor, *_: Any) -> Tensor:
    return empty_like_layout(logits)


def _fake_filter_backward(
    grad: Tensor, logits: Tensor, intra: Tensor, guide: Tensor, flow: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted, layout = options[-1], layout_of(logits)

    def like(x: Tensor, bit: int) -> Tensor:
        return empty_like_layout(x, layout=layout) if wanted & bit else skipped(x)

    d_flow = skipped(logits)
    if flow is not None:
        d_flow = flow.new_empty(flow.shape) if wanted & FLOW else skipped(flow)
    return like(logits, LOGITS), like(intra, INTRA), like(guide, GUIDE), d_flow


def _filter_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, flow = inputs[:4]
    options = inputs[4:]
    wanted = wanted_bits(needs[:4])
    if wanted & LOGITS and flow is not None:  # without a flow it is gathered
        atomic_on_cuda(ops, "guided_filter_backward", grad)
    gradients = ops.guided_filter_backward.default(grad, *tensors, flow, *options, wanted)
    return *only_wanted(wanted, gradients), *(None for _ in options)


def _fake_edges(logits: Tensor, *_: Any) -> Tensor:
    return empty_like_layout(logits, (logits.shape[0], 1, *logits.shape[2:]))


register(
    "guided_filter",
    Operator(
        name="guided_filter",
        schema=f"(Tensor logits, Tensor intra, Tensor guide, Tensor? flow, {_OPTIONS}) -> Tensor",
        fake=_fake_filter,
        backward=_filter_backward,
        autocast=("logits", "intra", "guide"),
    ),
    Operator(
        name="guided_filter_backward",
        schema="(Tensor grad, Tensor logits, Tensor intra, Tensor guide, Tensor? flow,"
        f" {_OPTIONS}, int wanted) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_filter_backward,
    ),
    Operator(
        name="label_edges",
        schema="(Tensor logits, Tensor? flow, float scale_x, float scale_y, bool semantic,"
        " str padding_mode, str response) -> Tensor",
        fake=_fake_edges,
        autocast=("logits",),
    ),
)
