"""vsegops: fused operators for fast semantic segmentation of video and images."""

from . import nn
from ._backends import BackendStatus, backends, use_backend
from ._version import __version__
from .ops.dense_head import confusion_matrix, ohem, upsample_argmax, upsample_cross_entropy
from .ops.dual_warp import channel_pool, gated_dual_warp
from .ops.guided_filter import DELAYS_3X3, DELAYS_5X5, guided_filter, label_edges
from .ops.warp import flow_warp, warp_correct

__all__ = [
    "DELAYS_3X3",
    "DELAYS_5X5",
    "BackendStatus",
    "__version__",
    "backends",
    "channel_pool",
    "confusion_matrix",
    "flow_warp",
    "gated_dual_warp",
    "guided_filter",
    "label_edges",
    "nn",
    "ohem",
    "upsample_argmax",
    "upsample_cross_entropy",
    "use_backend",
    "warp_correct",
]
