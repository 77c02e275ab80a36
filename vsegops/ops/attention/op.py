"""The attention operators as the dispatcher knows them: schema, fake, autograd, autocast.

Here keys and values are anchors, `[N, C, S]`: pooled by `pyramid_pool`, or every position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._layout import empty_like_layout, layout_of, skipped
from ..._register import Operator, only_wanted, register, wanted_bits

_TENSORS = "Tensor query, Tensor key, Tensor value"
_GRADIENTS = "(Tensor, Tensor, Tensor)"
#: Bits of a backward's `wanted`: the gradients it has to compute; the others come back empty.
QUERY, KEY, VALUE = 1, 2, 4


def levels_of(sizes: Sequence[int], dimensions: int) -> list[Sequence[int]]:
    """A pyramid's levels, one size for each pooled dimension, from the flat list of a schema."""
    return [sizes[i : i + dimensions] for i in range(0, len(sizes), dimensions)]


def anchors_of(sizes: Sequence[int], dimensions: int) -> int:
    """How many bins all levels of a pyramid have."""
    total = 0
    for level in levels_of(sizes, dimensions):
        bins = 1
        for size in level:
            bins *= size
        total += bins
    return total


def _fake_pool(input: Tensor, sizes: Sequence[int]) -> Tensor:
    return input.new_empty(*input.shape[:2], anchors_of(sizes, input.dim() - 2))


def _fake_pool_backward(
    grad: Tensor, shape: Sequence[int], channels_last: bool, sizes: Sequence[int]
) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=layout)


def _saved_of_pool(inputs: Sequence[Any]) -> Sequence[Any]:
    """Shape and layout of the input: its values are not read again."""
    x, sizes = inputs
    return (tuple(x.shape), layout_of(x) != torch.contiguous_format), sizes


def _pool_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    (shape, channels_last), sizes = inputs
    return ops.pyramid_pool_backward.default(grad, shape, channels_last, sizes), None


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return empty_like_layout(query, (query.shape[0], value.shape[1], *query.shape[2:]))


def _fake_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: Any, wanted: int
) -> tuple[Tensor, ...]:
    return (
        empty_like_layout(query) if wanted & QUERY else skipped(query),
        key.new_empty(key.shape) if wanted & KEY else skipped(key),
        value.new_empty(value.shape) if wanted & VALUE else skipped(value),
    )


def _attention_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = wanted_bits(needs[:3])
    gradients = ops.asymmetric_attention_backward.default(grad, *inputs, wanted)
    return *only_wanted(wanted, gradients), None


def _fake_criss_cross(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return empty_like_layout(value, layout=layout_of(query))


def _fake_criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, wanted: int
) -> tuple[Tensor, ...]:
    layout = layout_of(query)
    return tuple(
        empty_like_layout(x, layout=layout) if wanted & bit else skipped(x)
        for x, bit in ((query, QUERY), (key, KEY), (value, VALUE))
    )


def _criss_cross_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = wanted_bits(needs)
    gradients = ops.criss_cross_attention_backward.default(grad, *inputs, wanted)
    return only_wanted(wanted, gradients)


register(
    "attention",
    Operator(
        name="pyramid_pool",
        schema="(Tensor input, int[] sizes) -> Tensor",
        fake=_fake_pool,
        backward=_pool_backward,
        saved=_saved_of_pool,
        autocast=("input",),
    ),
    Operator(
        name="pyramid_pool_backward",
        schema="(Tensor grad, SymInt[] shape, bool channels_last, int[] sizes) -> Tensor",
        fake=_fake_pool_backward,
    ),
    Operator(
        name="asymmetric_attention",
        # (a scale that is computed from sizes would be compiled for anew: None is Ck ** -0.5)
        schema=f"({_TENSORS}, float? scale) -> Tensor",
        fake=_fake_attention,
        backward=_attention_backward,
        autocast=("query", "key", "value"),
    ),
    Operator(
        name="asymmetric_attention_backward",
        schema=f"(Tensor grad, {_TENSORS}, float? scale, int wanted) -> {_GRADIENTS}",
        fake=_fake_attention_backward,
    ),
    Operator(
        name="criss_cross_attention",
        schema=f"({_TENSORS}) -> Tensor",
        fake=_fake_criss_cross,
        backward=_criss_cross_backward,
        autocast=("query", "key", "value"),
    ),
    Operator(
        name="criss_cross_attention_backward",
        schema=f"(Tensor grad, {_TENSORS}, int wanted) -> {_GRADIENTS}",
        fake=_fake_criss_cross_backward,
    ),
)
