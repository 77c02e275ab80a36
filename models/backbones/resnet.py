"""ResNet-18, -50 and -101 (He et al., CVPR 2016), plain, with a deep stem, and dilated.

Entries have torchvision's names. Three published arrangements are served:

| | torchvision, SwiftNet, BiSeNet | SFNet | TMANet |
|---|---|---|---|
| stem | `"plain"`: 7x7/2, 64 | `"deep"`: 3x3/2, 64, 64, 128 | `"v1c"`: 3x3/2, 32, 32, 64 |
| dilation | `"none"` | `"kept_stride"` | `"stride_8"` |
| strides of the stages | 4, 8, 16, 32 | 4, 8, 16, 32 | 4, 8, 8, 8 |
| dilation of the stages | 1, 1, 1, 1 | 1, 1, 2, 4 | 1, 1, 2, 4; half in a stage's first block |
| of a basic block dilated | | its second convolution | its first convolution |

Of a bottleneck the 3x3 convolution has the stride and the dilation.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vsegops._checks import check_option

from .layers import Backbone, conv_bn, kaiming, scaled

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STEMS = ("plain", "deep", "v1c")

#: Strides and dilations of the four stages.
DILATIONS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "none": ((1, 2, 2, 2), (1, 1, 1, 1)),
    "kept_stride": ((1, 2, 2, 2), (1, 1, 2, 4)),
    "stride_8": ((1, 2, 1, 1), (1, 1, 2, 4)),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; `dilation` is that of each."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilation
        self.conv1, self.bn1 = conv_bn(
            in_channels, width, 3, stride, dilation=first, activation=None
        )
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv_bn(width, width, dilation=second, activation=None)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and the second `dilation`, 1x1 to four times the width."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, dilation: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1, activation=None)
        self.conv2, self.bn2 = conv_bn(
            width, width, 3, stride, dilation=dilation[1], activation=None
        )
        self.conv3, self.bn3 = conv_bn(width, out, 1, activation=None)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride, activation=None))


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    blocks: int,
    stride: int = 1,
    *,
    first_dilation: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> nn.Sequential:
    """Blocks of one width, of which the first has the stride and a dilation of its own."""
    return nn.Sequential(
        block(in_channels, width, stride, first_dilation),
        *(block(width * block.expansion, width, dilation=dilation) for _ in range(blocks - 1)),
    )


class ResNet(Backbone):
    """ResNet-18, -50 or -101: levels `layer1` to `layer4`.

    Args:
        depth: 18 (basic blocks, 64 to 512 channels), 50 or 101 (bottlenecks, 256 to 2048).
        stem: `"plain"`, `"deep"` (whose entries are `conv1.0`, ..., `bn1`) or `"v1c"` (`stem.*`).
        dilation: `"none"`, `"kept_stride"` or `"stride_8"`; see the table above.
        width_mult: which part of the channels there is.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self, depth: int, stem: str = "plain", dilation: str = "none", width_mult: float = 1.0
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth: expected one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        check_option("stem", stem, STEMS)
        check_option("dilation", dilation, tuple(DILATIONS))
        self.depth = depth
        base = scaled(64, width_mult)
        channels = self._add_stem(stem, base)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = BasicBlock if depth == 18 else Bottleneck

        def dilated(by: int) -> tuple[int, int]:
            first = dilation == "stride_8" and block is BasicBlock
            return (by, 1) if first else (1, by)

        self.channels, self.strides = [], []
        total = 4
        for number, (blocks, stride, by) in enumerate(
            zip(DEPTHS[depth], *DILATIONS[dilation], strict=True)
        ):
            contracted = max(by // 2, 1) if dilation == "stride_8" else by
            stage = residual_stage(
                block,
                channels,
                base << number,
                blocks,
                stride,
                first_dilation=dilated(contracted),
                dilation=dilated(by),
            )
            self.add_module(f"layer{number + 1}", stage)
            channels, total = (base << number) * block.expansion, total * stride
            self.channels.append(channels)
            self.strides.append(total)
        kaiming(self)

    def _add_stem(self, stem: str, base: int) -> int:
        """Add what leads to stride 2; return its number of channels."""
        if stem == "plain":
            self.conv1, self.bn1, self.relu = conv_bn(3, base, 7, 2)
            return base
        widths = (base, base, 2 * base) if stem == "deep" else (base // 2, base // 2, base)
        *layers, norm, relu = (
            layer
            for i, width in enumerate(widths)
            for layer in conv_bn((3, *widths)[i], width, 3, 2 if i == 0 else 1)
        )
        if stem == "deep":
            self.conv1, self.bn1, self.relu = nn.Sequential(*layers), norm, relu
        else:
            self.stem = nn.Sequential(*layers, norm, relu)
        return widths[-1]

    def stages(self) -> tuple[nn.Sequential, ...]:
        """The stem with its pooling, and the four stages."""
        stem = [self.stem] if hasattr(self, "stem") else [self.conv1, self.bn1, self.relu]
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return nn.Sequential(*stem, self.maxpool), *stages

    def steps(self) -> list[nn.Module]:
        stem, first, *stages = self.stages()
        return [nn.Sequential(stem, first), *stages]
