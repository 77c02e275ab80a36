"""The papers' augmentations. All frames of a sample share their geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .classes import IGNORED
from .datasets import Sample

#: The share of each colour in brightness (ITU-R 601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ColourJitter:
    """Changes colours, one way after the other in a random order.

    Attributes:
        offset: what is added, up to so much (of 0..1) either way.
        brightness, contrast, saturation: factors, up to so much from 1 either way.
        hue: turned by up to this part of the circle either way.
        probability: of each of these.
    """

    offset: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """float `[T, 3, H, W]` in 0..1, changed all alike."""
        ways = ("offset", "brightness", "contrast", "saturation", "hue")
        for name in rng.permutation([name for name in ways if getattr(self, name) > 0]):
            if rng.random() >= self.probability:
                continue
            amount = rng.uniform(-1, 1) * getattr(self, name)
            if name == "offset":
                images = images + amount
            elif name == "brightness":
                images = images * (1 + amount)
            elif name == "contrast":
                images = grey(images).mean((1, 2, 3), keepdim=True).lerp(images, 1 + amount)
            elif name == "saturation":
                images = grey(images).lerp(images, 1 + amount)
            else:
                images = turn_hue(images, amount)
            images = images.clamp(0, 1)
        return images


@dataclass(frozen=True)
class Augmentation:
    """Scale, crop, flip, colours and blur, in this order.

    Attributes:
        crop: height and width of what comes out; None: all of it (scaled).
        scales: a pair: between the two; more: one of them.
        multiple: scaled sizes are cut down to multiples of this.
        smooth: how images are scaled, `"bicubic"` (with an antialias filter) or `"bilinear"` (with
            `align_corners=True`, as GSVNet does). Labels always take the nearest.
        flip: the probability of a mirror image.
        colours: or None.
        each_frame: colours are drawn for each frame anew.
        blur: the least and the largest deviation of a Gaussian, in pixels; None: no blur.
        most: no class has a larger share of the crop; after ten tries, any crop will do.
    """

    crop: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0, 1.0)
    multiple: int = 1
    smooth: str = "bicubic"
    flip: float = 0.5
    colours: ColourJitter | None = None
    each_frame: bool = False
    blur: tuple[float, float] | None = None
    most: float = 1.0

    def __call__(
        self,
        sample: Sample,
        rng: np.random.Generator,
        centre: Sequence[int] | None = None,
    ) -> Sample:
        """Another sample.

        Args:
            sample: as the data set has it.
            rng: decides; one of the same state gives the same result.
            centre: x and y of a pixel that the crop has to contain, or None.
        """
        height, width = sample.labels.shape
        scale = rng.uniform(*self.scales) if len(self.scales) == 2 else rng.choice(self.scales)
        size = [int(scale * n) // self.multiple * self.multiple for n in (height, width)]
        sample = resized(sample, (size[0], size[1]), self.smooth)
        if self.crop is not None:
            if centre is not None:
                centre = (centre[0] * size[1] // width, centre[1] * size[0] // height)
            sample = self._cropped(sample, self.crop, rng, centre)
        frames, labels = sample
        if rng.random() < self.flip:
            frames, labels = frames.flip(2), labels.flip(1)
        if self.colours is not None or self.blur is not None:
            frames = self._coloured(frames, rng)
        return Sample(frames.contiguous(), labels.contiguous())

    def _cropped(
        self,
        sample: Sample,
        crop: tuple[int, int],
        rng: np.random.Generator,
        centre: Sequence[int] | None,
    ) -> Sample:
        frames, labels = sample
        # Too small: both sides alike, black, and not labelled.
        pads = [
            (wanted - n) // 2 + 1 if n < wanted else 0
            for n, wanted in zip(labels.shape, crop, strict=True)
        ]
        if any(pads):
            around = (pads[1], pads[1], pads[0], pads[0])
            frames = F.pad(frames, (0, 0, *around))
            labels = F.pad(labels, around, value=IGNORED)
        for _ in range(10):
            corner = []
            for axis in (0, 1):
                last = labels.shape[axis] - crop[axis]
                if centre is None:
                    corner.append(int(rng.integers(last + 1)))
                else:
                    at = centre[1 - axis] + pads[axis]
                    corner.append(int(np.clip(rng.integers(at - crop[axis] + 1, at + 1), 0, last)))
            (top, left), (height, width) = corner, crop
            part = labels[top : top + height, left : left + width]
            counts = torch.bincount(part[part != IGNORED].flatten().long())
            if self.most >= 1 or (len(counts) and counts.max() <= self.most * counts.sum()):
                break
        return Sample(frames[:, top : top + height, left : left + width], part)

    def _coloured(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        images = frames.permute(0, 3, 1, 2).float() / 255
        if self.colours is not None:
            parts = images.split(1) if self.each_frame else (images,)
            images = torch.cat([self.colours(part, rng) for part in parts])
        if self.blur is not None:
            images = blurred(images, rng.uniform(*self.blur))
        return (images * 255).round().byte().permute(0, 2, 3, 1)


def sfnet(crop: tuple[int, int] = (1024, 1024)) -> Augmentation:
    """SFNet's and SFNet-Lite's; every published script has this crop."""
    colours = ColourJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.25)
    return Augmentation(crop, (0.5, 2.0), colours=colours, blur=(0.15, 1.30))


def gsvnet(crop: tuple[int, int] = (768, 1536)) -> Augmentation:
    """GSVNet's."""
    scales = (0.75, 1.0, 1.5, 1.75)
    return Augmentation(crop, scales, multiple=32, smooth="bilinear", flip=0.4)


def twnet(crop: tuple[int, int] | None = (800, 800)) -> Augmentation:
    """TWNet's, for its first step; the second has none (warping would leave the crop)."""
    return Augmentation(crop, (0.5, 2.0))


def tmanet(crop: tuple[int, int] = (769, 769)) -> Augmentation:
    """TMANet's; 640 x 640 for CamVid."""
    colours = ColourJitter(offset=32 / 255, contrast=0.5, saturation=0.5, hue=0.05, probability=0.5)
    return Augmentation(crop, (0.5, 2.0), colours=colours, each_frame=True, most=0.75)


def resized(sample: Sample, size: tuple[int, int], smooth: str = "bicubic") -> Sample:
    """Of another size; labels take the nearest pixel. UDS is validated at 1024 x 2048."""
    frames, labels = sample
    if tuple(labels.shape) == size:
        return sample
    images = frames.permute(0, 3, 1, 2)
    if smooth == "bicubic":
        images = F.interpolate(images, size, mode="bicubic", antialias=True)
    else:
        images = F.interpolate(images.float(), size, mode="bilinear", align_corners=True)
        images = images.round().byte()
    target = F.interpolate(labels[None, None], size, mode="nearest-exact")[0, 0]
    return Sample(images.permute(0, 2, 3, 1), target)


def middle_square(sample: Sample, height: int = 1536) -> Sample:
    """Scaled to a height, then the square in the middle: Mapillary's validation."""
    rows, columns = sample.labels.shape
    width = round(columns * height / rows)
    frames, labels = resized(sample, (height, width))
    left = max(0, (width - height) // 2)
    return Sample(frames[:, :, left : left + height], labels[:, left : left + height])


def grey(images: Tensor) -> Tensor:
    """Brightness `[T, 1, H, W]` of RGB."""
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def turn_hue(images: Tensor, share: float) -> Tensor:
    """RGB `[T, 3, H, W]` in 0..1 with each colour's hue turned by a part of the circle.

    The largest and the smallest of the three stay. A primary has the largest where the hue is at
    most a sixth of the circle from it, and the smallest from two sixths on.
    """
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = (high - low).clamp(min=1e-8)
    r, g, b = (images - low).div(spread).split(1, 1)
    hue = torch.where(r == 1, g - b, torch.where(g == 1, 2 + b - r, 4 + r - g)) / 6 + share
    place = hue + images.new_tensor([0.0, -1 / 3, 1 / 3])[:, None, None]
    distance = (place - place.round()).abs() * 6  # of each primary from the hue
    return low + (high - low) * (2 - distance).clamp(0, 1)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """By a Gaussian, `[T, 3, H, W]`; pixels at the border repeat."""
    radius = max(1, math.ceil(3 * deviation))
    axis = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (axis / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
