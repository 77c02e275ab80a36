"""Many runs of recipes, several at once, each in a process and on one thread."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from vsegops.models.training import trainer
from vsegops.models.training.recipe import Recipe
from vsegops.models.training.report import Evaluation

from ..environment import cores


class Trained(NamedTuple):
    """A run that has ended."""

    name: str
    evaluation: Evaluation
    minutes: float


def train_all(
    recipes: Mapping[str, Recipe], root: Path, processes: int | None = None
) -> Iterator[Trained]:
    """Train each in a folder of its name; those that are parts of others first.

    One that was interrupted goes on, one that had ended is evaluated again.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=len(recipes), unit="run", disable=None) as bar,
        ProcessPoolExecutor(processes or cores(), context) as pool,
    ):
        for dependent in (False, True):
            futures = [
                pool.submit(_train, name, recipe, root / name)
                for name, recipe in recipes.items()
                if bool(recipe.parts) is dependent
            ]
            for future in as_completed(futures):
                trained = future.result()
                bar.set_postfix_str(trained.name)
                bar.update()
                yield trained


def _train(name: str, recipe: Recipe, folder: Path) -> Trained:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log, redirect_stderr(log):
        evaluation = trainer.train(recipe, folder, resume=True, device="cpu")
    return Trained(name, evaluation, (time.perf_counter() - start) / 60)
