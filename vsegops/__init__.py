"""vsegops: fused operators for fast semantic segmentation of video and images."""

from ._backends import BackendStatus, backends, use_backend
from .ops.warp import flow_warp, warp_correct

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "backends",
    "flow_warp",
    "use_backend",
    "warp_correct",
]
