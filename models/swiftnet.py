"""SwiftNet with one scale (Orsic et al., CVPR 2019)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import ResNet
from .base import ImageModel, Preprocess
from .registry import register
from .weights import load_upstream

WIDTH = 128
#: Rows of the pooled grids; they have as many columns as make their cells square.
GRIDS = (8, 4, 2)

#: Of Cityscapes, RGB in 0..255.
CITYSCAPES = Preprocess(
    mean=(73.15, 82.90, 72.3), std=(47.67, 48.49, 47.73), value_range=(0.0, 255.0)
)


class SwiftNet(ImageModel):
    """SwiftNet-R18: ResNet-18, pyramid pooling, and a ladder of sums. The logits have stride 4.

    Paper: "In Defense of Pre-trained ImageNet Architectures for Real-time Semantic Segmentation of
    Road-driving Images" (CVPR 2019), with a single scale; here as in GSVNet's code, whose paper has
    it in tables 1 and 2 (SwiftNet-R18). Its operator is `upsample_argmax`, in `predict`.

    Published files are GSVNet's and SwiftNet's. The skips are taken after the ReLU, which in
    the published code works in place on what the paper draws before it.

    Args:
        num_classes: channels of the logits.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    preprocess = CITYSCAPES
    align_corners = False
    stride = 4
    #: `preprocess` has them; published files have them as well.
    unused_prefixes = ("backbone.img_mean", "backbone.img_std")

    def __init__(
        self,
        num_classes: int = 19,
        *,
        backbone_weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Ladder(backbone_weights)
        self.logits = _unit(WIDTH, num_classes, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.backbone.decode(images))  # type: ignore[no-any-return]


class Ladder(ResNet):
    """ResNet-18, and what brings its levels back to stride 4."""

    def __init__(self, weights: str | os.PathLike[str] | Mapping[str, Any] | None) -> None:
        super().__init__(18)
        if weights is not None:
            load_upstream(self, weights)
        for name, values in (("img_mean", CITYSCAPES.mean), ("img_std", CITYSCAPES.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.spp = SquareCellPooling(self.channels[-1])
        self.upsample = nn.ModuleList(Rung(channels) for channels in self.channels[-2::-1])

    def decode(self, images: Tensor) -> Tensor:
        *skips, x = self(images)
        x = self.spp(x)
        for rung, skip in zip(self.upsample, reversed(skips), strict=True):
            x = rung(x, skip)
        return x  # type: ignore[no-any-return]


class SquareCellPooling(nn.Module):
    """Pyramid pooling over grids whose cells are square, or nearly so, whatever the image is."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = WIDTH // len(GRIDS)
        joined = WIDTH + width * len(GRIDS)
        layers = {"spp_bn": _unit(in_channels, WIDTH)}
        layers |= {f"spp{i}": _unit(WIDTH, width) for i in range(len(GRIDS))}
        layers["spp_fuse"] = _unit(joined, WIDTH)
        self.spp = nn.ModuleDict(layers)
        for norm in self.spp.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.005

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        levels = [self.spp["spp_bn"](x)]
        for i, rows in enumerate(GRIDS):
            columns = max(1, round(rows * width / height))
            pooled = self.spp[f"spp{i}"](F.adaptive_avg_pool2d(levels[0], (rows, columns)))
            levels.append(_resize(pooled, x))
        return self.spp["spp_fuse"](torch.cat(levels, 1))  # type: ignore[no-any-return]


class Rung(nn.Module):
    """The running features, enlarged, and a level's own are added and blended."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bottleneck = _unit(channels, WIDTH)
        self.blend_conv = _unit(WIDTH, WIDTH, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        skip = self.bottleneck(skip)
        return self.blend_conv(_resize(x, skip) + skip)  # type: ignore[no-any-return]


def _unit(in_channels: int, out_channels: int, kernel: int = 1, *, bias: bool = False) -> nn.Module:
    """Normalisation, ReLU, convolution, in this order."""
    layers = (
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
    )
    return nn.Sequential(OrderedDict(zip(("norm", "relu", "conv"), layers, strict=True)))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


register("swiftnet_resnet18", SwiftNet)
