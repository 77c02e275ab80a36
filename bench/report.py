"""Results as tables of text. Everything here reads what the JSON file holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as need be, the first left-aligned, the numbers right-aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()

    return "\n".join([line(lines[0]), "  ".join("-" * w for w in widths), *map(line, lines[1:])])


def number(value: float | None, digits: int = 3) -> str:
    """To `digits` figures, without an exponent."""
    if value is None:
        return "-"
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:#.{digits}g}" if value >= 0.001 else f"{value:.{digits}f}"


def report(results: dict[str, Any]) -> str:
    """Everything that a run found."""
    parts = [_environment(results)]
    bandwidth = {(c["device"], c["threads"]): c["gbps"] for c in results["copy_bandwidth"]}

    def heading(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[k] for k in ("operator", "dtype", "device", "threads"))

    for key, records in itertools.groupby(sorted(results["records"], key=heading), key=heading):
        operator, dtype, device, threads = key
        where = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
        copy = f"copy bandwidth {number(bandwidth[device, threads])} GB/s"
        parts.append(f"{operator}, {dtype}, {where}; {copy}\n" + _records(list(records)))
    if left_out := results.get("left_out"):
        names = "\n".join(f"    {name}" for name in left_out)
        parts.append(f"Left out, for want of time: {len(left_out)} cases\n{names}")
    parts.append("Overhead of a call at a tiny size, in microseconds\n" + _overhead(results))
    measured = [v for v in results.get("targets", []) if v["met"] is not None]
    if measured:
        parts.append("Targets\n" + _targets(measured))
    return "\n\n".join(parts)


def _environment(results: dict[str, Any]) -> str:
    e = results["environment"]
    gpu = f"; {e['gpu']['name']} (sm {e['gpu']['capability']})" if e["gpu"] else ""
    settled = all(v for k, v in e["variables"].items() if k.startswith("MALLOC"))
    return (
        f"vsegops {e['vsegops']} ({e['commit'] or 'no commit'}), torch {e['torch']},"
        f" {e['cpu']}, {e['cores']} cores, {e['cpu_capability']}{gpu}"
        + ("" if settled else "\nThe allocator returns memory between calls: figures are unsteady.")
    )


def _records(records: Sequence[dict[str, Any]]) -> str:
    baselines = list(dict.fromkeys(name for r in records for name in r["baselines"]))
    on_gpu = any(record["warm"] for record in records)
    header = ["case", "ms", "p20-p80", *(["warm ms"] if on_gpu else [])]
    header += [*(f"{name} ms (ratio)" for name in baselines)]
    header += ["x floor", "GB/s", "Gop/s", "memory (eager)"]
    rows, notes = [], []
    for record in records:
        case = ", ".join(record[k] for k in ("shape", "layout", "direction", "backend"))
        timing = record["timing"] or {}
        spread = "-".join(number(timing.get(k)) for k in ("p20_ms", "p80_ms")) if timing else "-"
        row = [case, number(timing.get("median_ms")), spread]
        row += [number((record["warm"] or {}).get("median_ms"))] if on_gpu else []
        row += [_baseline(record["baselines"].get(name)) for name in baselines]
        row += [number(record[key]) for key in ("times_floor", "gbps", "gops")]
        rows.append([*row, _memory(record)])
        notes += _notes(case, record)
    return "\n".join([table(header, rows), *dict.fromkeys(notes)])


def _baseline(baseline: dict[str, Any] | None) -> str:
    if baseline is None:
        return "-"
    if baseline["failed"]:
        return "failed"
    ms = number(baseline["timing"]["median_ms"])
    if baseline["ratio"] is not None:
        return f"{ms} ({number(baseline['ratio'])}x)"
    agrees = baseline["agreement"] is None or baseline["agreement"]["passed"]
    return f"{ms} (-)" if agrees else f"{ms} (disagrees)"


def _memory(record: dict[str, Any]) -> str:
    eager = record["baselines"].get("eager", {}).get("memory")
    return number(record["memory"]) + (f" ({number(eager)})" if eager else "")


def _notes(case: str, record: dict[str, Any]) -> list[str]:
    """What a cell is too narrow for."""
    notes = []
    if record["failed"]:
        notes.append(f"! {case}: {record['failed']}")
    elif not record["agreement"]["passed"]:
        found = record["agreement"]
        error = "without bound" if found["error"] is None else f"{found['error']:.1e}"
        notes.append(
            f"! {case} disagrees with the truth: error {error}, allowed {found['tolerance']:.1e}"
        )
    for name, baseline in record["baselines"].items():
        if baseline["failed"]:
            notes.append(f"! {name} of {case}: {baseline['failed']}")
    return notes


def _overhead(results: dict[str, Any]) -> str:
    names = list(dict.fromkeys(o["candidate"] for o in results["overhead"]))
    found = {(o["operator"], o["grad"], o["candidate"]): o for o in results["overhead"]}
    rows = []
    for operator, grad in dict.fromkeys((o["operator"], o["grad"]) for o in results["overhead"]):
        cells = [found.get((operator, grad, name)) for name in names]
        values = ["-" if o is None else number(o["median_us"]) for o in cells]
        rows.append([f"{operator}, {'with' if grad else 'without'} grad", *values])
    return table(["operator", *names], rows)


def _targets(verdicts: Sequence[dict[str, Any]]) -> str:
    return table(
        ["target", "lowest ratio", "", "where"],
        [
            [v["target"], number(v["lowest"]), "met" if v["met"] else "MISSED", v["where"]]
            for v in verdicts
        ],
    )
