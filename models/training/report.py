"""How well the model of a recipe does on what it was not trained on, as a table and as a CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsegops.nn import ConfusionMatrix

from ..base import VideoModel
from .classes import CAMVID, CITYSCAPES
from .evaluate import ByDistance, category_iou, evaluate_images, evaluate_video
from .recipe import Recipe
from .tasks import held_out_samples


@dataclass(frozen=True)
class Evaluation:
    """Counts of a model.

    Attributes:
        matrices: `"all"`, and for a model of videos those of each distance from the key frame.
    """

    matrices: Mapping[str, ConfusionMatrix]

    def mean_iou(self) -> float:
        """Of all counts together."""
        return self.matrices["all"].mean_iou().item()

    def average(self, interval: int) -> float:
        """Of the first so many distances together: GSVNet's average at a key frame interval."""
        matrices = [matrix for name, matrix in self.matrices.items() if name != "all"]
        return ByDistance(matrices).average(interval)

    def rows(self) -> list[dict[str, Any]]:
        """For each matrix its name, mean IoUs, and the IoU of each class and category."""
        return [{"distance": name, **_numbers(matrix)} for name, matrix in self.matrices.items()]

    def write(self, path: str | os.PathLike[str]) -> None:
        """`rows` as a CSV."""
        rows = self.rows()
        with Path(path).open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    def table(self) -> str:
        """`rows` for the eye, in per cent: a line for each class, a column for each distance."""
        rows = self.rows()
        measures = [name for name in rows[0] if name != "distance"]
        width = max(map(len, measures))
        lines = [" " * width + "".join(f"{row['distance']:>7}" for row in rows)]
        for name in measures:
            values = "".join(f"{row[name]:>7.1%}".replace("nan%", "   -") for row in rows)
            lines.append(f"{name:<{width}}{values}")
        return "\n".join(lines)


def evaluate(recipe: Recipe, model: Any) -> Evaluation:
    """The model of a recipe, on what the recipe holds out; it is left in evaluation mode."""
    model.eval()
    samples = held_out_samples(recipe, model)
    if not isinstance(model, VideoModel):
        return Evaluation({"all": evaluate_images(model, samples)})
    result = evaluate_video(model, samples, recipe.distances)
    distances = {str(number): matrix for number, matrix in enumerate(result.matrices)}
    return Evaluation({"all": result.together(), **distances})


def _numbers(matrix: ConfusionMatrix) -> dict[str, float]:
    names = {19: CITYSCAPES, 11: tuple(CAMVID), 12: ("void", *CAMVID)}.get(
        matrix.num_classes, tuple(map(str, range(matrix.num_classes)))
    )
    found = {"mean": matrix.mean_iou().item()}
    if matrix.num_classes == 19:
        categories = category_iou(matrix)
        known = [value for value in categories.values() if value == value]
        found["mean of categories"] = sum(known) / max(len(known), 1)
    found |= dict(zip(names, matrix.iou().tolist(), strict=True))
    if matrix.num_classes == 19:
        found |= {f"category {name}": value for name, value in categories.items()}
    return found
