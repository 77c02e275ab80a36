"""How well models do, counted as the papers count it.

All of it comes from confusion matrices (`vsegops.nn.ConfusionMatrix`); video models have one for
each distance to the key frame:

    GSVNet   average: the mean IoU of all distances' counts together; minimum: of the largest one
    TWNet    the key frame lies 0 to 11 frames before, all alike: the same sum; and the curve of
             the mean IoU over the distance
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsegops._checks import error
from vsegops.nn import ConfusionMatrix

from ..base import ImageModel, Motion, VideoModel
from ..video.codec import CodecReader
from ..video.transcode import encode
from .classes import CATEGORIES
from .datasets import Sample


def category_iou(
    matrix: ConfusionMatrix, categories: Mapping[str, Sequence[int]] = CATEGORIES
) -> dict[str, float]:
    """The intersection over union of groups of classes: confusion within one is none.

    Args:
        matrix: of the classes.
        categories: of each, the classes in it; each class is in one.

    Example:
        >>> matrix = ConfusionMatrix(3)
        >>> matrix.update(torch.tensor([[[0, 1, 2, 2]]]), torch.tensor([[[1, 0, 2, 0]]]))
        >>> category_iou(matrix, {"a": (0, 1), "b": (2,)})
        {'a': 0.6666666666666666, 'b': 0.5}
    """
    if sorted(sum(map(list, categories.values()), [])) != list(range(matrix.num_classes)):
        raise error("categories", "each class in one of them", dict(categories))
    groups = torch.zeros(len(categories), matrix.num_classes, dtype=torch.int64)
    for number, members in enumerate(categories.values()):
        groups[number, list(members)] = 1
    merged = ConfusionMatrix(len(categories))
    merged.counts = groups @ matrix.counts.cpu() @ groups.T
    return dict(zip(categories, merged.iou().tolist(), strict=True))


@torch.no_grad()
def evaluate_images(model: ImageModel, samples: Iterable[Sample]) -> ConfusionMatrix:
    """Of whole images, one by one, at one scale and without flips.

    Args:
        model: in evaluation mode.
        samples: with one frame each, or of which the last counts.
    """
    device = next(model.parameters()).device
    matrix = ConfusionMatrix(model.num_classes)
    for frames, labels in samples:
        images = model.preprocess(frames[-1:].to(device))
        matrix.update(model.predict(images), labels[None].to(device))
    return matrix


class Clip(NamedTuple):
    """Consecutive frames, the last of which is labelled, and how each came from the one before.

    Attributes:
        frames: uint8 `[T, H, W, 3]`.
        labels: `[H, W]`.
        motions: T, the first of them unused; or None.
    """

    frames: Tensor
    labels: Tensor
    motions: Sequence[Motion] | None = None


def coded(sample: Sample, stride: int, *, quantizer: int = 4) -> Clip:
    """A sample as TWNet sees it: coded as MPEG-4 with one key frame, and decoded.

    Args:
        sample: of consecutive frames.
        stride: of the motion, as the model's `motion_stride`.
        quantizer: as for `transcode`.
    """
    file = io.BytesIO()
    encode(iter(sample.frames), file, gop=len(sample.frames), quantizer=quantizer)
    file.seek(0)
    with CodecReader(file, stride=stride) as reader:
        frames = list(reader)
    images = torch.stack([frame.image.permute(1, 2, 0) for frame in frames])
    return Clip(images, sample.labels, [Motion.of(frame) for frame in frames])


def clip_for(model: VideoModel, sample: Sample) -> Clip:
    """A sample as a model takes it: with a codec's motion, where it uses that."""
    if model.motion_stride is None:
        return Clip(*sample)
    return coded(sample, model.motion_stride)


@dataclass(frozen=True)
class ByDistance:
    """Confusion matrices over the distance from the key frame to the frame that is judged.

    Attributes:
        matrices: of the distances 0, 1, 2, ...
    """

    matrices: Sequence[ConfusionMatrix]

    def together(self, distances: int | None = None) -> ConfusionMatrix:
        """The counts of the first so many distances (None: of all) in one matrix."""
        total = ConfusionMatrix(self.matrices[0].num_classes)
        total.counts = torch.stack([m.counts for m in self.matrices[:distances]]).sum(0)
        return total

    def average(self, interval: int | None = None) -> float:
        """GSVNet's average mean IoU at a key frame interval; with 12 TWNet's."""
        return self.together(interval).mean_iou().item()

    def minimum(self, interval: int | None = None) -> float:
        """GSVNet's minimum mean IoU: of the frame before the next key frame."""
        return self.matrices[: interval or None][-1].mean_iou().item()

    def curve(self) -> list[float]:
        """The mean IoU of each distance (TWNet, figure 8)."""
        return [matrix.mean_iou().item() for matrix in self.matrices]


@torch.no_grad()
def evaluate_video(
    model: VideoModel, clips: Iterable[Clip], distances: int = 12, *, draw: int | None = None
) -> ByDistance:
    """For each clip and each distance: a key frame so many frames before the labelled one, carried
    on to it.

    Args:
        model: in evaluation mode.
        clips: with at least `distances` frames each.
        distances: how many, from 0; 12 for TWNet, GSVNet's interval.
        draw: a seed: each clip takes one distance at random instead of all (TWNet's protocol, which
            does not say whether it does so).
    """
    device = next(model.parameters()).device
    rng = np.random.default_rng(draw)
    matrices = [ConfusionMatrix(model.num_classes) for _ in range(distances)]
    for clip in clips:
        if len(clip.frames) < distances:
            raise error("clips", f"at least {distances} frames", len(clip.frames))
        images = model.preprocess(clip.frames[-distances:].to(device))
        motions = _motions(clip, distances, images)
        chosen = range(distances) if draw is None else [int(rng.integers(distances))]
        for distance in chosen:
            predicted = _carried(model, images, motions, distance)
            matrices[distance].update(predicted, clip.labels[None].to(device))
    return ByDistance(matrices)


@torch.no_grad()
def step_through(model: VideoModel, clip: Clip, distance: int) -> Tensor:
    """Labels `[1, H, W]` of a clip's last frame, from a key frame so many frames before it."""
    if len(clip.frames) <= distance:
        raise error("clip", f"more than {distance} frames", len(clip.frames))
    images = model.preprocess(clip.frames.to(next(model.parameters()).device))
    return _carried(model, images, _motions(clip, len(images), images), distance)


def _carried(
    model: VideoModel, images: Tensor, motions: Sequence[Motion | None], distance: int
) -> Tensor:
    first = len(images) - 1 - distance
    logits, state = model.start(images[first : first + 1])
    for number in range(first + 1, len(images)):
        logits, state = model.step(images[number : number + 1], state, motions[number])
    return model.labels(logits, images.shape[2:])


def _motions(clip: Clip, count: int, like: Tensor) -> list[Motion | None]:
    if clip.motions is None:
        return [None] * count
    return [Motion(*(x.to(like.device) for x in motion)) for motion in clip.motions[-count:]]
