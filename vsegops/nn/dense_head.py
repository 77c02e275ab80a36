"""Losses on logits that are smaller than their target, and what mean IoU is counted in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.dense_head import (
    check_classes,
    check_loss_options,
    check_ohem_options,
    confusion_matrix,
    ohem,
    upsample_cross_entropy,
)


class UpsampleCrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss` on logits that are upsampled to the target's size on the way.

    Neither the upsampled logits nor their gradient are written to memory: see
    `vsegops.upsample_cross_entropy`, whose arguments these are. It stands where a network would end
    in an interpolation before its loss.

    Args:
        weight: `[C]`, of each class, or None. It moves with the module.
        ignore_index: pixels of this target are not counted.
        align_corners: of the upsampling.
        label_smoothing: the share of the target that is spread over all classes.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Forward:
        logits: `[N, C, h, w]`.
        target: `[N, H, W]`, integers.

        Returns the loss, without dimensions, or `[N, H, W]` for `"none"`.

    Example:
        >>> import torch, vsegops
        >>> loss = vsegops.nn.UpsampleCrossEntropyLoss(label_smoothing=0.1)
        >>> logits = torch.randn(2, 19, 16, 32, requires_grad=True)
        >>> loss(logits, torch.randint(0, 19, (2, 128, 256))).backward()
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = 255,
        align_corners: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if weight is not None:
            _checks.check_tensor("weight", weight, ("C",))
        check_loss_options(ignore_index, align_corners, label_smoothing, reduction)
        self.register_buffer("weight", weight)
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return upsample_cross_entropy(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        weighted = "" if self.weight is None else f"weight=[{len(self.weight)}], "
        return (
            f"{weighted}ignore_index={self.ignore_index}, align_corners={self.align_corners},"
            f" label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )


class OhemUpsampleCrossEntropyLoss(nn.Module):
    """Cross-entropy over the hardest pixels of the batch, on logits that are upsampled on the way.

    SFNet's training loss: `vsegops.upsample_cross_entropy` of each pixel, then `vsegops.ohem`. (Its
    published script upsamples with `align_corners=True`.)

    Args:
        threshold: pixels whose true class has at most this probability are kept.
        min_kept: so many pixels of the batch are kept at least.
        fraction: instead of both, the share of the valid pixels to keep, 0.1 say; or None.
        ignore_index: pixels of this target are not counted.
        align_corners: of the upsampling.

    Forward:
        logits: `[N, C, h, w]`.
        target: `[N, H, W]`, integers.

        Returns the loss, without dimensions.

    Example:
        >>> import torch, vsegops
        >>> loss = vsegops.nn.OhemUpsampleCrossEntropyLoss(min_kept=10_000)
        >>> logits = torch.randn(2, 19, 16, 32, requires_grad=True)
        >>> loss(logits, torch.randint(0, 19, (2, 128, 256))).backward()
    """

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        *,
        fraction: float | None = None,
        ignore_index: int = 255,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        check_ohem_options(threshold, min_kept, fraction, ignore_index)
        _checks.check_bool("align_corners", align_corners)
        self.threshold, self.min_kept, self.fraction = threshold, min_kept, fraction
        self.ignore_index, self.align_corners = ignore_index, align_corners

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = upsample_cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
            reduction="none",
        )
        return ohem(
            losses,
            target,
            threshold=self.threshold,
            min_kept=self.min_kept,
            fraction=self.fraction,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        chosen = f"threshold={self.threshold}, min_kept={self.min_kept}"
        if self.fraction is not None:
            chosen = f"fraction={self.fraction}"
        return f"{chosen}, ignore_index={self.ignore_index}, align_corners={self.align_corners}"


class ConfusionMatrix:
    """Predictions counted by class, image by image, and the intersection over union they give.

    Nothing is synchronised on a GPU until a number is read.

    Args:
        num_classes: how many classes there are.
        ignore_index: pixels of this target are not counted.
        align_corners: of the upsampling, where logits are given.

    Attributes:
        counts: `[num_classes, num_classes]`, int64, row = target, column = prediction; on the
            device of the first update. Several processes add theirs: `all_reduce(matrix.counts)`.

    Example:
        >>> import torch, vsegops
        >>> matrix = vsegops.nn.ConfusionMatrix(3)
        >>> matrix.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 1, 1]]]))
        >>> matrix.iou().tolist()  # class 2 is nowhere
        [0.5, 0.5, nan]
        >>> matrix.mean_iou().item()
        0.5
    """

    def __init__(
        self, num_classes: int, *, ignore_index: int = 255, align_corners: bool = False
    ) -> None:
        check_classes("num_classes", num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.align_corners = align_corners
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count images: labels `[N, H, W]` or logits `[N, num_classes, h, w]`, and their target
        `[N, H, W]`, as `vsegops.confusion_matrix` takes them."""
        counts = confusion_matrix(
            prediction,
            target,
            self.num_classes,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )
        self.counts = self.counts.to(counts.device) + counts

    def reset(self) -> None:
        """Forget all that was counted."""
        self.counts = torch.zeros_like(self.counts)

    def iou(self) -> Tensor:
        """Of each class, `[num_classes]` in float64: pixels that are and were predicted to be of it
        over those that are or were. NaN for a class that is neither in target nor prediction."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    def mean_iou(self) -> Tensor:
        """The mean over the classes that occur, without dimensions; NaN where none does."""
        return self.iou().nanmean()

    def accuracy(self) -> Tensor:
        """The share of the counted pixels that is right, without dimensions."""
        return self.counts.diagonal().sum().double() / self.counts.sum()

    def __repr__(self) -> str:
        return f"ConfusionMatrix({self.num_classes}, ignore_index={self.ignore_index})"
