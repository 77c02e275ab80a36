"""What recipes name: models with their losses, and data.

A task is a module that maps a batch to its loss; what is trained is its `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vsegops._checks import check_option, error
from vsegops.nn import UpsampleCrossEntropyLoss

from ..base import ImageModel, Motion, VideoModel
from ..registry import create_model
from ..twnet import TWNet
from . import augment, datasets, losses
from .classes import IGNORED
from .evaluate import clip_for, coded
from .recipe import Data, Recipe
from .sampling import Augmented, Draw, Draws, find_centroids
from .streets import Stored, Streets

#: Where streets to evaluate with begin, far from those to train on.
HELD_OUT = 1_000_000

LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "cross_entropy": UpsampleCrossEntropyLoss,
    "sfnet": losses.sfnet,
    "tmanet": losses.tmanet,
    "twnet": losses.TWNetLoss,
    "gsvnet": losses.GSVNetLoss,
}


class Task(nn.Module):
    """A model and its loss.

    Calling it:
        frames: uint8 `[N, T, H, W, 3]`.
        labels: uint8 `[N, H, W]`, of the last frame.
        motions: T, of which the first is not used; or None.
        epoch: in which the batch is drawn.

        Returns the loss.
    """

    def __init__(self, model: Any, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def images(self, frames: Tensor) -> list[Tensor]:
        """The T frames, preprocessed."""
        return [self.model.preprocess(frame) for frame in frames.unbind(1)]


class Images(Task):
    """Single frames."""

    def forward(self, frames: Tensor, labels: Tensor, motions: Any, epoch: int) -> Tensor:
        return self.loss(self.model(self.images(frames)[-1]), labels)  # type: ignore[no-any-return]


class Distilled(Task):
    """Single frames, learned from a teacher, and from their labels where they have some.

    loss = labels * (loss of the labels) + weight * (divergence from the teacher)

    (Research and Implementation of Video Semantic Segmentation, section 5.3.)

    Args:
        teacher: maps what the model is given to logits: any callable; or a text, an ONNX file or
            `"MODEL:FILE"`, the name of one of our models and its weights.
        labels: the weight of the labels, where a batch has any.
        weight, temperature: of the divergence; see `losses.distillation`.
    """

    def __init__(
        self,
        model: Any,
        loss: nn.Module,
        teacher: Callable[[Tensor], Tensor] | str,
        labels: float = 1.0,
        weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(model, loss)
        if not isinstance(model, ImageModel):
            raise error("model", "an image model, to learn from a teacher", model)
        self.labels, self.weight, self.temperature = labels, weight, temperature
        # Not one of our modules: neither trained nor saved.
        self._teacher = (_teacher(teacher, model) if isinstance(teacher, str) else teacher,)

    def forward(self, frames: Tensor, labels: Tensor, motions: Any, epoch: int) -> Tensor:
        image = self.images(frames)[-1]
        with torch.no_grad():
            wanted = self._teacher[0](image)
        output = self.model(image)
        logits = output[0] if isinstance(output, tuple) else output
        total = self.weight * losses.distillation(
            logits,
            wanted,
            (labels.shape[1], labels.shape[2]),
            temperature=self.temperature,
            align_corners=self.model.align_corners,
        )
        if self.labels and (labels != IGNORED).any():
            total = total + self.labels * self.loss(output, labels)
        elif isinstance(output, tuple):  # several processes wait for the gradient of each head
            total = total + 0 * sum(x.sum() for x in output[1])
        return total


def _teacher(name: str, student: Any) -> Callable[[Tensor], Tensor]:
    if name.endswith(".onnx"):
        return losses.OnnxTeacher(name)
    model, _, file = name.partition(":")
    if not file:
        raise error("teacher", "FILE.onnx or MODEL:FILE", name)
    teacher = create_model(model, student.num_classes, weights=file).eval()
    if not isinstance(teacher, ImageModel) or teacher.preprocess != student.preprocess:
        raise error("teacher", "an image model whose preprocessing is the student's", name)
    return teacher.to(next(student.parameters()).device)


class Memory(Task):
    """TMANet: the last frame reads all before it."""

    def forward(self, frames: Tensor, labels: Tensor, motions: Any, epoch: int) -> Tensor:
        *earlier, last = self.images(frames)
        state = None
        for image in earlier:
            state = self.model.remember(image, state)
        output, _ = self.model.step(last, state)
        return self.loss(output, labels)  # type: ignore[no-any-return]


class Interval(Task):
    """GSVNet: from a key frame on; by one frame in the first epoch, two in the next, and so on.

    Args:
        gradient_steps: as for `losses.unrolled`.
    """

    def __init__(self, model: Any, loss: nn.Module, gradient_steps: int = 2) -> None:
        super().__init__(model, loss)
        self.gradient_steps = gradient_steps

    def forward(self, frames: Tensor, labels: Tensor, motions: Any, epoch: int) -> Tensor:
        steps = 1 + epoch % (frames.shape[1] - 1)
        images = self.images(frames[:, -steps - 1 :])
        logits, teacher = losses.unrolled(self.model, images, gradient_steps=self.gradient_steps)
        return self.loss(logits, labels, teacher)  # type: ignore[no-any-return]


class Carried(Task):
    """TWNet's second step: a key frame's features carried on to the last frame."""

    def __init__(self, model: TWNet, loss: nn.Module) -> None:
        super().__init__(model, loss)
        model.begin_second_step()

    def forward(self, frames: Tensor, labels: Tensor, motions: Any, epoch: int) -> Tensor:
        first, *others = self.images(frames)
        _, state = self.model.start(first)
        _, wanted = self.model.start(others[-1])
        for image, motion in zip(others, motions[1:], strict=True):
            logits, state = self.model.step(image, state, motion)
        return self.loss(logits, state, labels, wanted)  # type: ignore[no-any-return]


TASKS: Mapping[str, Callable[..., Task]] = {
    "images": Images,
    "distilled": Distilled,
    "memory": Memory,
    "interval": Interval,
    "carried": Carried,
}


def build_model(recipe: Recipe) -> Any:
    """What a recipe trains: its model, or a part of it."""
    model = create_model(recipe.model, recipe.num_classes, **recipe.options)
    return model.get_submodule(recipe.part)


def build_task(recipe: Recipe, model: nn.Module) -> Task:
    """The task of a recipe, of a model that has the weights that it starts from."""
    check_option("task", recipe.task, tuple(TASKS))
    check_option("loss", recipe.loss, tuple(LOSSES))
    loss = LOSSES[recipe.loss](**recipe.loss_options)
    return TASKS[recipe.task](model, loss, **recipe.task_options)


def training_samples(recipe: Recipe, model: Any, folder: Path) -> tuple[Dataset[Any], Draws]:
    """Samples to train on, asked for by draws, and the draws.

    Args:
        recipe, model: of the run.
        folder: of the run, where the places of classes are kept.
    """
    data = recipe.data
    samples = _samples(data, data.before, held_out=False)
    centroids = None
    if data.share:
        file = folder / "centroids.json"
        centroids = find_centroids(samples, recipe.num_classes, tile=data.tile, cache=file)
    draws = Draws(len(samples), recipe.seed, centroids=centroids, share=data.share)
    augmentation = None
    if recipe.augmentation:
        check_option("augmentation", recipe.augmentation, ("sfnet", "gsvnet", "twnet", "tmanet"))
        augmentation = getattr(augment, recipe.augmentation)(recipe.crop)
    stride = model.motion_stride if recipe.task == "carried" else None
    return Drawn(samples, augmentation, stride), draws


class Drawn(Dataset[Any]):
    """Samples that are asked for by `Draw`s.

    Args:
        samples: the data set.
        augmentation: what is done to them, or None.
        stride: of the motion that comes with them; None: there is none.
    """

    def __init__(
        self, samples: Any, augmentation: augment.Augmentation | None, stride: int | None
    ) -> None:
        self.samples, self.stride = samples, stride
        self.augmented = None if augmentation is None else Augmented(samples, augmentation)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> tuple[Any, ...]:
        sample = self.samples[draw.sample] if self.augmented is None else self.augmented[draw]
        return tuple(sample) if self.stride is None else tuple(coded(sample, self.stride))


def unpack(batch: Any, device: torch.device) -> tuple[Tensor, Tensor, list[Motion] | None]:
    """A loader's batch as a task takes it."""
    frames, labels, *motions = batch
    moved = None
    if motions:
        moved = [
            Motion(*(x.flatten(0, 1).to(device, non_blocking=True) for x in motion))
            for motion in motions[0]
        ]
    return frames.to(device, non_blocking=True), labels.to(device, non_blocking=True), moved


def held_out_samples(recipe: Recipe, model: Any) -> Iterator[Any]:
    """What a model is evaluated with: samples, or clips for a model of videos.

    Raises:
        Missing: at once, where there is no such data.
    """
    if not isinstance(model, VideoModel):
        samples = _samples(recipe.data, (), held_out=True)
        return (samples[index] for index in range(len(samples)))
    before = tuple(range(recipe.distances - 1, 0, -1))
    samples = _samples(recipe.data, before, held_out=True)
    return (clip_for(model, samples[index]) for index in range(len(samples)))


def _samples(data: Data, before: Any, *, held_out: bool) -> Any:
    split = "val" if held_out else "train"
    if data.name == "streets":
        return _streets(data, tuple(before), held_out)
    if data.name == "uds":
        return datasets.uds({name: Path(data.root) / name for name in datasets.UDS}, split)
    if data.name == "camvid":
        return datasets.camvid(data.root, split, before=before)
    if data.name == "clips":
        return datasets.clips(data.root, split, before=before)
    known = ("streets", "camvid", "uds", "clips", *datasets.LAYOUTS)
    check_option("data.name", data.name, known)
    return datasets.read(data.name, data.root, split, before=before)


def _streets(data: Data, before: tuple[int, ...], held_out: bool) -> Any:
    first, count = (HELD_OUT, data.held_out) if held_out else (0, data.streets)
    height, width = data.size
    samples = Streets(range(first, first + count), (height, width), tuple(data.labelled), before)
    if not data.root:
        return samples
    about = [f"{height}x{width}", f"{first}+{count}", "at", *data.labelled]
    about += ["before", *before] if before else []
    return Stored(samples, Path(data.root) / "-".join(map(str, about)))
