"""The warp family in plain PyTorch: the executable definition, run in float64 as the truth.

The forwards are differentiable (outside the dispatcher); the backwards are written out, because
autograd cannot be used inside a registered kernel. Positions are float64 whatever the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._layout import layout_of, skipped
from .op import ATTENTION, CORRECTION, FLOW, INPUT


class Options(NamedTuple):
    scale_x: float
    scale_y: float
    semantic: bool
    align_corners: bool
    mode: str
    padding_mode: str


@dataclass(frozen=True)
class _AxisTap:
    """A pixel that a position touches along one axis: index, weight, and d weight / d flow.

    Outside, weight and slope are 0 and the index is that of some pixel inside.
    """

    index: Tensor
    inside: Tensor
    weight: Tensor
    slope: Tensor


def _axis(flow: Tensor, size: int, along: int, scale: float, options: Options) -> list[_AxisTap]:
    """The taps along x (`along=-1`) or y (`along=-2`), each [N, H, W]."""
    size_out = flow.shape[along]
    if options.semantic:
        scale = (size - 1 if options.align_corners else size) / (2 * max(size_out, 1))
    j = torch.arange(size_out, dtype=torch.float64, device=flow.device)
    if options.align_corners:
        base = j * (size - 1) / max(size_out - 1, 1)
    else:
        base = (j + 0.5) * size / size_out - 0.5
    position = base.view(-1, *[1] * (-along - 1)) + scale * flow.double()
    slope = torch.full_like(position, scale)
    if options.padding_mode == "border":
        slope = slope.where((position >= 0) & (position <= size - 1), 0.0)
        position = position.clamp(0, size - 1)
        position = position.where(~position.isnan(), 0.0)
    else:  # beyond -2 and size + 1 nothing is touched: kept small so that it fits an integer
        position = position.where(~position.isnan(), -2.0).clamp(-2, size + 1)
    if options.mode == "nearest":
        parts = [(position.round(), torch.ones_like(position), torch.zeros_like(slope))]
    else:
        low = position.detach().floor()
        fraction = position - low
        parts = [(low, 1 - fraction, -slope), (low + 1, fraction, slope)]
    taps = []
    for index, weight, d_weight in parts:
        inside = (index >= 0) & (index < size)
        if options.padding_mode == "border":
            inside = torch.ones_like(inside)
        index = index.detach().clamp(0, size - 1).long()
        taps.append(_AxisTap(index, inside, weight.where(inside, 0.0), d_weight.where(inside, 0.0)))
    return taps


@dataclass(frozen=True)
class _Tap:
    """A pixel that a position touches, each [N, H, W]: flat index, weight, and its slopes."""

    index: Tensor
    inside: Tensor
    weight: Tensor
    slope_x: Tensor
    slope_y: Tensor


def _taps(input: Tensor, flow: Tensor, options: Options) -> Iterator[_Tap]:
    """The 4 taps of each output pixel, or the 1 of nearest."""
    h, w = input.shape[2:]
    columns = _axis(flow[:, 0], w, -1, options.scale_x, options)
    rows = _axis(flow[:, 1], h, -2, options.scale_y, options)
    dtype = compute_dtype(input)
    for y in rows:
        for x in columns:
            yield _Tap(
                y.index * w + x.index,
                y.inside & x.inside,
                y.weight.to(dtype) * x.weight.to(dtype),
                (y.weight * x.slope).to(dtype),
                (y.slope * x.weight).to(dtype),
            )


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _gather(source: Tensor, index: Tensor) -> Tensor:
    """The pixels of `source` [N, C, h, w] at flat `index` [N, H, W]: [N, C, H, W]."""
    n, c = source.shape[:2]
    picked = source.flatten(2).gather(2, index.flatten(1).unsqueeze(1).expand(n, c, -1))
    return picked.view(n, c, *index.shape[1:])


def sample(input: Tensor, flow: Tensor, options: Options) -> Tensor:
    """A(input), not yet rounded to the input's dtype."""
    source = input.to(compute_dtype(input))
    out = source.new_zeros(*input.shape[:2], *flow.shape[2:])
    for tap in _taps(input, flow, options):
        value = _gather(source, tap.index).where(tap.inside.unsqueeze(1), 0.0)
        out = out + tap.weight.unsqueeze(1) * value
    return out


def rounded_like(out: Tensor, like: Tensor) -> Tensor:
    """Rounded to the dtype of `like` and in its layout."""
    return out.to(like.dtype).contiguous(memory_format=layout_of(like))


def flow_warp(input: Tensor, flow: Tensor, *options: object) -> Tensor:
    return rounded_like(sample(input, flow, Options(*options)), input)  # type: ignore[arg-type]


def warp_correct(
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor | None,
    *options: object,
) -> Tensor:
    out = sample(previous, flow, Options(*options))  # type: ignore[arg-type]
    correction = correction.to(out.dtype)
    if attention is not None:
        correction = attention.to(out.dtype) * correction
    return rounded_like(out + correction, previous)


def flow_warp_backward(
    grad: Tensor, input: Tensor, flow: Tensor, *options_and_wanted: object
) -> tuple[Tensor, Tensor]:
    *options, wanted = options_and_wanted
    assert isinstance(wanted, int)
    source = input.to(compute_dtype(input))
    grad = grad.to(source.dtype)
    n, c, h, w = input.shape
    d_input = source.new_zeros(n, c, h * w)
    d_x = grad.new_zeros(n, *flow.shape[2:])
    d_y = torch.zeros_like(d_x)
    for tap in _taps(input, flow, Options(*options)):  # type: ignore[arg-type]
        index = tap.index.flatten(1).unsqueeze(1).expand(n, c, -1)
        d_input.scatter_add_(2, index, (grad * tap.weight.unsqueeze(1)).flatten(2))
        product = (grad * _gather(source, tap.index)).sum(1)
        d_x += product * tap.slope_x
        d_y += product * tap.slope_y
    return (
        rounded_like(d_input.view(n, c, h, w), input) if wanted & INPUT else skipped(input),
        torch.stack((d_x, d_y), 1).to(flow.dtype) if wanted & FLOW else skipped(flow),
    )


def warp_correct_backward(
    grad: Tensor,
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor,
    *options_and_wanted: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = options_and_wanted[-1]
    assert isinstance(wanted, int)
    compute = compute_dtype(previous)
    d_previous, d_flow = flow_warp_backward(grad, previous, flow, *options_and_wanted)
    d_correction = grad.to(compute) * attention.to(compute)
    d_attention = (grad.to(compute) * correction.to(compute)).sum(1, keepdim=True)
    return (
        d_previous,
        d_flow,
        rounded_like(d_correction, previous) if wanted & CORRECTION else skipped(correction),
        d_attention.to(attention.dtype) if wanted & ATTENTION else skipped(attention),
    )
