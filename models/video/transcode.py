"""Any video to the kind that TWNet reads: MPEG-4 Part 2, one I-frame and then P-frames."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import av
import numpy as np
from av.codec.context import Flags2
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from .source import CodecError, Source, decode, open_video

Progress: TypeAlias = "Callable[[int, int | None], object] | None"


def transcode(
    source: Source,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    gop: int = 12,
    quantizer: int = 4,
    frames: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress = None,
) -> int:
    """Convert a video to MPEG-4 Part 2 without B-frames, as TWNet does (section 4.4.1).

    Sound is dropped; frames of another size are scaled to the first one's; what cannot be decoded
    is skipped with a warning. The same input gives the same file on any number of processors.

    Args:
        source: whatever PyAV can decode: a path, a URL or a file object.
        target: a path, whose ending names the container, or a file object, which gets an MP4.
            A file appears under its name only when it is complete.
        gop: frames from one key frame to the next; 12 is one I-frame and 11 P-frames.
        quantizer: fixed, from 1 (best) to 31.
        frames: stop after that many.
        options: more options for the encoder, e.g. `{"flags": "+mv4+qpel"}`.
        progress: called after each frame with the number done and the total (None if unknown).

    Returns:
        The number of frames written.

    Raises:
        CodecError: nothing in it can be decoded, or the target cannot be written.
        ValueError: a number is out of range.
        FileNotFoundError: there is no such file or folder.

    Example:
        >>> transcode("holiday.mkv", "holiday.mp4")  # doctest: +SKIP
        2500
    """
    for name, value, most in (("gop", gop, 600), ("quantizer", quantizer, 31)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: expected 1 to {most}, got {value}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    settings = {**encoder_options(gop, quantizer), **(options or {})}
    name, container, stream = open_video(source)
    final = Path(target) if isinstance(target, (str, os.PathLike)) else None
    try:
        with container:
            if final is None:
                file = cast(BinaryIO, target)
                return _encode(name, container, stream, file, settings, frames, progress)
            partial = final.with_name(f".partial-{os.getpid()}-{final.name}")
            try:
                count = _encode(name, container, stream, str(partial), settings, frames, progress)
                partial.replace(final)
            finally:
                partial.unlink(missing_ok=True)
            return count
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        raise CodecError(f"cannot write {final or 'the file object'}: {error.strerror}") from error


def encode(
    images: Iterable[Tensor],
    target: str | os.PathLike[str] | BinaryIO,
    *,
    rate: int = 25,
    gop: int = 12,
    quantizer: int = 4,
    options: Mapping[str, str] | None = None,
) -> None:
    """Write images as MPEG-4 Part 2 without B-frames.

    Args:
        images: uint8 `[H, W, 3]`, RGB, all of one size.
        target: a path, whose ending names the container, or a file object, which gets an MP4.
        rate: frames per second.
        gop, quantizer, options: as for `transcode`.
    """
    settings = {**encoder_options(gop, quantizer), **(options or {})}
    file = os.fspath(target) if isinstance(target, (str, os.PathLike)) else target
    with av.open(file, "w", format=None if isinstance(file, str) else "mp4") as output:
        stream = output.add_stream("mpeg4", rate=rate, options=settings)
        stream.pix_fmt = "yuv420p"
        for index, image in enumerate(images):
            if index == 0:
                stream.height, stream.width = image.shape[:2]
            picture = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


def encoder_options(gop: int = 12, quantizer: int = 4) -> dict[str, str]:
    """Of the encoder "mpeg4", by FFmpeg's names."""
    return {
        "g": str(gop),
        "bf": "0",
        "sc_threshold": "1000000000",  # key frames at the GOP's beat alone, not at cuts
        "qmin": str(quantizer),
        "qmax": str(quantizer),
        "b": "8000000",  # ample, or rate control saves bits on the motion
        "threads": "1",  # more of them cut the picture into slices: another file per machine
    }


def recode(images: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Images as `transcode` would make a video of them, decoded with motion as they come.

    Args:
        images: `[H, W, 3]`, RGB; one of another size begins a new video.

    Returns:
        As `decode`: pictures, of which nothing is lost.
    """
    encoder: VideoCodecContext | None = None
    decoder: VideoCodecContext | None = None
    for count, image in enumerate(images):
        height, width, _ = image.shape
        if encoder is None or decoder is None or (encoder.height, encoder.width) != (height, width):
            if decoder is not None:
                yield from ((picture, True) for picture in decoder.decode(None))
            encoder = av.CodecContext.create("mpeg4", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.options = Fraction(1, 25), encoder_options()
            decoder = av.CodecContext.create("mpeg4", "r")
            decoder.flags2 |= Flags2.export_mvs
            decoder.thread_type = "SLICE"
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.pts, picture.time_base = count, encoder.time_base
        for packet in encoder.encode(picture):
            yield from ((picture, True) for picture in decoder.decode(packet))
    if decoder is not None:
        yield from ((picture, True) for picture in decoder.decode(None))


def _encode(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    target: str | BinaryIO,
    settings: dict[str, str],
    frames: int | None,
    progress: Progress,
) -> int:
    # MPEG-4 Part 2 counts time in at most 65535 steps a second.
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    step = (1 / Fraction(rate)).limit_denominator(65535)
    totals = [total for total in (stream.frames, frames) if total]
    total = min(totals) if totals else None
    done, last, start = 0, -1, None
    try:
        output = av.open(target, "w", format=None if isinstance(target, str) else "mp4")
    except ValueError as error:  # PyAV's word for an ending that no container has
        raise CodecError(f"cannot write this kind of file, {target}: {error}") from error
    with output:
        encoder = output.add_stream("mpeg4", rate=1 / step, options=settings)
        for picture, _ in decode(name, container, stream):
            if done == 0:
                encoder.width, encoder.height = picture.width, picture.height
                encoder.pix_fmt = "yuv420p"
                start = picture.time
            picture = picture.reformat(encoder.width, encoder.height, "yuv420p")
            if picture.time is not None and start is not None:
                last = max(last + 1, round((picture.time - start) / step))
            else:
                last += 1
            picture.pts, picture.time_base = last, step
            picture.pict_type = PictureType.NONE  # or the source's key frames stay key frames
            output.mux(encoder.encode(picture))
            done += 1
            if progress is not None:
                progress(done, total)
            if done == frames:
                break
        if done == 0:
            raise CodecError(f"{name}: no frame in it can be decoded")
        output.mux(encoder.encode())
    return done
