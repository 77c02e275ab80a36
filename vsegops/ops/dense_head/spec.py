"""The dense head's sample inputs, baselines and costs, for the tests and the benchmarks.

Interpolated along y first, once per row and column of the logits, then along x, an output pixel
costs a class one multiply-add and a comparison (argmax) or an exponential and a few additions
(loss). The logits are read once, and a label of one byte or a target is all that moves at full
resolution: at x8 and 19 classes some 60 operations to 2 bytes. Arithmetic bounds it everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._spec import Case, Maker, OperatorSpec, Refused, tensor_bytes
from . import op, upsample_argmax, upsample_cross_entropy


def eager_upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    return_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What one writes without this library."""
    full = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    if not return_confidence:
        return full.argmax(1)
    confidence, labels = full.softmax(1).max(1)
    return labels, confidence


def eager_upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(
        full,
        target.long(),
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


Sizes = tuple[int, int, tuple[int, int], tuple[int, int]]  # n, classes, logits' size, full size


def _argmax(
    maker: Maker, n: int, c: int, source: tuple[int, int], size: tuple[int, int], **options: Any
) -> dict[str, Any]:
    make = maker.smooth if options.pop("smooth", False) else maker.features
    options = {"align_corners": False, "return_confidence": False, **options}
    return {"logits": make(n, c, *source), "size": size, **options}


def _loss(
    maker: Maker, n: int, c: int, source: tuple[int, int], size: tuple[int, int], **options: Any
) -> dict[str, Any]:
    ignore_index = options.setdefault("ignore_index", 255)
    dtype = options.pop("dtype", torch.int64)
    ignored = options.pop("ignored", 0.1)
    options = {
        "align_corners": False,
        "label_smoothing": 0.0,
        "reduction": "mean",
        **options,
        "weight": maker.unit(c) if options.get("weight") else None,
    }
    target = maker.labels(
        n, *size, classes=c, ignored=ignored, ignore_index=ignore_index, dtype=dtype
    )
    return {"logits": maker.features(n, c, *source), "target": target, **options}


_CORNERS = {"align_corners": True}
_SURE = {"return_confidence": True}

#: (name, (n, classes, size of the logits, full size), options); what both operators are called with
_SIZES: tuple[tuple[str, Sizes, dict[str, Any]], ...] = (
    ("x8", (1, 19, (3, 5), (24, 40)), {}),
    ("x8, corners", (1, 19, (3, 5), (24, 40)), _CORNERS),
    ("x4", (2, 21, (5, 9), (20, 36)), {}),
    ("x2", (1, 7, (9, 17), (18, 34)), {}),
    ("x3.3", (1, 11, (10, 7), (33, 23)), {}),
    ("x3.3, corners", (1, 11, (10, 7), (33, 23)), _CORNERS),
    ("x1", (2, 4, (9, 15), (9, 15)), {}),
    ("97 to 769", (1, 2, (4, 7), (25, 49)), _CORNERS),
    ("wider only", (1, 5, (6, 4), (6, 37)), {}),
    ("taller only", (1, 5, (4, 6), (37, 6)), {}),
    ("up and down", (1, 6, (20, 3), (7, 19)), {}),
    ("x1/3.7", (2, 3, (37, 26), (10, 7)), {}),
    ("x1/3.7, corners", (2, 3, (37, 26), (10, 7)), _CORNERS),
    ("tile-1", (1, 8, (4, 8), (15, 31)), {}),
    ("tile", (1, 8, (4, 8), (16, 32)), {}),
    ("tile+1", (1, 8, (5, 9), (17, 33)), {}),
    ("one class", (2, 1, (3, 4), (12, 16)), {}),
    ("two classes", (2, 2, (3, 4), (12, 16)), {}),
    ("150 classes", (1, 150, (2, 3), (8, 13)), {}),
    ("257 classes", (1, 257, (2, 3), (4, 6)), {}),
    ("300 classes", (1, 300, (3, 2), (7, 8)), _CORNERS),
    ("one pixel", (2, 5, (1, 1), (9, 13)), {}),
    ("to one pixel", (2, 5, (4, 6), (1, 1)), {}),
    ("to one pixel, corners", (1, 5, (4, 6), (1, 1)), _CORNERS),
    ("one row", (1, 4, (1, 10), (1, 43)), {}),
    ("one column", (2, 3, (10, 1), (43, 1)), _CORNERS),
    ("rows of one pixel", (1, 4, (3, 1), (12, 5)), {}),
    ("wide", (1, 3, (2, 480), (3, 3840)), {}),
    ("wide, corners", (1, 3, (2, 481), (3, 3840)), _CORNERS),
    ("far up", (1, 3, (2, 3), (50, 120)), {}),
)

_ARGMAX: tuple[tuple[str, Sizes, dict[str, Any]], ...] = (
    ("plain", (2, 5, (5, 6), (13, 17)), {}),
    ("corners", (2, 5, (5, 6), (13, 17)), _CORNERS),
    ("confidence", (2, 5, (5, 6), (13, 17)), _SURE),
    ("confidence, corners", (2, 5, (5, 6), (13, 17)), {**_SURE, **_CORNERS}),
    *_SIZES,
    ("smooth", (1, 19, (16, 20), (64, 80)), {"smooth": True}),
    ("smooth, confidence", (1, 19, (9, 12), (72, 96)), {"smooth": True, **_SURE}),
    ("300 classes, confidence", (1, 300, (3, 2), (7, 8)), _SURE),
    ("one class, confidence", (1, 1, (3, 2), (7, 8)), _SURE),
    ("empty batch", (0, 4, (5, 6), (10, 12)), {}),
    ("empty batch, confidence", (0, 4, (5, 6), (10, 12)), _SURE),
    ("no rows", (1, 4, (5, 6), (0, 6)), {}),
)

_EVERYTHING = {"weight": True, "label_smoothing": 0.1}

_LOSSES: tuple[tuple[str, Sizes, dict[str, Any]], ...] = (
    ("plain", (2, 5, (5, 6), (13, 17)), {}),
    ("corners", (1, 5, (5, 6), (13, 17)), _CORNERS),
    ("each pixel", (1, 5, (5, 6), (13, 17)), {"reduction": "none"}),
    ("sum", (1, 5, (5, 6), (13, 17)), {"reduction": "sum", "label_smoothing": 0.2}),
    ("everything", (2, 5, (5, 6), (13, 17)), _EVERYTHING),
    ("everything, corners", (1, 6, (5, 6), (13, 17)), {**_EVERYTHING, **_CORNERS}),
    ("everything, each pixel", (1, 7, (5, 6), (13, 17)), {**_EVERYTHING, "reduction": "none"}),
    ("weights, each pixel, corners", (1, 7, (4, 6), (13, 17)),
     {"weight": True, "reduction": "none", **_CORNERS}),
    ("weights, sum", (1, 19, (4, 6), (32, 48)), {"weight": True, "reduction": "sum"}),
    ("smoothing alone", (1, 4, (4, 6), (13, 17)), {"label_smoothing": 1.0}),
    *(
        (name, sizes, {**options, **({} if i % 3 else _EVERYTHING), "reduction": "none"})
        for i, (name, sizes, options) in enumerate(_SIZES)
    ),
    ("uint8", (1, 5, (4, 5), (16, 20)), {"dtype": torch.uint8}),
    ("int8", (1, 5, (4, 5), (16, 20)), {"dtype": torch.int8, "ignore_index": -100}),
    ("int16", (1, 5, (4, 5), (16, 20)), {"dtype": torch.int16, "ignore_index": -1}),
    ("int32", (1, 300, (2, 3), (8, 12)), {"dtype": torch.int32, "ignore_index": -(2**31)}),
    ("int64", (1, 5, (4, 5), (16, 20)), {"ignore_index": 2**40}),
    ("nothing ignored", (1, 5, (4, 5), (16, 20)), {"ignored": 0.0}),
    ("no index to ignore", (1, 5, (4, 5), (16, 20)),
     {"dtype": torch.uint8, "ignored": 0.0, "ignore_index": -100}),
    ("a class is ignored", (1, 5, (4, 5), (16, 20)), {"ignored": 0.3, "ignore_index": 2}),
    ("most are ignored", (1, 5, (8, 9), (32, 36)), {"ignored": 0.97}),
    ("all are ignored", (1, 5, (4, 5), (16, 20)), {"ignored": 1.0, "reduction": "sum"}),
    ("all are ignored, each pixel", (1, 5, (4, 5), (16, 20)),
     {"ignored": 1.0, "reduction": "none"}),
    ("empty batch", (0, 4, (5, 6), (10, 12)), {"reduction": "none"}),
    ("empty batch, sum", (0, 4, (5, 6), (10, 12)), {"reduction": "sum"}),
    ("no rows", (1, 4, (5, 6), (0, 12)), {"reduction": "sum"}),
)  # fmt: skip

#: 1024 x 2048 from 1/8 and from 1/4, CamVid's 720 x 960 from 1/8, and a crop of 769 from 97.
_MEASURED: tuple[tuple[str, Sizes, dict[str, Any]], ...] = (
    ("C19 128x256 to 1024x2048", (1, 19, (128, 256), (1024, 2048)), {}),
    ("C19 256x512 to 1024x2048", (1, 19, (256, 512), (1024, 2048)), {}),
    ("C19 128x256 to 1024x2048, corners", (1, 19, (128, 256), (1024, 2048)), _CORNERS),
    ("C11 90x120 to 720x960", (1, 11, (90, 120), (720, 960)), {}),
    ("C19 97x97 to 769x769", (1, 19, (97, 97), (769, 769)), {}),
    ("C19 97x97 to 769x769, corners", (1, 19, (97, 97), (769, 769)), _CORNERS),
)

#: How much work labels are may depend on the logits: independent ones, and a network's.
_MEASURED_ARGMAX = tuple(
    (f"{name}{kind}", sizes, {**options, "smooth": bool(kind)})
    for name, sizes, options in _MEASURED
    for kind in ("", ", smooth")
)


def _cases(build: Any, calls: Any) -> list[Case]:
    return [Case(name, partial(_call, build, sizes, options)) for name, sizes, options in calls]


def _call(build: Any, sizes: Sizes, options: dict[str, Any], maker: Maker) -> Any:
    return build(maker, *sizes, **options)


def _interpolations(logits: Tensor, size: tuple[int, int]) -> int:
    """Operations to upsample, along y and then along x: a multiply-add each."""
    n, c, _, w = logits.shape
    return 2 * n * c * (size[0] * w + size[0] * size[1])


def _argmax_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    logits, (height, width) = arguments["logits"], arguments["size"]
    per_pixel = op.label_dtype(logits.shape[1]).itemsize
    if arguments["return_confidence"]:
        per_pixel += op.loss_dtype(logits).itemsize
    return tensor_bytes(logits) + int(len(logits) * height * width * per_pixel)


def _argmax_operations(arguments: Mapping[str, Any], direction: str) -> int:
    """A comparison for each class, and for the confidence an exponential and two additions."""
    logits, (height, width) = arguments["logits"], arguments["size"]
    each = 4 if arguments["return_confidence"] else 1
    full = len(logits) * logits.shape[1] * height * width
    return _interpolations(logits, (height, width)) + int(each * full)


def _loss_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    logits, target = arguments["logits"], arguments["target"]
    inputs = tensor_bytes(logits, target, arguments["weight"])
    losses = target.numel() if arguments["reduction"] == "none" else 1
    moved = inputs + losses * op.loss_dtype(logits).itemsize
    return moved if direction == "forward" else moved + tensor_bytes(logits)


def _loss_operations(arguments: Mapping[str, Any], direction: str) -> int:
    """Forward: a maximum, an exponential and two additions for each class. Backward: these again,
    a multiply-add, and the adjoint of the interpolation."""
    logits, target = arguments["logits"], arguments["target"]
    up = _interpolations(logits, target.shape[1:])
    full = int(logits.shape[1] * target.numel())
    return up + 4 * full if direction == "forward" else 2 * up + 6 * full


def _replaced(name: str, *values: Any) -> list[Refused]:
    """Calls with a bad value of one argument: itself, or a function of the good one."""

    def change(value: Any) -> Any:
        return lambda a: {**a, name: value(a[name]) if callable(value) else value}

    return [Refused(name, change(value)) for value in values]


_REFUSED_LOGITS = _replaced("logits", lambda x: x[0], lambda x: x[:, :0], lambda x: x[:, :, :0])

OPERATORS = (
    OperatorSpec(
        name="upsample_argmax",
        function=upsample_argmax,
        cases=_cases(_argmax, _ARGMAX),
        benchmarks=_cases(_argmax, _MEASURED_ARGMAX),
        eager=eager_upsample_argmax,
        bytes_moved=_argmax_bytes,
        operations=_argmax_operations,
        differentiable=(),
        refused=(
            *_REFUSED_LOGITS,
            *_replaced("size", 8, (8,), (8, 8, 8), (8.0, 8), (-1, 8), (8, True), None),
            *_replaced("size", (8, 2**30 + 1)),
            *_replaced("align_corners", 1, None),
            *_replaced("return_confidence", 1, None),
        ),
        flips=1e-3,  # where two classes are as good as equal, a rounding chooses
    ),
    OperatorSpec(
        name="upsample_cross_entropy",
        function=upsample_cross_entropy,
        cases=_cases(_loss, _LOSSES),
        benchmarks=_cases(_loss, _MEASURED),
        eager=eager_upsample_cross_entropy,
        bytes_moved=_loss_bytes,
        operations=_loss_operations,
        differentiable=("logits",),
        refused=(
            *_REFUSED_LOGITS,
            *_replaced("target", lambda x: x[:, 0], lambda x: x[:, None], lambda x: x[:1]),
            *_replaced("target", lambda x: x.bool()),
            *_replaced("weight", lambda x: x[:-1], lambda x: x.double(), lambda x: x[0]),
            *_replaced("ignore_index", 2.0, True, None, 2**63),
            *_replaced("label_smoothing", -0.1, 1.1, True, None, float("nan")),
            *_replaced("reduction", "average", None),
            *_replaced("align_corners", 1, None),
        ),
    ),
)
