"""Tables and curves of what was trained, into the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .runs import RUNS
from .tables import CURVES, TABLES, Column, Curve, Table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "papers.md"

HEADER = """# The papers' comparisons, on generated streets

`python -m bench.papers` trains the rows of these tables, without anything trained elsewhere, on
streets of the generated world ([training](training.md)), and judges them on streets that they were
not trained on. The networks have a quarter of the papers' channels (TWNet's half), the frames
{size} pixels, and a run took 2 to 13 minutes of one core, 22 at most beside other work: our
numbers and the papers' cannot be compared, the order of the rows can. Rows of one table have the
same data, steps and batches. Given are the mean and the standard deviation over {seeds} seeds, in
per cent, and in brackets those of the gain over the first row, seed by seed: rows of a seed share
what they are built on. Times are milliseconds of one thread for a frame of 256x512, from the frame
to its labels ({cpu}).
"""

_COLOURS = ("#d1495b", "#b7950b", "#2d6cdf", "#0b6e4f")


def write(results: Mapping[str, Any]) -> list[Path]:
    """The page and its pictures, of those papers whose runs are all there."""
    runs = results["runs"]
    whole = [name for name in RUNS if _whole(name, results)]
    if not whole:
        return []
    height, width = next(iter(RUNS["sfnet"].values())).data.size
    parts = [
        HEADER.format(
            size=f"{height}x{width}",
            seeds=min(len(runs[run]) for name in whole for run in RUNS[name]),
            cpu=results["environment"]["cpu"],
        )
    ]
    paths = [PAGE]
    for curve in CURVES:
        if curve.paper in whole:
            paths.append(draw(curve, runs, results["speed"][curve.paper]))
    for table in TABLES:
        if table.paper in whole:
            parts.append(markdown(table, runs, results["speed"][table.paper]))
            if pictures := [c for c in CURVES if c.paper == table.paper and _last(table)]:
                parts += [f"![{curve.title}]({curve.file})\n" for curve in pictures]
    PAGE.write_text("\n".join(parts))
    return paths


def _whole(paper: str, results: Mapping[str, Any]) -> bool:
    """Every run has the same seeds, and its speed is measured."""
    seeds = {tuple(sorted(results["runs"].get(run, ()))) for run in RUNS[paper]}
    return len(seeds) == 1 and () not in seeds and paper in results["speed"]


def _last(table: Table) -> bool:
    """Of its paper."""
    return table is [other for other in TABLES if other.paper == table.paper][-1]


def markdown(table: Table, runs: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    titles = ["", *(column.title for column in table.columns), *table.paper_columns]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    base = runs[table.rows[0].run]
    for row in table.rows:
        ours = [cell(column, runs[row.run], speed[row.run], base) for column in table.columns]
        theirs = ["" if value is None else f"{value:g}" for value in row.paper]
        lines.append([row.title, *ours, *theirs])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"\n{table.note}\n" if table.note else ""
    return f"## {table.title}\n\n{table.source}.\n\n{body}\n{note}"


def cell(
    column: Column, seeds: Mapping[str, Any], speed: Mapping[str, Any], base: Mapping[str, Any]
) -> str:
    """A mean over seeds, and the gain over `base`, seed by seed, where there is one."""
    if column.of_speed:
        return f"{column.read(speed):.3g}"
    mean, deviation = spread([column.read(result) for result in seeds.values()])
    text = f"{mean:.1f} ± {deviation:.1f}"
    gains = [column.read(seeds[seed]) - column.read(base[seed]) for seed in seeds]
    if any(gains):
        mean, deviation = spread(gains)
        text += f" ({mean:+.1f} ± {deviation:.1f})"
    return text


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def draw(curve: Curve, runs: Mapping[str, Any], speed: Mapping[str, Any]) -> Path:
    figure = Figure(figsize=(5 * len(curve.panels), 3.6), layout="constrained")
    figure.suptitle(curve.title, fontsize=11)
    panels = figure.subplots(1, len(curve.panels), sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(panels, curve.panels.items(), strict=True):
        for colour, (label, run) in zip(_COLOURS, lines.items(), strict=False):
            values = [curve.values(result) for result in runs[run].values()]
            points = [spread(at) for at in zip(*values, strict=True)]
            x: Sequence[float] = range(curve.first, curve.first + len(points))
            if curve.places is not None:
                x = curve.places(speed[run])
            means, low, high = zip(*((m, m - d, m + d) for m, d in points), strict=True)
            axes.plot(x, means, "o-", color=colour, label=label, markersize=3)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(curve.x)
        axes.grid(color="#e4e7ec")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mIoU, %")
    panels[0].legend(frameon=False, fontsize=9)
    path = DOCS / curve.file
    figure.savefig(path, dpi=140)
    return path
