"""vsegops: fused operators for fast semantic segmentation of video and images."""

from ._backends import BackendStatus, backends, use_backend
from ._version import __version__
from .ops.warp import flow_warp, warp_correct

__all__ = [
    "BackendStatus",
    "__version__",
    "backends",
    "flow_warp",
    "use_backend",
    "warp_correct",
]
