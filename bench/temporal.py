"""Pooled against full temporal attention, as frames and pixels grow; and a stream, frame by frame.

    python -m bench.temporal                # some minutes; one thread
    python -m bench.temporal --draw         # the figure alone, from the figures of the last run

Writes `bench/results/temporal-cpu.json` and `docs/temporal-attention.png`. The shapes are TMANet's
on CamVid (64 channels of key, 256 of value). Full attention in eager PyTorch stops where its map of
similarities exceeds `MOST`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsegops import asymmetric_attention
from vsegops._spec import Maker
from vsegops.nn import PooledMemory
from vsegops.ops.attention.spec import eager_asymmetric_attention

from . import memory
from .environment import environment, start_with_allocator
from .timing import Candidate, CpuClock, Effort, interleave, threads, timing

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "temporal-cpu.json"
FIGURE = ROOT / "docs" / "temporal-attention.png"

KEY, VALUE = 64, 256
LEVELS = ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8))
SIZES = ((15, 20), (23, 30), (30, 40), (45, 60), (60, 80), (90, 120))
FRAMES = (1, 2, 4, 8, 16)
USUAL = 4  # frames, while the size grows
USUAL_SIZE = (45, 60)  # while the frames grow
MOST = 500 * 2**20  # bytes of a map

EFFORT = Effort(seconds=2.0, least=3, most=15, warmup=1)


def calls(frames: int, size: tuple[int, int]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    maker = Maker()
    query = maker.features(1, KEY, *size)
    key, value = (maker.features(1, c, frames, *size) for c in (KEY, VALUE))
    fits = 4 * math.prod(size) ** 2 * frames <= MOST
    for name, function in (
        ("eager", eager_asymmetric_attention),
        ("vsegops", asymmetric_attention),
    ):
        if fits or name == "vsegops":
            yield f"full, {name}", partial(function, query, key, value)
        yield f"pooled, {name}", partial(function, query, key, value, sizes=LEVELS)


def measure(clock: CpuClock, frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds and bytes beside the inputs of each way, at one size."""
    ways = dict(calls(frames, size))
    samples = interleave([Candidate(name, [call]) for name, call in ways.items()], clock, EFFORT)
    output = 4 * VALUE * math.prod(size)
    results = {
        name: {
            **timing(samples[name]),
            "peak_bytes": round((memory.peak(call, "cpu") or 0) * output),
        }
        for name, call in ways.items()
    }
    print(frames, size, {name: round(x["median_ms"], 2) for name, x in results.items()}, flush=True)
    return {"frames": frames, "height": size[0], "width": size[1], "ways": results}


def stream(clock: CpuClock, frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """A frame of a video: the memory pooled anew, or the new frame alone."""
    maker = Maker()
    query, value = maker.features(1, KEY, *size), maker.features(1, VALUE, *size)
    keys, values = (maker.features(1, c, frames, *size) for c in (KEY, VALUE))
    kept = PooledMemory(frames, LEVELS)
    for _ in range(frames):
        kept.append(query, value)

    def reused() -> Tensor:
        kept.append(query, value)
        return kept(query)  # type: ignore[no-any-return]

    ways = {
        "eager, whole memory": partial(
            eager_asymmetric_attention, query, keys, values, sizes=LEVELS
        ),
        "whole memory": partial(asymmetric_attention, query, keys, values, sizes=LEVELS),
        "new frame": reused,
        "attention alone": partial(kept, query),
    }
    samples = interleave([Candidate(name, [call]) for name, call in ways.items()], clock, EFFORT)
    results = {name: timing(found) for name, found in samples.items()}
    print("stream", {name: round(x["median_ms"], 2) for name, x in results.items()}, flush=True)
    return {"frames": frames, "height": size[0], "width": size[1], "ways": results}


def run() -> dict[str, Any]:
    clock = CpuClock()
    with threads(1), torch.no_grad():
        return {
            "environment": environment(),
            "levels": LEVELS,
            "sizes": [measure(clock, USUAL, size) for size in SIZES],
            "frames": [measure(clock, frames, USUAL_SIZE) for frames in FRAMES],
            "stream": [stream(clock, frames, SIZES[-1]) for frames in (2, 4, 8)],
        }


# --- the figure ---------------------------------------------------------------------------------

_COLOURS = {"full": "#d1495b", "pooled": "#0b6e4f"}
_INK, _MUTED, _GRID = "#1f2933", "#667085", "#e4e7ec"


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    h, w = USUAL_SIZE
    columns = (
        ("sizes", lambda x: x["height"] * x["width"], f"pixels of a frame ({USUAL} frames)"),
        ("frames", lambda x: x["frames"], f"frames of memory ({h} x {w} pixels)"),
    )
    rows = (
        (lambda x: x["median_ms"], "milliseconds"),
        (lambda x: x["peak_bytes"] / 2**20, "MiB beside the inputs"),
    )
    for column, (measured, across, label) in enumerate(columns):
        for row, (up, unit) in enumerate(rows):
            ax = axes[row, column]
            for kind in _COLOURS:
                for name, style in (("eager", "--"), ("vsegops", "-")):
                    way = f"{kind}, {name}"
                    points = [
                        (across(x), up(x["ways"][way]))
                        for x in results[measured]
                        if way in x["ways"]
                    ]
                    ax.plot(*zip(*points, strict=True), style, marker="o", markersize=4,
                            color=_COLOURS[kind], label=way, linewidth=1.6)  # fmt: skip
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.grid(color=_GRID, linewidth=0.6)
            ax.spines[:].set_visible(False)
            ax.tick_params(colors=_MUTED, labelsize=8.5, length=0, which="both")
            if column == 0:
                ax.set_ylabel(unit, fontsize=9.5, color=_INK)
            if row == 1:
                ax.set_xlabel(label, fontsize=9.5, color=_INK)
                values = [across(x) for x in results[measured]]
                ax.set_xticks(values, [str(value) for value in values])
                ax.minorticks_off()
    axes[0, 0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    where = results["environment"]
    figure.suptitle(
        f"A frame reads its memory: every position, or {sum(map(math.prod, LEVELS))} anchors\n"
        f"{KEY} channels of key, {VALUE} of value; float32, one thread of {where['cpu']};"
        f" torch {where['torch']}",
        fontsize=10, color=_INK, x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=110, facecolor="white")


if __name__ == "__main__":
    if "--draw" not in sys.argv:
        start_with_allocator("bench.temporal")
        RESULTS.write_text(json.dumps(run(), indent=1) + "\n")
    draw(json.loads(RESULTS.read_text()), FIGURE)
