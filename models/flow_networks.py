"""Networks that estimate the optical flow between two frames, for GSVNet.

Both take the current and the previous frame, `[N, 3, H, W]`, and give a backward flow at a stride
of their own.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops._checks import error


class FlowLight(nn.Module):
    """GSVNet's lightweight flow network (supplement, section C): four dilations, summed in a row.

    The flow is at 1/4.
    """

    conv_dilate_1: nn.Sequential
    conv_dilate_2: nn.Sequential
    conv_dilate_3: nn.Sequential
    conv_dilate_4: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _unit(6, 32, stride=2)
        self.conv2 = _unit(32, 64, stride=2)
        for number in range(1, 5):
            self.add_module(f"conv_dilate_{number}", _unit(64, 64, dilation=1 << (number - 1)))
        self.conv_merge = _unit(256, 64, 1)
        self.toflow = nn.Conv2d(64, 2, 3, padding=1)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        x = self.conv2(self.conv1(torch.cat((current, previous), 1)))
        dilated = (self.conv_dilate_1, self.conv_dilate_2, self.conv_dilate_3, self.conv_dilate_4)
        sums = accumulate(conv(x) for conv in dilated)
        return self.toflow(self.conv_merge(torch.cat(list(sums), 1)) + x)  # type: ignore[no-any-return]


class FlowNetS(nn.Module):
    """FlowNetS (Dosovitskiy et al., ICCV 2015) as GSVNet's ablation has it, without normalisation.

    As published with GSVNet, transposed convolutions do not pad, what they enlarge is cut at the
    bottom and on the right, and the finest features are averaged 2 x 2: the flow is at 1/8.
    """

    #: By the level (its stride is that power of 2): channels, and its first convolution's kernel.
    LEVELS = {1: (64, 7), 2: (128, 5), 3: (256, 5), 4: (512, 3), 5: (512, 3), 6: (1024, 3)}
    #: Channels of the enlarged features, from the coarsest on.
    ENLARGED = {5: 512, 4: 256, 3: 128, 2: 64}

    def __init__(self) -> None:
        super().__init__()
        channels = 6
        for level, (width, kernel) in self.LEVELS.items():
            first = nn.Conv2d(channels, width, kernel, 2, kernel // 2)
            self.add_module(f"conv{level}", _rectified(first))
            if level > 2:
                second = nn.Conv2d(width, width, 3, padding=1)
                self.add_module(f"conv{level}_1", _rectified(second))
            channels = width
        joined = {6: channels}
        for level, width in self.ENLARGED.items():
            enlarge = nn.ConvTranspose2d(joined[level + 1], width, 4, 2)
            self.add_module(f"deconv{level}", _rectified(enlarge))
            joined[level] = self.LEVELS[level][0] + width + 2
        for level, channels in joined.items():
            self.add_module(f"predict_flow{level}", nn.Conv2d(channels, 2, 3, padding=1))
        for level in self.ENLARGED:
            enlarge = nn.ConvTranspose2d(2, 2, 4, 2)
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", enlarge)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        if min(current.shape[2:]) < 5:
            raise error("current", "at least 5 x 5 pixels", current)
        layers = dict(self.named_children())
        x, skips = torch.cat((previous, current), 1), {}
        for level in self.LEVELS:
            x = layers[f"conv{level}"](x)
            if level > 2:
                x = layers[f"conv{level}_1"](x)
            skips[level] = x
        flow = layers["predict_flow6"](x)
        for level in self.ENLARGED:
            enlarged = (
                layers[f"deconv{level}"](x),
                layers[f"upsampled_flow{level + 1}_to_{level}"](flow),
            )
            height, width = skips[level].shape[2:]
            x = torch.cat((skips[level], *(y[:, :, :height, :width] for y in enlarged)), 1)
            if level == 2:
                x = F.avg_pool2d(x, 2)
            flow = layers[f"predict_flow{level}"](x)
        return flow  # type: ignore[no-any-return]


def _unit(
    in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """With a bias, although a normalisation follows: as published."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _rectified(convolution: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True))
