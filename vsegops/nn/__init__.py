"""Modules over the operators, to be dropped into other networks.

Parameters have the names of the published implementations, so that `load_state_dict` takes the
matching part of a published checkpoint.
"""

from .dense_head import (
    ConfusionMatrix,
    OhemUpsampleCrossEntropyLoss,
    UpsampleCrossEntropyLoss,
)
from .flow_align import FlowAlign, GatedDualFlowAlign
from .guided_filter import GuidedSpatiallyVaryingConv
from .pyramid_pooling import PyramidPooling

__all__ = [
    "ConfusionMatrix",
    "FlowAlign",
    "GatedDualFlowAlign",
    "GuidedSpatiallyVaryingConv",
    "OhemUpsampleCrossEntropyLoss",
    "PyramidPooling",
    "UpsampleCrossEntropyLoss",
]
