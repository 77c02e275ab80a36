"""Dilated ResNets with a head at 1/8: what TMANet shares with the image models beside it.

Those are the non-local head and the PSP head that the report on Asym-TMANet compares with. Entries
have mmsegmentation's names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops import asymmetric_attention, pyramid_pool
from vsegops._checks import check_bool, check_option
from vsegops.nn import OperatorModule

from .backbones import ResNet
from .backbones.layers import conv_bn, kaiming, scaled
from .base import ImageModel, Model
from .registry import register
from .weights import load_upstream

BACKBONES: Mapping[str, int] = {"resnet18": 18, "resnet50": 50}

#: What heads reduce features to before they classify them; auxiliary heads.
WIDTH, AUXILIARY_WIDTH = 512, 256

Weights = str | os.PathLike[str] | Mapping[str, Any] | None


class ConvUnit(nn.Module):
    """A convolution without bias, its normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv, self.bn, *activate = conv_bn(
            in_channels, out_channels, kernel_size, activation=activation
        )
        self.activate = activate[0] if activate else nn.Identity()
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class Head(OperatorModule):
    """What every head ends with: features `[N, channels, H, W]` are classified."""

    def __init__(self, num_classes: int, channels: int = WIDTH) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.constant_(self.conv_seg.bias, 0.0)  # type: ignore[arg-type]
        self.dropout = nn.Dropout2d(0.1)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))  # type: ignore[no-any-return]


class AuxiliaryHead(Head):
    """Classifies the features of the third stage, in training."""

    def __init__(self, in_channels: int, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        self.convs = nn.ModuleList([ConvUnit(in_channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.convs[0](x))


class DilatedNetwork(Model):
    """A ResNet whose last two stages are dilated and keep 1/8, a head, and an auxiliary head."""

    stride = 8
    decode_head: nn.Module
    unused_prefixes = ("auxiliary_head.",)

    def __init__(
        self,
        backbone: str,
        head: Callable[[Sequence[int]], nn.Module],
        num_classes: int,
        *,
        deep_supervision: bool,
        align_corners: bool | None,
        backbone_weights: Weights,
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        if align_corners is not None:
            check_bool("align_corners", align_corners)
        check_bool("deep_supervision", deep_supervision)
        check_option("backbone", backbone, tuple(BACKBONES))
        self.backbone = ResNet(BACKBONES[backbone], "v1c", "stride_8", width_mult)
        if backbone_weights is not None:
            load_upstream(self.backbone, backbone_weights)
        channels = self.backbone.channels
        self.decode_head = head(channels)
        self.auxiliary_head = None
        if deep_supervision:
            width = scaled(AUXILIARY_WIDTH, width_mult)
            self.auxiliary_head = AuxiliaryHead(channels[2], num_classes, width)
        self.num_classes = num_classes
        # Published for CamVid's 12 classes without, for Cityscapes with.
        self.align_corners = num_classes != 12 if align_corners is None else align_corners

    def result(self, logits: Tensor, levels: Sequence[Tensor]) -> Any:
        """The logits; in training with deep supervision, and a list of the auxiliary ones."""
        if self.auxiliary_head is None or not self.training:
            return logits
        return logits, [self.auxiliary_head(levels[2])]


class ContextNetwork(DilatedNetwork, ImageModel):
    """A dilated ResNet with a head that gathers context: the image models beside TMANet.

    Paper: "Research and Implementation of Video Semantic Segmentation, with Possible Improvements"
    (2021), section 5.1 (it has no table): TMANet's backbone and settings, without a memory.
    `head="nonlocal"` is "Non-local Neural Networks" (CVPR 2018), whose operator is
    `asymmetric_attention` over every position; `head="psp"` "Pyramid Scene Parsing Network" (CVPR
    2017), whose operator is `pyramid_pool`. `predict` runs `upsample_argmax`. Names and defaults
    are those of mmsegmentation's NLHead and PSPHead, with 512 channels over either backbone.

    Args:
        backbone: `"resnet18"` or `"resnet50"`.
        head: `"nonlocal"` or `"psp"`.
        num_classes: channels of the logits.
        deep_supervision: add an auxiliary head on the third stage (`auxiliary_head.*`); in training
            the result is then a pair of logits and a list with the auxiliary ones.
        align_corners: how maps are resized; None: as TMANet's, False for CamVid's 12 classes and
            True otherwise.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int = 19,
        *,
        head: str,
        deep_supervision: bool = False,
        align_corners: bool | None = None,
        backbone_weights: Weights = None,
    ) -> None:
        check_option("head", head, tuple(HEADS))
        super().__init__(
            backbone,
            lambda channels: HEADS[head](channels[3], num_classes),
            num_classes,
            deep_supervision=deep_supervision,
            align_corners=align_corners,
            backbone_weights=backbone_weights,
        )

    def forward(self, images: Tensor) -> Any:
        levels = self.backbone(images)
        logits = self.decode_head(levels[3], self.align_corners)
        return self.result(logits, levels)


class NonLocalHead(Head):
    """A non-local block between two convolutions; what comes of it joins the features again."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.convs = nn.ModuleList([ConvUnit(in_channels, WIDTH), ConvUnit(WIDTH, WIDTH)])
        self.conv_cat = ConvUnit(in_channels + WIDTH, WIDTH)
        self.nl_block = NonLocalBlock(WIDTH)

    def forward(self, x: Tensor, align_corners: bool) -> Tensor:
        context = self.convs[1](self.nl_block(self.convs[0](x)))
        return self.classify(self.conv_cat(torch.cat((x, context), 1)))


class NonLocalBlock(OperatorModule):
    """Each position reads every position; the scale of the normalisation starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = _Projection(channels, channels // 2)
        self.conv_out = ConvUnit(channels // 2, channels, 1, activation=None)
        nn.init.zeros_(self.conv_out.bn.weight)  # type: ignore[arg-type]
        self.theta = _Projection(channels, channels // 2)
        self.phi = _Projection(channels, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        read = self.run(asymmetric_attention, self.theta(x), self.phi(x), self.g(x))
        return x + self.conv_out(read)  # type: ignore[no-any-return]


class _Projection(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.constant_(self.conv.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class PSPHead(Head):
    """Means over grids of 1, 2, 3 and 6 cells, each projected and resized, beside the features.

    In training the grid of one cell needs a batch of two and more.
    """

    sizes = (1, 2, 3, 6)

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(num_classes)
        # (the pooling, which has no entries, is the first of each pair as published)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.Identity(), ConvUnit(in_channels, WIDTH, 1)) for _ in self.sizes
        )
        self.bottleneck = ConvUnit(in_channels + len(self.sizes) * WIDTH, WIDTH)

    def forward(self, x: Tensor, align_corners: bool) -> Tensor:
        cells = self.run(pyramid_pool, x, self.sizes).split([size**2 for size in self.sizes], 2)
        context = [x]
        for size, grid, module in zip(self.sizes, cells, self.psp_modules, strict=True):
            projected = module(grid.unflatten(2, (size, size)))
            context.append(
                F.interpolate(projected, x.shape[2:], mode="bilinear", align_corners=align_corners)
            )
        return self.classify(self.bottleneck(torch.cat(context, 1)))


HEADS: Mapping[str, Callable[[int, int], nn.Module]] = {"nonlocal": NonLocalHead, "psp": PSPHead}

for _name in BACKBONES:
    register(f"nonlocal_{_name}", ContextNetwork, backbone=_name, head="nonlocal")
    register(f"pspnet_{_name}", ContextNetwork, backbone=_name, head="psp")
