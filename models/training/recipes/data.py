"""What the recipes for streets share, and those for Cityscapes."""

from __future__ import annotations

from ..recipe import Data, Optimiser

STREETS = Data("streets", root="runs/streets")
#: In a few hundred steps it comes farther than the papers' SGD.
ADAM = Optimiser(name="adam", rate=3e-3, weight_decay=1e-4)
CITYSCAPES = Data("cityscapes", root="cityscapes")
