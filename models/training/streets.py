"""Samples of the generated world, and samples that are stored for many runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsegops._checks import error

from .datasets import Root, Sample
from .world import World


class Streets(Dataset[Sample]):
    """Samples of the generated world.

    Args:
        seeds: one street each.
        size: of the frames.
        labelled: which frames of each street.
        before: as for `read`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        size: tuple[int, int] = (256, 512),
        labelled: Sequence[int] = (19,),
        before: Sequence[int] = (),
    ) -> None:
        if min(labelled) < max(before, default=0):
            raise error("labelled", f"{max(before)} or more, as of `before`", tuple(labelled))
        self.seeds, self.size = list(seeds), size
        self.labelled, self.before = list(labelled), list(before)
        self._world: World | None = None

    def __len__(self) -> int:
        return len(self.seeds) * len(self.labelled)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        street, number = divmod(index, len(self.labelled))
        last, seed = self.labelled[number], self.seeds[street]
        if self._world is None or self._world.seed != seed:
            self._world = World(seed, self.size, max(self.labelled) + 1)
        frames = [self._world[last - count] for count in (*self.before, 0)]
        return Sample(torch.stack([frame.image for frame in frames]), frames[-1].labels)

    def labels(self, index: int) -> Tensor:
        """The labels alone: uint8 `[H, W]`."""
        return self[index].labels

    def __repr__(self) -> str:
        return f"Streets({self.seeds}, {self.size}, {self.labelled}, {self.before})"


class Stored(Dataset[Sample]):
    """Samples that were written to a folder once, and are read from there: of one size, all alike.

    What takes long to make (streets, for many runs) is made once; processes share the memory.

    Args:
        samples: what to store, such as `Streets`; `repr(samples)` has to say what it is.
        folder: where; made where it does not exist.
    """

    def __init__(self, samples: Any, folder: Root) -> None:
        self.folder, about = Path(folder), f"{samples!r}\n"
        if not self.folder.exists():
            partial = self.folder.with_name(f".partial-{os.getpid()}-{self.folder.name}")
            partial.mkdir(parents=True)
            for index in range(len(samples)):
                frames, labels = samples[index]
                if index == 0:
                    stores = [
                        np.lib.format.open_memmap(
                            partial / f"{name}.npy", "w+", np.uint8, (len(samples), *x.shape)
                        )
                        for name, x in (("frames", frames), ("labels", labels))
                    ]
                stores[0][index], stores[1][index] = frames.numpy(), labels.numpy()
            (partial / "about.txt").write_text(about)
            try:
                partial.replace(self.folder)
            except OSError:  # another process was faster
                if not self.folder.exists():
                    raise
                shutil.rmtree(partial)
        found = (self.folder / "about.txt").read_text()
        if found != about:
            raise ValueError(
                f"folder: expected {self.folder} to hold {about.strip()}, found {found.strip()}; "
                "remove it, or take another"
            )
        self._frames, self._labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "labels")
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.from_numpy(self._frames[index].copy()), self.labels(index))

    def labels(self, index: int) -> Tensor:
        """The labels alone: uint8 `[H, W]`."""
        return torch.from_numpy(self._labels[index].copy())
