"""The dense head's operators as the dispatcher knows them: schema, fake, autograd, autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._layout import empty_like_layout
from ..._register import Operator, register


def label_dtype(classes: int) -> torch.dtype:
    """What labels of so many classes are kept in."""
    return torch.uint8 if classes <= 256 else torch.int32


def loss_dtype(logits: Tensor) -> torch.dtype:
    """What losses and probabilities are computed and kept in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _fake_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], height, width)
    return (
        logits.new_empty(shape, dtype=label_dtype(logits.shape[1])),
        logits.new_empty(shape if confidence else (0,), dtype=loss_dtype(logits)),
    )


def _fake_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    reduce: bool,
) -> tuple[Tensor, Tensor]:
    dtype = loss_dtype(logits)
    return (
        logits.new_empty(() if reduce else target.shape, dtype=dtype),
        logits.new_empty(() if reduce else (0,), dtype=dtype),
    )


def _fake_loss_backward(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return empty_like_layout(logits)


def _loss_backward(
    ops: Any, needs: Sequence[bool], inputs: Sequence[Any], grad: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    *of_backward, _reduce = inputs
    d_logits = ops.upsample_cross_entropy_backward.default(grad, *of_backward)
    return d_logits, *(None for _ in inputs[1:])


_LOSS = (
    "Tensor logits, Tensor target, Tensor? weight, int ignore_index, bool align_corners,"
    " float label_smoothing"
)

register(
    "dense_head",
    Operator(
        name="upsample_argmax",
        # Labels, and the winner's probability (empty if `confidence` is False).
        schema="(Tensor logits, SymInt height, SymInt width, bool align_corners, bool confidence)"
        " -> (Tensor, Tensor)",
        fake=_fake_argmax,
        autocast=("logits",),
    ),
    Operator(
        name="upsample_cross_entropy",
        # Reduced: the sum of the losses and the sum of the targets' weights, both without
        # dimensions. Else the losses [N, H, W], and an empty tensor. `weight`, [C], is of the dtype
        # of the loss.
        schema=f"({_LOSS}, bool reduce) -> (Tensor, Tensor)",
        fake=_fake_loss,
        backward=_loss_backward,
        autocast=("logits",),
    ),
    Operator(
        name="upsample_cross_entropy_backward",
        # `grad` is of the loss: without dimensions, or [N, H, W].
        schema=f"(Tensor grad, {_LOSS}) -> Tensor",
        fake=_fake_loss_backward,
    ),
)
