"""The attention family's sample inputs, baselines and costs, for the tests and the benchmarks.

Pooling adds each input once for every level: under one operation a byte, memory bounds it. P pixels
over S anchors are 2 P S (Ck + Cv) operations forward for (Ck + Cv) P elements moved: 2 S an
element, which is compute-bound from some dozens of anchors on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._spec import Case, Maker, OperatorSpec, Refused, tensor_bytes
from . import asymmetric_attention, criss_cross_attention, pyramid_levels, pyramid_pool

# --- what one writes without this library ------------------------------------------------------


def eager_pyramid_pool(input: Tensor, sizes: Any) -> Tensor:
    pool = F.adaptive_avg_pool2d if input.dim() == 4 else F.adaptive_avg_pool3d
    return torch.cat([pool(input, size).flatten(2) for size in sizes], 2)


def eager_asymmetric_attention(
    query: Tensor, key: Tensor, value: Tensor, *, sizes: Any = None, scale: float | None = None
) -> Tensor:
    if sizes is None:
        k, v = key.flatten(2), value.flatten(2)
    else:
        k, v = eager_pyramid_pool(key, sizes), eager_pyramid_pool(value, sizes)
    if scale is None:
        scale = query.shape[1] ** -0.5
    similarity = torch.matmul(query.flatten(2).transpose(1, 2), k) * scale
    context = torch.matmul(v, similarity.softmax(-1).transpose(1, 2))
    return context.view(len(query), -1, *query.shape[2:])


def eager_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    h = query.shape[2]
    column = torch.einsum("nchw,nciw->nhwi", query, key)
    row = torch.einsum("nchw,nchj->nhwj", query, key)
    itself = torch.full((h,), float("-inf"), dtype=query.dtype, device=query.device).diag_embed()
    itself = itself.where(torch.eye(h, dtype=torch.bool, device=query.device), 0.0)
    weights = torch.cat((column + itself.unsqueeze(1), row), -1).softmax(-1)
    column, row = weights.split((h, query.shape[3]), -1)
    return torch.einsum("nhwi,nciw->nchw", column, value) + torch.einsum(
        "nhwj,nchj->nchw", row, value
    )


# --- sample inputs -----------------------------------------------------------------------------

#: TMANet's memory on CamVid, and on Cityscapes.
_CAMVID = ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8))
_ANN = (1, 3, 6, 8)

#: (name, shape of the input, levels)
_POOLS: tuple[tuple[str, tuple[int, ...], Any], ...] = (
    ("plain", (2, 5, 7, 11), _ANN),
    ("frames", (1, 17, 3, 5, 7), ((1, 1, 1), (2, 3, 3), (2, 4, 5))),
    ("bins repeat", (1, 3, 2, 3, 4), (1, 3, 6)),
    ("whole pixels", (1, 16, 6, 8), ((6, 8),)),
    ("even", (1, 40, 12, 24), (1, 2, 3, 6)),
    ("one level", (1, 33, 7, 11), (1,)),
    ("many levels", (1, 130, 9, 9), tuple(range(1, 17))),
    ("one channel", (1, 1, 6, 7), (2, 1)),
    ("flat levels", (2, 44, 8, 15), ((1, 4), (5, 1), (2, 7))),
    ("one row", (1, 4, 1, 19), (1, 3, 8)),
    ("one column", (1, 4, 9, 1), (1, 2)),
    ("one pixel", (3, 2, 1, 1), (1, 2)),
    ("one frame", (1, 4, 1, 6, 7), ((1, 2, 3), (2, 3, 3))),
    ("five frames", (1, 2, 5, 3, 4), ((1, 1, 1), (2, 2, 2), (3, 2, 4), (5, 1, 1))),
    ("vector-1", (1, 15, 23, 31), (1, 4)),
    ("vector+1", (1, 17, 19, 33), (1, 4)),
    ("many channels", (1, 130, 9, 10), (1, 3)),
    ("wide", (1, 3, 20, 260), _ANN),
    ("empty batch", (0, 4, 5, 6), _ANN),
)

#: (name, images, Ck, Cv, the query's sizes, the memory's sizes, options)
_ATTENTIONS: tuple[tuple[str, int, int, int, tuple[int, ...], tuple[int, ...], Any], ...] = (
    # (the tests enlarge this one by repeating it: no bin may cover whole periods)
    ("image", 2, 8, 5, (7, 9), (7, 9), {"sizes": (1, 5), "scale": 0.7}),
    ("every position", 2, 16, 17, (5, 7), (5, 7), {}),
    ("memory", 1, 16, 24, (9, 10), (3, 5, 7), {"sizes": ((1, 1, 1), (1, 3, 3), (2, 4, 4))}),
    ("every position of a memory", 1, 6, 10, (6, 5), (4, 6, 5), {"scale": 1.0}),
    ("anchors", 2, 7, 12, (4, 9), (21,), {}),
    ("line", 1, 4, 6, (23,), (23,), {}),
    ("volume", 1, 5, 4, (2, 3, 5), (2, 3, 5), {"sizes": (1, 2), "scale": 2.0}),
    ("one anchor", 1, 4, 6, (5, 6), (1,), {}),
    ("seven anchors", 1, 3, 3, (6, 11), (7,), {}),
    ("one pixel", 2, 9, 9, (1, 1), (3, 4), {}),
    ("one channel", 1, 1, 1, (8, 9), (8, 9), {"sizes": (1, 4)}),
    ("vector-1", 1, 15, 15, (3, 21), (15,), {}),
    ("vector+1", 1, 17, 33, (1, 65), (17,), {"scale": 0.4}),
    ("channels block+1", 1, 65, 129, (3, 5), (33,), {}),
    ("no scale", 1, 4, 4, (5, 5), (11,), {"scale": 0.0}),
    ("peaked", 1, 8, 12, (6, 7), (40,), {"magnitude": 2.0}),
    ("APNB", 1, 32, 48, (12, 20), (12, 20), {"sizes": _ANN}),
    ("wide value", 1, 8, 300, (4, 9), (110,), {}),
    ("wide key", 1, 260, 8, (4, 9), (19,), {}),
    ("210 anchors", 1, 16, 48, (8, 9), (2, 9, 12), {"sizes": _CAMVID}),
    ("cubes", 1, 16, 40, (6, 8), (4, 9, 8), {"sizes": _ANN}),
    ("blocks of keys", 1, 8, 16, (4, 17), (4, 12, 20), {"scale": 1.0}),
    ("blocks of pixels", 1, 12, 20, (29, 37), (50,), {}),
    ("no pixels", 1, 4, 5, (0, 7), (6, 7), {"sizes": _ANN}),
    ("empty batch", 0, 4, 5, (6, 7), (6, 7), {"sizes": _ANN}),
)

#: (name, images, Ck, Cv, H, W)
_CROSSES: tuple[tuple[str, int, int, int, int, int], ...] = (
    ("plain", 2, 4, 9, 5, 6),
    ("tall", 1, 8, 16, 9, 4),
    ("vector-1", 1, 3, 47, 15, 15),
    ("vector", 1, 8, 48, 16, 16),
    ("vector+1", 1, 9, 49, 17, 17),
    ("block+1", 1, 2, 5, 33, 65),
    ("long row", 1, 4, 130, 1, 81),
    ("long column", 1, 5, 33, 320, 1),
    ("one row", 1, 5, 6, 1, 7),
    ("one column", 2, 3, 4, 6, 1),
    ("one pixel", 2, 3, 5, 1, 1),
    ("one channel", 1, 1, 1, 4, 5),
    ("many channels", 1, 33, 130, 3, 4),
    ("empty batch", 0, 4, 5, 6, 7),
)

_MEASURED_POOLS: tuple[tuple[str, tuple[int, ...], Any], ...] = (
    ("C256 4x90x120", (1, 256, 4, 90, 120), _CAMVID),
    ("C256 97x97", (1, 256, 97, 97), _ANN),
    ("C64 2x128x256", (1, 64, 2, 128, 256), _CAMVID),
)
_MEASURED_ATTENTIONS: tuple[
    tuple[str, int, int, int, tuple[int, ...], tuple[int, ...], Any], ...
] = (
    ("C64/256 90x120, 4 frames", 1, 64, 256, (90, 120), (4, 90, 120), {"sizes": _CAMVID}),
    ("C256 97x97", 1, 256, 256, (97, 97), (97, 97), {"sizes": _ANN}),
    ("C64/256 128x256, 2 frames", 1, 64, 256, (128, 256), (2, 128, 256), {"sizes": _CAMVID}),
)
_MEASURED_CROSSES: tuple[tuple[str, int, int, int, int, int], ...] = (
    ("C64/512 97x97", 1, 64, 512, 97, 97),
    ("C8/64 90x120", 1, 8, 64, 90, 120),
)


def _pool(shape: Sequence[int], sizes: Any, maker: Maker) -> dict[str, Any]:
    return {"input": maker.features(*shape), "sizes": sizes}


def _attention(
    n: int,
    key_channels: int,
    value_channels: int,
    query_size: Sequence[int],
    key_size: Sequence[int],
    options: Mapping[str, Any],
    maker: Maker,
) -> dict[str, Any]:
    given = dict(options)
    magnitude = given.pop("magnitude", 1.0)
    return {
        "query": magnitude * maker.features(n, key_channels, *query_size),
        "key": magnitude * maker.features(n, key_channels, *key_size),
        "value": maker.features(n, value_channels, *key_size),
        "sizes": given.get("sizes"),
        "scale": given.get("scale"),
    }


def _cross(
    n: int, key_channels: int, value_channels: int, h: int, w: int, maker: Maker
) -> dict[str, Any]:
    return {
        # (as steep as scaled products are)
        "query": key_channels**-0.5 * maker.features(n, key_channels, h, w),
        "key": maker.features(n, key_channels, h, w),
        "value": maker.features(n, value_channels, h, w),
    }


def _cases(build: Any, calls: Sequence[tuple[Any, ...]]) -> list[Case]:
    return [Case(name, partial(build, *given)) for name, *given in calls]


# --- costs -------------------------------------------------------------------------------------


def _anchors(sizes: Any, dimensions: int) -> int:
    return sum(torch.Size(level).numel() for level in pyramid_levels(sizes, dimensions))


def _pool_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    x = arguments["input"]
    anchors = x.shape[:2].numel() * _anchors(arguments["sizes"], x.dim() - 2)
    return int(tensor_bytes(x) + anchors * x.element_size())  # either read once, the other written


def _pool_operations(arguments: Mapping[str, Any], direction: str) -> int:
    return int(arguments["input"].numel() * len(arguments["sizes"]))


def _row_means_bytes(arguments: Mapping[str, Any]) -> int:
    """What the Triton kernels write between their two passes: each row's means over all columns."""
    x = arguments["input"]
    levels = pyramid_levels(arguments["sizes"], x.dim() - 2)
    columns = sum({level[-1] for level in levels})
    return int(x[..., 0].numel() * columns * max(x.element_size(), 4))


def _attention_bytes(arguments: Mapping[str, Any], direction: str) -> int:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    inputs = tensor_bytes(query, key, value)
    output = tensor_bytes(query) // max(query.shape[1], 1) * value.shape[1]
    # Backward: read grad and inputs, write the gradients of these.
    return int(inputs + output if direction == "forward" else output + 2 * inputs)


def _attended(arguments: Mapping[str, Any]) -> int:
    """How many anchors each pixel reads."""
    query, key, sizes = arguments["query"], arguments["key"], arguments.get("sizes")
    if "sizes" not in arguments:  # criss-cross
        return int(sum(query.shape[2:]) - 1)
    return int(key.shape[2:].numel()) if sizes is None else _anchors(sizes, key.dim() - 2)


def _attention_operations(arguments: Mapping[str, Any], direction: str) -> int:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    pairs = query.numel() // max(query.shape[1], 1) * _attended(arguments)
    # Multiply-adds of each pair. Forward: the similarity, and the weighted sum. Backward: the
    # similarity again, the gradient of the weights, and of query, key and value.
    similarity, weighted = (1, 1) if direction == "forward" else (3, 2)
    pooled = 0
    if arguments.get("sizes") is not None:
        pooled = (key.numel() + value.numel()) * len(arguments["sizes"])
    return int(2 * pairs * (similarity * key.shape[1] + weighted * value.shape[1]) + pooled)


def _pooled_bytes(arguments: Mapping[str, Any]) -> int:
    """The anchors that `asymmetric_attention` pools for itself."""
    key, value, sizes = arguments["key"], arguments["value"], arguments["sizes"]
    if sizes is None:
        return 0
    channels = key.shape[1] + value.shape[1]
    return int(len(key) * channels * _anchors(sizes, key.dim() - 2) * key.element_size())


# --- calls that have to raise ------------------------------------------------------------------

_SIZES = (
    (),
    3,
    (1, 0),
    (1, -2),
    (1, 2.0),
    ((1, 2, 3, 4),),
    ((1,), 2),
    tuple(range(1, 18)),
    ((1, "2"),),
)

_MISMATCHES = (
    Refused("query", lambda a: {**a, "query": a["query"][:, :0]}),
    Refused("key", lambda a: {**a, "key": a["key"][:, :-1]}),
    Refused("key", lambda a: {**a, "key": a["key"][:1]}),
    Refused("key", lambda a: {**a, "key": a["key"].double()}),
    Refused("value", lambda a: {**a, "value": a["value"][:1]}),
    Refused("value", lambda a: {**a, "value": a["value"][..., 1:]}),
    Refused("value", lambda a: {**a, "value": a["value"].half()}),
)


def _with_sizes(sizes: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "sizes": sizes}


_REFUSED_SIZES = tuple(Refused("sizes", partial(_with_sizes, sizes)) for sizes in _SIZES)


OPERATORS = (
    OperatorSpec(
        name="pyramid_pool",
        function=pyramid_pool,
        cases=_cases(_pool, _POOLS),
        benchmarks=_cases(_pool, _MEASURED_POOLS),
        eager=eager_pyramid_pool,
        bytes_moved=_pool_bytes,
        operations=_pool_operations,
        differentiable=("input",),
        scratch=_row_means_bytes,
        refused=(
            Refused("input", lambda a: {**a, "input": a["input"][:, :, :0]}),
            Refused("input", lambda a: {**a, "input": a["input"][..., 0]}),
            *_REFUSED_SIZES,
        ),
    ),
    OperatorSpec(
        name="asymmetric_attention",
        function=asymmetric_attention,
        cases=_cases(_attention, _ATTENTIONS),
        benchmarks=_cases(_attention, _MEASURED_ATTENTIONS),
        eager=eager_asymmetric_attention,
        bytes_moved=_attention_bytes,
        operations=_attention_operations,
        differentiable=("query", "key", "value"),
        roundings=12,
        rounded_inside=True,
        scratch=_pooled_bytes,
        refused=(
            *_MISMATCHES,
            Refused("key", lambda a: {**a, "key": a["key"].flatten(2)}),
            Refused(
                "key",
                lambda a: {**a, "key": a["key"][..., :0], "value": a["value"][..., :0]},
            ),
            Refused("value", lambda a: {**a, "value": a["value"].flatten(2)}),
            Refused("scale", lambda a: {**a, "scale": float("nan")}),
            Refused("scale", lambda a: {**a, "scale": (1.0, 2.0)}),
            *_REFUSED_SIZES,
        ),
    ),
    OperatorSpec(
        name="criss_cross_attention",
        function=criss_cross_attention,
        cases=_cases(_cross, _CROSSES),
        benchmarks=_cases(_cross, _MEASURED_CROSSES),
        eager=eager_criss_cross_attention,
        bytes_moved=_attention_bytes,
        operations=_attention_operations,
        differentiable=("query", "key", "value"),
        roundings=12,
        rounded_inside=True,
        refused=_MISMATCHES,
    ),
)
