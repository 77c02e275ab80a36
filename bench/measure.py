"""Measures settings: one record (a dictionary, as in the JSON file) for each backend of each."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vsegops._spec import OperatorSpec

from . import agreement, memory
from .cases import BASELINES, Selection, Setting, candidate, first_line
from .environment import cores, environment
from .overhead import overheads
from .timing import (
    Candidate,
    Clock,
    Effort,
    clock_for,
    copy_bandwidth,
    interleave,
    threads,
    timing,
)

SCHEMA = 1


def run(
    specs: Sequence[OperatorSpec],
    selection: Selection,
    effort: Effort,
    clock: Clock | None = None,
    *,
    copy_bytes: int | None = None,
    progress: bool = True,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Measure everything that is selected; the result is what the JSON file holds.

    After so many seconds no further case is begun: `left_out` names those.
    """
    end = time.monotonic() + seconds
    settings = list(selection.settings(specs))
    clock = clock or clock_for(selection.device)
    bandwidth = {}
    for count in dict.fromkeys(setting.threads for setting in settings):
        with threads(count):
            bandwidth[count] = copy_bandwidth(selection.device, clock, copy_bytes)
    records: list[dict[str, Any]] = []
    left_out: list[str] = []
    with tqdm(total=len(settings), unit="case", disable=not progress, smoothing=0.1) as bar:
        for _, sharing in itertools.groupby(settings, key=_shares_truth):
            if time.monotonic() > end:
                left_out += [describe(setting.names()) for setting in sharing]
                continue
            for setting, exact in _with_truth(list(sharing)):
                bar.set_postfix_str(describe(setting.names()))
                gbps = bandwidth[setting.threads]["gbps"]
                with threads(setting.threads):
                    records += _measure(setting, exact, selection, effort, clock, gbps)
                bar.update()
    measured = {setting.spec.name for setting in settings}
    operators = [spec for spec in specs if spec.name in measured]
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "copy_bandwidth": [
            {"device": selection.device, "threads": count, **value}
            for count, value in bandwidth.items()
        ],
        "records": records,
        "left_out": left_out,
        "overhead": overheads(operators, selection, effort.batches),
    }


def describe(names: dict[str, Any]) -> str:
    """A case in words, for tables and messages."""
    threads = f"{names['threads']} thread{'s' if names['threads'] > 1 else ''}"
    where = threads if names["device"] == "cpu" else names["device"]
    words = [names[k] for k in ("operator", "shape", "dtype", "layout", "direction")]
    return ", ".join([*words, *([names["backend"]] if "backend" in names else []), where])


def _shares_truth(setting: Setting) -> tuple[str, ...]:
    return setting.spec.name, setting.names()["shape"], setting.dtype, setting.direction


def _with_truth(settings: list[Setting]) -> Iterator[tuple[Setting, Sequence[Tensor]]]:
    with threads(cores()):
        exact = agreement.truth(settings[0])
    for setting in settings:
        yield setting, exact


@dataclass
class _Prepared:
    """A candidate that runs, its result and memory; or why it does not run."""

    candidate: Candidate | None = None
    result: tuple[Tensor, ...] = ()
    memory: float | None = None
    failed: str | None = None


def _prepare(setting: Setting, name: str) -> _Prepared:
    try:
        ready = candidate(setting, name)
        with ready.context():
            result = agreement.tensors(ready.calls[0]())
            multiples = None
            if setting.direction == "forward":
                multiples = memory.peak(ready.calls[0], setting.device)
    except Exception as error:  # whatever a compiler or a backend raises is a finding, not an end
        return _Prepared(failed=first_line(error))
    return _Prepared(ready, result, multiples)


def _measure(
    setting: Setting,
    exact: Sequence[Tensor],
    selection: Selection,
    effort: Effort,
    clock: Clock,
    gbps: float,
) -> list[dict[str, Any]]:
    prepared = {name: _prepare(setting, name) for name in selection.candidates()}
    running = [p.candidate for p in prepared.values() if p.candidate is not None]
    cold = {k: timing(v) for k, v in interleave(running, clock, effort).items()}
    warm: dict[str, Any] = {}
    if setting.device == "cuda":
        samples = interleave(running, clock, effort, warm=True)
        warm = {k: timing(v) for k, v in samples.items()}

    def part(name: str, check: Callable[[Any], agreement.Agreement] | None) -> dict[str, Any]:
        agrees = check(prepared[name].result) if check and not prepared[name].failed else None
        return {
            "failed": prepared[name].failed,
            "agreement": agrees and agrees.json(),
            "timing": cold.get(name),
            "warm": warm.get(name),
            "memory": prepared[name].memory,
        }

    arguments = setting.arguments()
    work = {
        "bytes": setting.spec.bytes_moved(arguments, setting.direction),
        "operations": setting.spec.operations(arguments, setting.direction),
    }
    records = []
    for name, ours in prepared.items():
        if name in BASELINES:
            continue
        with_ours = partial(agreement.with_ours, setting, ours=ours.result)
        baselines = {
            other: part(other, None if ours.failed else with_ours) for other in selection.baselines
        }
        record = {
            **setting.names(),
            "backend": name,
            **work,
            **part(name, partial(agreement.with_truth, setting, exact=exact)),
            "baselines": baselines,
        }
        records.append({**record, **_derived(record, gbps)})
    return records


def _derived(record: dict[str, Any], gbps: float) -> dict[str, Any]:
    """Ratios and rates: only where ours agrees with the truth (and the baseline with ours)."""
    floor_ms = record["bytes"] / gbps / 1e6
    agrees = record["agreement"] is not None and record["agreement"]["passed"]
    ms = record["timing"]["median_ms"] if agrees else None
    for baseline in record["baselines"].values():
        comparable = ms and baseline["agreement"] and baseline["agreement"]["passed"]
        baseline["ratio"] = baseline["timing"]["median_ms"] / ms if comparable else None
    return {
        "floor_ms": floor_ms,
        "times_floor": ms / floor_ms if ms else None,
        "gbps": record["bytes"] / ms / 1e6 if ms else None,
        "gops": record["operations"] / ms / 1e6 if ms else None,
    }
