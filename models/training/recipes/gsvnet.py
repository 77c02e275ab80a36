"""GSVNet's: over a frozen network for key frames, intervals of up to five frames."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Optimiser, Recipe
from .data import CITYSCAPES, STREETS

BEFORE = (4, 3, 2, 1)
PUBLISHED = Optimiser(
    rate=0.01,
    rates={"grm.guide": 0.04, "flow.": 1e-4},
    nesterov=True,
    weight_decay=5e-4,
    schedule="decay",
    power=0.992,
    every=100,
)

_CITYSCAPES = Recipe(
    about="GSVNet over SwiftNet on Cityscapes, as published; options.keyframe_weights is needed",
    model="gsvnet_swiftnet_resnet18",
    data=replace(CITYSCAPES, before=BEFORE),
    task="interval",
    loss="gsvnet",
    steps=100 * 1488,
    options={"keyframe_weights": None},
    optimiser=PUBLISHED,
    batch=8,
    augmentation="gsvnet",
    crop=(768, 1536),
    distances=5,
    checkpoint_every=1488,
)

RECIPES = {
    "gsvnet_streets": Recipe(
        about="GSVNet over sfnet_lite_streets on generated streets",
        model="gsvnet_sfnet_lite_resnet18_x0_25",
        data=replace(STREETS, before=BEFORE),
        task="interval",
        loss="gsvnet",
        loss_options={"weight": None},
        steps=300,
        options={},
        parts={"keyframe": "sfnet_lite_streets"},
        optimiser=replace(PUBLISHED, schedule="poly", power=0.9, every=1),
        batch=8,
        distances=5,
    ),
    "gsvnet_cityscapes": _CITYSCAPES,
    "gsvnet_paper_cityscapes": replace(
        _CITYSCAPES,
        about="GSVNet over SwiftNet on Cityscapes, as the paper says: end to end, cross-entropy",
        task_options={"gradient_steps": 4},
        loss_options={"variant": "paper"},
        optimiser=replace(PUBLISHED, rate=0.002, rates={}, nesterov=False),
    ),
}
