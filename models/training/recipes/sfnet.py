"""SFNet's and SFNet-Lite's: the hardest pixels, classes sampled alike."""

from __future__ import annotations

from dataclasses import replace

from ..recipe import Optimiser, Recipe
from .data import ADAM, CITYSCAPES, STREETS

#: 2975 images in batches of 16 make 185 steps an epoch.
EPOCH = 185
PAPER = Optimiser(rate=0.01, weight_decay=1e-4)

_LITE = Recipe(
    about="SFNet-Lite over ResNet-18 on Cityscapes: 1000 epochs",
    model="sfnet_lite_resnet18",
    data=replace(CITYSCAPES, share=0.5),
    task="images",
    loss="sfnet",
    steps=1000 * EPOCH,
    options={"backbone_weights": None},
    optimiser=PAPER,
    batch=16,
    augmentation="sfnet",
    crop=(1024, 1024),
    checkpoint_every=EPOCH,
    evaluate_every=50 * EPOCH,
)

RECIPES = {
    "sfnet_lite_streets": Recipe(
        about="SFNet-Lite over a quarter of ResNet-18 on generated streets",
        model="sfnet_lite_resnet18_x0_25",
        data=replace(STREETS, share=0.5, tile=128),
        task="images",
        loss="sfnet",
        loss_options={"min_kept": 10_000},
        steps=1500,
        optimiser=ADAM,
        batch=8,
        augmentation="sfnet",
        crop=(96, 192),
    ),
    "sfnet_lite_cityscapes": _LITE,
    "sfnet_cityscapes": replace(
        _LITE,
        about="SFNet over ResNet-18 on Cityscapes: 300 epochs",
        model="sfnet_resnet18",
        steps=300 * EPOCH,
        loss_options={"min_kept": 10_000},
    ),
    "sfnet_df1_cityscapes": replace(
        _LITE,
        about="SFNet over DF1 on Cityscapes, with deep supervision: 300 epochs",
        model="sfnet_df1",
        steps=300 * EPOCH,
        options={"backbone_weights": None, "deep_supervision": True},
    ),
}
