"""`vsegops segment` in items: by several processes, or on a Ray cluster; resumable."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..video import engines
from ..video.frames import open_frames
from ..video.items import count_frames, read_labels
from ..video.segmenter import Segmented, Timing, VideoSegmenter
from . import FAILED, INTERRUPTED, UsageError
from .progress import say, write_video


def by_items(
    arguments: argparse.Namespace,
    model: Any,
    device: str,
    workers: int,
    targets: dict[str, dict[str, Path]],
    outputs: Callable[..., Any],
    stop: Callable[[], bool],
) -> int:
    """As `segment` does it, with its arguments; returns the exit status."""
    for source in targets:
        if not Path(source).exists():
            raise UsageError(f"INPUT: expected files and folders with workers, got {source}")
    elsewhere = workers > 1 or arguments.engine == "ray"
    asked = arguments.schedule, arguments.precision, arguments.threads, arguments.transcode
    job = engines.Job(model, *asked)
    segmenter = job.segmenter("cpu" if elsewhere else device)
    engine: engines.Engine
    if arguments.engine == "ray":
        engine = engines.Ray(job, device.partition(":")[0])
    elif workers > 1:
        engine = engines.Processes(job, _devices(device, workers))
    else:
        engine = engines.Inline(segmenter)
    output = Path(arguments.output)
    folder = arguments.items or output.with_name(f"{output.name}.items")
    folder.mkdir(parents=True, exist_ok=True)
    with closing(engine):
        outcome = _segment(arguments, device, segmenter, engine, folder, list(targets), stop)
    status = 0
    for source, files in targets.items():
        failed = outcome.failed.get(Path(source), [])
        for line in failed:
            say(source, line)
        try:
            if not failed and not outcome.stopped:
                _encode(source, outcome.files[Path(source)], segmenter, outputs, files, stop)
        except (OSError, RuntimeError, ValueError) as error:
            say(source, error)
            failed = [str(error)]
        status = FAILED if failed else status
    if stop():
        print(f"vsegops: the same command goes on from {folder}", file=sys.stderr)
        return INTERRUPTED
    if not status and arguments.items is None:
        _remove(folder, {file for files in outcome.files.values() for file in files})
    elif status:
        print(f"vsegops: finished pieces are kept in {folder}", file=sys.stderr)
    return status


def _remove(folder: Path, files: Iterable[Path]) -> None:
    """Our files, and the folder if nothing else is in it."""
    for file in files:
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _devices(device: str, workers: int) -> list[str]:
    """Of each worker: "cuda" stands for all GPUs in turn."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{worker % torch.cuda.device_count()}" for worker in range(workers)]


def _segment(
    arguments: argparse.Namespace,
    device: str,
    segmenter: VideoSegmenter,
    engine: engines.Engine,
    folder: Path,
    sources: Sequence[str],
    stop: Callable[[], bool],
) -> engines.Outcome:
    """Labels of all videos into `folder`, with a progress bar, and a line at the end."""
    start, frames, pieces = time.perf_counter(), 0, 0
    about = (
        arguments.model,
        sorted(arguments.option),
        arguments.classes,
        arguments.threads,
        device.partition(":")[0],
    )
    total = sum(map(_length, sources)) or None
    with tqdm(total=total, desc="segmenting", unit=" frames", disable=None) as bar:

        def done(file: Path) -> None:
            nonlocal frames, pieces
            count = count_frames(file)
            frames, pieces = frames + count, pieces + 1
            bar.set_postfix_str(f"{pieces} pieces", refresh=False)
            bar.update(count)

        outcome = engines.Run(
            segmenter,
            engine,
            folder,
            about=repr(about),
            least=arguments.item_frames,
            retries=arguments.retries,
            done=done,
            stop=stop,
        )(map(Path, sources))
    seconds = time.perf_counter() - start
    before = f", {outcome.resumed} of them there before" if outcome.resumed else ""
    print(f"{frames} frames segmented in {pieces} pieces{before}: {seconds:.1f} s")
    return outcome


def _length(source: str) -> int:
    """Frames that are announced; 0 if that is not known."""
    try:
        with open_frames(source) as frames:
            return frames.length or 0
    except (OSError, ValueError):
        return 0


def _encode(
    source: str,
    files: Sequence[Path],
    segmenter: VideoSegmenter,
    outputs: Callable[..., Any],
    targets: dict[str, Path],
    stop: Callable[[], bool],
) -> None:
    """One video's outputs of its frames and its labels' files."""
    with segmenter.open(source) as frames:
        labels = chain.from_iterable(map(read_labels, files))

        def results() -> Iterator[tuple[Segmented]]:
            for index, picture in enumerate(frames):
                known = next(labels, None)
                if known is None:
                    raise ValueError(f"labels of frame {index} and later are missing")
                yield (Segmented(index, *known, picture.image, Timing(0.0, 0.0, 0.0, 0.0)),)

        with outputs(frames.rate, **targets) as into:
            write_video(source, results(), frames.length, into, stop, "decoded and written")
