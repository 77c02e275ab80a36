"""Long videos as independent pieces of work: cut at key frames, segmented anywhere, in any order.

A key frame depends on nothing before it. So what lies between two of them can be segmented by
itself, and its labels are those of the whole video, bit for bit, on the same kind of device with
the same number of threads. An item carries the compressed packets that it needs, copied into a
small file of its own: it can be sent to another machine, and it is named by what is in it, so that
work that was done once is found again.

A cut needs a picture at which decoding can begin too. With a key frame every l frames, an item
starts at the first such frame from there on; the less than l pictures before it are decoded and
dropped. What cannot be cut is one item: videos without a place to begin, or with damaged packets,
folders of images, motion that is made on the way (`transcode`), and schedules whose key frames
depend on what came before (`adaptive`, `first`), unless the model needs the codec's motion: then
the codec's key frames are ours, whatever the schedule.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from .frames import Frames, Picture
from .schedules import CodecKeys, Every, PerFrame
from .segmenter import Segmented, VideoSegmenter
from .source import CodecError, open_video

#: Encoded.
Packet: TypeAlias = "av.Packet[Any]"


class Unsound(CodecError):
    """An item did not hold what its video's packets promised; the video has to stay whole."""


@dataclass(frozen=True)
class Item:
    """Consecutive frames of one video.

    Attributes:
        name: for messages.
        source: a small video file, or the path of a video that is not cut.
        first: the number of its first frame in the video.
        skip: pictures to drop at its beginning.
        count: frames after those; None: all there are.
    """

    name: str
    source: bytes | str
    first: int = 0
    skip: int = 0
    count: int | None = None

    def key(self, job: bytes) -> str:
        """A name for the labels, by the item's content and by what is done to it (`job_key`)."""
        digest = hashlib.sha256(job)
        digest.update(repr((self.skip, self.count)).encode())
        for part in _content(self.source):
            digest.update(part)
        return digest.hexdigest()[:32]


def _content(source: bytes | str) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    path = Path(source)
    for each in sorted(path.iterdir()) if path.is_dir() else [path]:
        yield each.name.encode()
        with each.open("rb") as file:
            while part := file.read(1 << 20):
                yield part


def job_key(segmenter: VideoSegmenter, about: str = "") -> bytes:
    """Everything but the frames that labels depend on.

    Args:
        segmenter: its model's weights, schedule, precision and kind of device.
        about: the model's name and options, and the number of threads.
    """
    import vsegops

    model = segmenter.model
    like = next(model.parameters())
    facts = (
        vsegops.__version__,
        torch.__version__,
        about,
        model.preprocess,
        segmenter.schedule,
        makes_motion(segmenter),
        str(like.dtype),
        like.device.type,
    )
    digest = hashlib.sha256(repr(facts).encode())
    for name, x in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()


# --- cutting --------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Where an item lies: frames `first` to `last`, packets `begin` to `end`, without the ends."""

    first: int
    last: int
    begin: int
    end: int


def cut(
    path: str | os.PathLike[str], segmenter: VideoSegmenter, least: int = 240
) -> Iterator[Item]:
    """The items of a video, in order.

    Args:
        path: of a video file or a folder of images.
        segmenter: whose key frames the cuts have to meet.
        least: frames of an item; the last one may have fewer.

    Raises:
        CodecError: it is not a video.
    """
    if least < 1:
        raise ValueError(f"least: expected at least 1, got {least}")
    path = Path(path)
    cuts = [] if path.is_dir() else _places(path, segmenter, least)
    if len(cuts) < 2:
        yield whole(path)
    else:
        yield from _items(path, cuts)


def whole(path: str | os.PathLike[str]) -> Item:
    """A video as one item."""
    return Item(os.fspath(path), os.fspath(Path(path).resolve()))


def _places(path: Path, segmenter: VideoSegmenter, least: int) -> list[Cut]:
    schedule, interval = segmenter.schedule, None
    if makes_motion(segmenter):
        return []
    if isinstance(schedule, (Every, PerFrame)):
        interval = schedule.interval if isinstance(schedule, Every) else 1
    elif segmenter.motion_stride is None and not isinstance(schedule, CodecKeys):
        return []  # with motion the codec's key frames, which have none, are ours in any case
    _, container, stream = open_video(path)
    with container:
        try:
            packets = [(_time(x), x.is_keyframe, x.is_corrupt) for x in _packets(container, stream)]
        except (av.FFmpegError, IndexError):  # damaged, or streams that come later
            return []
    times = [time for time, _, _ in packets]
    if any(time is None for time in times) or any(corrupt for _, _, corrupt in packets):
        return []
    keys = [k for k in _entries(times) if packets[k][1]]  # type: ignore[arg-type]
    if not keys or keys[0] != 0:
        return []
    starts = [0]
    for key in keys:
        start = key if interval is None else -(-key // interval) * interval
        if start - starts[-1] >= least and start < len(packets):
            starts.append(start)
    ends = [*keys, len(packets)]
    return [
        Cut(first, last, max(k for k in keys if k <= first), min(k for k in ends if k >= last))
        for first, last in zip(starts, [*starts[1:], len(packets)], strict=True)
    ]


def _entries(times: list[int]) -> list[int]:
    """Packets before which everything is shown earlier, and after which everything later.

    So as many frames are shown before each as there are packets.
    """
    latest = [times[0] - 1, *accumulate(times, max)] if times else []
    earliest = [*accumulate(reversed(times), min)][::-1]
    return [
        k
        for k, time in enumerate(times)
        if latest[k] < time == earliest[k] and (k + 1 == len(times) or earliest[k + 1] > time)
    ]


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    return (packet for packet in container.demux(stream) if packet.size)


def _time(packet: Packet) -> int | None:
    """When it is shown; AVI tells when it is decoded, which without B-frames is the same."""
    if packet.pts is None and not packet.stream.codec_context.has_b_frames:
        return packet.dts
    return packet.pts


def _items(path: Path, cuts: list[Cut]) -> Iterator[Item]:
    """One pass over the file; in memory are the packets of one item."""
    _, container, stream = open_video(path)
    with container:
        packets, read = _packets(container, stream), 0
        held: deque[Packet] = deque()
        for piece in cuts:
            while read < piece.end:
                held.append(next(packets))
                read += 1
            while read - len(held) < piece.begin:
                held.popleft()
            clip = _copied(stream, islice(held, piece.end - piece.begin))
            count = piece.last - piece.first
            name = f"{path}, frames {piece.first} to {piece.last - 1}"
            yield Item(name, clip, piece.first, piece.first - piece.begin, count)


def _copied(stream: VideoStream, packets: Iterable[Packet]) -> bytes:
    """Packets as a file of their own, not encoded anew; the same packets give the same file."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"fflags": "+bitexact"}) as output:
        target = output.add_stream_from_template(stream)
        for packet in packets:
            copy = av.Packet(bytes(packet))
            copy.pts, copy.dts, copy.time_base = _time(packet), packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, target
            output.mux(copy)
    return file.getvalue()


# --- labels ---------------------------------------------------------------------------------------


def makes_motion(segmenter: VideoSegmenter) -> bool:
    """Whether it makes the codec's motion on the way."""
    return segmenter._transcode and segmenter.motion_stride is not None


class _Part(Frames):
    """Some of the frames of something, and whether any of them is known to be damaged."""

    def __init__(self, frames: Frames, skip: int, count: int | None) -> None:
        super().__init__(frames.name, frames.rate, count)
        self.motion_stride = frames.motion_stride
        self.all, self.damaged, self.delivered = frames, False, 0
        self._range = (skip, None if count is None else skip + count)

    def __iter__(self) -> Iterator[Picture]:
        for picture in islice(iter(self.all), *self._range):
            self.damaged = self.damaged or picture.damaged
            self.delivered += 1
            yield picture

    def close(self) -> None:
        self.all.close()


def segment_item(segmenter: VideoSegmenter, item: Item) -> bytes:
    """The item's labels, as the content of a file that `read_labels` reads.

    Raises:
        Unsound: the item is part of a video, and not as its packets promised.
    """
    source = io.BytesIO(item.source) if isinstance(item.source, bytes) else item.source
    frames = _Part(segmenter.open(source), item.skip, item.count)
    with closing(segmenter(frames)) as results:
        content = _file_of(results)
    sound = frames.delivered == item.count and not (frames.damaged or frames.all.skipped)
    if item.count is not None and not sound:
        raise Unsound(f"{item.name}: the video is damaged there")
    return content


def _file_of(results: Iterable[Segmented]) -> bytes:
    """A zip of NumPy arrays, one for each frame and one for all marks of key frames."""
    file, marks = io.BytesIO(), []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for count, result in enumerate(results):
            archive.writestr(f"{count}.npy", _npy(result.labels.numpy()))
            marks.append(result.is_key)
        archive.writestr("is_key.npy", _npy(np.array(marks, dtype=bool)))
    return file.getvalue()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def read_labels(path: str | os.PathLike[str]) -> Iterator[tuple[Tensor, bool]]:
    """Labels uint8 `[H, W]` and whether they are a key frame's, of one frame after the other."""
    with np.load(path, allow_pickle=False) as archive:
        for index, is_key in enumerate(archive["is_key"]):
            yield torch.from_numpy(archive[str(index)]), bool(is_key)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Of a file of labels."""
    with np.load(path, allow_pickle=False) as archive:
        return len(archive["is_key"])
