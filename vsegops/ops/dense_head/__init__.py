"""What every segmentation network ends with, without logits of full resolution."""

from . import op  # noqa: F401  (registers the operators)
