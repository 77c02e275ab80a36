"""Modules over the operators, to be dropped into other networks.

Parameters have the names of the published implementations, so that `load_state_dict` takes the
matching part of a published checkpoint.
"""

from .guided_filter import GuidedSpatiallyVaryingConv

__all__ = ["GuidedSpatiallyVaryingConv"]
