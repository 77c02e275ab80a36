"""What `VideoSegmenter` does with a frame: prepare it, segment it, fetch the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Model, Motion
from .frames import Picture
from .network import Captured, Eager, Network
from .schedules import Facts, Schedule
from .source import CodecError

#: Sizes of frames whose CUDA graphs are kept.
SIZES = 2
#: Residuals without motion compensation are taken from about so many rows.
ROWS = 128


class Prepared(NamedTuple):
    """A frame as the network takes it.

    Attributes:
        picture: as it came.
        frame: `[1, 3, H, W]`, on the device.
        motion: for a step, on the device; None where there is none.
        residual: see `Facts`.
        ready: on a GPU, when all that is there.
    """

    picture: Picture
    frame: Tensor
    motion: Motion | None
    residual: float
    ready: torch.cuda.Event | None


class Work(NamedTuple):
    """Labels that are being made.

    Attributes:
        image: uint8 `[H, W, 3]`.
        is_key: a key frame's.
        labels: uint8 `[H, W]`, on the host.
        begin, end: on a GPU, events around the network, and after the labels' copy.
    """

    image: Tensor
    is_key: bool
    labels: Tensor
    events: tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event] | None

    def fetch(self) -> tuple[Tensor, float | None, float]:
        """The labels; seconds of the network, where a GPU measured them; of the copy."""
        if self.events is None:
            return self.labels, None, 0.0
        begin, end, copied = self.events
        copied.synchronize()
        # Pinned memory is scarce, and the caller may keep the labels.
        return self.labels.clone(), begin.elapsed_time(end) / 1e3, end.elapsed_time(copied) / 1e3


class Prepare:
    """Makes the model's input of a frame, and copies it to the device."""

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        device: torch.device,
        dtype: torch.dtype,
        motion_stride: int | None,
    ) -> None:
        self._preprocess, self._device, self._dtype = model.preprocess, device, dtype
        self._uses_motion = motion_stride is not None
        self._uses_residual = schedule.uses_residual
        self._before: Tensor | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, picture: Picture) -> Prepared:
        motion = None
        if self._uses_motion and picture.coded is not None:
            motion = Motion.of(picture.coded)
            motion = motion._replace(residual=motion.residual.to(self._dtype))
        residual = self._residual(picture) if self._uses_residual else 0.0
        picture = picture._replace(coded=None)
        if self._stream is None:
            frame = self._preprocess(picture.image[None]).to(self._dtype)
            return Prepared(picture, frame, motion, residual, None)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            frame = self._preprocess(self._copied(picture.image[None])).to(self._dtype)
            if motion is not None:
                motion = Motion(*map(self._copied, motion))
            ready = torch.cuda.Event()
            ready.record()
        return Prepared(picture, frame, motion, residual, ready)

    def _copied(self, x: Tensor) -> Tensor:
        """From pinned memory, which is not given to others before the copy is done."""
        return x.contiguous().pin_memory().to(self._device, non_blocking=True)

    def _residual(self, picture: Picture) -> float:
        if self._uses_motion:  # without it the frame is a key frame anyway
            coded = picture.coded
            return 0.0 if coded is None else coded.residual.abs().mean().item()
        step = max(1, min(picture.image.shape[:2]) // ROWS)
        now = picture.image[::step, ::step].float()
        before, self._before = self._before, now
        if before is None or before.shape != now.shape:
            return 0.0
        return (now - before).abs().mean().item()


class Networks:
    """The networks of one model; on a GPU they are kept from one video to the next.

    Args:
        measured: whether steps measure the disagreement.
    """

    def __init__(self, model: Model, measured: bool) -> None:
        self._model, self._measured = model, measured
        self._kept: dict[torch.Size, Network] = {}

    def take(self, frame: Tensor) -> Network:
        """One for frames of this size; nobody else has it before it is given back."""
        if not frame.is_cuda:
            return Eager(self._model, self._measured)
        return self._kept.pop(frame.shape, None) or Captured(self._model, self._measured, frame)

    def give_back(self, size: torch.Size, network: Network) -> None:
        if isinstance(network, Captured):
            self._kept[size] = network
            while len(self._kept) > SIZES:
                self._kept.pop(next(iter(self._kept)))


class Segment:
    """Decides what becomes a key frame, and runs the network."""

    def __init__(
        self, networks: Networks, schedule: Schedule, motion_stride: int | None, name: str
    ) -> None:
        self._networks, self._schedule, self._name = networks, schedule, name
        self._uses_motion = motion_stride is not None
        self._network: Network | None = None
        self._size, self._fresh = torch.Size(), True  # whether the network has no state
        self._index, self._since, self._drift = -1, 0, 0.0
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def __call__(self, prepared: Prepared) -> Work:
        if prepared.ready is None:
            labels, is_key = self._labels(prepared)
            return Work(prepared.picture.image, is_key, labels[0], None)
        with torch.cuda.device(prepared.frame.device):
            self._stream = self._stream or torch.cuda.Stream()
            with torch.cuda.stream(self._stream):
                return self._on_gpu(prepared, prepared.ready, self._stream)

    def _on_gpu(
        self, prepared: Prepared, ready: torch.cuda.Event, stream: torch.cuda.Stream
    ) -> Work:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        copied = torch.cuda.Event(enable_timing=True)
        stream.wait_event(ready)
        for x in (prepared.frame, *(prepared.motion or ())):
            x.record_stream(stream)
        begin.record()
        labels, is_key = self._labels(prepared)
        end.record()
        host = torch.empty(labels.shape[1:], dtype=labels.dtype, pin_memory=True)
        host.copy_(labels[0], non_blocking=True)
        copied.record()
        return Work(prepared.picture.image, is_key, host, (begin, end, copied))

    def _labels(self, prepared: Prepared) -> tuple[Tensor, bool]:
        """Labels `[1, H, W]`, and whether they are a key frame's."""
        frame, size = prepared.frame, prepared.frame.shape
        if self._network is None or size != self._size:
            self.close()
            self._network, self._size, self._fresh = self._networks.take(frame), size, True
        self._index += 1
        self._since += 1
        self._drift += prepared.residual
        if not self._is_key(prepared):
            labels, disagreement = self._network.step(frame, prepared.motion)
            most = self._schedule.disagreement
            if most is None or disagreement is None or disagreement.item() <= most:
                return labels, False
        self._since, self._drift, self._fresh = 0, 0.0, False
        return self._network.start(frame), True

    def _is_key(self, prepared: Prepared) -> bool:
        picture = prepared.picture
        if self._schedule.uses_codec and picture.is_key is None:
            raise CodecError(
                f"{self._name}: expected a compressed video, whose codec has key frames; choose "
                "another schedule, 'every:N' for example"
            )
        if self._uses_motion and prepared.motion is None:
            if not picture.is_key and not picture.damaged:
                raise CodecError(
                    f"{self._name}: expected a video with the codec's motion, which the model "
                    "needs; pass transcode=True, or choose the schedule 'frame'"
                )
            return True
        if self._fresh:
            return True
        facts = Facts(self._index, self._since, picture.is_key, prepared.residual, self._drift)
        return self._schedule.is_key(facts)

    def close(self) -> None:
        """Give the network back, once it has run."""
        if self._stream is not None:
            self._stream.synchronize()
        if self._network is not None:
            self._networks.give_back(self._size, self._network)
        self._network = None
