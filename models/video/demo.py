"""Equations 1-3 of TWNet on a real video: `python -m vsegops.models.video.demo`.

A clip is converted to MPEG-4 with a key frame every 12 frames. Each other frame is then rebuilt
from its predecessor: `vsegops.flow_warp` along the codec's motion vectors predicts it, and
`vsegops.warp_correct` adds the residual in the same pass, which gives the frame exactly. A network
does the same with features instead of pixels, and learns the residual: TWNet, which segments the
clip at the end, and a generated street like those that it learned from.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import vsegops

from .clips import Clip, demo_clip
from .codec import CodecError, CodecReader, Frame, transcode
from .demo_output import frame_panels, save_picture
from .demo_segment import NETWORK, segment, segment_street
from .segmenter import Report
from .writer import VideoWriter

TIMED_FRAMES = 8
TIMED_ROUNDS = 5
AGREEMENT = 0.05  # of 255; grid_sample's float32 coordinates alone cost some 0.006


class Caller:
    """Calls operators by one backend (None: the automatic choice), on the device that it serves."""

    def __init__(self, backend: str | None = None) -> None:
        """RuntimeError, with the reason, if the backend is not available."""
        on_gpu = backend in ("cuda", "triton") and torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        self._backend = backend
        with self._context():
            pass

    def _context(self) -> AbstractContextManager[None]:
        return vsegops.use_backend(self._backend) if self._backend else nullcontext()

    def __call__(self, operator: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> Tensor:
        """The result, on the CPU."""
        return self.stopwatch(operator, *tensors, **options)[1]

    def stopwatch(
        self, operator: Callable[..., Tensor], *tensors: Tensor, **options: Any
    ) -> tuple[float, Tensor]:
        """Seconds, without the copies to and fro, and the result."""
        arguments = [tensor.to(self.device) for tensor in tensors]
        with self._context():
            self._wait()
            start = time.perf_counter()
            result = operator(*arguments, **options)
            self._wait()
            return time.perf_counter() - start, result.cpu()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass
class Quality:
    """Luma PSNR in dB per P-frame of each way to predict it, and how exact the last step is."""

    still: list[float] = field(default_factory=list)
    nearest: list[float] = field(default_factory=list)
    bilinear: list[float] = field(default_factory=list)
    corrected: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    largest_error: float = 0.0

    def add(self, call: Caller, frame: Frame, previous_luma: Tensor, corrected: Tensor) -> None:
        """Compare what predicts `frame`; `corrected` is RGB float32 `[3, H, W]`."""
        truth = frame.luma.float()
        source, flow = previous_luma.float()[None, None], frame.flow[None]
        self.still.append(psnr(source[0, 0], truth))
        for mode, figures in (("nearest", self.nearest), ("bilinear", self.bilinear)):
            warped = call(vsegops.flow_warp, source, flow, mode=mode, padding_mode="border")
            figures.append(psnr(warped[0, 0], truth))
        residual = truth - warped[0, 0]
        rebuilt = call(vsegops.warp_correct, source, flow, residual[None, None])
        self.corrected.append(psnr(rebuilt[0, 0], truth))
        self.coverage.append(frame.mask.float().mean().item())
        error = (corrected - frame.image.float()).abs().max().item()
        self.largest_error = max(self.largest_error, error)


def best_of(quality: Quality) -> int:
    """The position of the P-frame that motion helps most."""
    gains = [warped - still for warped, still in zip(quality.bilinear, quality.still, strict=True)]
    return gains.index(max(gains))


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..255; infinite if they are equal."""
    error = (image - truth).square().mean(dtype=torch.float64)
    return (10 * torch.log10(255**2 / error)).item()


def eager_warp_correct(previous: Tensor, flow: Tensor, correction: Tensor) -> Tensor:
    """What one writes without vsegops: normalised grid, `grid_sample`, sum."""
    height, width = previous.shape[2:]
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    warped = F.grid_sample(previous, grid, padding_mode="border", align_corners=True)
    return warped + correction


Arguments = tuple[Tensor, Tensor, Tensor]  # of warp_correct


@dataclass
class Timing:
    """Milliseconds per frame (None: not timed), the largest difference from the automatic choice,
    the speed relative to eager PyTorch on the same device, and in words why it was not timed."""

    name: str
    milliseconds: float | None = None
    difference: float = 0.0
    speed: float = 1.0
    reason: str = ""


def time_backends(samples: list[Arguments]) -> list[Timing]:
    """Time `warp_correct` by every backend that is available, and written in eager PyTorch.

    Candidates take turns frame by frame, so that a busy machine slows all of them.
    """
    eager = {"cpu": Caller()}
    if torch.cuda.is_available():
        eager["cuda"] = Caller("cuda" if vsegops.backends()["cuda"].available else "triton")
    candidates = {
        f"eager PyTorch ({device})": (caller, eager_warp_correct)
        for device, caller in eager.items()
    }
    idle = []
    for name, status in vsegops.backends().items():
        if not status.available:
            idle.append(Timing(name, reason=status.reason))
        elif name == "triton" and not torch.cuda.is_available():
            idle.append(Timing(name, reason="its interpreter is not worth timing"))
        else:
            candidates[name] = (Caller(name), vsegops.warp_correct)
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    timings = {name: Timing(name) for name in candidates}
    for turn in range(-1, TIMED_ROUNDS):  # the first is a warm-up
        for sample in samples:
            for name, (caller, operator) in candidates.items():
                seconds, result = caller.stopwatch(operator, *sample)
                if turn >= 0:
                    spent[name].append(seconds)
                    continue
                difference = (result - vsegops.warp_correct(*sample)).abs().max().item()
                timings[name].difference = max(timings[name].difference, difference)
    for name, timing in timings.items():
        timing.milliseconds = 1000 * statistics.median(spent[name])
        base = statistics.median(spent[f"eager PyTorch ({candidates[name][0].device})"])
        timing.speed = 1000 * base / timing.milliseconds
    return [*timings.values(), *idle]


def _bar(total: int | None, title: str) -> tqdm[None]:
    return tqdm(total=total, desc=title, unit=" frames", disable=None)


def run(clip: Clip, frames: int, output: Path, call: Caller) -> Quality:
    """The whole demo on one clip; prints its tables and writes into `output`.

    Raises:
        CodecError: the clip cannot be read, or holds no predicted frame.
    """
    output.mkdir(parents=True, exist_ok=True)
    print(f"Clip: {clip.title}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mpeg4.mp4"
        with _bar(None, "to MPEG-4") as bar:
            transcode(clip.path, path, frames=frames, progress=lambda done, total: bar.update())
        with CodecReader(path) as reader:
            quality, best, samples = _stream(reader, output, call)
        report = segment(path, output / "segmented.mp4")
    accuracy = segment_street(output / "street.mp4")
    _print_quality(quality)
    _print_times(time_backends(samples))
    at = best_of(quality)
    save_picture(
        best,
        output / "prediction.png",
        title=f"{clip.title}, frame {best.index}",
        still=quality.still[at],
        warped=quality.bilinear[at],
    )
    _print_report(report, accuracy)
    names = ("prediction.png", "prediction.mp4", "segmented.mp4", "street.mp4")
    print("\nWritten:", ", ".join(str(output / name) for name in names))
    return quality


def _stream(
    reader: CodecReader, output: Path, call: Caller
) -> tuple[Quality, Frame, list[Arguments]]:
    """Rebuild every P-frame; return the figures, the frame that motion helps most, and samples."""
    quality = Quality()
    samples: list[Arguments] = []
    best: Frame | None = None
    previous_luma = None
    with (
        VideoWriter(output / "prediction.mp4", reader.rate) as video,
        _bar(reader.length, "equations 1-3") as bar,
    ):
        for frame in reader:
            figure = None
            corrected = frame.image.float()
            if frame.previous is not None and previous_luma is not None and not frame.damaged:
                arguments = (frame.previous.float()[None], frame.flow[None], frame.residual[None])
                corrected = call(vsegops.warp_correct, *arguments)[0]
                quality.add(call, frame, previous_luma, corrected)
                figure = quality.bilinear[-1]
                if best_of(quality) == len(quality.still) - 1:
                    best = frame
                if len(samples) < TIMED_FRAMES:
                    samples.append(arguments)
            video.write(frame_panels(frame, corrected, figure))
            previous_luma = frame.luma
            bar.update()
    if best is None:
        raise CodecError("the clip holds no predicted frame; ask for at least 2 frames")
    return quality, best, samples


def _print_report(report: Report, accuracy: float) -> None:
    print(f"\nSegmented by {NETWORK}: {report.frames} frames, of them")
    print(f"  {report.key_frames} key frames, decoded, segmented and written", end=" ")
    print(f"at {report.frames / report.seconds:.1f} frames a second")
    print("  The network has learned from generated streets alone: on such a street its mean IoU")
    print(f"  is {accuracy:.1%}; on real footage it shows what carries over, which is not much.")


def _print_quality(quality: Quality) -> None:
    count = len(quality.still)
    print(f"\nLuma PSNR in dB, mean over {count} P-frames (Y as decoded; no vector: zero motion)")
    rows = [
        ("previous frame as it is", quality.still),
        ("warped, nearest", quality.nearest),
        ("warped, bilinear", quality.bilinear),
        ("warped and corrected", quality.corrected),
    ]
    for name, figures in rows:
        mean = statistics.fmean(figures)
        print(f"  {name:<28}{'exact' if mean == float('inf') else f'{mean:.2f}':>8}")
    print(f"  {'largest error in RGB, of 255':<28}{quality.largest_error:>8.1g}")
    print(f"  {'covered by vectors, %':<28}{100 * statistics.fmean(quality.coverage):>8.1f}")


def _print_times(timings: list[Timing]) -> None:
    print("\nTime of warp_correct, one RGB frame in float32, one thread, median")
    print(f"  {'':<28}{'ms':>8}{'speed':>9}   largest difference, of 255")
    for timing in timings:
        if timing.milliseconds is None:
            print(f"  {timing.name:<28}not available: {timing.reason}")
            continue
        # How fast it is says nothing where the result is another one.
        speed = f"{timing.speed:.2f}x" if timing.difference < AGREEMENT else "wrong"
        print(f"  {timing.name:<28}{timing.milliseconds:>8.2f}{speed:>9}   {timing.difference:.1g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vsegops.models.video.demo", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clip", type=Path, help="a video (default: a real one, fetched by pip)")
    parser.add_argument("--frames", type=int, default=120, help="use that many (default: 120)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write")
    parser.add_argument("--backend", choices=list(vsegops.backends()), help="default: automatic")
    options = parser.parse_args(arguments)
    if options.frames < 2:
        parser.error("--frames: expected at least 2, the first is a key frame")
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # on few cores, threads that wait for each other cost more than they do
    try:
        call = Caller(options.backend)
        clip = Clip(options.clip, options.clip.name) if options.clip else demo_clip()
        run(clip, options.frames, options.output, call)
    except (CodecError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
