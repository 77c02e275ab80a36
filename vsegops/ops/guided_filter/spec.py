"""The guided filter family's sample inputs, baselines and costs, for the tests and the benchmarks.

With D offsets a filter does D + 1 multiply-adds per pixel and class and moves, at the least, one
read of logits and intra, one write, and the guide once for all classes: for 19 classes and 9
offsets 20 operations to 14 bytes in float32. Memory bounds it on a GPU, and on a CPU core as well
where the shifted reads come from the cache. The edges read each logit once and compare it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._spec import Case, Maker, OperatorSpec, Refused, tensor_bytes
from ..warp.spec import eager_flow_warp
from . import DELAYS_3X3, DELAYS_5X5, Offset, guided_filter, label_edges

#: The published network's: a copy, eight shifts and an empty tap, 11 guide channels with intra.
PUBLISHED: tuple[Offset, ...] = ((0, 0), *(d for d in DELAYS_3X3 if d != (0, 0)), None)


def delay_kernels(offsets: Sequence[Offset], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[D, 1, 1, kh, kw]: kernels of a 3-D convolution that shift, odd in size and one-hot."""
    taps = [(0, 0) if offset is None else offset for offset in offsets]
    y, x = (max(abs(tap[axis]) for tap in taps) for axis in (0, 1))
    kernels = [
        [[[[float((i, j) == offset) for j in range(-x, x + 1)] for i in range(-y, y + 1)]]]
        for offset in offsets
    ]
    return torch.tensor(kernels, dtype=dtype, device=device)


_kept_kernels = cache(delay_kernels)


def eager_guided_filter(
    logits: Tensor,
    intra: Tensor,
    guide: Tensor,
    *,
    offsets: Sequence[Offset] = DELAYS_3X3,
    normalize: str = "sum",
    eps: float = 1e-9,
    flow: Tensor | None = None,
    scale: Any = 1.0,
    padding_mode: str = "zeros",
) -> Tensor:
    """What one writes without this library, and GSVNet did: a 3-D convolution that shifts, with
    the classes as depth, and a weighted sum over the copies."""
    if flow is not None:
        logits = eager_flow_warp(logits, flow, scale=scale, padding_mode=padding_mode)
    # Made once, as a parameter is; a tracer's are of no use later.
    make = delay_kernels if torch.compiler.is_compiling() else _kept_kernels
    kernels = make(tuple(offsets), logits.dtype, logits.device)
    padding = (0, kernels.shape[3] // 2, kernels.shape[4] // 2)
    copies = F.conv3d(logits.unsqueeze(1), kernels, padding=padding)  # [N, D, C, H, W]
    candidates = torch.cat((copies, intra.unsqueeze(1)), 1)
    if normalize == "sum":
        guide = guide / (guide.sum(1, keepdim=True) + eps)
    elif normalize == "softmax":
        guide = guide.softmax(1)
    return (guide.unsqueeze(2) * candidates).sum(1)


def eager_label_edges(
    logits: Tensor,
    *,
    flow: Tensor | None = None,
    scale: Any = 1.0,
    padding_mode: str = "zeros",
    response: str = "binary",
) -> Tensor:
    if flow is not None:
        logits = eager_flow_warp(logits, flow, scale=scale, padding_mode=padding_mode)
    label = logits.argmax(1, keepdim=True).to(logits.dtype)
    kernel = torch.ones(1, 1, 3, 3, dtype=logits.dtype, device=logits.device)
    kernel[:, :, 1, 1] = -8
    laplacian = F.conv2d(label, kernel, padding=1)
    return (laplacian != 0).to(logits.dtype) if response == "binary" else laplacian.sigmoid()


def _flowing(maker: Maker, n: int, size: tuple[int, int], options: dict[str, Any]) -> Any:
    """The options as arguments: `magnitude`, where there is one, becomes a flow."""
    magnitude = options.pop("magnitude", None)
    flow = None if magnitude is None else maker.flow(n, *size, magnitude=magnitude)
    return {"flow": flow, **options}


def _filter(maker: Maker, n: int, c: int, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    options = {"offsets": DELAYS_3X3, "normalize": "sum", **options}
    channels = len(options["offsets"]) + 1
    # Divided by a sum: positive, as the network's are. Zeros are tests of their own.
    guide = maker.unit if options["normalize"] == "sum" else maker.features
    return {
        "logits": maker.features(n, c, *size),
        "intra": maker.features(n, c, *size),
        "guide": guide(n, channels, *size),
        **_flowing(maker, n, size, options),
    }


def _edges(maker: Maker, n: int, c: int, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    tied = options.pop("tied", False)
    logits = maker.regions(n, c, *size)
    return {
        "logits": logits.round() if tied else logits,
        **_flowing(maker, n, size, options),
    }


_FLOW = {"magnitude": 3.0}
_WINDOW_7X7 = tuple((y, x) for y in range(-3, 4) for x in range(-3, 4))
_SCATTERED = ((3, -2), (0, 0), None, (-1, 5), (0, 0), (-40, 1), (2, 2**30), (-(2**30), -1))

#: (name, (n, classes, size), options)
_FILTERS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("flow", (2, 5, (13, 17)), _FLOW),
    ("no flow", (2, 5, (13, 17)), {}),
    ("vector-1", (1, 7, (9, 31)), {"normalize": "softmax"}),
    ("vector", (1, 8, (9, 32)), {"normalize": "none"}),
    ("vector+1", (1, 9, (9, 33)), {}),
    ("flow, vector-1", (1, 16, (8, 31)), {**_FLOW, "normalize": "softmax"}),
    ("flow, vector", (1, 17, (8, 32)), {**_FLOW, "normalize": "none"}),
    ("flow, vector+1", (1, 15, (8, 33)), {**_FLOW, "padding_mode": "border"}),
    ("published", (1, 19, (12, 35)), {**_FLOW, "offsets": PUBLISHED, "scale": 0.25}),
    ("5x5", (1, 19, (11, 23)), {"offsets": DELAYS_5X5}),
    ("5x5, flow", (2, 3, (11, 23)), {**_FLOW, "offsets": DELAYS_5X5, "normalize": "softmax"}),
    ("many classes", (1, 67, (6, 35)), {"normalize": "softmax"}),
    ("tall", (1, 3, (70, 19)), {}),
    ("tall, flow", (1, 3, (70, 19)), {**_FLOW, "scale": (-1.5, 0.5)}),
    ("one empty tap", (1, 4, (6, 7)), {"offsets": (None,)}),
    ("one tap", (1, 4, (6, 7)), {"offsets": ((0, 0),), "normalize": "none"}),
    ("one tap, flow", (1, 4, (6, 7)), {**_FLOW, "offsets": ((1, -1),)}),
    ("scattered taps", (2, 5, (12, 18)), {"offsets": _SCATTERED}),
    ("scattered taps, flow", (2, 5, (12, 18)), {**_FLOW, "offsets": _SCATTERED, "scale": (1, 0)}),
    ("7x7", (1, 4, (9, 20)), {"offsets": _WINDOW_7X7, "normalize": "softmax"}),
    ("7x7, flow", (1, 4, (9, 20)), {**_FLOW, "offsets": _WINDOW_7X7}),
    ("semantic scale", (1, 4, (10, 14)), {**_FLOW, "scale": "semantic"}),
    ("large eps", (1, 4, (10, 14)), {"eps": 0.5}),
    ("no eps", (1, 4, (10, 14)), {**_FLOW, "eps": 0}),
    ("one row", (1, 4, (1, 20)), {}),
    ("one row, flow", (1, 4, (1, 20)), _FLOW),
    ("one column", (2, 3, (20, 1)), {}),
    ("one column, flow", (2, 3, (20, 1)), {"magnitude": 1.0, "padding_mode": "border"}),
    ("one pixel", (2, 5, (1, 1)), {"magnitude": 0.5}),
    ("one class", (3, 1, (10, 11)), {"magnitude": 1.0}),
    ("no class", (1, 0, (3, 4)), {}),
    ("far", (1, 4, (12, 16)), {"magnitude": 40.0}),
    ("far border", (1, 4, (12, 16)), {"magnitude": 40.0, "padding_mode": "border"}),
    ("wide", (1, 2, (3, 3840)), {"magnitude": 16.0}),
    ("empty batch", (0, 4, (5, 6)), {}),
    ("no rows", (1, 4, (0, 6)), _FLOW),
)

_EDGES: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("flow", (2, 5, (13, 17)), {"magnitude": 0.5}),
    ("no flow", (2, 5, (13, 17)), {}),
    ("sigmoid", (1, 19, (11, 33)), {"response": "sigmoid"}),
    ("sigmoid, flow", (1, 19, (11, 33)), {"magnitude": 0.5, "response": "sigmoid", "scale": 0.25}),
    ("vector-1", (1, 7, (9, 31)), {"magnitude": 0.5, "padding_mode": "border"}),
    ("vector", (1, 8, (9, 32)), {"magnitude": 0.5, "padding_mode": "border"}),
    ("vector+1", (1, 9, (9, 33)), {"response": "binary"}),
    ("tile+1", (1, 3, (33, 65)), {"magnitude": 0.5}),
    ("tall", (1, 3, (70, 19)), {}),
    ("many classes", (1, 300, (4, 9)), {"response": "sigmoid"}),
    ("ties", (2, 19, (14, 30)), {"tied": True}),
    ("ties, flow", (2, 19, (14, 30)), {**_FLOW, "tied": True}),
    ("semantic scale", (1, 4, (10, 14)), {**_FLOW, "scale": "semantic"}),
    ("one row", (1, 4, (1, 20)), _FLOW),
    ("one column", (2, 3, (20, 1)), {}),
    ("one pixel", (2, 5, (1, 1)), {}),
    ("one class", (2, 1, (5, 6)), {}),
    ("far", (1, 4, (12, 16)), {"magnitude": 40.0}),
    ("wide", (1, 2, (3, 3840)), {"magnitude": 16.0}),
    ("empty batch", (0, 4, (5, 6)), _FLOW),
    ("no rows", (1, 4, (0, 6)), {}),
)

#: 1024 x 2048 at 1/8 (GSVNet) and at 1/4, and CamVid's 720 x 960 at 1/8.
_CITYSCAPES, _FINE, _CAMVID = (1, 19, (128, 256)), (1, 19, (256, 512)), (1, 11, (90, 120))

_MEASURED_FILTERS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("C19 128x256", _CITYSCAPES, {}),
    ("C19 128x256, flow", _CITYSCAPES, _FLOW),
    ("C19 128x256, 5x5", _CITYSCAPES, {"offsets": DELAYS_5X5}),
    ("C19 128x256, flow, published", _CITYSCAPES, {**_FLOW, "offsets": PUBLISHED, "scale": 0.25}),
    ("C19 256x512", _FINE, {}),
    ("C11 90x120", _CAMVID, {}),
    ("C11 90x120, flow", _CAMVID, _FLOW),
)

_MEASURED_EDGES: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("C19 128x256", _CITYSCAPES, {}),
    ("C19 128x256, flow", _CITYSCAPES, _FLOW),
    ("C19 256x512", _FINE, {}),
    ("C11 90x120", _CAMVID, {}),
)


def _cases(build: Any, calls: Any) -> list[Case]:
    return [Case(name, partial(_call, build, sizes, options)) for name, sizes, options in calls]


def _call(build: Any, sizes: tuple[Any, ...], options: dict[str, Any], maker: Maker) -> Any:
    return build(maker, *sizes, **options)


def _filter_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    inputs = tensor_bytes(*(arguments[x] for x in ("logits", "intra", "guide", "flow")))
    output = tensor_bytes(arguments["logits"])
    # Backward: read grad and inputs, write the gradients of these.
    return inputs + output if direction == "forward" else output + 2 * inputs


def _filter_operations(arguments: Mapping[str, Any], direction: str) -> int:
    """Multiply-adds of every guide channel with every class; sampling as in the warp family."""
    sampled = arguments["flow"] is not None
    blends = 2 * arguments["guide"].shape[1]
    if direction == "forward":
        per_logit = blends + 8 * sampled
    else:  # once for the logits (and intra), once for the guide
        per_logit = 2 * blends + 28 * sampled
    return int(arguments["logits"].numel() * per_logit + 2 * arguments["guide"].numel())


def _edge_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    logits = arguments["logits"]
    output = tensor_bytes(logits[:, :1])
    return tensor_bytes(logits, arguments["flow"]) + output


def _edge_operations(arguments: Mapping[str, Any], direction: str) -> int:
    logits = arguments["logits"]
    per_logit = 1 if arguments["flow"] is None else 9
    return int(logits.numel() * per_logit + 9 * logits[:, :1].numel())


_REFUSED = (
    Refused("logits", lambda a: {**a, "logits": a["logits"][0]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"][:, :1]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"][:1]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"][..., 1:]}),
    Refused("flow", lambda a: {**a, "flow": a["flow"].double()}),
    Refused("scale", lambda a: {**a, "scale": "pixels"}),
    Refused("scale", lambda a: {**a, "scale": float("nan")}),
    Refused("padding_mode", lambda a: {**a, "padding_mode": "reflection"}),
)


def _refused_offsets(*bad: Any) -> list[Refused]:
    def changed(value: Any) -> Any:
        return lambda arguments: {**arguments, "offsets": value}

    return [Refused("offsets", changed(value)) for value in bad]


OPERATORS = (
    OperatorSpec(
        name="guided_filter",
        function=guided_filter,
        cases=_cases(_filter, _FILTERS),
        benchmarks=_cases(_filter, _MEASURED_FILTERS),
        eager=eager_guided_filter,
        bytes_moved=_filter_bytes,
        operations=_filter_operations,
        differentiable=("logits", "intra", "guide", "flow"),
        refused=(
            *_REFUSED,
            Refused("intra", lambda a: {**a, "intra": a["intra"][:, :-1]}),
            Refused("intra", lambda a: {**a, "intra": a["intra"].double()}),
            Refused("guide", lambda a: {**a, "guide": a["guide"][:, :-1]}),
            Refused("guide", lambda a: {**a, "guide": a["guide"][..., :-1]}),
            Refused("guide", lambda a: {**a, "guide": a["guide"].double()}),
            Refused("normalize", lambda a: {**a, "normalize": "mean"}),
            Refused("eps", lambda a: {**a, "eps": -1e-9}),
            Refused("eps", lambda a: {**a, "eps": float("nan")}),
            Refused("eps", lambda a: {**a, "eps": True}),
            *_refused_offsets(
                (),
                3,
                None,
                (1, 2),
                ((1, 2, 3),),
                ((0.0, 1.0),),
                ((0, 2**30 + 1),),
                "3x3",
                ((0, True),),
                ((0, 0),) * 257,
            ),
        ),
    ),
    OperatorSpec(
        name="label_edges",
        function=label_edges,
        cases=_cases(_edges, _EDGES),
        benchmarks=_cases(_edges, _MEASURED_EDGES),
        eager=eager_label_edges,
        bytes_moved=_edge_bytes,
        operations=_edge_operations,
        differentiable=(),
        refused=(
            *_REFUSED,
            Refused("logits", lambda a: {**a, "logits": a["logits"][:, :0]}),
            Refused("response", lambda a: {**a, "response": "absolute"}),
        ),
        flips=1e-3,  # where two classes are as good as equal, a rounding chooses
    ),
)
