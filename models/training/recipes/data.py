"""What the recipes learn from."""

from __future__ import annotations

from ..recipe import Data

STREETS = Data("streets", root="runs/streets")
CITYSCAPES = Data("cityscapes", root="cityscapes")
