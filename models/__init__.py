"""Reference networks and the video runtime, built from the operators of `vsegops`."""

from typing import TYPE_CHECKING, Any

from . import bisenet as bisenet  # registers its networks, as the others do
from . import dilated as dilated
from . import gsvnet as gsvnet
from . import sfnet as sfnet
from . import swiftnet as swiftnet
from . import tmanet as tmanet
from . import twnet as twnet
from .base import ImageModel, Model, Motion, Preprocess, VideoModel
from .export import export_onnx
from .registry import create_model, list_models, register
from .summary import Summary, summary
from .weights import load_upstream

if TYPE_CHECKING:
    from .video import VideoSegmenter as VideoSegmenter

__all__ = [
    "ImageModel",
    "Model",
    "Motion",
    "Preprocess",
    "Summary",
    "VideoModel",
    "create_model",
    "export_onnx",
    "list_models",
    "load_upstream",
    "register",
    "summary",
]


def __getattr__(name: str) -> Any:
    """`VideoSegmenter`, which needs PyAV, is imported when it is asked for."""
    if name == "VideoSegmenter":
        from .video import VideoSegmenter

        return VideoSegmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
