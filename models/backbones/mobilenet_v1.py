"""MobileNetV1 (Howard et al., 2017).

Entries have the names of its publication in TensorFlow Slim, `Conv2d_0` to `Conv2d_13_pointwise`;
of each, `.0` is the convolution and `.1` the normalisation. (Padding is symmetric, where
TensorFlow's `SAME` pads a stride of 2 at the right and at the bottom only.)
"""

from __future__ import annotations

from torch import nn

from .layers import Backbone, conv_bn, kaiming, scaled

#: Width and stride of the separable convolutions, from `Conv2d_1` on.
SEPARABLE = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
EPS = 1e-3  # of Slim's normalisation


class MobileNetV1(Backbone):
    """MobileNetV1: `Conv2d_3`, `_5`, `_11` and `_13`, 128 to 1024 channels at 1/4 to 1/32.

    Args:
        width_mult: which part of the channels there is.
    """

    unused_prefixes = ("Logits.",)
    strides = (4, 8, 16, 32)
    #: The separable convolutions that are handed on.
    levels = (3, 5, 11, 13)

    def __init__(self, width_mult: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width_mult)
        self.Conv2d_0 = _unit(3, channels, 3, 2)
        self.channels = []
        for number, (full, stride) in enumerate(SEPARABLE, 1):
            width = scaled(full, width_mult)
            depthwise = _unit(channels, channels, 3, stride, groups=channels)
            self.add_module(f"Conv2d_{number}_depthwise", depthwise)
            self.add_module(f"Conv2d_{number}_pointwise", _unit(channels, width, 1))
            channels = width
            if number in self.levels:
                self.channels.append(width)
        kaiming(self)

    def steps(self) -> list[nn.Sequential]:
        steps, units = [], [self.Conv2d_0]
        for number in range(1, len(SEPARABLE) + 1):
            units.append(getattr(self, f"Conv2d_{number}_depthwise"))
            units.append(getattr(self, f"Conv2d_{number}_pointwise"))
            if number in self.levels:
                steps.append(nn.Sequential(*units))
                units = []
        return steps


def _unit(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        *conv_bn(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            groups=groups,
            activation=nn.ReLU6,
            eps=EPS,
        )
    )
