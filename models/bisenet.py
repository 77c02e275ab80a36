"""BiSeNet (Yu et al., ECCV 2018)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import ResNet
from .backbones.layers import conv_bn
from .base import ImageModel
from .registry import register
from .weights import load_upstream

WIDTH = 128


class BiSeNet(ImageModel):
    """BiSeNet-R18: a spatial path to 1/8, a context path to 1/32, and their fusion, at stride 8.

    Paper: "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (ECCV
    2018); here as in GSVNet's code, whose paper has it in tables 1 to 3 (BiSeNet-R18). Its operator
    is `upsample_argmax`, in `predict`. Published files are those of GSVNet.

    Args:
        num_classes: channels of the logits.
        deep_supervision: add a classifier to each sum of the context path (`heads.0.*` at 1/16,
            `heads.1.*` at 1/8); in training the result is then a pair of logits and the auxiliary
            ones.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    align_corners = True
    stride = 8
    unused_prefixes = ("heads.0.", "heads.1.")

    def __init__(
        self,
        num_classes: int = 19,
        *,
        deep_supervision: bool = False,
        backbone_weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.deep_supervision = num_classes, deep_supervision
        self.context_path = ResNet(18)
        if backbone_weights is not None:
            load_upstream(self.context_path, backbone_weights)
        self.spatial_path = nn.Sequential(
            OrderedDict(
                conv_7x7=_unit(3, 64, 7, 2),
                conv_3x3_1=_unit(64, 64, 3, 2),
                conv_3x3_2=_unit(64, 64, 3, 2),
                conv_1x1=_unit(64, WIDTH, 1),
            )
        )
        *_, middle, coarse = self.context_path.channels
        self.global_context = nn.Sequential(nn.AdaptiveAvgPool2d(1), _unit(coarse, WIDTH, 1))
        self.ffm = FeatureFusion(2 * WIDTH)
        self.arms = nn.ModuleList(AttentionRefinement(c, WIDTH) for c in (coarse, middle))
        self.refines = nn.ModuleList(_unit(WIDTH, WIDTH) for _ in range(2))
        heads = {"2": _head(2 * WIDTH, 64, num_classes)}
        if deep_supervision:
            heads = {str(i): _head(WIDTH, 256, num_classes) for i in range(2)} | heads
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> Any:
        _, *finer, coarse = self.context_path(images)
        context, x, sums = self.global_context(coarse), coarse, []
        for arm, refine, skip in zip(self.arms, self.refines, reversed(finer), strict=True):
            x = arm(x)
            sums.append(refine(_resize(x + _resize(context, x), skip)))
            x, context = skip, sums[-1]
        logits = self.heads["2"](self.ffm(self.spatial_path(images), sums[-1]))
        if self.deep_supervision and self.training:
            return logits, [self.heads[str(i)](x) for i, x in enumerate(sums)]
        return logits


class AttentionRefinement(nn.Module):
    """A convolution whose channels are weighted by what they are on average."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_3x3 = _unit(in_channels, out_channels)
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _unit(out_channels, out_channels, 1, activation=None),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_3x3(x)
        return x * self.channel_attention(x)  # type: ignore[no-any-return]


class FeatureFusion(nn.Module):
    """Both paths side by side, and again with weighted channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_1x1 = _unit(channels, channels, 1)
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            _plain(channels, nn.ReLU(inplace=True)),
            _plain(channels, nn.Sigmoid()),
        )

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.conv_1x1(torch.cat((spatial, context), 1))
        return x + x * self.channel_attention(x)  # type: ignore[no-any-return]


def _unit(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    layers = conv_bn(in_channels, out_channels, kernel, stride, activation=activation)
    return nn.Sequential(OrderedDict(zip(("conv", "bn", "relu"), layers, strict=False)))


def _plain(channels: int, activation: nn.Module) -> nn.Sequential:
    """Of one cell for each image: without a normalisation."""
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, activation=activation))


def _head(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    conv_1x1 = nn.Conv2d(width, num_classes, 1)
    return nn.Sequential(OrderedDict(conv_3x3=_unit(in_channels, width), conv_1x1=conv_1x1))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


register("bisenet_resnet18", BiSeNet)
