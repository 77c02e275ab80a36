"""Checkpoints: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: The files of a run: to go on from, and the trained weights alone.
CHECKPOINT, WEIGHTS = "checkpoint.pt", "model.pt"


class NotFinite(RuntimeError):
    """A loss or a weight became NaN or infinite; the last checkpoint is as it was before."""


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file in place of the one that there was, at once."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What was written, on the CPU."""
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def check_finite(state: Mapping[str, Tensor], step: int) -> None:
    """Raise `NotFinite` where a weight is not."""
    for name, x in state.items():
        if not x.isfinite().all():
            raise NotFinite(f"step {step}: {name} is not finite; the last checkpoint is kept")
