"""How long the trained models take for a frame, from the frame to its labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from vsegops.models import VideoModel
from vsegops.models.training.recipe import Recipe
from vsegops.models.training.tasks import build_model
from vsegops.models.untrained import calibrate

from ..timing import Candidate, CpuClock, Effort, interleave, threads, timing

SIZE = (256, 512)  # of the frames
EFFORT = Effort(seconds=8.0, least=7, most=31)


def measure(
    runs: Mapping[str, Recipe], size: tuple[int, int] = SIZE
) -> dict[str, dict[str, float]]:
    """Of each run's model, in turn, on one thread, with random weights.

    Returns:
        `frame`: milliseconds of a frame alone; of video models `step`, and `state`, megabytes that
        are kept from one frame to the next.
    """
    found: dict[str, dict[str, float]] = {}
    candidates = []
    for name, recipe in runs.items():
        torch.manual_seed(0)
        model = calibrate(build_model(recipe))
        found[name] = {}
        frame = model.example_inputs(size)[0]
        candidates.append(_candidate(f"{name}/frame", model, (frame,)))
        if isinstance(model, VideoModel):
            arguments = model.example_inputs(size)
            candidates.append(_candidate(f"{name}/step", model, arguments))
            state = tree_leaves(arguments[1])
            found[name]["state"] = sum(x.numel() * x.element_size() for x in state) / 1e6
    with threads(1), torch.no_grad():
        samples = interleave(candidates, CpuClock(), EFFORT)
    for candidate, times in samples.items():
        name, _, part = candidate.partition("/")
        found[name][part] = timing(times)["median_ms"]
    return found


def over_interval(speed: Mapping[str, float], interval: int) -> float:
    """Frames a second of a run's model, with a key frame every `interval`."""
    return 1e3 * interval / (speed["frame"] + (interval - 1) * speed["step"])


def _candidate(name: str, model: Any, arguments: tuple[Any, ...]) -> Candidate:
    return Candidate(name, [partial(_labels, model, arguments)])


def _labels(model: Any, arguments: tuple[Any, ...]) -> Any:
    logits = tree_leaves(model(*arguments))[0]
    return model.labels(logits, arguments[0].shape[2:])
