"""A video in, its labels out."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vsegops._checks import check_bool, check_option, error

from ..base import ImageModel, Model, VideoModel
from .frames import Frames, FrameSource, open_frames
from .pipeline import pipeline
from .schedules import PerFrame, Schedule, parse_schedule
from .stages import Networks, Prepare, Segment

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Timing(NamedTuple):
    """Seconds that a frame spent in each stage; the stages work at the same time.

    Attributes:
        decode: until there was an image (and its motion vectors).
        prepare: the model's input of it, with the residual, and its copy to the device.
        network: from there to labels; on a GPU, its own time.
        output: the labels' copy to the host.
    """

    decode: float
    prepare: float
    network: float
    output: float


class Segmented(NamedTuple):
    """A frame and what it shows.

    Attributes:
        index: counts the frames from 0.
        labels: uint8 `[H, W]`, on the host.
        is_key: it was segmented without the help of those before it.
        frame: uint8 `[H, W, 3]`, RGB.
        timing: of its stages.
    """

    index: int  # type: ignore[assignment]
    labels: Tensor
    is_key: bool
    frame: Tensor
    timing: Timing


@dataclass
class Report:
    """What became of a stream so far.

    Attributes:
        frames: how many were delivered.
        key_frames: how many of them were key frames.
        skipped: how often something could not be decoded, and was skipped.
        problem: what was wrong the last time, or "".
        seconds: since the stream was opened, until its last frame was delivered.
    """

    frames: int = 0
    key_frames: int = 0
    skipped: int = 0
    problem: str = ""
    seconds: float = 0.0


class VideoSegmenter:
    """Segments videos, one frame after the other, as they come.

    Decoding, preparing (on a GPU with the copy to it, on a stream of its own), the network and
    whatever the caller does with a result run at the same time, with a few frames between them: a
    stream takes the same memory however long it is. On a GPU, key frames and others are captured as
    CUDA graphs, once per size. The labels are those that the model gives called frame by frame.

    - The first frame is a key frame. So is, whatever the schedule says, one of another size than
      that before it, and for models that use the codec's motion one that has none: the codec's own
      key frames, and where data was lost.
    - What cannot be decoded is skipped, with a RuntimeWarning, and counted in `report`.
    - Whatever else goes wrong, in any thread, is raised after all results before it. Leaving the
      loop, also by an exception or Ctrl-C, ends all threads once the generator is closed, as it
      is when nothing refers to it; `contextlib.closing` does so at once.

    Args:
        model: any of this package; used as it is where precision and device are its own and it is
            in evaluation mode, otherwise copied.
        schedule: a `Schedule`, its name (see `parse_schedule`), or `"auto"`: as in the model's
            paper (`VideoModel.schedule`). Image models take every frame by itself.
        precision: `"float32"`, `"float16"` or `"bfloat16"`.
        device: None: the model's.
        queue: how many frames wait before each stage.
        transcode: for models that use the codec's motion: make it on the way, of any source (see
            `open_frames`).

    Attributes:
        model: the one in use.
        schedule: the one in use.
        report: a `Report` on the latest stream.

    Calling it:
        source: whatever `open_frames` takes: a video's path or URL, a folder of images, an iterable
            of images. It is closed in the end.

        Returns a generator of `Segmented`, one for each frame.

    Raises:
        CodecError: the source cannot be read, or lacks motion that the model needs.
        FileNotFoundError: there is no such source.

    Example:
        >>> import torch
        >>> from vsegops.models import VideoSegmenter, create_model
        >>> segmenter = VideoSegmenter(create_model("sfnet_df1"))
        >>> video = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
        >>> [(result.index, result.labels.shape) for result in segmenter(video)]
        [(0, torch.Size([64, 96])), (1, torch.Size([64, 96]))]
    """

    def __init__(
        self,
        model: Model,
        schedule: str | Schedule = "auto",
        *,
        precision: str = "float32",
        device: str | torch.device | None = None,
        queue: int = 2,
        transcode: bool = False,
    ) -> None:
        if not isinstance(model, (ImageModel, VideoModel)):
            raise error("model", "an ImageModel or a VideoModel", model)
        if model.num_classes > 256:
            raise error("model", "at most 256 classes, for labels of 8 bits", model.num_classes)
        check_option("precision", precision, tuple(PRECISIONS))
        if isinstance(queue, bool) or not isinstance(queue, int) or queue < 1:
            raise error("queue", "a whole number from 1 on", queue)
        check_bool("transcode", transcode)
        self._dtype, self._queue = PRECISIONS[precision], queue
        self._transcode = transcode
        like = next(model.parameters())
        self._device = torch.device(device) if device is not None else like.device
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        if model.training or (like.dtype, like.device) != (self._dtype, self._device):
            model = copy.deepcopy(model).eval().to(self._device, self._dtype)
            if self._device.type == "cuda":
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        if schedule == "auto":
            schedule = model.schedule if isinstance(model, VideoModel) else "frame"
        self.schedule = parse_schedule(schedule)
        if isinstance(model, VideoModel):
            _check_disagreement(self.schedule, model)
        else:
            self.schedule = PerFrame()
        self.report = Report()
        self._networks = Networks(model, self.schedule.disagreement is not None)

    @property
    def motion_stride(self) -> int | None:
        """For `open_frames`: the stride of the motion that is read; None where none is used."""
        if isinstance(self.schedule, PerFrame) or not isinstance(self.model, VideoModel):
            return None
        return self.model.motion_stride

    def open(self, source: FrameSource) -> Frames:
        """The source as it is going to be read: its name, rate and length; call with it then."""
        return open_frames(source, motion_stride=self.motion_stride, transcode=self._transcode)

    def __call__(self, source: FrameSource) -> Generator[Segmented, None, None]:
        frames = self.open(source)
        self.report = Report()
        return self._stream(frames, self.report)

    def _stream(self, frames: Frames, report: Report) -> Generator[Segmented, None, None]:
        start = time.perf_counter()
        stride = self.motion_stride
        prepare = Prepare(self.model, self.schedule, self._device, self._dtype, stride)
        segment = Segment(self._networks, self.schedule, stride, frames.name)
        results = pipeline(frames, [prepare, segment], queue=self._queue)
        with frames, closing(segment), closing(results):
            for index, (work, seconds) in enumerate(results):
                labels, network, output = work.fetch()
                decode, prepared, run = seconds
                timing = Timing(decode, prepared, run if network is None else network, output)
                report.frames += 1
                report.key_frames += work.is_key
                report.skipped, report.problem = frames.skipped, frames.problem
                report.seconds = time.perf_counter() - start
                yield Segmented(index, labels, work.is_key, work.image, timing)
                del work, labels
        report.skipped, report.problem = frames.skipped, frames.problem


def _check_disagreement(schedule: Schedule, model: VideoModel) -> None:
    """Complain before the first step does."""
    if schedule.disagreement is None:
        return
    if type(model).disagreement is VideoModel.disagreement:
        came = type(model).__name__
        raise error("disagreement", "None, for the model makes no intra prediction", came)
