"""The dense head: what every segmentation network ends with, without full-resolution logits.

Logits `[N, C, h, w]` are upsampled bilinearly to H x W and reduced over the classes in one pass: to
labels, or to a cross-entropy. With `A` the upsampling, output pixel (x, y) samples the logits at

    align_corners=True :  u = x * (w-1) / (W-1)
    align_corners=False:  u = (x + 0.5) * w / W - 0.5, clamped to the pixels that there are

and likewise v from y, h, H, as `torch.nn.functional.interpolate(mode="bilinear")` does.
`A(logits)`, 19 x 1024 x 2048 floats or 160 MB a frame, is never written to memory, forward or
backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _checks
from ..._register import call
from . import op

REDUCTIONS = ("none", "mean", "sum")

#: Dtypes of labels and targets.
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = False,
    return_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The label of each pixel: upsample `logits` to `size` and take the best class, in one pass.

    `F.interpolate(logits, size, mode="bilinear").argmax(1)`, without the upsampled logits. The
    lowest class wins ties. Positions are exact, so that labels are those of float64 but where two
    classes are as good as equal.

    Not differentiable: no gradient flows through the results.

    Args:
        logits: `[N, C, h, w]` with at least one class, float64, float32, float16 or bfloat16, any
            layout; finite.
        size: `(H, W)` of the labels, in pixels; smaller than the logits' is fine too.
        align_corners: which points of input and output coincide: the centres of the corner pixels
            (True) or the outer corners of the images (False).
        return_confidence: return the probability of the label as well, its softmax over the
            upsampled logits.

    Returns:
        Labels `[N, H, W]`, uint8 for up to 256 classes and int32 beyond; or `(labels, confidence)`,
        confidence `[N, H, W]` in float32 (float64 for float64 logits).

    Raises:
        ValueError: a wrong rank, shape, dtype or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # class 0, then 1
        >>> vsegops.upsample_argmax(logits, (1, 6)).tolist()
        [[[0, 0, 0, 0, 1, 1]]]
        >>> labels, confidence = vsegops.upsample_argmax(logits, (1, 2), return_confidence=True)
        >>> [round(p, 3) for p in confidence.flatten().tolist()]
        [0.953, 0.731]
    """
    _check_logits(logits)
    height, width = _size(size)
    _checks.check_bool("align_corners", align_corners)
    _checks.check_bool("return_confidence", return_confidence)
    logits = logits.detach()
    labels, confidence = call(
        "upsample_argmax", logits, logits, height, width, align_corners, return_confidence
    )
    return (labels, confidence) if return_confidence else labels


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of `logits`, upsampled to the size of `target`, in one pass.

    `F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target, ...)`,
    without the upsampled logits or their gradient.

    Args:
        logits: `[N, C, h, w]` with at least one class, float64, float32, float16 or bfloat16, any
            layout; finite. The only argument that gets a gradient.
        target: `[N, H, W]`, integers of any width: the class of each pixel, 0 to C - 1, or
            `ignore_index`. Anything else raises RuntimeError on a CPU; on a GPU, where looking
            would mean waiting, the loss is NaN.
        weight: `[C]`, of each class, of the logits' dtype or float32. None is 1 for all.
        ignore_index: pixels of this target have loss 0 and are not counted.
        align_corners: as for `upsample_argmax`.
        label_smoothing: the share of the target that is spread evenly over all classes, 0 to 1.
        reduction: `"none"`, the loss of each pixel; `"sum"`; or `"mean"`, their sum over the sum of
            the targets' weights. The mean over no pixel is NaN.

    Returns:
        The loss, without dimensions, or `[N, H, W]` for `"none"`; float32, also under autocast, and
        float64 for float64 logits.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> logits = torch.zeros(1, 4, 2, 3, requires_grad=True)
        >>> target = torch.randint(0, 4, (1, 16, 24))
        >>> loss = vsegops.upsample_cross_entropy(logits, target)
        >>> loss.backward()
        >>> round(loss.exp().item(), 4), logits.grad.shape
        (4.0, torch.Size([1, 4, 2, 3]))
    """
    _check_logits(logits)
    _check_target(target, (logits.shape[0], "H", "W"), logits)
    dtype = op.loss_dtype(logits)
    if weight is not None:
        allowed = (torch.float32, logits.dtype, _checks.effective_dtype(logits))
        _checks.check_tensor(
            "weight", weight, (logits.shape[1],), like=logits, dtypes=tuple(dict.fromkeys(allowed))
        )
        if weight.requires_grad:
            raise ValueError("weight: expected a tensor that needs no gradient, got one that does")
        weight = weight.to(dtype).contiguous()
    check_loss_options(ignore_index, align_corners, label_smoothing, reduction)
    loss, total = call(
        "upsample_cross_entropy",
        logits,
        logits,
        target,
        weight,
        ignore_index,
        align_corners,
        float(label_smoothing),
        reduction != "none",
    )
    return loss / total.detach() if reduction == "mean" else loss  # type: ignore[no-any-return]


def ohem(
    losses: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    fraction: float | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Online hard example mining: the mean over the pixels that the network finds hardest.

    As SFNet trains, over all pixels of the batch together. With p = exp(-loss), the probability of
    the right class, where ignored pixels count as p = 1:

        t = max(threshold, the `min_kept`-th smallest p),   keep p <= t

    so that pixels below the threshold are kept, however many, and `min_kept` of them at least. With
    fewer valid pixels than `min_kept` all of these are kept; ties at t may keep more.

    Nothing is synchronised on a GPU.

    Args:
        losses: `[N, H, W]`, floating point: the plain cross-entropy of each pixel
            (`upsample_cross_entropy` with `reduction="none"`, without weights or smoothing). The
            result is differentiable in it.
        target: `[N, H, W]`, integers, as it was given to the loss.
        threshold: of the probability, 0 to 1.
        min_kept: how many pixels of the batch to keep at least.
        fraction: instead of all that, keep this share of the valid pixels, rounded up: 0.1 is the
            hardest tenth. More than 0, at most 1; None: the rule above.
        ignore_index: pixels of this target are not valid.

    Returns:
        The mean of the losses kept, without dimensions; NaN where no pixel is valid.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> losses = torch.tensor([[[0.1, 0.2, 2.0, 3.0]]])  # p = 0.90, 0.82, 0.14, 0.05
        >>> target = torch.tensor([[[0, 0, 0, 255]]])
        >>> vsegops.ohem(losses, target, min_kept=1).item()
        2.0
        >>> round(vsegops.ohem(losses, target, min_kept=3).item(), 4)
        0.7667
    """
    _checks.check_tensor("losses", losses, ("N", "H", "W"))
    _check_target(target, tuple(losses.shape), losses)
    check_ohem_options(threshold, min_kept, fraction, ignore_index)
    # In terms of the losses: p <= t is loss >= -log(t), and ignored pixels have loss 0.
    valid = target != ignore_index
    known = losses.detach().where(valid, 0.0)
    if fraction is not None:
        hardest = known.where(valid, -math.inf).flatten().sort(descending=True).values
        rank = (valid.sum() * fraction).ceil().long() - 1
        least = hardest.gather(0, rank.clamp(min=0).view(1)) if len(hardest) else hardest.sum()
    else:
        least = known.new_full((), -math.log(threshold) if threshold > 0 else math.inf)
        if 0 < min_kept <= known.numel():
            easier = known.numel() + 1 - min_kept  # the min_kept-th largest loss, from below
            least = least.minimum(known.flatten().kthvalue(easier).values)
        least = least.where(min_kept <= valid.sum(), -math.inf)
    kept = valid & ~(known < least)  # NaN is kept, and seen
    return losses.where(kept, 0.0).sum() / kept.sum()


def confusion_matrix(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """How often each class was predicted where each class is: what mean IoU is made of.

    Add the matrices of all images (`vsegops.nn.ConfusionMatrix` does) and evaluate the sum.

    Args:
        prediction: labels `[N, H, W]`, integers; or logits `[N, num_classes, h, w]`, of which
            `upsample_argmax` makes labels of the target's size.
        target: `[N, H, W]`, integers: a class or `ignore_index`.
        num_classes: how many classes there are.
        ignore_index: pixels of this target are not counted.
        align_corners: of the upsampling of logits, as for `upsample_argmax`.

    Returns:
        `[num_classes, num_classes]`, int64: row = target, column = prediction. A pixel whose target
        is neither a class nor ignored, or whose prediction is no class, raises on a CPU; on a GPU,
        where looking would mean waiting, it is not counted.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option, or a label that is no class.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> prediction = torch.tensor([[[0, 1, 1, 0]]])
        >>> target = torch.tensor([[[0, 1, 0, 255]]])
        >>> vsegops.confusion_matrix(prediction, target, 2).tolist()
        [[1, 1], [0, 1]]
    """
    check_classes("num_classes", num_classes)
    _check_index(ignore_index)
    _checks.check_bool("align_corners", align_corners)
    is_logits = isinstance(prediction, Tensor) and prediction.is_floating_point()
    if is_logits:
        _checks.check_tensor("prediction", prediction, ("N", num_classes, "h", "w"))
        _check_target(target, (prediction.shape[0], "H", "W"), prediction)
        labels = upsample_argmax(prediction, target.shape[1:], align_corners=align_corners)
        assert isinstance(labels, Tensor)
    else:
        _checks.check_tensor("prediction", prediction, ("N", "H", "W"), dtypes=INTEGERS)
        _check_target(target, tuple(prediction.shape), prediction)
        labels = prediction
    counted = target != ignore_index
    for name, given in (("target", target), ("prediction", labels)):
        if name == "prediction" and is_logits:
            continue
        known = (given >= 0) & (given < num_classes)
        if given.device.type == "cpu" and (wrong := counted & ~known).any():
            raise _checks.error(name, f"classes from 0 to {num_classes - 1}", int(given[wrong][0]))
        counted = counted & known
    cells = num_classes * num_classes
    cell = (target.long() * num_classes + labels).where(counted, cells).flatten()
    counts = torch.zeros(cells + 1, dtype=torch.int64, device=cell.device)
    counts.scatter_add_(0, cell, torch.ones_like(cell[:1]).expand_as(cell))
    return counts[:cells].view(num_classes, num_classes)


def _check_logits(logits: Any) -> None:
    _checks.check_tensor("logits", logits, ("N", "C", "h", "w"))
    _checks.check_size("logits", logits)
    if 0 in logits.shape[1:]:
        raise _checks.error("logits", "at least one class and one pixel", logits)


def _check_target(target: Any, shape: Sequence[int | str], like: Tensor) -> None:
    _checks.check_tensor("target", target, shape, like=like, dtypes=INTEGERS)
    if max(target.shape[1:]) > _checks.MAX_SIZE:
        raise _checks.error("target", f"height and width up to {_checks.MAX_SIZE}", target)


def _check_index(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise _checks.error("ignore_index", "a whole number of 64 bits", value)


def check_loss_options(
    ignore_index: Any, align_corners: Any, label_smoothing: Any, reduction: Any
) -> None:
    """Check what `upsample_cross_entropy` is told beside tensors."""
    _check_index(ignore_index)
    _checks.check_bool("align_corners", align_corners)
    _check_share("label_smoothing", label_smoothing)
    _checks.check_option("reduction", reduction, REDUCTIONS)


def check_ohem_options(threshold: Any, min_kept: Any, fraction: Any, ignore_index: Any) -> None:
    """Check what `ohem` is told beside tensors."""
    _check_share("threshold", threshold)
    if isinstance(min_kept, bool) or not isinstance(min_kept, int) or min_kept < 0:
        raise _checks.error("min_kept", "a whole number that is not negative", min_kept)
    if fraction is not None:
        _check_share("fraction", fraction)
        if fraction == 0:
            raise _checks.error("fraction", "a number above 0 and at most 1", fraction)
    _check_index(ignore_index)


def check_classes(name: str, value: Any) -> None:
    """Check a number of classes."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**15:
        raise _checks.error(name, f"a whole number from 1 to {2**15 - 1}", value)


def _check_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not _checks.is_finite(value) or not 0 <= value <= 1:
        raise _checks.error(name, "a number from 0 to 1", value)


def _size(size: Any) -> tuple[int, int]:
    """(height, width)."""
    pair = isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2
    if not pair or not all(_is_length(length) for length in size):
        raise _checks.error(
            "size", f"(height, width), whole numbers up to {_checks.MAX_SIZE}", size
        )
    height, width = size
    return height, width


def _is_length(x: Any) -> bool:
    return not isinstance(x, bool) and isinstance(x, int) and 0 <= x <= _checks.MAX_SIZE
