"""What is trained: recipes by name. Rows of one paper have the same data, steps and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vsegops.models.training.recipe import Recipe
from vsegops.models.training.recipes import RECIPES


def _with_options(recipe: Recipe, **options: Any) -> Recipe:
    return replace(recipe, options={**recipe.options, **options})


_LITE = RECIPES["sfnet_lite_streets"]
_FULL = replace(_LITE, model="sfnet_resnet18_x0_25")
_SLOW = replace(_LITE.optimiser, rates={"head.fpn_out_align.": _LITE.optimiser.rate / 10})
SFNET = {
    "sfnet_lite": _LITE,
    "sfnet_fam": _FULL,
    "sfnet_fam_slow_flow": replace(_FULL, optimiser=_SLOW),  # not the papers'
    "sfnet_fpn": _with_options(_FULL, alignment="bilinear"),
}

_GSVNET = replace(RECIPES["gsvnet_streets"], parts={"keyframe": "sfnet_lite"})
GSVNET = {
    "gsvnet": _GSVNET,
    "gsvnet_without_intra": _with_options(_GSVNET, intra=False),
    "gsvnet_learned_3x3": _with_options(_GSVNET, learn_delays=True),
    "gsvnet_learned_5x5": _with_options(_GSVNET, learn_delays=True, window=5),
}

_TWNET = replace(RECIPES["twnet_streets"], parts={"keyframe": "twnet_keyframe"})
_CORRECTIONS: Mapping[str, Mapping[str, bool]] = {
    "warp": {"cfr": False},  # as the network for key frames: nothing is trained
    "tuned": {"cfr": False},
    "cfr": {"rga": False},
    "rga": {},
}
TWNET = {"twnet_keyframe": RECIPES["twnet_keyframe_streets"]} | {
    f"twnet_{layer}_{name}": replace(
        _with_options(_TWNET, layer=layer, **options), steps=0 if name == "warp" else _TWNET.steps
    )
    for layer in (1, 2)
    for name, options in _CORRECTIONS.items()
}

_TMANET = RECIPES["tmanet_streets"]


def _memory(frames: int, **options: Any) -> Recipe:
    """Evaluated, as trained, where the memory is full."""
    before = tuple(range(frames, 0, -1))
    data = replace(_TMANET.data, before=before)
    recipe = replace(_TMANET, data=data, distances=frames + 1)
    return _with_options(recipe, memory=frames, **options)


TMANET = {
    "tmanet_full": _memory(2),
    "tmanet_apnb": _memory(2, attention="apnb"),
    "tmanet_apnb_afnb": _memory(2, attention="apnb", afnb=True),
    "tmanet_apnb_memory_1": _memory(1, attention="apnb"),
    "tmanet_apnb_memory_4": _memory(4, attention="apnb"),
}

#: Of each paper. What others are built on comes first.
RUNS: Mapping[str, Mapping[str, Recipe]] = {
    "sfnet": SFNET,
    "gsvnet": {"sfnet_lite": _LITE, **GSVNET},
    "twnet": TWNET,
    "tmanet": TMANET,
}


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same with another seed, over parts that were trained with that seed."""
    parts = {name: folder(run, seed) for name, run in recipe.parts.items()}
    return replace(recipe, seed=seed, parts=parts)


def folder(run: str, seed: int) -> str:
    return f"{run}-{seed}"
