"""Many runs of recipes, several at once, each in a process (on a CPU: on one thread)."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
    recipes: Mapping[str, Recipe],
    root: Path,
    processes: int | None = None,
    device: str = "cpu",
) -> Iterator[Trained]:
    """Train each in a folder of its name, in order, but what is a part of others before them.

    One that was interrupted goes on, one that had ended is evaluated again.

    Raises:
        RuntimeError: in the end, if some failed.
    """
    processes = processes or cores()
    waiting, running = dict(recipes), dict[Future[Trained], str]()
    failed: dict[str, BaseException] = {}
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=len(recipes), unit="run", disable=None) as bar,
        ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool,
    ):
        while waiting or running:
            for name, recipe in list(waiting.items()):
                unfinished = {*waiting, *running.values()}
                if len(running) < processes and unfinished.isdisjoint(recipe.parts.values()):
                    running[pool.submit(_train, name, recipe, root / name, device)] = name
                    del waiting[name]
            if not running:
                raise ValueError(f"recipes: {', '.join(waiting)} wait for each other")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                bar.set_postfix_str(name)
                bar.update()
                if error := future.exception():  # the others go on, but those over it
                    failed[name] = error
                    for over in [x for x in waiting if name in recipes[x].parts.values()]:
                        failed[over] = ValueError(f"{name} is missing")
                        del waiting[over]
                else:
                    yield future.result()
    if failed:
        what = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise RuntimeError(f"{len(failed)} runs failed: {what}")


def _end_with_parent() -> None:
    """Of a command that was killed no run goes on, which the next command would do again."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train(name: str, recipe: Recipe, folder: Path, device: str) -> Trained:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log, redirect_stderr(log):
        evaluation = trainer.train(recipe, folder, resume=True, device=device)
    return Trained(name, evaluation, (time.perf_counter() - start) / 60)
