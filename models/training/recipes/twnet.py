"""TWNet's two steps: the network for key frames, then those parts that other frames have."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Optimiser, Recipe
from .data import CITYSCAPES, STREETS

PAPER = Optimiser(name="adam", rate=0.01, weight_decay=1e-7, schedule="constant")
#: Of what begins with ImageNet's weights: a hundredth.
PRETRAINED = {"encoder.": 1e-4}

_FIRST = Recipe(
    about="TWNet's first step: its network for key frames on Cityscapes, 90 000 steps",
    model="twnet_mobilenetv1",
    part="keyframe",
    data=CITYSCAPES,
    task="images",
    loss="cross_entropy",
    steps=90_000,
    options={"backbone_weights": None},
    optimiser=replace(PAPER, rates=PRETRAINED),
    batch=8,
    augmentation="twnet",
    crop=(800, 800),
    checkpoint_every=1000,
)
_SECOND = Recipe(
    about="TWNet's second step, over twnet_keyframe_cityscapes",
    model="twnet_mobilenetv1",
    parts={"keyframe": "twnet_keyframe_cityscapes"},
    data=replace(CITYSCAPES, before=(1,)),
    task="carried",
    loss="twnet",
    steps=90_000,
    optimiser=PAPER,
    batch=4,
    checkpoint_every=1000,
)

RECIPES = {
    "twnet_keyframe_streets": replace(
        _FIRST,
        about="TWNet's first step: its network for key frames, on generated streets",
        model="twnet_mobilenetv1_x0_5",
        data=replace(STREETS, share=0.5, tile=128),
        steps=2000,
        options={},
        optimiser=replace(PAPER, schedule="poly"),
        crop=(96, 192),
        checkpoint_every=100,
    ),
    "twnet_streets": replace(
        _SECOND,
        about="TWNet's second step, over twnet_keyframe_streets",
        model="twnet_mobilenetv1_x0_5",
        parts={"keyframe": "twnet_keyframe_streets"},
        data=replace(STREETS, before=(1,)),
        steps=600,
        optimiser=replace(PAPER, rate=1e-3, schedule="poly"),
        checkpoint_every=100,
    ),
    "twnet_keyframe_cityscapes": _FIRST,
    "twnet_cityscapes": _SECOND,
}
