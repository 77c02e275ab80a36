"""What the recipes for streets share, and those for Cityscapes."""

from __future__ import annotations

from ..recipe import Data, Optimiser

CITYSCAPES = Data("cityscapes", root="cityscapes")
STREETS = Data("streets", root="runs/streets")
#: For streets: in some hundred steps it comes farther than SGD.
ADAM = Optimiser(name="adam", rate=3e-3, weight_decay=1e-4)
