"""What a run tells while it runs and at its end, and how it is interrupted."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from . import one_line


class Interrupt:
    """Remembers Ctrl-C, so that what is being written can be finished; the second interrupts."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def write_video(
    source: str,
    results: Iterator[Any],
    total: int | None,
    into: Any,
    stop: Callable[[], bool],
    doing: str = "decoded, segmented and written",
) -> None:
    """All results of one video, with a progress bar, and two lines at the end.

    Args:
        source: the video, for messages.
        results: of each frame, a `Segmented` of each model.
        total: how many frames are announced, or None.
        into: the `Outputs`.
        stop: asked after each frame whether to end.
        doing: what the frames a second count.
    """
    start, count, keys = time.perf_counter(), 0, 0
    with tqdm(total=total, desc=Path(source).name, unit=" frames", disable=None) as bar:
        for each in results:
            into.add(each)
            count, keys = count + 1, keys + each[0].is_key
            bar.set_postfix_str(f"{keys / count:.0%} key frames", refresh=False)
            bar.update()
            if stop():
                break
    if not count:
        raise ValueError("no frame in it can be decoded")
    end = "interrupted after " if stop() else ""
    paths, rate = ", ".join(map(str, into.paths)), count / (time.perf_counter() - start)
    print(f"{source}: {end}{count} frames, {keys / count:.0%} key, {doing}")
    print(f"  at {rate:.1f} frames a second: {paths}")


def say(source: object, error: Exception | str) -> None:
    """What went wrong with an input."""
    text = one_line(error)
    prefix = "" if str(source) in text else f"{source}: "
    print(f"vsegops: {prefix}{text}", file=sys.stderr)
