"""Compressed video with the motion that the codec already found; labels of any video."""

from .codec import CodecError, CodecReader, Frame, rasterize, transcode
from .frames import Frames, Picture, open_frames
from .schedules import (
    Adaptive,
    CodecKeys,
    Every,
    Facts,
    FirstOnly,
    PerFrame,
    Schedule,
    parse_schedule,
)
from .segmenter import Report, Segmented, Timing, VideoSegmenter

__all__ = [
    "Adaptive",
    "CodecError",
    "CodecKeys",
    "CodecReader",
    "Every",
    "Facts",
    "FirstOnly",
    "Frame",
    "Frames",
    "PerFrame",
    "Picture",
    "Report",
    "Schedule",
    "Segmented",
    "Timing",
    "VideoSegmenter",
    "open_frames",
    "parse_schedule",
    "rasterize",
    "transcode",
]
