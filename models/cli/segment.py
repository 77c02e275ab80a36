"""`vsegops segment`: videos in, pictures and labels out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import FAILED, INTERRUPTED, Formatter, UsageError, network

EXAMPLES = """examples:
  vsegops segment clip.mp4 -o segmented.mp4
  vsegops segment clip.mp4 -o segmented.mp4 --model sfnet_resnet18 --weights sfnet.pth
  vsegops segment clip.mp4 -o out --labels png                 out/clip/000000.png, ...
  vsegops segment clip.mp4 -o out --labels png --overlay       and out/clip.mp4
  vsegops segment clip.mp4 -o both.mp4 --side-by-side swiftnet_resnet18
  vsegops segment clip.mp4 -o out.mp4 --model twnet_resnet18 --option layer=2 --transcode
  vsegops segment day1.mp4 day2.mp4 -o out --workers 4         cut at key frames, resumable
  vsegops segment *.mp4 -o out --engine ray                    on a cluster

An output with an ending is one video; any other is a folder. docs/video.md says more.
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "segment",
        help="segment videos",
        description="Segment videos: files, folders of images, or streams by their URL.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("input", nargs="+", metavar="INPUT", help="file, folder of images, or URL")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.mp4|DIR")
    what = parser.add_argument_group("the network")
    what.add_argument("--model", default=network.DEFAULT, help=f"default: {network.DEFAULT}")
    network.add_options(what)
    what.add_argument(
        "--schedule",
        default="auto",
        help="every:N, codec, frame, adaptive, first; default: as in the model's paper",
    )
    what.add_argument(
        "--transcode",
        action="store_true",
        help="make the codec's motion on the way, for models that need it (TWNet)",
    )
    what.add_argument("--precision", default="float32", choices=("float32", "float16", "bfloat16"))
    what.add_argument("--device", help="default: cuda where there is one, else cpu")
    what.add_argument("--threads", type=_positive, metavar="N", help="of the processor")
    outputs = parser.add_argument_group("what is written")
    outputs.add_argument("--overlay", action="store_true", help="a video of pictures (the default)")
    outputs.add_argument("--labels", choices=("png",), help="a file of labels for each frame")
    outputs.add_argument("--strip", action="store_true", help="a picture of some frames in a row")
    outputs.add_argument("--opacity", type=_share, default=0.5, help="of the colours; default: 0.5")
    outputs.add_argument("--side-by-side", metavar="MODEL2", help="a second model, on the right")
    outputs.add_argument("--weights2", metavar="FILE", help="of the second model")
    outputs.add_argument("--option2", action="append", default=[], metavar="K=V")
    many = parser.add_argument_group("long videos and many")
    many.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="processes; default: one for each GPU, or none beside this one",
    )
    many.add_argument("--engine", choices=("local", "ray"), default="local", help="default: local")
    many.add_argument(
        "--items",
        type=Path,
        metavar="DIR",
        help="keep finished pieces there; default: OUT.items, until all is done",
    )
    many.add_argument("--item-frames", type=_positive, default=240, metavar="N", help="at least")
    many.add_argument("--retries", type=int, default=2, metavar="N", help="of a piece; default: 2")
    parser.set_defaults(do=segment)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, got {text}")
    return number


def segment(arguments: argparse.Namespace) -> int:
    try:
        import av  # noqa: F401
        import matplotlib  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'vsegops[models]'") from None
    from ..palette import palette
    from ..video.schedules import parse_schedule
    from .outputs import Outputs
    from .pieces import by_items
    from .progress import Interrupt

    targets = _targets(arguments)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.schedule != "auto":
        try:
            parse_schedule(arguments.schedule)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
    workers = arguments.workers or (torch.cuda.device_count() if device == "cuda" else 1)
    in_items = arguments.engine == "ray" or workers > 1 or arguments.items is not None
    if arguments.side_by_side and in_items:
        raise UsageError("--side-by-side: expected neither workers nor items with it")
    if in_items:
        arguments.threads = arguments.threads or max(1, _cores() // workers)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    names = [arguments.model]
    models = [
        network.build(arguments.model, arguments.classes, arguments.option, arguments.weights)
    ]
    if arguments.side_by_side:
        names.append(arguments.side_by_side)
        second = arguments.option2, arguments.weights2
        models.append(network.build(arguments.side_by_side, arguments.classes, *second))
    outputs = partial(
        Outputs,
        [palette(model.num_classes) for model in models],
        names if len(names) > 1 else [],
        opacity=arguments.opacity,
    )
    with Interrupt() as stop:
        if in_items:
            return by_items(arguments, models[0], device, workers, targets, outputs, stop)
        return _streamed(arguments, models, device, targets, outputs, stop)


def _targets(arguments: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """The files to write of each input, by the names of `Outputs`; none of them is an input."""
    targets = _named(arguments)
    inputs = {Path(source).resolve() for source in arguments.input}
    for files in targets.values():
        for path in files.values():
            if path.resolve() in inputs:
                raise UsageError(f"-o: expected another place, {path} is an input")
    return targets


def _named(arguments: argparse.Namespace) -> dict[str, dict[str, Path]]:
    output = Path(arguments.output)
    if output.suffix and not output.is_dir():
        if len(arguments.input) > 1 or arguments.labels:
            raise UsageError(f"-o: expected a folder for several files, got {output}")
        found: dict[str, Path] = {"video": output}
        if arguments.strip:
            found["strip"] = output.with_suffix(".png")
        return {arguments.input[0]: found}
    targets: dict[str, dict[str, Path]] = {}
    for source in arguments.input:
        name = "stream" if "://" in source else Path(source).resolve().stem
        files = {"video": output / f"{name}.mp4"} if arguments.overlay else {}
        files |= {"labels": output / name} if arguments.labels else {}
        files |= {"strip": output / f"{name}.png"} if arguments.strip else {}
        files = files or {"video": output / f"{name}.mp4"}
        if any(files == other for other in targets.values()):
            raise UsageError(f"INPUT: expected different names, got two of {name!r}")
        targets[source] = files
    return targets


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _streamed(
    arguments: argparse.Namespace,
    models: Sequence[Any],
    device: str,
    targets: dict[str, dict[str, Path]],
    outputs: Callable[..., Any],
    stop: Callable[[], bool],
) -> int:
    from ..video.segmenter import VideoSegmenter
    from .progress import say, write_video

    segmenters = [
        VideoSegmenter(
            x,
            arguments.schedule,
            precision=arguments.precision,
            device=device,
            transcode=arguments.transcode,
        )
        for x in models
    ]
    status = 0
    for source, files in targets.items():
        try:
            with ExitStack() as opened:
                frames = [segmenter.open(source) for segmenter in segmenters]
                results = [
                    opened.enter_context(closing(segmenter(each)))
                    for segmenter, each in zip(segmenters, frames, strict=True)
                ]
                into = opened.enter_context(outputs(frames[0].rate, **files))
                write_video(source, zip(*results, strict=False), frames[0].length, into, stop)
        except (OSError, RuntimeError, ValueError) as error:
            say(source, error)
            status = FAILED
        if stop():
            return INTERRUPTED
    return status
