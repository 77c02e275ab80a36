"""Pictures to videos, labels and pictures to PNG files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ..palette import Palette
from .source import CodecError


class VideoWriter:
    """Writes uint8 pictures `[H, W, 3]` as a video; H.264 where PyAV has an encoder.

    The video has the size of the first picture, less a row or column that makes it odd; others are
    scaled to it. Leaving the context finishes the file, whatever the reason; one without a picture
    is removed.

    Args:
        path: of the file; its ending names the container.
        rate: frames per second, None: 25.

    Raises:
        CodecError: there is no container of that ending.
    """

    def __init__(self, path: str | os.PathLike[str], rate: Fraction | None) -> None:
        self._path = Path(path)
        name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = (
            {"crf": "20", "preset": "fast"} if name == "libx264" else {"qmin": "3", "qmax": "5"}
        )
        try:
            self._container = av.open(str(path), "w")
            stream = self._container.add_stream(name, rate=rate or 25, options=options)
        except ValueError as error:  # PyAV's word for an ending that no container has
            raise CodecError(f"cannot write this kind of file, {path}: {error}") from error
        self._stream = cast(VideoStream, stream)
        self._stream.pix_fmt = "yuv420p"
        self._reformat = VideoReformatter().reformat
        self._empty = True

    def write(self, picture: Tensor) -> None:
        rows, columns = (length // 2 * 2 for length in picture.shape[:2])
        even = picture[:rows, :columns].contiguous().numpy()
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        if self._empty:
            self._stream.width, self._stream.height = columns, rows
            self._empty = False
        if (self._stream.width, self._stream.height) != (columns, rows):
            frame = self._reformat(frame, self._stream.width, self._stream.height)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._empty:
            self._container.mux(self._stream.encode())
        self._container.close()
        if self._empty:
            self._path.unlink(missing_ok=True)


def save_labels(labels: Tensor, path: str | os.PathLike[str], palette: Palette) -> None:
    """Labels uint8 `[H, W]` as a PNG whose values are the labels, and which shows their colours."""
    from PIL import Image

    image = Image.fromarray(labels.numpy())
    image.putpalette([value for colour in palette.colours for value in colour])
    image.save(path, format="PNG", compress_level=1)


def save_png(picture: Tensor, path: str | os.PathLike[str]) -> None:
    """A picture uint8 `[H, W, 3]` as a PNG."""
    from PIL import Image

    Image.fromarray(picture.contiguous().numpy()).save(path, format="PNG")
