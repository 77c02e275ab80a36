"""STDC-1 and STDC-2 (Fan et al., "Rethinking BiSeNet for Real-time Semantic Segmentation", 2021).

Entries have the published names. All are listed twice, as published: the blocks are `features`, and
the same blocks by stage are `x2`, `x4`, `x8`, `x16` and `x32`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layers import Backbone, conv_bn, kaiming, run_through

#: Blocks at 1/8, 1/16 and 1/32.
BLOCKS: Mapping[str, tuple[int, int, int]] = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}


class ConvBN(nn.Module):
    """A convolution without bias, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv, self.bn, self.relu = conv_bn(in_channels, out_channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class CatBlock(nn.Module):
    """Four convolutions in a row, of 1/2, 1/4, 1/8 and 1/8 of the channels, all handed on.

    With a stride the first result is averaged for the output (borders count as zeros), and by a
    learned average, without an activation, for the next convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = (out_channels // n for n in (2, 4, 8))
        self.conv_list = nn.ModuleList(
            (
                ConvBN(in_channels, half, 1),
                ConvBN(half, quarter),
                ConvBN(quarter, eighth),
                ConvBN(eighth, eighth),
            )
        )
        self.avd_layer = self.skip = None
        if stride == 2:
            self.avd_layer = nn.Sequential(*conv_bn(half, half, 3, 2, groups=half, activation=None))
            self.skip = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.conv_list
        x = first(x)
        parts = [x if self.skip is None else self.skip(x)]
        if self.avd_layer is not None:
            x = self.avd_layer(x)
        return torch.cat((*parts, *run_through(rest, x)), 1)


class STDC(Backbone):
    """STDC-1 or STDC-2: levels of 64, 256, 512 and 1024 channels at 1/4, 1/8, 1/16 and 1/32."""

    unused_prefixes = ("conv_last.", "fc.", "bn.", "linear.")
    channels = (64, 256, 512, 1024)
    strides = (4, 8, 16, 32)
    x2: nn.Sequential
    x4: nn.Sequential
    x8: nn.Sequential
    x16: nn.Sequential
    x32: nn.Sequential

    def __init__(self, name: str) -> None:
        super().__init__()
        blocks: list[nn.Module] = [ConvBN(3, 32, 3, 2), ConvBN(32, 64, 3, 2)]
        ends = [1, 2]
        for width, in_width, count in zip(
            self.channels[1:], self.channels, BLOCKS[name], strict=False
        ):
            blocks.append(CatBlock(in_width, width, 2))
            blocks += [CatBlock(width, width, 1) for _ in range(count - 1)]
            ends.append(len(blocks))
        self.features = nn.Sequential(*blocks)
        for stride, start, end in zip((2, *self.strides), (0, *ends), ends, strict=False):
            self.add_module(f"x{stride}", nn.Sequential(self.features[start:end]))
        kaiming(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        return run_through((self.x4, self.x8, self.x16, self.x32), self.x2(images))
