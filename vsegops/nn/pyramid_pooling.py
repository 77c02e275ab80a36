"""Pyramid pooling, the context at the end of SFNet's backbones (PPM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checks


class PyramidPooling(nn.Module):
    """Features together with averages of themselves over coarser and coarser grids (PPM).

    Each grid's averages are projected, normalised and resized; all of them and the features
    themselves, last, are projected together.

    In training a grid of one cell needs a batch of two and more, as its normalisation has a single
    value of each channel and image.

    Args:
        in_channels: of the features.
        out_channels: of the result and of each projection.
        sizes: cells along each side of each grid.

    Forward:
        x: `[N, in_channels, H, W]`, of any size: cells overlap where there are more than pixels.

        Returns `[N, out_channels, H, W]`.

    Example:
        >>> import torch, vsegops
        >>> ppm = vsegops.nn.PyramidPooling(512, 128).eval()
        >>> ppm(torch.randn(1, 512, 8, 16)).shape
        torch.Size([1, 128, 8, 16])
    """

    def __init__(
        self, in_channels: int, out_channels: int, sizes: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *_projection(in_channels, out_channels))
            for size in sizes
        )
        self.bottleneck = nn.Sequential(
            *_projection(in_channels + len(sizes) * out_channels, out_channels),
            nn.ReLU(True),
            nn.Dropout2d(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_tensor("x", x, ("N", self.in_channels, "H", "W"))
        levels = [
            F.interpolate(stage(x), x.shape[2:], mode="bilinear", align_corners=True)
            for stage in self.stages
        ]
        return self.bottleneck(torch.cat((*levels, x), 1))  # type: ignore[no-any-return]


def _projection(channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
