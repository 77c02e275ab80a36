"""Compressed video: its frames together with the motion that the codec already found."""

from .codec import CodecError, CodecReader, Frame, rasterize, transcode

__all__ = ["CodecError", "CodecReader", "Frame", "rasterize", "transcode"]
