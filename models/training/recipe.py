"""Recipes: all that a training run depends on, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from vsegops._checks import check_option, error

from ..assignment import parse_assignment

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """Samples to train on, and others to evaluate with.

    Attributes:
        name: `"streets"` (the generated world), `"camvid"`, `"uds"`, `"clips"` (videos of your
            own), or one of `datasets.LAYOUTS`.
        root: the folder of the data set; of UDS, one with a folder for each part. Of streets: where
            they are stored for further runs; empty: they are made each time.
        before: the frames that come along with a labelled one, as for `datasets.read`.
        share: of an epoch that is sampled by classes, in equal parts (SFNet).
        tile: of the search for these classes.
        size, streets, labelled: of streets: their size, how many there are to train on, and their
            labelled frames.
        held_out: of streets: how many others there are to evaluate with.
    """

    name: str
    root: str = ""
    before: Sequence[int] = ()
    share: float = 0.0
    tile: int = 1024
    size: tuple[int, int] = (128, 256)
    streets: int = 256
    labelled: Sequence[int] = (12, 28)
    held_out: int = 32


@dataclass(frozen=True)
class Optimiser:
    """How weights change.

    Attributes:
        name: `"sgd"` or `"adam"`.
        rate: of learning, at first.
        rates: others, of the parameters whose names begin so.
        momentum, nesterov: of SGD.
        weight_decay: of all parameters.
        schedule: `"poly"`: `(1 - step / steps) ** power`; `"decay"`: `power ** (step / every)`;
            `"constant"`.
        power: see there.
        floor: no rate falls below it, unless it starts there.
        every: the rate changes once in so many steps.
    """

    name: str = "sgd"
    rate: float = 0.01
    rates: Mapping[str, float] = field(default_factory=dict)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "poly"
    power: float = 0.9
    floor: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        check_option("optimiser.name", self.name, ("sgd", "adam"))
        check_option("optimiser.schedule", self.schedule, ("poly", "decay", "constant"))
        check_count("optimiser.every", self.every)

    def rate_at(self, step: int, steps: int, first: float) -> float:
        """The rate of a step, counted from 0, of parameters that begin with the rate `first`."""
        held = step // self.every * self.every
        factor = 1.0
        if self.schedule == "poly":
            factor = (1 - held / steps) ** self.power
        elif self.schedule == "decay":
            factor = self.power ** (held / self.every)
        return max(first * factor, min(first, self.floor))


@dataclass(frozen=True)
class Recipe:
    """A training run. The same recipe gives the same weights, bit for bit on one CPU.

    Attributes:
        about: what it is, in a line.
        model: a name for `create_model`.
        data: what is learned from.
        task: what a step computes: one of `tasks.TASKS`.
        loss: one of `tasks.LOSSES`.
        steps: of the optimiser; 0: parts that were trained before are put together.
        options, task_options, loss_options: of these three.
        num_classes: of the model.
        part: the module of the model that is trained, alone; empty: all that is not frozen.
        parts: trained before: of a module of the model, the name of the recipe, whose run is looked
            for beside this one's folder, or a file.
        optimiser: how weights change.
        batch: samples of a step, of all processes together.
        accumulate: in how many parts each process takes its share of them.
        augmentation: a function of `augment`, or empty for none; crop: what it is given.
        precision: `"float32"`, or `"float16"` or `"bfloat16"` for mixed precision.
        normalisation: batch normalisation's statistics: `"batch"`; `"sync"`: over the batches of
            all processes (CUDA); `"frozen"`: those that are stored.
        distances: of the evaluation of video models: from 0 to this, exclusive.
        checkpoint_every: steps from one checkpoint to the next.
        evaluate_every: steps from one evaluation to the next; 0: at the end alone.
        seed: of everything.
    """

    about: str
    model: str
    data: Data
    task: str
    loss: str
    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 19
    part: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch: int = 8
    accumulate: int = 1
    augmentation: str = ""
    crop: tuple[int, int] | None = None
    precision: str = "float32"
    normalisation: str = "batch"
    distances: int = 12
    checkpoint_every: int = 100
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_option("precision", self.precision, ("float32", "float16", "bfloat16"))
        check_option("normalisation", self.normalisation, ("batch", "sync", "frozen"))
        check_count("steps", self.steps, least=0)
        for name in ("batch", "accumulate", "distances", "checkpoint_every"):
            check_count(name, getattr(self, name))

    def json(self) -> str:
        """All of it, as text."""
        return json.dumps(asdict(self), indent=2)


def check_count(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(name, f"a whole number from {least} on", value)


def changed(recipe: Recipe, pairs: Sequence[str]) -> Recipe:
    """A recipe with some values replaced.

    Args:
        recipe: as it was.
        pairs: `"steps=100"`, `"optimiser.rate=0.02"`, `"options.layer=2"` and so on.

    Example:
        >>> base = Recipe("", "sfnet_df1", Data("streets"), "images", "sfnet", steps=10)
        >>> changed(base, ["steps=20", "data.size=(64, 128)"]).data.size
        (64, 128)
    """
    for pair in pairs:
        name, value = parse_assignment(pair)
        recipe = _with(recipe, name.split("."), value, name)
    return recipe


#: On the weights.
_OF_NO_EFFECT = ("about", "checkpoint_every")


def differences(recipe: Recipe, other: str) -> list[str]:
    """In which values a recipe differs from another's `json()`, of those that count."""
    ours, theirs = (_flat(json.loads(text)) for text in (recipe.json(), other))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        f"{name} is {ours.get(name)}, was {theirs.get(name)}"
        for name in names
        if ours.get(name) != theirs.get(name) and name not in _OF_NO_EFFECT
    ]


def _with(holder: T, path: Sequence[str], value: Any, name: str) -> T:
    first, *rest = path
    if isinstance(holder, Mapping):
        new = _with(holder[first], rest, value, name) if rest else value
        return {**holder, first: new}  # type: ignore[return-value]
    if not is_dataclass(holder):
        raise ValueError(f"{name}: there is nothing below {path[0]!r}")
    known = [entry.name for entry in fields(holder)]
    if first not in known:
        raise ValueError(f"{name}: no such value; there are {', '.join(known)}")
    was = getattr(holder, first)
    if rest:
        value = _with(was, rest, value, name)
    elif was is not None and not isinstance(value, _accepted(was)):
        raise ValueError(f"{name}: expected a value as {was!r}, got {value!r}")
    return replace(holder, **{first: value})  # type: ignore[type-var]


def _accepted(was: Any) -> tuple[type, ...]:
    if isinstance(was, (tuple, list)):
        return (tuple, list, type(None))
    return (int, float) if isinstance(was, float) else (type(was),)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
