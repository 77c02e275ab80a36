"""Frames of a compressed video together with the motion that its encoder has already found.

TWNet (section 3) reads a video as its codec does: a frame is its predecessor, warped by the motion
vectors, plus a residual (equation 3). `CodecReader` hands out all four. Its flow points *backward*,
as everywhere in vsegops: pixel p of this frame was predicted from p + flow(p) of the one before.
(The paper's `Mv` is the negative.)

What can be trusted, and what cannot:

- Codecs whose decoder exports vectors are served: MPEG-1, -2 and -4, H.263 and its relatives,
  H.264. Others (VP9, HEVC, AV1, MJPEG, ...) are refused when the reader is opened.
- A vector tells that its reference is in the past, not which frame it is. So it must be the frame
  before: B-frames are refused where the first one stands, an H.264 stream that announces more than
  one reference frame is refused when the reader is opened, interlaced video where it is met. One
  case cannot be seen: H.264 with one reference and frames that nothing refers to (temporal layers).
- MPEG-1 and -2: the decoder exports nothing for the last frame, which so looks all intra.
- Damage: MPEG-4 marks pictures that it had to conceal, and so does the reader, which gives no
  motion from there to the next intact key frame. H.264 conceals without a word unless a packet is
  beyond decoding, or the container marks it; then the same holds.

`transcode` turns any video that PyAV decodes into one that the reader serves.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.codec.context import Flags2
from av.video.frame import PictureType
from torch import Tensor

import vsegops

from . import h264
from .source import CodecError, Source, decode, open_video, rgb_of
from .transcode import transcode

__all__ = ["CodecError", "CodecReader", "Frame", "rasterize", "transcode"]

#: Decoders that export motion vectors. None but these do.
MOTION_CODECS = frozenset(
    name
    for family in (
        "mpeg1video mpeg2video mpeg4",
        "h261 h263 h263p h264",
        "flv rv10 rv20 wmv1 wmv2",
        "msmpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3",
    )
    for name in family.split()
)


def rasterize(
    vectors: np.ndarray[Any, Any] | None, height: int, width: int, *, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Motion vectors as a dense backward flow field, at full resolution or directly at a stride.

    Cells of `stride` x `stride` pixels lie from the top left corner; those that the right and the
    bottom border cut count only their part inside the frame.

    Args:
        vectors: what PyAV hands out, `frame.side_data.get("MOTION_VECTORS").to_ndarray()`: a
            structured array `[K]`, of which `source`, `w`, `h`, `dst_x`, `dst_y` (the block's
            centre), `motion_x`, `motion_y` and `motion_scale` are used. None or empty: no motion.
        height, width: of the frame, in pixels.
        stride: pixels per cell, from 1.

    Returns:
        flow: float32 `[2, ceil(height / stride), ceil(width / stride)]`, channel 0 x (to the
            right), channel 1 y (down), in units of a cell (of a pixel at stride 1). The mean over
            the part of a cell that blocks cover, weighted by area, divided by `stride`; 0 where
            nothing is covered. Blocks are clipped to the frame; where blocks overlap, each counts.
        mask: bool `[ceil(height / stride), ceil(width / stride)]`: at least half of the cell's
            area inside the frame is covered. What is not covered was coded without motion (intra).

    Raises:
        TypeError: `vectors` is not a NumPy array, or a size is not an integer.
        ValueError: a field is missing or no integer; a block size or `motion_scale` is not
            positive; a vector refers to the future (a B-frame's); a size is out of range.

    Example:
        >>> import numpy as np
        >>> names = ["source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"]
        >>> block = np.array([(-1, 16, 16, 8, 8, 6, -2, 2)], dtype=[(name, "i4") for name in names])
        >>> flow, mask = rasterize(block, 16, 32, stride=16)
        >>> flow.tolist(), mask.tolist()
        ([[[0.1875, 0.0]], [[-0.0625, 0.0]]], [[True, False]])
    """
    try:
        from vsegops import _codec  # type: ignore[attr-defined]
    except ImportError as error:
        raise ImportError(
            f"vsegops was installed without its compiled codec module ({error}); "
            "install it with a C++ compiler present and VSEGOPS_NATIVE unset"
        ) from error
    if vectors is not None and not isinstance(vectors, np.ndarray):
        raise TypeError(f"vectors: expected a NumPy array or None, got {type(vectors).__name__}")
    for name, value in (("height", height), ("width", width), ("stride", stride)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if not 1 <= value < 2**31:
            raise ValueError(f"{name}: expected 1 to 2**31 - 1, got {value}")
    if vectors is not None and vectors.size == 0:
        vectors = None
    flow, mask = _codec.rasterize(vectors, height, width, stride)
    return torch.from_numpy(flow), torch.from_numpy(mask)


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded frame, and how it came from the one before.

    `prediction + residual` is the image, on every frame. Both are computed when first asked for.

    Attributes:
        index: counts the frames that the reader has delivered, from 0.
        pts, time: its presentation time, in the stream's units and in seconds; None if unknown.
        image: uint8 `[3, H, W]`, RGB (interleaved in memory, i.e. channels_last).
        luma: uint8 `[H, W]`, as it came from the decoder, before any conversion to RGB.
        is_key: coded without reference to any other frame.
        damaged: its picture, or one it builds on, lost data; it carries no motion. So do frames
            before the first key frame, when a stream is joined midway.
        flow, mask: float32 `[2, h, w]` and bool `[h, w]` at the reader's stride, as `rasterize`
            gives them. All zero and all False on key frames and damaged frames.
        previous: uint8 `[3, H, W]`, the image that the flow points into; None on key frames.
    """

    index: int
    pts: int | None
    time: float | None
    image: Tensor
    luma: Tensor
    is_key: bool
    damaged: bool
    flow: Tensor
    mask: Tensor
    previous: Tensor | None
    _vectors: np.ndarray[Any, Any] | None = field(repr=False)

    @cached_property
    def full_flow(self) -> Tensor:
        """float32 `[2, H, W]`: the flow at stride 1, whatever the reader's stride."""
        height, width = self.image.shape[1:]
        if self.flow.shape[1:] == (height, width):
            return self.flow
        return rasterize(self._vectors, height, width)[0]

    @cached_property
    def prediction(self) -> Tensor:
        """float32 `[3, H, W]` in 0..255: the previous image, warped (zero on key frames).

        Blocks without a vector are predicted from the same place.
        """
        if self.previous is None:
            return torch.zeros_like(self.image, dtype=torch.float32)
        previous, flow = self.previous.float()[None], self.full_flow[None]
        return vsegops.flow_warp(previous, flow, padding_mode="border")[0]

    @cached_property
    def residual(self) -> Tensor:
        """float32 `[3, H, W]` in -255..255: the image minus its prediction (equation 3)."""
        return self.image.float() - self.prediction


def motion_frames(
    pictures: Iterable[tuple[av.VideoFrame, bool]], stride: int
) -> Generator[Frame, None, None]:
    """Frames with their motion, of what a decoder gives that exports its vectors.

    Args:
        pictures: each with whether nothing was lost just before it.
        stride: of the motion.
    """
    previous: Tensor | None = None
    intact = False  # since a key frame
    for index, (picture, whole) in enumerate(pictures):
        if previous is not None and previous.shape[1:] != (picture.height, picture.width):
            previous, intact = None, False
        data = picture.side_data.get("MOTION_VECTORS")
        vectors = data.to_ndarray() if data is not None else None
        is_key = picture.pict_type == PictureType.I
        # Vectors in a key frame are the decoder's own: it concealed something with them.
        whole = whole and not picture.is_corrupt and not (is_key and vectors is not None)
        intact = whole and (intact or is_key)
        if is_key or not intact:
            vectors = None
        flow, mask = rasterize(vectors, picture.height, picture.width, stride=stride)
        image = rgb_of(picture).permute(2, 0, 1)
        yield Frame(
            index=index,
            pts=picture.pts,
            time=picture.time,
            image=image,
            luma=_luma(picture),
            is_key=is_key,
            damaged=not intact,
            flow=flow,
            mask=mask,
            previous=None if is_key else previous,
            _vectors=vectors,
        )
        previous = image


class CodecReader:
    """The frames of a video with their motion, one pass from the first to the last.

    A damaged packet is skipped with a warning. Whatever ends the video early is raised after every
    frame before it has been delivered; a file that is cut short simply ends there.

    Args:
        source: a path, a URL that FFmpeg can open (`rtsp://...`), or a file object open for
            reading bytes.
        stride: of `flow` and `mask` (see `rasterize`).
        options: for the demuxer, by FFmpeg's names, e.g. `{"rtsp_transport": "tcp"}`.
        any_size: let the frames' size change in mid-stream. What is not a key frame then counts as
            damaged until one comes.
        on_loss: called with a message for whatever is skipped.

    Attributes:
        name: the source's, for messages.
        codec: FFmpeg's name of the codec.
        height, width: of the frames, in pixels; with `any_size`, of the last one.
        rate: frames per second, None if the container does not tell.
        length: the number of frames that the container announces, None if it does not.

    Raises:
        CodecError: at once: no video in it, a codec without motion vectors, several reference
            frames. While iterating: a B-frame, interlaced video, a change of the frame's size
            without `any_size`.
        FileNotFoundError: there is no such file.

    Example:
        >>> with CodecReader("clip.mp4", stride=8) as reader:  # doctest: +SKIP
        ...     for frame in reader:
        ...         features = encode(frame.image) if frame.is_key else warp(features, frame.flow)
    """

    def __init__(
        self,
        source: Source,
        *,
        stride: int = 1,
        options: Mapping[str, str] | None = None,
        any_size: bool = False,
        on_loss: Callable[[str], object] | None = None,
    ) -> None:
        rasterize(None, 1, 1, stride=stride)  # complain about the stride now, not at frame 0
        self._any_size, self._on_loss = any_size, on_loss
        self.name, self._container, self._stream = open_video(source, options)
        try:
            self._check()
        except CodecError:
            self.close()
            raise
        context = self._stream.codec_context
        context.flags2 |= Flags2.export_mvs
        context.thread_type = "SLICE"  # a packet in, its frame out: errors stay where they belong
        self.codec: str = context.name
        self.height: int = context.height
        self.width: int = context.width
        self.rate: Fraction | None = self._stream.average_rate
        self.length: int | None = self._stream.frames or None
        self._frames = motion_frames(self._pictures(), stride)

    def _check(self) -> None:
        context = self._stream.codec_context
        remedy = "convert it with vsegops.models.video.transcode first"
        if context.name not in MOTION_CODECS:
            raise CodecError(
                f"{self.name}: the decoder of {context.name!r} exports no motion vectors; {remedy}"
            )
        if context.name == "h264":
            count = h264.reference_frames(context.extradata)
            if count is None:
                raise CodecError(
                    f"{self.name}: cannot tell how many reference frames this H.264 stream has, "
                    f"for lack of a sequence parameter set; {remedy}"
                )
            if count > 1:
                raise CodecError(
                    f"{self.name}: its frames may refer to any of {count} earlier frames, and the "
                    f"vectors do not tell to which; expected 1 reference frame; {remedy}"
                )

    def _pictures(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        pictures = decode(self.name, self._container, self._stream, self._on_loss)
        for index, (picture, whole) in enumerate(pictures):
            self._check_picture(index, picture)
            self.height, self.width = picture.height, picture.width
            yield picture, whole

    def _check_picture(self, index: int, picture: av.VideoFrame) -> None:
        where = f"{self.name}, frame {index}"
        remedy = "convert the video with vsegops.models.video.transcode first"
        same = (picture.height, picture.width) == (self.height, self.width)
        if not same and not self._any_size:
            raise CodecError(
                f"{where}: the size changes from {self.width}x{self.height} to "
                f"{picture.width}x{picture.height}; expected one size throughout; {remedy}"
            )
        if picture.pict_type not in (PictureType.I, PictureType.P):
            kind = PictureType(picture.pict_type).name
            raise CodecError(
                f"{where}: a {kind}-frame; expected I- and P-frames only, which refer to the frame "
                f"before; {remedy}"
            )
        if picture.interlaced_frame and picture.pict_type != PictureType.I:
            raise CodecError(
                f"{where}: interlaced; expected progressive video, as vectors of fields do not "
                f"relate frames; {remedy}"
            )

    def __iter__(self) -> CodecReader:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Close the file; iterating ends."""
        if hasattr(self, "_frames"):
            self._frames.close()
        self._container.close()

    def __enter__(self) -> CodecReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _luma(picture: av.VideoFrame) -> Tensor:
    if not picture.format.name.startswith("yuv") or picture.format.components[0].bits != 8:
        picture = picture.reformat(format="yuv420p")
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return torch.from_numpy(rows[: picture.height, : picture.width].copy())
