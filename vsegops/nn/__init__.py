"""Modules over the operators, to be dropped into other networks.

Parameters have the names of the published implementations, so that `load_state_dict` takes the
matching part of a published checkpoint.
"""

from ._operators import OperatorModule
from .attention import AFNB, APNB, ChannelAttention, CrissCrossAttention, TemporalMemoryAttention
from .dense_head import (
    ConfusionMatrix,
    OhemUpsampleCrossEntropyLoss,
    UpsampleCrossEntropyLoss,
)
from .flow_align import FlowAlign, GatedDualFlowAlign
from .guided_filter import GuidedSpatiallyVaryingConv
from .pooled_memory import PooledMemory
from .pyramid_pooling import PyramidPooling

__all__ = [
    "AFNB",
    "APNB",
    "ChannelAttention",
    "ConfusionMatrix",
    "CrissCrossAttention",
    "FlowAlign",
    "GatedDualFlowAlign",
    "GuidedSpatiallyVaryingConv",
    "OhemUpsampleCrossEntropyLoss",
    "OperatorModule",
    "PooledMemory",
    "PyramidPooling",
    "TemporalMemoryAttention",
    "UpsampleCrossEntropyLoss",
]
