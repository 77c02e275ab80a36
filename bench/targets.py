"""The project's stated targets, as data. They inform: a run that misses one does not fail.

A family adds its own to `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .cases import REPEATED


@dataclass(frozen=True)
class Target:
    """Ours is at least `ratio` times as fast as `against`, everywhere that the rest describes.

    Attributes:
        shape, layout, direction, dtype: "" is every one.
        against: a baseline, or "best": the faster of those that were measured; or "floor": what
            the bytes take that have to move, at the bandwidth of a copy.
        filled: only shapes whose samples are repeated until memory is busy.
    """

    operator: str
    ratio: float
    against: str
    shape: str = ""
    layout: str = ""
    direction: str = ""
    dtype: str = "float32"
    backend: str = "cpu"
    threads: int = 1
    filled: bool = False

    def __str__(self) -> str:
        every = "every shape that fills memory" if self.filled else "every shape"
        where = [self.shape or every, self.layout or "both layouts"]
        where += [self.direction or "both directions", self.dtype or "every dtype", self.backend]
        names = {"best": "the better baseline", "floor": "the floor's speed"}
        against = names.get(self.against, self.against)
        return f"{self.operator} ({', '.join(where)}): {self.ratio:g} x {against}"


def _warp() -> Iterable[Target]:
    size = "C64 128x256"
    yield Target("warp_correct", 3, "eager", size, "contiguous", "forward")
    yield Target("warp_correct", 6, "compile", size, "contiguous", "forward")
    yield Target("warp_correct", 6.5, "eager", size, "channels_last", "forward")
    yield Target("flow_warp", 2, "eager", size, "contiguous", "forward")
    yield Target("flow_warp", 4, "eager", size, "channels_last", "forward")
    for operator in ("flow_warp", "warp_correct"):
        yield Target(operator, 5, "eager", size, direction="backward")
        yield Target(operator, 1, "best")


def _guided_filter() -> Iterable[Target]:
    size, warped = "C19 128x256", "C19 128x256, flow"
    yield Target("guided_filter", 16, "eager", size, "contiguous", "forward")
    yield Target("guided_filter", 14, "compile", size, "contiguous", "forward")
    yield Target("guided_filter", 7, "eager", warped, "contiguous", "forward")
    yield Target("guided_filter", 7, "eager", size, "contiguous", "backward")
    yield Target("label_edges", 10, "eager", size, "contiguous", "forward")
    for operator in ("guided_filter", "label_edges"):
        yield Target(operator, 1, "best")
        gpu: Any = {"direction": "forward", "dtype": "", "backend": "cuda", "filled": True}
        yield Target(operator, 6, "eager", **gpu)
        yield Target(operator, 1.5, "compile", **gpu)


def _dual_warp() -> Iterable[Target]:
    for shape in ("C128 128x256", "C128 16x32 to 128x256", "C128 256x512", "C128 32x64 to 256x512"):
        yield Target("gated_dual_warp", 4.5, "eager", shape, "contiguous", "forward")
        yield Target("gated_dual_warp", 8, "compile", shape, "contiguous", "forward")
        yield Target("gated_dual_warp", 7, "eager", shape, "channels_last", "forward")
        yield Target("gated_dual_warp", 6, "eager", shape, direction="backward")
    yield Target("channel_pool", 4, "eager")
    for operator in ("gated_dual_warp", "channel_pool"):
        yield Target(operator, 1, "best")


def _attention() -> Iterable[Target]:
    memory = "C64/256 90x120, 4 frames"  # TMANet's on CamVid: pooling and attention
    for baseline in ("eager", "compile"):
        yield Target("asymmetric_attention", 3, baseline, memory, direction="forward")
    yield Target("asymmetric_attention", 1.8, "eager", memory, direction="backward")
    for operator in ("pyramid_pool", "asymmetric_attention", "criss_cross_attention"):
        yield Target(operator, 1, "best")
    yield Target("asymmetric_attention", 1.5, "best", dtype="bfloat16", backend="cuda")


def _dense_head() -> Iterable[Target]:
    labels, loss = "upsample_argmax", "upsample_cross_entropy"
    x8 = "C19 128x256 to 1024x2048"
    for kind in ("", ", smooth"):
        yield Target(labels, 80, "eager", f"{x8}{kind}", "contiguous")
        yield Target(labels, 20, "compile", f"{x8}{kind}", "contiguous")
        yield Target(labels, 10, "eager", f"{x8}, corners{kind}")
    for direction in ("forward", "backward"):  # and so together
        yield Target(loss, 15, "eager", x8, "contiguous", direction)
        yield Target(loss, 4, "eager", f"{x8}, corners", direction=direction)
    yield Target(labels, 10, "eager")
    yield Target(loss, 4, "eager")
    for operator in (labels, loss):
        yield Target(operator, 1, "best")
    gpu: Any = {"dtype": "", "backend": "cuda", "filled": True}
    yield Target(labels, 8, "eager", **gpu)
    yield Target(labels, 2, "compile", **gpu)
    yield Target(loss, 4, "eager", **gpu)


def _gpu() -> Iterable[Target]:
    """What bytes bound; and nothing published is slower than PyTorch."""
    bound = ("flow_warp", "warp_correct", "guided_filter", "label_edges", "gated_dual_warp")
    for operator in (*bound, "channel_pool", "pyramid_pool"):
        gpu: Any = {"dtype": "", "backend": "cuda"}
        for ratio, against in ((0.8, "floor"), (4, "eager"), (1.3, "best")):
            yield Target(operator, ratio, against, direction="forward", filled=True, **gpu)
        for ratio, against in ((0.5, "floor"), (2, "eager")):
            yield Target(operator, ratio, against, direction="backward", filled=True, **gpu)
        yield Target(operator, 1, "best", **gpu)


FAMILIES = (_warp, _guided_filter, _dual_warp, _attention, _dense_head, _gpu)
TARGETS: tuple[Target, ...] = tuple(target for family in FAMILIES for target in family())


def verdicts(
    records: Iterable[dict[str, Any]], targets: Iterable[Target] = TARGETS
) -> list[dict[str, Any]]:
    """For each target the lowest ratio measured, where, and `met` (None: nothing measured)."""
    records = list(records)
    return [_verdict(target, [r for r in records if _concerns(target, r)]) for target in targets]


def _concerns(target: Target, record: dict[str, Any]) -> bool:
    exact = all(
        record[name] == getattr(target, name) for name in ("operator", "backend", "threads")
    )
    chosen = ("shape", "layout", "direction", "dtype")
    filled = not target.filled or REPEATED in record["shape"]
    return exact and filled and all(getattr(target, x) in ("", record[x]) for x in chosen)


def _verdict(target: Target, records: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [(_ratio(target, record), record) for record in records]
    known = [
        (ratio, ", ".join(record[name] for name in ("shape", "layout", "direction", "dtype")))
        for ratio, record in ratios
        if ratio is not None
    ]
    lowest, where = min(known, default=(None, None))
    met = None if lowest is None else lowest >= target.ratio and len(known) == len(records)
    return {"target": str(target), "lowest": lowest, "where": where, "met": met}


def _ratio(target: Target, record: dict[str, Any]) -> float | None:
    if target.against == "floor":
        return 1 / record["times_floor"] if record["times_floor"] else None
    baselines = record["baselines"]
    names = baselines if target.against == "best" else [target.against]
    ratios = [baselines[name]["ratio"] for name in names if name in baselines]
    return min((ratio for ratio in ratios if ratio is not None), default=None)
