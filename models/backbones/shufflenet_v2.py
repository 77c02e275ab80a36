"""ShuffleNetV2, 1x (Ma et al., ECCV 2018), with torchvision's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Backbone, conv_bn, kaiming, run_through

#: Channels and units of the stages at 1/8, 1/16 and 1/32.
STAGES = ((116, 4), (232, 8), (464, 4))


class ShuffleUnit(nn.Module):
    """Half of the channels pass through three convolutions; then both halves are interleaved.

    With a stride both branches take all channels, and the other one has two convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch1 = nn.Sequential()
        if stride == 2:
            self.branch1 = nn.Sequential(
                *conv_bn(in_channels, in_channels, 3, 2, groups=in_channels, activation=None),
                *conv_bn(in_channels, half, 1),
            )
        self.branch2 = nn.Sequential(
            *conv_bn(in_channels if stride == 2 else half, half, 1),
            *conv_bn(half, half, 3, stride, groups=half, activation=None),
            *conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1) if len(self.branch1) == 0 else (x, x)
        joined = torch.cat((self.branch1(first), self.branch2(second)), 1)
        return F.channel_shuffle(joined, 2)


class ShuffleNetV2(Backbone):
    """ShuffleNetV2: 24, 116, 232 and 1024 channels at 1/4, 1/8, 1/16 and 1/32."""

    channels = (24, 116, 232, 1024)
    strides = (4, 8, 16, 32)
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 24
        for number, (width, units) in enumerate(STAGES, 2):
            stage = [ShuffleUnit(channels, width, 2)]
            stage += [ShuffleUnit(width, width, 1) for _ in range(units - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*stage))
            channels = width
        self.conv5 = nn.Sequential(*conv_bn(channels, 1024, 1))
        kaiming(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        stem = self.maxpool(self.conv1(images))
        *levels, last = run_through((self.stage2, self.stage3, self.stage4), stem)
        return [stem, *levels, self.conv5(last)]
