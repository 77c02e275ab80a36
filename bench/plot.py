"""The roofline figure: the bandwidth that each case achieves, against that of a copy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import blended_transform_factory

_COLOURS = {
    "cpu": "#0b6e4f",
    "cuda": "#0b6e4f",
    "triton": "#7b3fa0",
    "reference": "#b7950b",
    "eager": "#d1495b",
    "compile": "#2d6cdf",
}
_MARKERS = {"eager": "D", "compile": "s"}
_INK, _MUTED, _GRID = "#1f2933", "#667085", "#e4e7ec"
_NAMES = {"eager": "eager PyTorch", "compile": "torch.compile"}
_LAYOUTS = {"contiguous": "NCHW", "channels_last": "NHWC"}


def plots(results: dict[str, Any], directory: Path) -> list[Path]:
    """One figure for each device and number of threads."""

    def where(record: dict[str, Any]) -> tuple[str, int]:
        return record["device"], record["threads"]

    paths = []
    roofs = {where(copy): copy["gbps"] for copy in results["copy_bandwidth"]}
    for key, records in itertools.groupby(sorted(results["records"], key=where), key=where):
        device, threads = key
        suffix = f"{threads}-thread{'s' * (threads > 1)}" if device == "cpu" else ""
        path = directory / f"roofline-{'-'.join(filter(None, (device, suffix)))}.png"
        _figure(list(records), roofs[key], results["environment"], path)
        paths.append(path)
    return paths


def _figure(
    records: list[dict[str, Any]], roof: float, environment: dict[str, Any], path: Path
) -> None:
    directions = [d for d in ("forward", "backward") if any(r["direction"] == d for r in records)]
    dtypes = {record["dtype"] for record in records}
    rows = _rows(records)
    height = 1.9 + 0.30 * len(rows)
    inside = (0.005, 0.35 / height, 0.99, 1 - 1.05 / height)  # the rest: title above, legend below
    figure = Figure(
        figsize=(3.2 + 4.9 * len(directions), height), layout=ConstrainedLayoutEngine(rect=inside)
    )
    axes = figure.subplots(1, len(directions), sharex=True, sharey=True, squeeze=False)
    for ax, direction in zip(axes[0], directions, strict=True):
        _panel(ax, direction, rows, [r for r in records if r["direction"] == direction], roof)
    fastest = max((gbps for r in records for _, gbps, _ in _points(r, rows)), default=0.0)
    axes[0, 0].set_xlim(0, 1.09 * max(roof, fastest))
    axes[0, 0].set_yticks(
        range(len(rows)), [_label(row, len(dtypes) > 1) for row in rows], fontsize=8.5
    )
    for tick, row in zip(axes[0, 0].get_yticklabels(), rows, strict=True):
        if row[1] is None:
            tick.set(fontweight="bold", color=_INK, fontsize=9.5)
    device, threads = records[0]["device"], records[0]["threads"]
    machine = environment["cpu"] if device == "cpu" else environment["gpu"]["name"]
    count = f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
    left = 0.012
    figure.text(
        left, 1 - 0.30 / height, "Achieved bandwidth", fontsize=14, weight="bold", color=_INK
    )
    figure.text(
        left,
        1 - 0.55 / height,
        f"bytes that must move / median time; {machine}{count}; {', '.join(sorted(dtypes))}; "
        f"torch {environment['torch']}, vsegops {environment['vsegops']}",
        fontsize=8.5,
        color=_MUTED,
    )
    handles: dict[str, Any] = {}
    for ax in axes[0]:
        shown, labels = ax.get_legend_handles_labels()
        handles.update(zip(labels, shown, strict=True))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower left",
        bbox_to_anchor=(left - 0.008, 0),
        ncols=6,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handletextpad=0.3,
    )
    figure.savefig(path, dpi=150, facecolor="white")


def _rows(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """(operator, None) heads its cases (operator, shape, dtype, layout)."""
    rows: list[tuple[Any, ...]] = []
    for operator in dict.fromkeys(r["operator"] for r in records):
        own = [r for r in records if r["operator"] == operator]
        rows.append((operator, None))
        rows += dict.fromkeys((operator, r["shape"], r["dtype"], r["layout"]) for r in own)
    return rows


def _label(row: tuple[Any, ...], with_dtype: bool) -> str:
    if row[1] is None:
        return str(row[0])
    _, shape, dtype, layout = row
    return f"{shape}  {dtype + '  ' if with_dtype else ''}{_LAYOUTS[layout]}"


def _panel(
    ax: Axes,
    direction: str,
    rows: list[tuple[Any, ...]],
    records: list[dict[str, Any]],
    roof: float,
) -> None:
    points = [(name, gbps, y) for r in records for name, gbps, y in _points(r, rows)]
    for y, row in enumerate(rows):
        if row[1] is not None:
            ax.axhline(y, color=_GRID, lw=0.8, zorder=0)
            here = [gbps for _, gbps, at in points if at == y]
            if here:
                ax.plot([min(here), max(here)], [y, y], color="#c3c9d4", lw=1.6, zorder=1)
    for name in dict.fromkeys(name for name, _, _ in points):
        own = [(gbps, y) for other, gbps, y in points if other == name]
        x, at = zip(*own, strict=True)
        ours = name not in _NAMES
        ax.scatter(
            x,
            at,
            s=58 if ours else 26,
            marker=_MARKERS.get(name, "o"),
            color=_COLOURS.get(name, _INK),
            edgecolor="white",
            linewidth=0.8,
            zorder=3 if ours else 2,
            label=_NAMES.get(name, f"vsegops ({name})"),
        )
    ax.axvline(roof, color=_INK, lw=1.2, ls=(0, (4, 2)), zorder=1)
    ax.text(
        roof,
        1.005,
        f"copy {roof:.0f} GB/s",
        transform=blended_transform_factory(ax.transData, ax.transAxes),
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=_INK,
    )
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_title(direction, loc="left", fontsize=11, weight="bold", color=_INK)
    ax.set_xlabel("GB/s", fontsize=9, color=_MUTED)
    ax.tick_params(axis="both", length=0, colors=_MUTED, labelsize=8.5)
    ax.grid(axis="x", color=_GRID, lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)


def _points(record: dict[str, Any], rows: list[tuple[Any, ...]]) -> list[tuple[str, float, int]]:
    """(candidate, GB/s, row) of what agrees: all move the bytes that must move in their time."""
    if record["gbps"] is None:
        return []
    y = rows.index(tuple(record[k] for k in ("operator", "shape", "dtype", "layout")))
    found = [(record["backend"], record["gbps"], y)]
    for name, baseline in record["baselines"].items():
        if baseline["ratio"] is not None:
            found.append((name, record["gbps"] / baseline["ratio"], y))
    return found
