"""What backbones share: what they promise, convolutions with normalisation, initial weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Backbone(nn.Module):
    """A classification network without its classifier, as a pyramid of features.

    Calling it maps images `[N, 3, H, W]` to a list of features, from the finest to the coarsest.
    Those of stride s have the size `ceil(H / s)` x `ceil(W / s)`.

    Attributes:
        channels: of each level.
        strides: of each level.
        unused_prefixes: what the entries of the classifier begin with, in published weights.
    """

    channels: Sequence[int]
    strides: Sequence[int]
    unused_prefixes: tuple[str, ...] = ("fc.",)

    def forward(self, images: Tensor) -> list[Tensor]:
        return run_through(self.steps(), images)

    def steps(self) -> Sequence[nn.Module]:
        """What leads to each level, from the images or from the level before."""
        raise NotImplementedError


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> list[nn.Module]:
    """A convolution without bias that keeps the size (up to its stride), its normalisation, and
    what follows."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels, eps=eps),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return layers


def scaled(channels: int, width_mult: float) -> int:
    """A part of the channels, in whole eights."""
    return max(8, round(channels * width_mult / 8) * 8)


def kaiming(module: nn.Module) -> None:
    """Initial weights for training from nothing: normal, with the variance 2 / fan-out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def run_through(stages: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The results of stages of which each takes the result of the one before."""
    results = []
    for stage in stages:
        x = stage(x)
        results.append(x)
    return results
