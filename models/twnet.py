"""TWNet (Feng et al., 2020): features of the frame before, warped by the codec's motion, corrected.

warped    = warp(features of t - 1, motion)                               (4)
features  = warped + attention * rectify([warped, spatial])               (5), (7)
attention = attend(residual)                                              (6)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops import flow_warp, warp_correct
from vsegops._checks import check_bool, check_tensor, error
from vsegops.nn import OperatorModule

from .backbones import MobileNetV1, MobileNetV2, ResNet
from .backbones.layers import Backbone, conv_bn, kaiming
from .base import ImageModel, Motion, VideoModel
from .registry import register
from .weights import load_upstream

BACKBONES: Mapping[str, Callable[[], Backbone]] = {
    "mobilenetv1": MobileNetV1,
    "mobilenetv1_x0_5": partial(MobileNetV1, width_mult=0.5),
    "mobilenetv2": MobileNetV2,
    "resnet18": partial(ResNet, 18),
}

#: Channels of the decoder: what enters its first layer, and what each of its layers gives.
WIDTHS = (256, 128, 64, 32)

Weights = str | os.PathLike[str] | Mapping[str, Any] | None


class State(NamedTuple):
    """What a step needs of the frame before.

    Attributes:
        features: `[N, C, h, w]`, of the decoder's chosen layer, after their correction.
    """

    features: Tensor


class TWNet(VideoModel):
    """TWNet: the whole network for key frames; for others its ends, around corrected features.

    Paper: "How to Train Your Dragon: Tamed Warping Network for Semantic Video Segmentation" (2020),
    tables 1, 3 and 8. Between key frames the features of one layer of the decoder are carried on:
    warped by the motion vectors of the compressed video (`flow_warp`), rectified with the help of
    the current frame (CFR) where the codec's residual says so (RGA), both in the second pass of the
    warp (`warp_correct`); only the first layers of the encoder, and those of the decoder behind
    that layer, still run. Its operators are these two; `labels` runs `upsample_argmax`. No weights
    were published.

    Of the modules, `keyframe` is the network for key frames, an `ImageModel` that is trained alone
    first; `head`, `tail` and `correction` are those for other frames. `begin_second_step` prepares
    the training of these.

    Args:
        backbone: `"mobilenetv1"`, `"mobilenetv1_x0_5"` (half the channels), `"mobilenetv2"` or
            `"resnet18"`. The logits have stride 4.
        num_classes: channels of the logits.
        layer: of the decoder, whose features are warped: 1 (stride 16), 2 (8) or 3 (4, the fastest;
            nothing of the encoder runs, and there is nothing to rectify with). `motion_stride` is
            its stride.
        cfr: rectify the warped features; None: where the layer allows it.
        rga: weight the correction by an attention to the residual; None: with `cfr`.
        backbone_weights: an ImageNet classifier for `load_upstream`, or None.
    """

    align_corners = False
    stride = 4
    schedule = "codec"

    def __init__(
        self,
        backbone: str,
        num_classes: int = 19,
        *,
        layer: int = 1,
        cfr: bool | None = None,
        rga: bool | None = None,
        backbone_weights: Weights = None,
    ) -> None:
        super().__init__()
        if layer not in (1, 2, 3):
            raise error("layer", "1, 2 or 3", layer)
        cfr = layer != 3 if cfr is None else cfr
        rga = cfr if rga is None else rga
        check_bool("cfr", cfr)
        check_bool("rga", rga)
        if cfr and layer == 3:
            raise ValueError("cfr: expected False with layer=3, where no spatial features are left")
        if rga and not cfr:
            raise ValueError("rga: expected False without cfr, whose correction it weights")
        self.num_classes, self.layer = num_classes, layer
        self.motion_stride = 32 >> layer
        self.keyframe = Pyramid(backbone, num_classes, backbone_weights)
        self.unused_prefixes = tuple(f"keyframe.{x}" for x in self.keyframe.unused_prefixes)
        self.preprocess = self.keyframe.preprocess
        self.head, self.tail = (copy.deepcopy(modules) for modules in self._shared())
        self.correction = Correction(WIDTHS[layer], rga) if cfr else None
        std = torch.tensor(self.preprocess.std).view(3, 1, 1)
        self.register_buffer("residual_scale", 1 / (255 * std), persistent=False)

    residual_scale: Tensor

    def start(self, frame: Tensor) -> tuple[Tensor, State]:
        check_tensor("frame", frame, ("N", 3, "H", "W"))
        layers = self.keyframe.decode(self.keyframe.encoder(frame))
        return self.keyframe.classifier(layers[-1]), State(layers[self.layer - 1])

    def step(
        self, frame: Tensor, state: State, motion: Motion | None = None
    ) -> tuple[Tensor, State]:
        check_tensor("frame", frame, ("N", 3, "H", "W"))
        motion = self.check_motion(frame, motion)
        check_tensor("motion.residual", motion.residual, frame.shape, like=frame)
        size = motion.flow.shape[2:]
        check_tensor("state.features", state.features, (len(frame), WIDTHS[self.layer], *size))
        x, skips = frame, []
        for stage in self.head:
            x = stage(x)
            skips.append(x)
        laterals = [
            rung.project(skip)  # type: ignore[operator]
            for rung, skip in zip(self.tail, reversed(skips), strict=True)
        ]
        if self.correction is None:
            x = self.run(flow_warp, state.features, motion.flow, padding_mode="border")
        else:
            residual = motion.residual.to(frame.dtype) * self.residual_scale
            x = self.correction(state.features, motion.flow, laterals[0], residual)
        corrected = x
        for rung, lateral in zip(self.tail, laterals, strict=True):
            x = rung(x, lateral)
        return self.keyframe.classifier(x), State(corrected)

    def begin_second_step(self) -> None:
        """Copy the key frames' network to those for other frames, and freeze it.

        It then stays in evaluation mode, as the second step of the paper's training wants it. The
        classifier, which both share, is part of it.
        """
        for ours, theirs in zip((self.head, self.tail), self._shared(), strict=True):
            ours.load_state_dict(theirs.state_dict())
        self.keyframe.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> TWNet:
        super().train(mode)
        if not any(x.requires_grad for x in self.keyframe.parameters()):
            self.keyframe.eval()
        return self

    def _shared(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The parts of the key frames' network that others have as well: its head and its tail."""
        head = nn.ModuleList(self.keyframe.encoder.steps()[: 3 - self.layer])
        return head, self.keyframe.decoder[self.layer :]


class Pyramid(ImageModel):
    """TWNet's network for key frames: an encoder, and three lateral connections back to stride 4.

    Args:
        backbone, num_classes, backbone_weights: as for `TWNet`.
    """

    align_corners = False
    stride = 4

    def __init__(self, backbone: str, num_classes: int = 19, weights: Weights = None) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise error("backbone", f"one of {', '.join(BACKBONES)}", backbone)
        self.num_classes = num_classes
        self.encoder = BACKBONES[backbone]()
        if weights is not None:
            load_upstream(self.encoder, weights)
        self.unused_prefixes = tuple(f"encoder.{x}" for x in self.encoder.unused_prefixes)
        *skips, deepest = self.encoder.channels
        self.context = nn.Sequential(*conv_bn(deepest, WIDTHS[0], 1))
        self.decoder = nn.ModuleList(
            Rung(channels, *widths)
            for channels, *widths in zip(reversed(skips), WIDTHS, WIDTHS[1:], strict=False)
        )
        self.classifier = nn.Conv2d(WIDTHS[-1], num_classes, 1)
        for module in (self.context, self.decoder, self.classifier):
            kaiming(module)

    def decode(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The three layers of the decoder."""
        *skips, x = levels
        x, layers = self.context(x), []
        for rung, skip in zip(self.decoder, reversed(skips), strict=True):
            x = rung(x, rung.project(skip))  # type: ignore[operator]
            layers.append(x)
        return layers

    def forward(self, images: Tensor) -> Tensor:
        layers = self.decode(self.encoder(images))
        return self.classifier(layers[-1])  # type: ignore[no-any-return]


class Rung(nn.Module):
    """A lateral connection: what comes from below, enlarged, and a level of the encoder."""

    def __init__(self, skip_channels: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Sequential(*conv_bn(skip_channels, in_channels, 1))
        self.fuse = nn.Sequential(*conv_bn(in_channels, out_channels))

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:
        x = F.interpolate(x, lateral.shape[2:], mode="bilinear", align_corners=False)
        return self.fuse(x + lateral)  # type: ignore[no-any-return]


class Correction(OperatorModule):
    """CFR and RGA. The paper's multiply-adds fix both as single 3x3 convolutions (docs/models.md).

    Calling it:
        features: `[N, C, h, w]`, of the frame before.
        flow: `[N, 2, h, w]`, in pixels of the features.
        lateral: `[N, C, 2 * h, 2 * w]` or one less: the current frame's, for the next layer.
        residual: `[N, 3, H, W]`, in the unit of the images.
    """

    def __init__(self, channels: int, rga: bool) -> None:
        super().__init__()
        self.rectify = nn.Conv2d(2 * channels, channels, 3, padding=1)
        with torch.no_grad():  # begins close to the warp alone
            for x in self.rectify.parameters():
                x.mul_(0.01)
        self.attend = nn.Conv2d(3, 1, 3, padding=1) if rga else None

    def forward(self, features: Tensor, flow: Tensor, lateral: Tensor, residual: Tensor) -> Tensor:
        warped = self.run(flow_warp, features, flow, padding_mode="border")
        spatial = F.avg_pool2d(lateral, 2, ceil_mode=True)
        correction = self.rectify(torch.cat((warped, spatial), 1))
        attention = None
        if self.attend is not None:
            size = features.shape[2:]
            residual = F.interpolate(residual, size, mode="bilinear", align_corners=False)
            attention = self.attend(residual).sigmoid()
        return self.run(warp_correct, features, flow, correction, attention)


for _backbone in BACKBONES:
    register(f"twnet_{_backbone}", TWNet, backbone=_backbone)
