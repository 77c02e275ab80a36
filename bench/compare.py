"""Whether a result is slower than another one by more than its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .measure import describe
from .report import number, table

#: Two runs of the same code on a quiet machine differ by so much even where samples do not.
LEAST_NOISE = 0.05

_KEY = ("operator", "shape", "dtype", "layout", "direction", "device", "threads", "backend")


@dataclass(frozen=True)
class Change:
    """One case in both results.

    Attributes:
        ratio: the median after over the median before; above 1 is slower.
        noise: the factor up to which, and down to whose inverse, a ratio means nothing.
        control: the ratio of eager PyTorch in the same runs: where it moved as much, the machine
            changed and not the code.
    """

    case: str
    before_ms: float | None
    after_ms: float | None
    ratio: float | None
    noise: float
    control: float | None
    verdict: str  # "slower", "faster", "same", "broken" or "repaired"


@dataclass(frozen=True)
class Comparison:
    changes: Sequence[Change]
    only_before: Sequence[str]
    only_after: Sequence[str]

    @property
    def failed(self) -> bool:
        """A case is slower beyond the noise, or does not run and agree any more."""
        bad = any(change.verdict in ("slower", "broken") for change in self.changes)
        return bad or not self.changes

    def __str__(self) -> str:
        rows = [
            [
                c.case,
                number(c.before_ms),
                number(c.after_ms),
                number(c.ratio),
                number(c.noise),
                number(c.control),
                c.verdict.upper() if c.verdict in ("slower", "broken") else c.verdict,
            ]
            for c in sorted(self.changes, key=lambda c: -(c.ratio or 0.0))
        ]
        header = ["case", "before ms", "after ms", "after/before", "noise", "eager", ""]
        lines = [table(header, rows)] if rows else ["The two results have no case in common."]
        lines += [f"only in the first: {case}" for case in self.only_before]
        lines += [f"only in the second: {case}" for case in self.only_after]
        return "\n".join(lines)


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Case by case."""
    a, b = ({_key(r): r for r in results["records"]} for results in (before, after))
    return Comparison(
        [_change(a[key], b[key]) for key in a if key in b],
        [describe(a[key]) for key in a if key not in b],
        [describe(b[key]) for key in b if key not in a],
    )


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _KEY)


def _change(before: dict[str, Any], after: dict[str, Any]) -> Change:
    sound = [bool(r["agreement"] and r["agreement"]["passed"]) for r in (before, after)]
    old, new = ((record["timing"] or {}).get("median_ms") for record in (before, after))
    ratio, noise = None, 1.0
    if all(sound) and old and new:
        ratio = new / old
        noise = 1 + _noise(before["timing"], after["timing"])
        verdict = "slower" if ratio > noise else "faster" if ratio < 1 / noise else "same"
    else:
        verdict = "broken" if sound[0] else "repaired" if sound[1] else "same"
    return Change(describe(after), old, new, ratio, noise, _control(before, after), verdict)


def _noise(before: dict[str, Any], after: dict[str, Any]) -> float:
    """The two spreads (p80 - p20 over the median), as independent errors add."""
    spreads = [(t["p80_ms"] - t["p20_ms"]) / t["median_ms"] for t in (before, after)]
    return max(math.hypot(*spreads), LEAST_NOISE)


def _control(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    eager = [record["baselines"].get("eager") or {} for record in (before, after)]
    old, new = ((baseline.get("timing") or {}).get("median_ms") for baseline in eager)
    return new / old if old and new else None
