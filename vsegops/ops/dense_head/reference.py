"""The dense head in plain PyTorch: the executable definition, run in float64 as the truth.

The forwards are differentiable (outside the dispatcher); the backward is written out, because
autograd cannot be used inside a registered kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..warp.reference import rounded_like
from .op import label_dtype, loss_dtype


class _Taps(NamedTuple):
    """The two pixels that each output pixel lies between along one axis, and how far."""

    low: Tensor
    high: Tensor
    fraction: Tensor


def _taps(x: Tensor, dim: int, size: int, size_out: int, align_corners: bool) -> _Taps:
    """Exact in float64 at any size; the fractions are of the dtype of `x`, along `dim` of it."""
    j = torch.arange(size_out, dtype=torch.float64, device=x.device)
    if align_corners:
        position = j * (size - 1) / max(size_out - 1, 1)
    else:
        position = (j + 0.5) * size / size_out - 0.5
    position = position.clamp(0, size - 1)
    low = position.floor()
    fraction = (position - low).to(x.dtype).view(-1, *[1] * (x.dim() - 1 - dim))
    return _Taps(low.long(), (low.long() + 1).clamp(max=size - 1), fraction)


def upsampled(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Z: the logits at full resolution, in the dtype of the loss."""
    z = logits.to(loss_dtype(logits))
    for dim, size_out in ((2, height), (3, width)):
        taps = _taps(z, dim, z.shape[dim], size_out, align_corners)
        z = z.index_select(dim, taps.low) * (1 - taps.fraction) + (
            z.index_select(dim, taps.high) * taps.fraction
        )
    return z


def _gathered(d: Tensor, h: int, w: int, align_corners: bool) -> Tensor:
    """The adjoint of `upsampled`."""
    for dim, size in ((2, h), (3, w)):
        taps = _taps(d, dim, size, d.shape[dim], align_corners)
        shape = [size if i == dim else length for i, length in enumerate(d.shape)]
        sums = d.new_zeros(shape)
        sums.index_add_(dim, taps.low, d * (1 - taps.fraction))
        d = sums.index_add_(dim, taps.high, d * taps.fraction)
    return d


def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    z = upsampled(logits, height, width, align_corners)
    labels = z.argmax(1).to(label_dtype(logits.shape[1]))  # the lowest of equals
    sure = z.softmax(1).amax(1) if confidence else z.new_empty(0)
    return labels.contiguous(), sure.contiguous()


class _Targets(NamedTuple):
    """What a loss reads of target and weights. A target that is no class has a weight of NaN."""

    valid: Tensor  # [N, H, W]: not ignored
    classes: Tensor  # [N, 1, H, W]: the class, 0 where there is none
    weight: Tensor  # [N, H, W]: of the class
    weights: Tensor  # [C, 1, 1]


def _targets(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> _Targets:
    classes = logits.shape[1]
    valid = target != ignore_index
    known = (target >= 0) & (target < classes)
    wrong = valid & ~known
    if target.device.type == "cpu" and wrong.any():
        raise RuntimeError(
            f"target: expected classes from 0 to {classes - 1} or ignore_index {ignore_index},"
            f" got {int(target[wrong][0])}"
        )
    weights = logits.new_ones(classes, dtype=loss_dtype(logits)) if weight is None else weight
    index = target.long().where(known, 0)
    of_class = weights[index].where(~wrong, torch.nan)
    return _Targets(valid, index.unsqueeze(1), of_class, weights.view(-1, 1, 1))


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    reduce: bool,
) -> tuple[Tensor, Tensor]:
    z = upsampled(logits, target.shape[1], target.shape[2], align_corners)
    t = _targets(logits, target, weight, ignore_index)
    each = -z.log_softmax(1)
    hard = t.weight * each.gather(1, t.classes).squeeze(1)
    smooth = (t.weights * each).sum(1) / logits.shape[1]
    losses = ((1 - label_smoothing) * hard + label_smoothing * smooth).where(t.valid, 0.0)
    if not reduce:
        return losses.contiguous(), losses.new_empty(0)
    return losses.sum(), t.weight.where(t.valid, 0.0).sum()


def upsample_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
) -> Tensor:
    """With y the target, w the weights, s the smoothing and g the gradient of a pixel's loss:

    d_Z_c = g * (softmax_c(Z) * ((1 - s) * w_y + s / C * sum_k w_k)
                 - (1 - s) * w_y * [c = y] - s / C * w_c)
    """
    classes, h, w = logits.shape[1:]
    z = upsampled(logits, target.shape[1], target.shape[2], align_corners)
    t = _targets(logits, target, weight, ignore_index)
    grad = grad.expand_as(t.valid).where(t.valid, 0.0).unsqueeze(1)
    hard = (1 - label_smoothing) * t.weight.unsqueeze(1)
    smooth = label_smoothing / classes * t.weights
    d = grad * (z.softmax(1) * (hard + smooth.sum()) - smooth)
    d.scatter_add_(1, t.classes, -grad * hard)
    d = d.where(t.valid.unsqueeze(1), 0.0)
    return rounded_like(_gathered(d, h, w, align_corners), logits)
