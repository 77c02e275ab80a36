"""Small weights that ship with the project, trained on generated streets (docs/training.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .weights import load_upstream

FOLDER = Path(__file__).parent / "shipped_weights"

#: The files of each model that has such weights.
SHIPPED: Mapping[str, tuple[str, ...]] = {
    "sfnet_lite_resnet18_x0_25": ("sfnet_lite.pt",),
    "gsvnet_sfnet_lite_resnet18_x0_25": ("gsvnet.pt", "sfnet_lite.pt"),
    "twnet_mobilenetv1_x0_5": ("twnet.pt",),
}


def load_weights(model: nn.Module, name: str, weights: Any) -> list[str]:
    """Load what `create_model(name, weights=weights)` asks for.

    Returns:
        The entries that inference uses and that are as they were, for they are published elsewhere.

    Raises:
        ValueError: they do not fit; or none ship for that model, and the message says for which.
    """
    files = [weights]
    if weights == "streets":
        if name not in SHIPPED:
            raise ValueError(f"weights: 'streets' ship for {', '.join(SHIPPED)}, not for {name}")
        files = [FOLDER / file for file in SHIPPED[name]]
    left = set.intersection(*(set(load_upstream(model, file).initial) for file in files))
    unused = tuple(getattr(model, "unused_prefixes", ()))
    return sorted(x for x in left if not x.startswith(unused) and "num_batches" not in x)
