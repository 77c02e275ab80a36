"""TMANet's: the frames before come along, with an auxiliary head."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Optimiser, Recipe
from .data import ADAM, CITYSCAPES, STREETS

PUBLISHED = Optimiser(rate=0.01, weight_decay=5e-4, floor=1e-4)

_CITYSCAPES = Recipe(
    about="TMANet over ResNet-50 with two frames of memory on Cityscapes, as published",
    model="tmanet_resnet50",
    data=replace(CITYSCAPES, before=(2, 1)),
    task="memory",
    loss="tmanet",
    loss_options={"align_corners": True},
    steps=80_000,
    options={"memory": 2, "deep_supervision": True, "backbone_weights": None},
    optimiser=PUBLISHED,
    batch=8,
    augmentation="tmanet",
    crop=(769, 769),
    distances=3,
    checkpoint_every=1000,
)

RECIPES = {
    "tmanet_streets": replace(
        _CITYSCAPES,
        about="TMANet over a quarter of ResNet-18 with two frames of memory on generated streets",
        model="tmanet_resnet18_x0_25",
        data=replace(STREETS, before=(2, 1)),
        steps=600,
        options={"memory": 2, "deep_supervision": True},
        optimiser=ADAM,
        crop=(96, 192),
        checkpoint_every=100,
    ),
    "tmanet_cityscapes": _CITYSCAPES,
}
