"""Frames per second of whole videos: how much of a network's speed is left at the end.

    python -m bench.video                             # three models; four minutes
    python -m bench.video twnet_resnet18 --frames 240 --size 512 1024

Each scope holds the one before it:

- model: preprocessed frames in memory, to logits;
- + argmax: to labels at the frames' size (`upsample_argmax`);
- + decode: a file, through `VideoSegmenter`: decoding, preprocessing (for TWNet the codec's motion
  and residual), copies to and from a GPU;
- + write: and its labels, in grey, into an H.264 file.

`/ slowest` is a pipeline's time over that of its slowest stage alone: 1 is perfect overlap, and
`in turn` what it would be with one stage after the other. Schedules are the models' own: GSVNet's
key frames are every fourth, TWNet's those of the codec, every twelfth. The clip is generated. On a
CPU: float32, one thread for the network; on a GPU: float16, channels_last, CUDA graphs. Weights
are random. Writes `bench/output/video-cpu.json` (or `-cuda`).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vsegops.models import VideoSegmenter, create_model, list_models
from vsegops.models.untrained import calibrate
from vsegops.models.video import open_frames, transcode
from vsegops.models.video.clips import generate
from vsegops.models.video.stages import Networks, Prepare, Prepared, Segment
from vsegops.models.video.writer import VideoWriter

from .environment import environment, start_with_allocator
from .models import OUTPUT, SIZES
from .report import number, table
from .timing import threads

MODELS = ("sfnet_lite_stdc1", "gsvnet_swiftnet_resnet18", "twnet_resnet18")
FRAMES, ROUNDS = 96, 3


def clip(folder: Path, frames: int, size: Sequence[int]) -> Path:
    """A generated scene, as TWNet's transcoding leaves it."""
    scene, path = folder / "scene.mp4", folder / "clip.mp4"
    generate(scene, frames=frames, height=size[0], width=size[1])
    transcode(scene, path)
    return path


def measure(name: str, device: str, path: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds a frame: of each scope, and of each stage of the last."""
    torch.manual_seed(0)
    model = calibrate(create_model(name))
    precision = "float16" if device == "cuda" else "float32"
    segmenter = VideoSegmenter(model, precision=precision, device=device)
    keys = [result.is_key for result in segmenter(path)]
    bare = copy.deepcopy(segmenter.model)
    bare.labels = lambda logits, size: logits  # type: ignore[method-assign]
    output = path.with_name("output.mp4")
    scopes: dict[str, Callable[[], Any]] = {
        "+ decode": lambda: [None for _ in segmenter(path)],
        "+ write": lambda: _written(segmenter, path, output),
    }
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        stages, prepared = _in_turn(segmenter, path, output)
        for scope, network in (("model", bare), ("+ argmax", segmenter.model)):
            stages[scope] = _network(Networks(network, False), prepared, keys)
        del prepared
        for scope, run in scopes.items():
            start = time.perf_counter()
            run()
            stages[scope] = time.perf_counter() - start
        for part, seconds in stages.items():
            samples.setdefault(part, []).append(1e3 * seconds / len(keys))
    milliseconds = {part: statistics.median(taken) for part, taken in samples.items()}
    return {"model": name, "frames": len(keys), "keys": sum(keys), "ms": milliseconds}


def _written(segmenter: VideoSegmenter, path: Path, output: Path) -> None:
    with VideoWriter(output, Fraction(30)) as writer:
        for result in segmenter(path):
            writer.write(_picture(result.labels))


def _picture(labels: torch.Tensor) -> torch.Tensor:
    return (labels * 12)[..., None].expand(-1, -1, 3)


def _in_turn(
    segmenter: VideoSegmenter, path: Path, output: Path
) -> tuple[dict[str, float], list[Prepared]]:
    """Seconds of each stage where nothing else runs, and the frames that the network takes."""
    stride, like = segmenter.motion_stride, next(segmenter.model.parameters())
    spent = dict.fromkeys(("decode", "prepare", "network", "write"), 0.0)
    prepare = Prepare(segmenter.model, segmenter.schedule, like.device, like.dtype, stride)
    segment = Segment(Networks(segmenter.model, False), segmenter.schedule, stride, path.name)
    kept = []

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if like.is_cuda:
            torch.cuda.synchronize()
        spent[stage] += time.perf_counter() - start

    with open_frames(path, motion_stride=stride) as frames:
        pictures = iter(frames)
        with VideoWriter(output, Fraction(30)) as writer:
            while True:
                with clock("decode"):
                    picture = next(pictures, None)
                if picture is None:
                    break
                with clock("prepare"):
                    prepared = prepare(picture)
                with clock("network"):
                    labels, *_ = segment(prepared).fetch()
                with clock("write"):
                    writer.write(_picture(labels))
                kept.append(prepared)
    segment.close()
    return spent, kept


@torch.no_grad()
def _network(networks: Networks, prepared: Sequence[Prepared], keys: Sequence[bool]) -> float:
    network = networks.take(prepared[0].frame)

    def run() -> None:
        for each, key in zip(prepared, keys, strict=True):
            if key:
                network.start(each.frame)
            else:
                network.step(each.frame, each.motion)
        if prepared[0].frame.is_cuda:
            torch.cuda.synchronize()

    if prepared[0].frame.is_cuda:
        run()  # captures
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# --- tables ------------------------------------------------------------------------------------

SCOPES = ("model", "+ argmax", "+ decode", "+ write")
STAGES = ("decode", "prepare", "network", "write")


def speed_table(results: dict[str, Any]) -> str:
    rows = [
        [record["model"], f"{record['keys']} of {record['frames']}"]
        + [number(1e3 / record["ms"][scope]) for scope in SCOPES]
        for record in results["models"]
    ]
    return table(["frames per second", "key frames", *SCOPES], rows)


def overlap_table(results: dict[str, Any]) -> str:
    rows = []
    for record in results["models"]:
        milliseconds = record["ms"]
        for scope, stages in (("+ decode", STAGES[:3]), ("+ write", STAGES)):
            slowest = max(stages, key=lambda stage: milliseconds[stage])
            alone = [milliseconds[stage] for stage in stages]
            rows.append(
                [
                    f"{record['model']}, {scope}",
                    *(number(milliseconds[stage]) if stage in stages else "" for stage in STAGES),
                    number(milliseconds[scope]),
                    slowest,
                    f"{milliseconds[scope] / max(alone):.2f}",
                    f"{sum(alone) / max(alone):.2f}",
                ]
            )
    header = ["ms a frame", *STAGES, "pipeline", "slowest", "/ slowest", "in turn"]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.video", None, __doc__, formatter_class=layout)
    parser.add_argument("models", nargs="*", help=f"names; default: {', '.join(MODELS)}")
    parser.add_argument("--size", nargs=2, type=int, help="height and width of the clip")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"default: {FRAMES}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.models) - set(list_models())
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = arguments.size or SIZES[device][0]
    with threads(1), tempfile.TemporaryDirectory() as folder:
        path = clip(Path(folder), arguments.frames, size)
        measured = [
            measure(name, device, path, arguments.rounds)
            for name in tqdm(arguments.models or MODELS, unit="model")
        ]
    results = {
        "device": device,
        "size": list(size),
        "environment": environment(),
        "models": measured,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"video-{device}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{size[0]}x{size[1]}, {device}")
    print(speed_table(results), overlap_table(results), f"written: {path}", sep="\n\n")
    return 0


if __name__ == "__main__":
    start_with_allocator("bench.video")
    sys.exit(main())
