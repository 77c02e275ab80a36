"""The project's stated targets, as data. They inform: a run that misses one does not fail.

A family adds its own to `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """Ours is at least `ratio` times as fast as `against`, everywhere that the rest describes.

    Attributes:
        shape, layout, direction: "" is every one.
        against: a baseline, or "best": the faster of those that were measured.
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

    def __str__(self) -> str:
        where = [self.shape or "every shape", self.layout or "both layouts"]
        where += [self.direction or "both directions", self.dtype, self.backend]
        against = "the better baseline" if self.against == "best" else self.against
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
        yield Target(operator, 6, "eager", direction="forward", backend="cuda")
        yield Target(operator, 1.5, "compile", direction="forward", backend="cuda")


def _dual_warp() -> Iterable[Target]:
    for shape in ("C128 128x256", "C128 16x32 to 128x256", "C128 256x512", "C128 32x64 to 256x512"):
        yield Target("gated_dual_warp", 4.5, "eager", shape, "contiguous", "forward")
        yield Target("gated_dual_warp", 8, "compile", shape, "contiguous", "forward")
        yield Target("gated_dual_warp", 7, "eager", shape, "channels_last", "forward")
        yield Target("gated_dual_warp", 6, "eager", shape, direction="backward")
    yield Target("channel_pool", 4, "eager")
    for operator in ("gated_dual_warp", "channel_pool"):
        yield Target(operator, 1, "best")
    yield Target("gated_dual_warp", 4, "eager", direction="forward", backend="cuda")
    yield Target("gated_dual_warp", 1.3, "compile", direction="forward", backend="cuda")
    yield Target("gated_dual_warp", 2, "eager", direction="backward", backend="cuda")


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
    yield Target(labels, 8, "eager", backend="cuda")
    yield Target(labels, 2, "compile", backend="cuda")
    yield Target(loss, 4, "eager", backend="cuda")


TARGETS: tuple[Target, ...] = (*_warp(), *_guided_filter(), *_dual_warp(), *_dense_head())


def verdicts(
    records: Iterable[dict[str, Any]], targets: Iterable[Target] = TARGETS
) -> list[dict[str, Any]]:
    """For each target the lowest ratio measured, where, and `met` (None: nothing measured)."""
    records = list(records)
    return [_verdict(target, [r for r in records if _concerns(target, r)]) for target in targets]


def _concerns(target: Target, record: dict[str, Any]) -> bool:
    exact = all(
        record[name] == getattr(target, name)
        for name in ("operator", "dtype", "backend", "threads")
    )
    return exact and all(
        getattr(target, name) in ("", record[name]) for name in ("shape", "layout", "direction")
    )


def _verdict(target: Target, records: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [(_ratio(target, record), record) for record in records]
    known = [
        (ratio, ", ".join(record[name] for name in ("shape", "layout", "direction")))
        for ratio, record in ratios
        if ratio is not None
    ]
    lowest, where = min(known, default=(None, None))
    met = None if lowest is None else lowest >= target.ratio and len(known) == len(records)
    return {"target": str(target), "lowest": lowest, "where": where, "met": met}


def _ratio(target: Target, record: dict[str, Any]) -> float | None:
    baselines = record["baselines"]
    names = baselines if target.against == "best" else [target.against]
    ratios = [baselines[name]["ratio"] for name in names if name in baselines]
    return min((ratio for ratio in ratios if ratio is not None), default=None)
