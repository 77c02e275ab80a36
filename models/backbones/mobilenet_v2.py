"""MobileNetV2 (Sandler et al., CVPR 2018), with torchvision's names."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Backbone, conv_bn, kaiming

#: Expansion, channels, blocks, stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels (if it is not 1), 3x3 depthwise, 1x1; and the input."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = [_unit(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *layers,
            _unit(hidden, hidden, 3, stride, groups=hidden),
            *conv_bn(hidden, channels, 1, activation=None),
        )
        self.adds_input = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.adds_input else y  # type: ignore[no-any-return]


class MobileNetV2(Backbone):
    """MobileNetV2: 24, 32, 96 and 320 channels at 1/4, 1/8, 1/16 and 1/32.

    Args:
        num_classes: None for a pyramid alone. With a number the last convolution and the classifier
            are there as well, and `classify` gives `[N, num_classes]`.
    """

    unused_prefixes: tuple[str, ...] = ("features.18.", "classifier.")
    channels = (24, 32, 96, 320)
    strides = (4, 8, 16, 32)
    #: The members of `features` that are handed on.
    levels = (3, 6, 13, 17)

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_unit(3, 32, 3, 2)]
        channels = 32
        for expansion, width, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(channels, width, 1 if i else stride, expansion))
                channels = width
        if num_classes is not None:
            blocks.append(_unit(channels, 1280, 1))
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
            self.unused_prefixes = ()
        self.features = nn.Sequential(*blocks)
        kaiming(self)

    def steps(self) -> list[nn.Module]:
        ends = [level + 1 for level in self.levels]
        return [self.features[i:j] for i, j in zip([0, *ends], ends, strict=False)]

    def classify(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of whole images."""
        return self.classifier(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def _unit(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layers = conv_bn(
        in_channels, out_channels, kernel_size, stride, groups=groups, activation=nn.ReLU6
    )
    return nn.Sequential(*layers)
