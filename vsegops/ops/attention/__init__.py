"""Attention over pooled anchors (ANN's asymmetric blocks, TMANet's memory) and criss-cross."""

from . import op  # noqa: F401  (registers the operators)
