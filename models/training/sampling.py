"""Which samples an epoch consists of, and SFNet's uniform sampling of classes.

What an epoch draws, and how each sample is augmented, is a function of the seed, the epoch and the
place in it: the same for any number of loading processes, and after a resume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .augment import Augmentation
from .datasets import Sample

#: Of each class, the places where it is: the sample's index, x and y.
Centroids = Mapping[int, Sequence[tuple[int, int, int]]]


class Draw(NamedTuple):
    """One sample of an epoch.

    Attributes:
        sample: its index in the data set.
        seed: of its augmentation.
        centre: x and y of a pixel that its crop has to contain, or None.
    """

    sample: int
    seed: int
    centre: tuple[int, int] | None = None


class Draws(Sampler[Draw]):
    """The draws of an epoch, as many as there are samples.

    Args:
        length: of the data set.
        seed: of everything.
        centroids: from `find_centroids`, for uniform sampling of classes; None: each sample comes
            once.
        share: of an epoch that is sampled by classes, in equal parts. A class that is nowhere adds
            nothing; the rest are random samples.
        rank, world: of several processes, each takes every world-th draw.

    Attributes:
        epoch: set it before each epoch.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        centroids: Centroids | None = None,
        share: float = 0.5,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.centroids, self.share = centroids, share
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        chosen: list[tuple[int, tuple[int, int] | None]] = []
        for places in (self.centroids or {}).values():
            each = int(self.share * self.length / len(self.centroids or {}))
            order = rng.permutation(len(places))
            for number in range(each if len(places) else 0):
                index, x, y = places[order[number % len(places)]]
                chosen.append((index, (x, y)))
        rest = rng.permutation(self.length)[: self.length - len(chosen)]
        chosen += [(int(index), None) for index in rest]
        seeds = rng.integers(1 << 62, size=self.length)
        order = rng.permutation(self.length)
        for place in range(self.rank, len(self) * self.world, self.world):
            index, centre = chosen[order[place]]
            yield Draw(index, int(seeds[place]), centre)


class Augmented(Dataset[Sample]):
    """A data set that is asked for `Draw`s, and augments what it has.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from .augment import sfnet
        >>> from .streets import Streets
        >>> streets = Streets(range(4), (64, 128))
        >>> draws = Draws(len(streets), seed=0)
        >>> loader = DataLoader(Augmented(streets, sfnet((64, 64))), batch_size=2, sampler=draws)
        >>> [tuple(frames.shape) for frames, labels in loader]
        [(2, 1, 64, 64, 3), (2, 1, 64, 64, 3)]
    """

    def __init__(self, samples: Any, augmentation: Augmentation) -> None:
        self.samples, self.augmentation = samples, augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Sample:
        rng = np.random.default_rng(draw.seed)
        return self.augmentation(self.samples[draw.sample], rng, draw.centre)


def centroids(labels: Tensor, tile: int, num_classes: int) -> dict[int, list[tuple[int, int]]]:
    """The centre of mass, x and y, of each class in each whole tile of an image.

    Args:
        labels: `[H, W]`.
        tile: its side; what remains at the right and below is left out.
        num_classes: classes from 0 to this, exclusive.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    rows, columns = (length // tile for length in labels.shape)
    for top in range(0, rows * tile, tile):
        for left in range(0, columns * tile, tile):
            part = labels[top : top + tile, left : left + tile]
            for number in part.unique().tolist():
                if number < num_classes:
                    y, x = (part == number).nonzero().double().mean(0).tolist()
                    found.setdefault(number, []).append((left + int(x), top + int(y)))
    return found


def find_centroids(
    samples: Any,
    num_classes: int = 19,
    *,
    tile: int = 1024,
    cache: str | os.PathLike[str] | None = None,
) -> dict[int, list[tuple[int, int, int]]]:
    """`centroids` of all labels of a data set.

    Args:
        samples: which has `labels(index)`, as all data sets here do.
        num_classes, tile: see `centroids`.
        cache: a file to read them from, or to write them to where it does not exist; None: neither.
    """
    size = {"samples": len(samples), "classes": num_classes, "tile": tile}
    if cache is not None and Path(cache).exists():
        kept = json.loads(Path(cache).read_text())
        if {name: kept.get(name) for name in size} != size:
            raise ValueError(f"cache: expected {cache} to be of {size}; remove it")
        return {int(k): [(i, x, y) for i, x, y in v] for k, v in kept["centroids"].items()}
    found: dict[int, list[tuple[int, int, int]]] = {k: [] for k in range(num_classes)}
    for index in range(len(samples)):
        for number, places in centroids(samples.labels(index), tile, num_classes).items():
            found[number] += [(index, x, y) for x, y in places]
    if cache is not None:
        partial = Path(f"{cache}.partial-{os.getpid()}")
        partial.write_text(json.dumps({**size, "centroids": found}))
        partial.replace(cache)
    return found
