"""The warp family's sample inputs, baselines and costs, for the tests and the benchmarks.

Per output pixel and channel a bilinear warp does 4 multiply-adds and moves, at the least, one read
of the source, one of the correction and one write: under 1 operation a byte in float32. Memory
bounds it everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._spec import Case, Maker, OperatorSpec, Refused, tensor_bytes
from . import flow_warp, warp_correct


def eager_flow_warp(
    input: Tensor,
    flow: Tensor,
    *,
    scale: Any = 1.0,
    align_corners: bool = True,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """What one writes without this library: a grid in [-1, 1] from the flow, and `grid_sample`."""
    h, w = input.shape[2:]
    height, width = flow.shape[2:]
    if scale == "semantic":
        shrink = 1 if align_corners else 0
        sx, sy = (w - shrink) / (2 * width), (h - shrink) / (2 * height)
    else:
        sx, sy = (scale, scale) if isinstance(scale, (int, float)) else scale
    x = torch.arange(width, dtype=flow.dtype, device=flow.device)
    y = torch.arange(height, dtype=flow.dtype, device=flow.device).view(-1, 1)
    if align_corners:
        u = x * ((w - 1) / max(width - 1, 1)) + sx * flow[:, 0]
        v = y * ((h - 1) / max(height - 1, 1)) + sy * flow[:, 1]
        grid = torch.stack((u * (2 / max(w - 1, 1)) - 1, v * (2 / max(h - 1, 1)) - 1), -1)
    else:
        u = (x + 0.5) * (w / width) + sx * flow[:, 0]
        v = (y + 0.5) * (h / height) + sy * flow[:, 1]
        grid = torch.stack((u * (2 / w) - 1, v * (2 / h) - 1), -1)
    return F.grid_sample(input, grid.to(input.dtype), mode, padding_mode, align_corners)


def eager_warp_correct(
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor | None = None,
    *,
    padding_mode: str = "border",
    **options: Any,
) -> Tensor:
    warped = eager_flow_warp(previous, flow, padding_mode=padding_mode, **options)
    return warped + (correction if attention is None else attention * correction)


def _warp(
    maker: Maker, n: int, c: int, source: tuple[int, int], size: tuple[int, int], **options: Any
) -> dict[str, Any]:
    magnitude = options.pop("magnitude", 3.0)
    flow = maker.flow(n, *size, magnitude=magnitude)
    return {"input": maker.features(n, c, *source), "flow": flow, **options}


def _correct(
    maker: Maker, n: int, c: int, source: tuple[int, int], size: tuple[int, int], **options: Any
) -> dict[str, Any]:
    attended = options.pop("attended", True)
    arguments = _warp(maker, n, c, source, size, **options)
    return {
        "previous": arguments.pop("input"),
        "flow": arguments.pop("flow"),
        "correction": maker.features(n, c, *size),
        "attention": maker.unit(n, 1, *size) if attended else None,
        **arguments,
    }


#: (name, (n, c, source size, output size), options)
_CALLS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("plain", (2, 5, (13, 17), (13, 17)), {}),
    ("vector-1", (1, 7, (9, 31), (9, 31)), {"scale": -1}),
    ("vector", (1, 8, (9, 32), (9, 32)), {"padding_mode": "border"}),
    ("vector+1", (1, 9, (9, 33), (9, 33)), {"padding_mode": "zeros"}),
    ("many channels", (1, 67, (6, 35), (6, 35)), {"scale": (0.5, -1.25)}),
    ("tall tile", (1, 3, (70, 19), (70, 19)), {}),
    ("resize", (2, 16, (7, 9), (14, 18)), {"scale": "semantic", "padding_mode": "zeros"}),
    ("odd resize", (1, 4, (8, 12), (13, 31)), {"scale": "semantic", "align_corners": False}),
    ("shrink", (1, 6, (21, 40), (10, 13)), {"scale": (1.5, 0.5), "padding_mode": "border"}),
    ("thumbnail", (1, 3, (64, 51), (5, 6)), {"align_corners": False}),
    ("half pixel", (1, 4, (11, 14), (11, 14)), {"align_corners": False}),
    ("nearest", (2, 5, (12, 15), (12, 15)), {"mode": "nearest", "padding_mode": "zeros"}),
    ("nearest border", (1, 20, (12, 15), (9, 20)), {"mode": "nearest", "padding_mode": "border"}),
    ("one row", (1, 4, (1, 20), (1, 20)), {}),
    ("one column", (2, 3, (20, 1), (20, 1)), {"padding_mode": "zeros"}),
    ("one pixel", (1, 5, (1, 1), (4, 6)), {"align_corners": False, "padding_mode": "zeros"}),
    ("to one pixel", (2, 5, (4, 6), (1, 1)), {"scale": 0.5}),
    ("one channel", (3, 1, (10, 11), (10, 11)), {"padding_mode": "border"}),
    ("far", (1, 4, (12, 16), (12, 16)), {"magnitude": 40.0, "padding_mode": "border"}),
    ("far zeros", (1, 4, (12, 16), (12, 16)), {"magnitude": 40.0, "padding_mode": "zeros"}),
    ("wide", (1, 2, (3, 3840), (3, 3840)), {"magnitude": 16.0}),
    ("wide resize", (1, 2, (2, 1921), (3, 3840)), {"magnitude": 16.0, "align_corners": False}),
    ("empty batch", (0, 4, (5, 6), (5, 6)), {}),
)

#: The papers' feature maps (1024 x 2048 at 1/4, 1/8, 1/16; CamVid's 720 x 960 at 1/8), the images
#: themselves, and a map that is warped from half its size.
_MEASURED: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("C64 128x256", (1, 64, (128, 256), (128, 256)), {}),
    ("C128 64x128", (1, 128, (64, 128), (64, 128)), {}),
    ("C32 256x512", (1, 32, (256, 512), (256, 512)), {}),
    ("C64 90x120", (1, 64, (90, 120), (90, 120)), {}),
    ("C3 1024x2048", (1, 3, (1024, 2048), (1024, 2048)), {}),
    ("C128 64x128 to 128x256", (1, 128, (64, 128), (128, 256)), {"scale": "semantic"}),
)


def _cases(build: Any, calls: Any) -> list[Case]:
    return [Case(name, partial(_call, build, sizes, options)) for name, sizes, options in calls]


def _call(build: Any, sizes: tuple[Any, ...], options: dict[str, Any], maker: Maker) -> Any:
    return build(maker, *sizes, **options)


def _output_bytes(arguments: Mapping[str, Any]) -> int:
    source, flow = next(iter(arguments.values())), arguments["flow"]
    return int(source.shape[:2].numel() * flow.shape[2:].numel() * source.element_size())


def _bytes_moved(arguments: Mapping[str, Any], direction: str) -> int:
    inputs = tensor_bytes(*(x for x in arguments.values() if isinstance(x, Tensor)))
    if direction == "forward":
        return inputs + _output_bytes(arguments)
    if "correction" in arguments and arguments["attention"] is None:
        # The correction is not read and its gradient is the gradient that came.
        inputs -= tensor_bytes(arguments["correction"])
    return _output_bytes(arguments) + 2 * inputs  # read grad and inputs, write their gradients


def _operations(arguments: Mapping[str, Any], direction: str) -> int:
    source, flow = next(iter(arguments.values())), arguments["flow"]
    outputs = int(source.shape[:2].numel() * flow.shape[2:].numel())
    corrected = 2 if "correction" in arguments else 0
    # Forward 4 multiply-adds; backward 4 to scatter and, for the flow, 4 differences and 2 sums.
    per_output = 8 + corrected if direction == "forward" else 20 + 2 * corrected
    return outputs * per_output


_REFUSED = (
    Refused("flow", lambda a: {**a, "flow": a["flow"][:, :1]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"][:1]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"].double()}),
    Refused("scale", lambda a: {**a, "scale": "pixels"}),
    Refused("scale", lambda a: {**a, "scale": (1.0, 2.0, 3.0)}),
    Refused("scale", lambda a: {**a, "scale": float("nan")}),
    Refused("mode", lambda a: {**a, "mode": "bicubic"}),
    Refused("padding_mode", lambda a: {**a, "padding_mode": "reflection"}),
    Refused("align_corners", lambda a: {**a, "align_corners": 1}),
)

OPERATORS = (
    OperatorSpec(
        name="flow_warp",
        function=flow_warp,
        cases=_cases(_warp, _CALLS),
        benchmarks=_cases(_warp, _MEASURED),
        eager=eager_flow_warp,
        bytes_moved=_bytes_moved,
        operations=_operations,
        differentiable=("input", "flow"),
        refused=(
            *_REFUSED,
            Refused("input", lambda a: {**a, "input": a["input"][:, :, :0]}),
        ),
    ),
    OperatorSpec(
        name="warp_correct",
        function=warp_correct,
        cases=[
            *_cases(_correct, _CALLS),
            *_cases(
                _correct,
                [
                    (f"{name}, no attention", sizes, {**options, "attended": False})
                    for name, sizes, options in _CALLS[:4] + _CALLS[6:8]
                ],
            ),
        ],
        benchmarks=_cases(_correct, _MEASURED),
        eager=eager_warp_correct,
        bytes_moved=_bytes_moved,
        operations=_operations,
        differentiable=("previous", "flow", "correction", "attention"),
        refused=(
            *_REFUSED,
            Refused("correction", lambda a: {**a, "correction": a["correction"][:, :-1]}),
            Refused("correction", lambda a: {**a, "correction": a["correction"][..., :-1]}),
            Refused("correction", lambda a: {**a, "correction": a["correction"].double()}),
            Refused("attention", lambda a: {**a, "attention": a["correction"][:, :3]}),
            Refused("attention", lambda a: {**a, "attention": a["attention"].double()}),
        ),
    ),
)
