"""SFNet (Li et al., ECCV 2020) and SFNet-Lite (Li et al., IJCV 2023).

Both align a coarse, semantic map with finer ones along a flow that they predict, where other
networks resize. All resizing is bilinear with `align_corners=True`, and so are the warps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops._checks import check_option
from vsegops.nn import FlowAlign, GatedDualFlowAlign, PyramidPooling

from .backbones import STDC, Backbone, DFNet, ResNet, ShuffleNetV2
from .backbones.layers import conv_bn, run_through
from .base import ImageModel
from .registry import register
from .weights import load_upstream

BACKBONES: Mapping[str, Callable[[], Backbone]] = {
    "resnet18": partial(ResNet, 18, "deep", "kept_stride"),
    "resnet18_x0_25": partial(ResNet, 18, "deep", "kept_stride", width_mult=0.25),
    "resnet50": partial(ResNet, 50, "deep", "kept_stride"),
    "resnet101": partial(ResNet, 101, "deep", "kept_stride"),
    "shufflenetv2": ShuffleNetV2,
    "df1": partial(DFNet, "df1"),
    "df2": partial(DFNet, "df2"),
    "stdc1": partial(STDC, "stdc1"),
    "stdc2": partial(STDC, "stdc2"),
}


class _FlowNetwork(ImageModel):
    """A backbone and a head, with the published names; ResNet's have no `backbone.` in front."""

    align_corners = True
    layer0: nn.Sequential
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        backbone: str,
        head: Callable[[Sequence[int]], nn.Module],
        num_classes: int,
        backbone_weights: Any,
    ) -> None:
        super().__init__()
        network = BACKBONES[backbone]()
        if backbone_weights is not None:
            load_upstream(network, backbone_weights)
        if isinstance(network, ResNet):
            for number, stage in enumerate(network.stages()):
                self.add_module(f"layer{number}", stage)
        else:
            self.backbone = network
            self.unused_prefixes += tuple(f"backbone.{x}" for x in network.unused_prefixes)
        self.head = head(network.channels)
        self.num_classes, self.stride = num_classes, network.strides[0]

    def features(self, images: Tensor) -> list[Tensor]:
        if hasattr(self, "backbone"):
            return self.backbone(images)  # type: ignore[no-any-return]
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return run_through(stages, self.layer0(images))

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images))


class SFNet(_FlowNetwork):
    """SFNet: a feature pyramid whose every step is aligned by a flow (FAM).

    Paper: "Semantic Flow for Fast and Accurate Scene Parsing" (ECCV 2020), tables 1, 3 and 4; with
    STDC backbones "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (IJCV 2023),
    table 11. Its operator is `warp_correct` (the warp and the sum that follows it, in one pass), in
    `vsegops.nn.FlowAlign`; `predict` runs `upsample_argmax`.

    Published files are those of SFSegNets: every name and shape is theirs, but for ShuffleNetV2,
    which was not published (its names are torchvision's, behind `backbone.`).

    Args:
        backbone: `"resnet18"`, `"resnet18_x0_25"` (a quarter of the channels), `"resnet50"`,
            `"resnet101"`, `"shufflenetv2"`, `"df1"`, `"df2"`, `"stdc1"` or `"stdc2"`. The logits
            have stride 4; with DF1 16, with DF2 8.
        num_classes: channels of the logits.
        width: channels of the head.
        deep_supervision: add a classifier to each sum (`head.dsn.*`); in training the result is
            then a pair of logits and the auxiliary ones, from the coarsest on.
        warp_align_corners: False for a checkpoint from before July 2022 that was trained with the
            warp of that time (see `docs/flow-align.md`).
        pooling: the context of the coarsest level, `"concat"` (as published: `PyramidPooling`) or
            `"sum"`, lighter: grids of 1, 2 and 4 cells are added to a projection.
        alignment: `"flow"`, or `"bilinear"`: the feature pyramid that the paper compares with.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    unused_prefixes = ("head.dsn.",)

    def __init__(
        self,
        backbone: str,
        num_classes: int = 19,
        *,
        width: int,
        deep_supervision: bool = False,
        warp_align_corners: bool = True,
        pooling: str = "concat",
        alignment: str = "flow",
        backbone_weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> None:
        head = partial(
            AlignHead,
            width=width,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
            align_corners=warp_align_corners,
            pooling=pooling,
            alignment=alignment,
        )
        super().__init__(backbone, head, num_classes, backbone_weights)


class SFNetLite(_FlowNetwork):
    """SFNet-Lite: one gated dual alignment (GD-FAM) from the coarsest map to the finest.

    Paper: "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (IJCV 2023), tables
    3 to 7, 10 and 11. Its operators are `gated_dual_warp` and (with `gate="pool"`) `channel_pool`,
    in `vsegops.nn.GatedDualFlowAlign`; `predict` runs `upsample_argmax`. The logits have stride 4.

    Published files are those of SFSegNets; what they hold and never use is left out. Its
    constructor for ResNet-101 builds SFNet; here it is the paper's network.

    Args:
        backbone: `"resnet18"`, `"resnet18_x0_25"` (a quarter of the channels), `"resnet101"`,
            `"stdc1"` or `"stdc2"`.
        num_classes: channels of the logits.
        width: channels of the head.
        gate: what decides between the two maps, `"pool"` (mean and maximum over their channels) or
            `"conv"` (the maps themselves).
        deep_supervision: add a classifier to the aligned map (`head.dsn.*`; the published networks
            have it and do not call it). In training the result is then a pair of logits and a list
            with the auxiliary ones.
        backbone_weights: a published ImageNet classifier for `load_upstream`, or None.
    """

    unused_prefixes = ("head.dsn.", "head.fpn_in.2.")

    def __init__(
        self,
        backbone: str,
        num_classes: int = 19,
        *,
        width: int,
        gate: str = "pool",
        deep_supervision: bool = False,
        backbone_weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> None:
        head = partial(
            LiteHead,
            width=width,
            num_classes=num_classes,
            gate=gate,
            deep_supervision=deep_supervision,
        )
        super().__init__(backbone, head, num_classes, backbone_weights)


class AlignHead(nn.Module):
    """SFNet's head: from the coarsest level down, each sum is aligned with the next finer level."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int,
        num_classes: int,
        deep_supervision: bool,
        align_corners: bool,
        pooling: str,
        alignment: str,
    ) -> None:
        super().__init__()
        check_option("alignment", alignment, ("flow", "bilinear"))
        lower = range(len(channels) - 1)
        self.ppm = _pooling(pooling)(channels[-1], width)
        self.fpn_in = nn.ModuleList(_lateral(channels[i], width) for i in lower)
        self.fpn_out = nn.ModuleList(nn.Sequential(_unit(width, width)) for _ in lower)
        self.fpn_out_align = nn.ModuleList(
            FlowAlign(width, align_corners=align_corners) if alignment == "flow" else Enlarge()
            for _ in lower
        )
        self.dsn = None
        if deep_supervision:
            self.dsn = nn.ModuleList(_auxiliary(width, num_classes) for _ in lower)
        self.conv_last = _classifier(len(channels) * width, width, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Any:
        x = self.ppm(levels[-1])
        fused, auxiliary = [x], []
        for i in reversed(range(len(levels) - 1)):
            x = self.fpn_out_align[i](self.fpn_in[i](levels[i]), x, add_low=True)
            fused.insert(0, self.fpn_out[i](x))
            if self.dsn is not None and self.training:
                auxiliary.append(self.dsn[i](x))
        logits = self.conv_last(_concatenate(fused))
        return (logits, auxiliary) if auxiliary else logits


class Enlarge(nn.Module):
    """What FAM replaces: the coarse map is resized, and added."""

    def forward(self, low: Tensor, high: Tensor, *, add_low: bool) -> Tensor:
        enlarged = _resize(high, low)
        return low + enlarged if add_low else enlarged


class LiteHead(nn.Module):
    """SFNet-Lite's head, of the levels at 1/4, 1/16 and 1/32."""

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int,
        num_classes: int,
        gate: str,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.ppm = PyramidPooling(channels[3], width)
        self.fpn_in = nn.ModuleList(_lateral(channels[i], width) for i in (0, 2))
        self.flow_align_module = GatedDualFlowAlign(width, gate)
        self.dsn = _auxiliary(width, num_classes) if deep_supervision else None
        self.conv_last = _classifier(2 * width, width, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Any:
        fine, middle = (lateral(levels[i]) for lateral, i in zip(self.fpn_in, (0, 2), strict=True))
        aligned = self.flow_align_module(fine, self.ppm(levels[3]))
        logits = self.conv_last(_concatenate((aligned, middle)))
        if self.dsn is not None and self.training:
            return logits, [self.dsn(aligned)]
        return logits


class SummedPooling(nn.Module):
    """The lighter pyramid pooling: a projection, and averages over grids added to it."""

    def __init__(
        self, in_channels: int, out_channels: int, sizes: Sequence[int] = (1, 2, 4)
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size), *conv_bn(in_channels, out_channels, 1, activation=None)
            )
            for size in sizes
        )
        self.project = nn.Sequential(*conv_bn(in_channels, out_channels, 1, activation=None))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)
        for stage in self.stages:
            y = y + _resize(stage(x), y)
        return self.relu(y)  # type: ignore[no-any-return]


def _pooling(name: str) -> type[nn.Module]:
    poolings: dict[str, type[nn.Module]] = {"concat": PyramidPooling, "sum": SummedPooling}
    check_option("pooling", name, tuple(poolings))
    return poolings[name]


def _lateral(in_channels: int, width: int) -> nn.Sequential:
    """With a bias, although a normalisation follows: as published."""
    return nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.BatchNorm2d(width), nn.ReLU())


def _unit(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, width))


def _classifier(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(_unit(in_channels, width), nn.Conv2d(width, num_classes, 1))


def _auxiliary(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, num_classes, 1),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def _concatenate(maps: Sequence[Tensor]) -> Tensor:
    """All at the size of the first."""
    return torch.cat([_resize(x, maps[0]) for x in maps], 1)


_WIDTHS = {"resnet18": 128, "resnet50": 256, "resnet101": 256}
_LITE_WIDTHS = {"resnet18": 128, "resnet18_x0_25": 64, "resnet101": 256, "stdc1": 128, "stdc2": 128}

for _name in BACKBONES:
    register(f"sfnet_{_name}", SFNet, backbone=_name, width=_WIDTHS.get(_name, 64))
for _name, _width in _LITE_WIDTHS.items():
    register(f"sfnet_lite_{_name}", SFNetLite, backbone=_name, width=_width)
