"""Opening a video and decoding what can be decoded of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, TypeAlias, cast

import av
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

#: A path, a URL that FFmpeg can open, or a file object open for reading bytes.
Source: TypeAlias = "str | os.PathLike[str] | BinaryIO"


#: Seconds after which a URL that sends nothing more has ended.
TIMEOUT = 30.0


#: Of ITU-T H.273, for colours: the decoder's usual choice.
_UNSPECIFIED = 2


class CodecError(ValueError):
    """The video cannot be read, or cannot be read with motion; the message says why."""


def open_video(
    source: Source, options: Mapping[str, str] | None = None
) -> tuple[str, InputContainer, VideoStream]:
    """Open the first video stream of `source`.

    Args:
        source: see `Source`.
        options: for the demuxer, by FFmpeg's names.

    Returns:
        The source's name for messages, the container and the stream.

    Raises:
        CodecError: not a video, or one without a decoder.
        FileNotFoundError: there is no such file.

    Example:
        >>> name, container, stream = open_video("clip.mp4")  # doctest: +SKIP
    """
    where = os.fspath(source) if isinstance(source, (str, os.PathLike)) else source
    name = where if isinstance(where, str) else getattr(where, "name", None) or "the file object"
    try:
        opened = av.open(
            where,
            options=dict(options or {}),
            metadata_errors="replace",
            timeout=TIMEOUT if "://" in name else None,
        )
        container = cast(InputContainer, opened)
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        raise CodecError(f"cannot open {name}: {_reason(error)}") from error
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise CodecError(f"{name}: expected video that can be decoded, found {kinds}")
    return str(name), container, streams[0]


def decode(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    on_loss: Callable[[str], object] | None = None,
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Every picture that can be had, in order, and whether nothing was lost just before it.

    What cannot be read is skipped with a warning, of which `on_loss` is told as well. The flag
    tells of losses between packets and of packets that were skipped; a picture that the decoder has
    mended says so itself (`is_corrupt`).
    """
    packets = container.demux(stream)
    whole = True
    for position in range(2**63):
        try:
            packet = next(packets, None)
        except IndexError:  # PyAV met a stream that was not there when it began
            packets = container.demux(stream)
            continue
        except av.FFmpegError as error:
            _warn(f"{name} ends early, after {position} packets: {_reason(error)}", on_loss)
            packets = iter([_flush(stream)])
            continue
        if packet is None:
            return
        whole = whole and not packet.is_corrupt
        try:
            pictures = packet.decode()
        except EOFError:
            return
        except av.FFmpegError as error:
            _warn(f"{name}: packet {position} is skipped: {_reason(error)}", on_loss)
            whole = False
            continue
        for picture in pictures:
            yield picture, whole
            whole = True


def rgb_of(picture: av.VideoFrame) -> Tensor:
    """A picture as uint8 `[H, W, 3]`, RGB."""
    try:
        array = picture.to_ndarray(format="rgb24")
    except av.FFmpegError:  # a damaged header names colours that nobody has defined
        picture.colorspace = picture.color_trc = picture.color_primaries = _UNSPECIFIED
        array = picture.to_ndarray(format="rgb24")
    return torch.from_numpy(array)


def _flush(stream: VideoStream) -> av.Packet[VideoStream]:
    """The packet that ends a stream, for which the decoder gives what it still has."""
    packet = cast("av.Packet[VideoStream]", av.Packet())
    packet.stream = stream
    return packet


def _reason(error: av.FFmpegError) -> str:
    if isinstance(error, av.error.ExitError):
        return f"nothing came for {TIMEOUT:g} seconds"
    return str(error.strerror)


def _warn(message: str, on_loss: Callable[[str], object] | None) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    if on_loss is not None:
        on_loss(message)
