"""Training by a recipe, on one device or many, which can be killed and goes on.

All that is random is a function of the recipe's seed and the step: which samples it has and how
they are augmented (`sampling`), and PyTorch's generators, which are seeded for each step. A
checkpoint therefore holds the weights, the optimiser's state and the number of steps, and nothing
of any generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler

from vsegops._checks import error

from ..weights import load_upstream
from . import checkpoint, report, tasks
from .checkpoint import CHECKPOINT, NotFinite
from .devices import Place, join
from .metrics import Metrics
from .recipe import Optimiser, Recipe, differences
from .sampling import Draw, Draws

Folder = str | os.PathLike[str]


def train(
    recipe: Recipe,
    folder: Folder,
    *,
    resume: bool = False,
    device: str | None = None,
    workers: int = 0,
) -> report.Evaluation:
    """Train, and evaluate at the end.

    Into the folder go `recipe.json`, `metrics.csv`, `checkpoint.pt`, at the end `model.pt` (the
    weights alone, for `load_upstream`) and `evaluation.csv`.

    Args:
        recipe: all that the weights depend on.
        folder: of the run.
        resume: go on from the folder's checkpoint, if there is one.
        device: see `devices.join`.
        workers: processes that load samples, of each training process.

    Raises:
        NotFinite: the loss of a step was not finite. The last checkpoint is kept.
    """
    with join(device) as place:
        return Run(recipe, Path(folder), place, resume=resume).train(workers)


class Run:
    """A training run in one process.

    Attributes:
        model: what is trained.
        step: how many steps are done.
    """

    def __init__(self, recipe: Recipe, folder: Path, place: Place, *, resume: bool) -> None:
        shares = recipe.accumulate * place.world
        if recipe.batch % shares:
            expected = f"a multiple of {shares} (accumulate times processes)"
            raise error("batch", expected, recipe.batch)
        self.recipe, self.folder, self.place = recipe, folder, place
        self.share = recipe.batch // shares
        folder.mkdir(parents=True, exist_ok=True)
        saved = self._saved(resume)
        place.wait()  # all have looked before anything is written
        torch.manual_seed(recipe.seed)
        self.model = tasks.build_model(recipe).to(place.device)
        if saved is None:
            for name, source in recipe.parts.items():
                load_upstream(self.model.get_submodule(name), find_part(source, folder))
        task = tasks.build_task(recipe, self.model).to(place.device)
        if recipe.normalisation == "sync":
            task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
        self.task, self.step = task, 0
        self.optimiser = build_optimiser(recipe.optimiser, self.model)
        self.scaler = torch.amp.GradScaler(  # of float16 alone: others have float32's range
            place.device.type, enabled=recipe.precision == "float16"
        )
        if saved is not None:
            self.step = saved["step"]
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.scaler.load_state_dict(saved["scaler"])

    def train(self, workers: int = 0) -> report.Evaluation:
        """All steps that are left; returns the last evaluation."""
        recipe, place = self.recipe, self.place
        step: nn.Module = self.task
        if place.world > 1:
            step = DistributedDataParallel(self.task)
        metrics = None
        if place.rank == 0:
            (self.folder / "recipe.json").write_text(recipe.json() + "\n")
            metrics = Metrics(self.folder, self.step, recipe.steps)
        try:
            draws, batches = self._batches(workers)
            while self.step < recipe.steps:
                epoch = self.step * recipe.batch // len(draws)
                values = {"epoch": float(epoch), **self._advance(step, batches, epoch)}
                self.step += 1
                last = self.step == recipe.steps
                if recipe.evaluate_every and self.step % recipe.evaluate_every == 0 and not last:
                    if place.rank == 0:
                        values["mean_iou"] = self.evaluate().mean_iou()
                    place.wait()
                if metrics is not None:
                    metrics.add(self.step, values)
                    if last or self.step % recipe.checkpoint_every == 0:
                        self._save()
            evaluation = self.evaluate()
            if place.rank == 0:
                weights = {"state_dict": self.model.state_dict()}
                checkpoint.write(self.folder / checkpoint.WEIGHTS, weights)
                evaluation.write(self.folder / "evaluation.csv")
            return evaluation
        finally:
            if metrics is not None:
                metrics.close()

    def evaluate(self) -> report.Evaluation:
        """On the samples that are held out."""
        return report.evaluate(self.recipe, self.model)

    def _advance(self, step: nn.Module, batches: Iterator[Any], epoch: int) -> dict[str, float]:
        """One step of the optimiser."""
        recipe, place = self.recipe, self.place
        torch.manual_seed(_seed(recipe.seed, self.step, place.rank))
        self._training_mode()
        rates = [
            recipe.optimiser.rate_at(self.step, recipe.steps, group["first"])
            for group in self.optimiser.param_groups
        ]
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimiser.zero_grad()
        total = torch.zeros((), device=place.device)
        for number in range(recipe.accumulate):
            batch = tasks.unpack(next(batches), place.device)
            final = number == recipe.accumulate - 1
            alone = not final and isinstance(step, DistributedDataParallel)
            with step.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self._precision():
                    loss = step(*batch, epoch) / recipe.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()
        value = place.mean(total).item()
        if not np.isfinite(value):
            raise NotFinite(f"step {self.step + 1}: the loss is {value}; {self._kept()}")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {"loss": value, "rate": max(rates)}

    def _training_mode(self) -> None:
        self.task.train()
        if self.recipe.normalisation == "frozen":
            for module in self.task.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _precision(self) -> Any:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.place.device.type, getattr(torch, self.recipe.precision))

    def _batches(self, workers: int) -> tuple[Draws, Iterator[Any]]:
        """The draws of an epoch, and all batches that are left."""
        if self.place.rank == 0:  # what is stored is made once, what is missing is said at once
            tasks.training_samples(self.recipe, self.model, self.folder)
            tasks.held_out_samples(self.recipe, self.model)
        self.place.wait()
        samples, draws = tasks.training_samples(self.recipe, self.model, self.folder)
        parts = self.recipe.accumulate * self.place.world
        done, end = (steps * parts for steps in (self.step, self.recipe.steps))
        ours = range(done + self.place.rank, end, self.place.world)
        cuda = self.place.device.type == "cuda"
        batches = Batches(draws, self.share, ours)
        loader = DataLoader(samples, batch_sampler=batches, num_workers=workers, pin_memory=cuda)
        return draws, iter(loader)

    def _save(self) -> None:
        weights = self.model.state_dict()
        checkpoint.check_finite(weights, self.step)
        content = {
            "step": self.step,
            "recipe": self.recipe.json(),
            "model": weights,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        checkpoint.write(self.folder / CHECKPOINT, content)

    def _saved(self, resume: bool) -> dict[str, Any] | None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        if not resume:
            raise ValueError(f"{self.folder}: there is a run; go on with --resume, or take another")
        saved = checkpoint.read(path)
        if other := differences(self.recipe, saved["recipe"]):
            raise ValueError(f"{path}: it has another recipe: {'; '.join(other)}")
        return saved

    def _kept(self) -> str:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return "there is no checkpoint yet"
        return f"{path} is of step {checkpoint.read(path)['step']}"


class Batches(Sampler[list[Draw]]):
    """Draws of one epoch after the other, in batches.

    Args:
        draws: of an epoch.
        size: of a batch.
        numbers: the batches that are wanted; batch n starts at place `n * size` of the whole.
    """

    def __init__(self, draws: Draws, size: int, numbers: range) -> None:
        self.draws, self.size, self.numbers = draws, size, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, drawn = -1, list[Draw]()
        for number in self.numbers:
            batch = []
            for position in range(number * self.size, (number + 1) * self.size):
                if position // len(self.draws) != epoch:
                    epoch = self.draws.epoch = position // len(self.draws)
                    drawn = list(self.draws)
                batch.append(drawn[position % len(self.draws)])
            yield batch


def build_optimiser(settings: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """Of all parameters that are not frozen, in one group for each rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    unused = set(settings.rates)
    for name, parameter in model.named_parameters():
        prefix = next((x for x in settings.rates if name.startswith(x)), None)
        unused.discard(prefix or "")
        rate = settings.rate if prefix is None else settings.rates[prefix]
        if parameter.requires_grad:
            groups.setdefault(rate, []).append(parameter)
    if unused:
        raise error("optimiser.rates", "beginnings of parameters' names", sorted(unused))
    listed = [{"params": found, "lr": rate, "first": rate} for rate, found in groups.items()]
    if settings.name == "adam":
        return torch.optim.Adam(listed, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        listed,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def find_part(source: str, folder: Path) -> Path:
    """The weights of a part that was trained before: a file, or the run of a recipe."""
    beside = folder.parent / source / checkpoint.WEIGHTS
    for path in (Path(source), beside):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"expected the weights of {source!r} at {beside}; train it first: "
        f"vsegops train {source} -o {beside.parent}"
    )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
