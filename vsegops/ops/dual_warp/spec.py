"""The dual warp family's sample inputs, baselines and costs, for the tests and the benchmarks.

Per output pixel and channel a dual warp does 8 multiply-adds, the gate being part of the taps'
weights, and moves, at the least, one read of the fine map, one write and as much of the coarse map
as there is: 16 operations to 8 bytes in float32 (12 where the maps are of one size). Pooling does
an addition and a comparison for each value read; its backward, which writes them, a comparison.
Memory bounds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._spec import Case, Maker, OperatorSpec, Refused, tensor_bytes
from ..warp.spec import eager_flow_warp
from . import channel_pool, gated_dual_warp


def eager_gated_dual_warp(
    high: Tensor,
    low: Tensor,
    high_flow: Tensor,
    low_flow: Tensor,
    gate: Tensor,
    *,
    high_scale: Any = "semantic",
    low_scale: Any = "semantic",
    align_corners: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """What one writes without this library: a grid and `grid_sample` for each map, and the sum."""
    options: Any = {"align_corners": align_corners, "padding_mode": padding_mode}
    warped_high = eager_flow_warp(high, high_flow, scale=high_scale, **options)
    warped_low = eager_flow_warp(low, low_flow, scale=low_scale, **options)
    return warped_high * gate + warped_low * (1 - gate)


def eager_channel_pool(first: Tensor, second: Tensor) -> Tensor:
    means = [x.mean(1, keepdim=True) for x in (first, second)]
    largest = [x.max(1, keepdim=True).values for x in (first, second)]
    return torch.cat((*means, *largest), 1)


def _warp(
    maker: Maker, n: int, c: int, source: tuple[int, int], size: tuple[int, int], **options: Any
) -> dict[str, Any]:
    magnitude = options.pop("magnitude", 3.0)
    return {
        "high": maker.features(n, c, *source),
        "low": maker.features(n, c, *size),
        "high_flow": maker.flow(n, *size, magnitude=magnitude),
        "low_flow": maker.flow(n, *size, magnitude=magnitude),
        "gate": maker.unit(n, 1, *size),
        **options,
    }


def _pool(
    maker: Maker, n: int, channels: tuple[int, int], size: tuple[int, int], tied: bool = False
) -> dict[str, Any]:
    """`tied`: of small whole numbers, so that several channels have the maximum."""
    first, second = (maker.features(n, c, *size) for c in channels)
    return {"first": first.round() if tied else first, "second": second.round() if tied else second}


#: (name, (n, c, coarse size, fine size), options)
_WARPS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("plain", (2, 5, (7, 9), (13, 17)), {}),
    ("equal sizes", (2, 5, (13, 17), (13, 17)), {"padding_mode": "border"}),
    ("half pixel", (1, 4, (11, 14), (11, 14)), {"align_corners": False}),
    (
        "border, half pixel",
        (1, 6, (4, 5), (10, 13)),
        {"align_corners": False, "padding_mode": "border"},
    ),
    ("an eighth", (1, 16, (3, 5), (24, 40)), {}),
    ("vector-1", (1, 7, (5, 16), (9, 31)), {"high_scale": -1, "low_scale": 0.5}),
    ("vector", (1, 8, (5, 16), (9, 32)), {"high_scale": (0.5, -1.25), "low_scale": 1}),
    ("vector+1", (1, 9, (5, 17), (9, 33)), {"low_scale": (-1.5, 0.25)}),
    ("vector of channels-1", (2, 15, (4, 6), (8, 12)), {}),
    ("vector of channels+1", (2, 17, (4, 6), (8, 12)), {"padding_mode": "border"}),
    ("many channels", (1, 67, (3, 12), (6, 35)), {}),
    ("tall", (1, 3, (9, 10), (70, 19)), {}),
    ("odd ratio", (1, 4, (5, 12), (13, 31)), {"align_corners": False}),
    ("coarse is finer", (1, 6, (21, 40), (10, 13)), {"padding_mode": "border"}),
    ("thumbnail", (1, 3, (64, 51), (5, 6)), {"align_corners": False}),
    ("one row", (1, 4, (1, 10), (1, 20)), {}),
    ("one column", (2, 3, (10, 1), (20, 1)), {}),
    ("coarse row", (1, 4, (1, 10), (6, 20)), {"padding_mode": "border"}),
    ("coarse column", (1, 4, (5, 1), (9, 16)), {"align_corners": False}),
    ("coarse pixel", (1, 5, (1, 1), (4, 6)), {"align_corners": False}),
    ("coarse pixel, pixels", (1, 5, (1, 1), (4, 6)), {"high_scale": 1.0, "padding_mode": "border"}),
    ("fine pixel", (2, 5, (4, 6), (1, 1)), {"high_scale": 0.5}),
    ("one channel", (3, 1, (5, 6), (10, 11)), {"padding_mode": "border"}),
    ("far", (1, 4, (6, 8), (12, 16)), {"magnitude": 40.0, "padding_mode": "border"}),
    ("far zeros", (1, 4, (6, 8), (12, 16)), {"magnitude": 40.0}),
    ("wide", (1, 2, (3, 480), (3, 3840)), {"magnitude": 16.0}),
    ("wide, half pixel", (1, 2, (2, 1921), (3, 3840)), {"magnitude": 16.0, "align_corners": False}),
    ("no channel", (1, 0, (3, 4), (6, 8)), {}),
    ("no rows", (1, 4, (3, 4), (0, 6)), {}),
    ("empty batch", (0, 4, (3, 3), (5, 6)), {}),
)

#: (name, (n, channels of both, size), options)
_POOLS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("plain", (2, (5, 5), (13, 17)), {}),
    ("vector-1", (1, (7, 15), (5, 15)), {}),
    ("vector", (1, (8, 16), (4, 16)), {}),
    ("vector+1", (1, (9, 17), (3, 17)), {}),
    ("tile-1", (1, (3, 6), (1, 127)), {}),
    ("tile+1", (1, (6, 3), (3, 43)), {}),
    ("many channels", (1, (67, 130), (6, 35)), {}),
    ("few and many", (2, (1, 131), (7, 9)), {}),
    ("one channel", (2, (1, 1), (10, 11)), {}),
    ("ties", (2, (16, 33), (12, 18)), {"tied": True}),
    ("one pixel", (2, (5, 40), (1, 1)), {}),
    ("one row", (1, (4, 3), (1, 20)), {}),
    ("one column", (1, (4, 3), (20, 1)), {}),
    ("no rows", (1, (4, 3), (0, 6)), {}),
    ("empty batch", (0, (4, 3), (5, 6)), {}),
)

#: 1024 x 2048 at 1/8 and at 1/4, with a coarse map of that size and of an eighth of it: SFNet-Lite
#: goes from 1/32 to 1/4 at once. Its gate sees 64 channels of the coarse map, resized, and 128.
_FINE, _FINER = (128, 256), (256, 512)
_MEASURED_WARPS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("C128 128x256", (1, 128, _FINE, _FINE), {}),
    ("C128 16x32 to 128x256", (1, 128, (16, 32), _FINE), {}),
    ("C128 256x512", (1, 128, _FINER, _FINER), {}),
    ("C128 32x64 to 256x512", (1, 128, (32, 64), _FINER), {}),
)
_MEASURED_POOLS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("C128+128 128x256", (1, (128, 128), _FINE), {}),
    ("C64+128 128x256", (1, (64, 128), _FINE), {}),
    ("C64+128 256x512", (1, (64, 128), _FINER), {}),
)


def _cases(build: Any, calls: Any) -> list[Case]:
    return [Case(name, partial(_call, build, sizes, options)) for name, sizes, options in calls]


def _call(build: Any, sizes: tuple[Any, ...], options: dict[str, Any], maker: Maker) -> Any:
    return build(maker, *sizes, **options)


def _warp_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    inputs = tensor_bytes(*(x for x in arguments.values() if isinstance(x, Tensor)))
    output = tensor_bytes(arguments["low"])
    # Backward: read grad and inputs, write the gradients of these.
    return inputs + output if direction == "forward" else output + 2 * inputs


def _warp_operations(arguments: Mapping[str, Any], direction: str) -> int:
    # Forward 8 multiply-adds. Backward, for each map, 4 to scatter and, for its flow, 4 differences
    # and 2 sums; the gate's gradient is made of the same products, by 2 multiply-adds.
    return int(arguments["low"].numel() * (16 if direction == "forward" else 44))


def _pool_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    first, second = arguments["first"], arguments["second"]
    inputs = tensor_bytes(first, second)
    pooled, places = 4 * tensor_bytes(first[:, :1]), 2 * 4 * first[:, :1].numel()
    # Backward: the maxima's places were kept, and the inputs are not read again.
    return inputs + pooled + (places if direction == "backward" else 0)


def _pool_operations(arguments: Mapping[str, Any], direction: str) -> int:
    # Backward: a comparison with the place.
    elements = int(arguments["first"].numel() + arguments["second"].numel())
    return elements * (2 if direction == "forward" else 1)


OPERATORS = (
    OperatorSpec(
        name="gated_dual_warp",
        function=gated_dual_warp,
        cases=_cases(_warp, _WARPS),
        benchmarks=_cases(_warp, _MEASURED_WARPS),
        eager=eager_gated_dual_warp,
        bytes_moved=_warp_bytes,
        operations=_warp_operations,
        differentiable=("high", "low", "high_flow", "low_flow", "gate"),
        refused=(
            Refused("high", lambda a: {**a, "high": a["high"][:, :, :0]}),
            Refused("low", lambda a: {**a, "low": a["low"][:, :-1]}),
            Refused("low", lambda a: {**a, "low": a["low"][:1]}),
            Refused("low", lambda a: {**a, "low": a["low"].double()}),
            Refused("high_flow", lambda a: {**a, "high_flow": a["high_flow"][:, :1]}),
            Refused("high_flow", lambda a: {**a, "high_flow": a["high_flow"][..., 1:]}),
            Refused("high_flow", lambda a: {**a, "high_flow": a["high_flow"].double()}),
            Refused("low_flow", lambda a: {**a, "low_flow": a["low_flow"][:1]}),
            Refused("low_flow", lambda a: {**a, "low_flow": a["low_flow"][:, :, 1:]}),
            Refused("low_flow", lambda a: {**a, "low_flow": a["low_flow"].half()}),
            Refused("gate", lambda a: {**a, "gate": a["low"]}),
            Refused("gate", lambda a: {**a, "gate": a["gate"][..., 1:]}),
            Refused("gate", lambda a: {**a, "gate": a["gate"].double()}),
            Refused("high_scale", lambda a: {**a, "high_scale": "pixels"}),
            Refused("high_scale", lambda a: {**a, "high_scale": float("inf")}),
            Refused("low_scale", lambda a: {**a, "low_scale": (1.0, 2.0, 3.0)}),
            Refused("low_scale", lambda a: {**a, "low_scale": None}),
            Refused("align_corners", lambda a: {**a, "align_corners": 1}),
            Refused("padding_mode", lambda a: {**a, "padding_mode": "reflection"}),
        ),
    ),
    OperatorSpec(
        name="channel_pool",
        function=channel_pool,
        cases=_cases(_pool, _POOLS),
        benchmarks=_cases(_pool, _MEASURED_POOLS),
        eager=eager_channel_pool,
        bytes_moved=_pool_bytes,
        operations=_pool_operations,
        differentiable=("first", "second"),
        refused=(
            Refused("first", lambda a: {**a, "first": a["first"][:, :0]}),
            Refused("second", lambda a: {**a, "second": a["second"][:, :0]}),
            Refused("second", lambda a: {**a, "second": a["second"][:1]}),
            Refused("second", lambda a: {**a, "second": a["second"][..., 1:]}),
            Refused("second", lambda a: {**a, "second": a["second"].double()}),
        ),
    ),
)
