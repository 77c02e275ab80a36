"""Frames from wherever they come: a file, a URL, a folder of images, an iterable of tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from av.video.frame import PictureType
from torch import Tensor

from vsegops._checks import error

from .codec import CodecReader, Frame, motion_frames
from .source import CodecError, Source, decode, open_video, rgb_of
from .transcode import recode

#: Whatever `open_frames` takes.
FrameSource: TypeAlias = (
    "Source | Iterable[Tensor | np.ndarray[Any, Any] | Frame | Picture] | Frames"
)

IMAGE_SUFFIXES = frozenset(".bmp .jpeg .jpg .png .ppm .tif .tiff .webp".split())


class Picture(NamedTuple):
    """A frame as it comes.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        is_key: the codec coded it without reference to others; None if no codec is known.
        damaged: it is known that data was lost.
        coded: its motion, where that was asked for and is there: not on key or damaged frames.
    """

    image: Tensor
    is_key: bool | None = None
    damaged: bool = False
    coded: Frame | None = None


class Frames:
    """One pass over the frames of something, from the first to the last.

    Attributes:
        name: for messages.
        rate: frames per second, None if unknown.
        length: how many frames are announced, None if unknown. There may be fewer, or more.
        skipped: how often something could not be decoded so far, and was skipped.
        problem: what was wrong the last time, or "".
        motion_stride: of the motion that is read, or None.
    """

    def __init__(self, name: str, rate: Fraction | None = None, length: int | None = None) -> None:
        self.name, self.rate, self.length = name, rate, length
        self.motion_stride: int | None = None
        self.skipped, self.problem = 0, ""
        self._pictures: Iterator[Picture] = iter(())
        self._close: Callable[[], object] = lambda: None

    def lost(self, problem: str) -> None:
        self.skipped += 1
        self.problem = problem

    def __iter__(self) -> Iterator[Picture]:
        return self._pictures

    def close(self) -> None:
        """Close what is open; iterating ends."""
        if isinstance(self._pictures, Generator):
            self._pictures.close()
        self._close()

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_frames(
    source: FrameSource, *, motion_stride: int | None = None, transcode: bool = False
) -> Frames:
    """Open whatever has frames.

    Args:
        source: a video's path, URL or file object; a folder of images, in the order of the numbers
            in their names; an iterable of uint8 tensors or arrays `[H, W, 3]` or `[3, H, W]`, RGB,
            or of `Frame` (a `CodecReader`) or `Picture` (part of `Frames`); `Frames` are given back
            as they are.
        motion_stride: also read the codec's motion, at this stride (see `CodecReader`).
        transcode: the motion is that which an encoder finds on the way, the images are those that
            it keeps: as if `vsegops.models.video.transcode` had come before. For whatever has no
            motion that can be used.

    Raises:
        CodecError: it cannot be read, or not with motion; the message says what helps.
        FileNotFoundError: there is no such file.

    Example:
        >>> frames = open_frames([torch.zeros(4, 6, 3, dtype=torch.uint8)])
        >>> [picture.image.shape for picture in frames]
        [torch.Size([4, 6, 3])]
    """
    if isinstance(source, Frames):
        if motion_stride not in (None, source.motion_stride):
            raise error("source", f"frames opened with motion_stride={motion_stride}", source)
        return source
    if motion_stride is not None and transcode:
        return _recoded(open_frames(source), motion_stride)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        if motion_stride is not None:
            raise CodecError(
                f"{source}: expected a video with motion, images have none; pass transcode=True"
            )
        return _folder(Path(source))
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return _video(cast(Source, source), motion_stride)
    return _iterable(source)


def _video(source: Source, motion_stride: int | None) -> Frames:
    if motion_stride is not None:
        frames = Frames("")
        reader = CodecReader(source, stride=motion_stride, any_size=True, on_loss=frames.lost)
        frames.name, frames.rate, frames.length = reader.name, reader.rate, reader.length
        frames.motion_stride = motion_stride
        frames._pictures, frames._close = map(_coded, reader), reader.close
        return frames
    name, container, stream = open_video(source)
    frames = Frames(name, stream.average_rate, stream.frames or None)

    def pictures() -> Iterator[Picture]:
        for picture, _ in decode(name, container, stream, frames.lost):
            yield Picture(rgb_of(picture), picture.pict_type == PictureType.I)

    frames._pictures, frames._close = pictures(), container.close
    return frames


def _coded(frame: Frame) -> Picture:
    motion = None if frame.is_key or frame.damaged else frame
    return Picture(frame.image.permute(1, 2, 0), frame.is_key, frame.damaged, motion)


def _recoded(frames: Frames, motion_stride: int) -> Frames:
    images = (picture.image.contiguous().numpy() for picture in frames._pictures)
    frames._pictures = map(_coded, motion_frames(recode(images), motion_stride))
    frames.motion_stride = motion_stride
    return frames


def _folder(folder: Path) -> Frames:
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise CodecError(f"{folder}: expected images in it ({' '.join(sorted(IMAGE_SUFFIXES))})")
    paths.sort(key=by_number)
    frames = Frames(str(folder), None, len(paths))

    def pictures() -> Iterator[Picture]:
        for path in paths:
            try:
                name, container, stream = open_video(path)
            except CodecError as e:
                frames.lost(str(e))
                continue
            with container:
                for picture, _ in decode(name, container, stream, frames.lost):
                    yield Picture(rgb_of(picture))
                    break

    frames._pictures = pictures()
    return frames


def by_number(path: Path) -> list[int | str]:
    """A key that sorts files by the numbers in their names."""
    # Digits and what is between them, in turn, beginning with the latter.
    return [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", path.name)]


def _iterable(items: Iterable[Any]) -> Frames:
    if not isinstance(items, Iterable):
        raise error("source", "a path, a URL, a file object or an iterable of frames", items)
    length = len(items) if isinstance(items, Sized) else None
    frames = Frames("the iterable", getattr(items, "rate", None), length)

    def pictures() -> Iterator[Picture]:
        for item in items:
            if isinstance(item, Frame):
                yield _coded(item)
            else:
                yield item if isinstance(item, Picture) else Picture(_image(item))

    frames._pictures = pictures()
    return frames


def _image(item: Any) -> Tensor:
    image = torch.from_numpy(item) if isinstance(item, np.ndarray) else item
    fits = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3
    if not fits or 3 not in (image.shape[0], image.shape[2]) or 0 in image.shape:
        raise error("source", "frames that are uint8 [H, W, 3] or [3, H, W] tensors", item)
    image = image.detach().cpu()
    return image if image.shape[2] == 3 else image.permute(1, 2, 0)
