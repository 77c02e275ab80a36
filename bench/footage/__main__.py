"""`python -m bench.footage`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsegops.models import ImageModel, VideoModel, load_upstream
from vsegops.models.palette import CITYSCAPES, Palette
from vsegops.models.training import checkpoint, datasets, tasks
from vsegops.models.training.evaluate import (
    clip_for,
    evaluate_images,
    evaluate_video,
    step_through,
)
from vsegops.models.training.recipe import Data, Recipe, differences
from vsegops.models.training.recipes import RECIPES
from vsegops.models.video.overlay import overlay
from vsegops.models.video.pictures import annotate, mosaic
from vsegops.models.video.writer import save_png
from vsegops.nn import ConfusionMatrix

from .. import footage
from ..environment import environment, start_with_allocator
from ..papers.pool import train_all
from ..papers.speed import measure, over_interval
from ..report import number, table
from .data import SIZE, prepare
from .teacher import CLASSES

BENCH = Path(__file__).parent.parent
RESULTS = BENCH / "results" / "footage.json"
RUNS = Path("runs") / "footage"
PICTURES = BENCH / "output" / "footage"

DATA = Data("clips", str(RUNS / "data"))


def _recipe(name: str, **changes: Any) -> Recipe:
    """One for streets, on footage instead."""
    of_streets = RECIPES[name]
    data = replace(DATA, before=of_streets.data.before)
    return replace(of_streets, data=data, num_classes=len(CLASSES), **changes)


LITE, KEYFRAME = "sfnet_lite", "twnet_keyframe"
STUDENTS: Mapping[str, Recipe] = {
    LITE: _recipe("sfnet_lite_streets", steps=700, crop=(192, 320)),
    KEYFRAME: _recipe("twnet_keyframe_streets", steps=700, crop=(192, 320)),
    "gsvnet": _recipe("gsvnet_streets", steps=300, batch=4, parts={"keyframe": LITE}),
    "twnet": _recipe("twnet_streets", steps=400, batch=4, parts={"keyframe": KEYFRAME}),
}
#: Of each video model the network that segments every frame alone, and the frames it carries over.
CARRIED = {"gsvnet": (LITE, 5), "twnet": (KEYFRAME, 12)}
LONGEST = max(count for _, count in CARRIED.values())

PALETTE = Palette(
    CLASSES, ((0, 0, 0), *(CITYSCAPES.colours[i] for i in (11, 18, 13, 9)))
)  # what is background stays as it is


def finished(name: str) -> bool:
    """There are weights of this recipe, and of those that it is built on."""
    recipe, folder = STUDENTS[name], RUNS / name
    if not (folder / checkpoint.WEIGHTS).exists():
        return False
    if changes := differences(recipe, (folder / "recipe.json").read_text()):
        raise SystemExit(f"{folder} is of another recipe ({'; '.join(changes)}); remove it")
    return all(map(finished, recipe.parts.values()))


def trained(name: str) -> Any:
    model = tasks.build_model(STUDENTS[name])
    load_upstream(model, RUNS / name / checkpoint.WEIGHTS)
    return model.eval()


def judge(image_model: ImageModel, model: VideoModel, distances: int) -> dict[str, Any]:
    """Mean IoUs on the held-out parts, by the teacher, and on labelme's street, by people.

    Held out are the same frames for all models; of the street the four after the first.
    """
    held_out = _samples("val", LONGEST - 1)
    carried = evaluate_video(model, [clip_for(model, x) for x in held_out], distances)
    alone = evaluate_images(image_model, held_out)
    # The frame so many after the first is the first that has so many before it.
    street = [_samples("street", distance)[0] for distance in range(1, 5)]
    after = ConfusionMatrix(len(CLASSES))
    for distance, sample in enumerate(street, 1):
        labels = step_through(model, clip_for(model, sample), distance)
        after.update(labels, sample.labels[None])
    return {
        "frames": len(held_out),
        "alone": alone.mean_iou().item(),
        "alone, classes": dict(zip(CLASSES, alone.iou().tolist(), strict=True)),
        "average": carried.average(),
        "average, classes": dict(zip(CLASSES, carried.together().iou().tolist(), strict=True)),
        "minimum": carried.minimum(),
        "curve": carried.curve(),
        "street, alone": evaluate_images(image_model, street).mean_iou().item(),
        "street, carried": after.mean_iou().item(),
    }


def _samples(split: str, before: int) -> list[datasets.Sample]:
    found = datasets.clips(DATA.root, split, before=range(before, 0, -1))
    return [found[index] for index in range(len(found))]


def draw(models: Mapping[str, Any]) -> Path:
    """Rows: held-out frames. Columns: the teacher, and each way to segment them."""
    found = _samples("val", LONGEST - 1)
    rows = []
    for sample in (found[index] for index in (0, len(found) // 4, len(found) // 2, -1)):
        frame = sample.frames[-1]
        columns = [_panel(frame, sample.labels, "teacher")]
        for name, (keyframe, count) in CARRIED.items():
            model = models[name]
            labels = models[keyframe].predict(models[keyframe].preprocess(frame[None]))[0]
            columns.append(_panel(frame, labels, f"{keyframe}, this frame"))
            labels = step_through(model, clip_for(model, sample), count - 1)[0]
            columns.append(_panel(frame, labels, f"{name}, {count - 1} frames on"))
        rows.append(columns)
    PICTURES.mkdir(parents=True, exist_ok=True)
    save_png(mosaic(rows), PICTURES / "held-out.png")
    return PICTURES / "held-out.png"


def _panel(frame: Tensor, labels: Tensor, text: str) -> Tensor:
    return annotate(overlay(frame, labels, PALETTE), text)


def show(results: Mapping[str, Any]) -> list[list[str]]:
    """A table's cells."""
    rows = [["mIoU, %", "held out", "last frame of an interval", "street", "frames a second"]]
    for name, (keyframe, count) in CARRIED.items():
        found, speed = results["accuracy"][name], results["speed"]
        rows.append(
            [
                f"{keyframe}, every frame",
                *_percent(found["alone"], None, found["street, alone"]),
                number(1e3 / speed[keyframe]["frame"]),
            ]
        )
        rows.append(
            [
                f"{name}, key frame every {count}",
                *_percent(found["average"], found["minimum"], found["street, carried"]),
                number(over_interval(speed[name], count)),
            ]
        )
    return rows


def _percent(*values: float | None) -> list[str]:
    return ["" if value is None else f"{100 * value:.1f}" for value in values]


def main(argv: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m bench.footage", None, footage.__doc__, formatter_class=layout
    )
    parser.parse_args(argv)
    prepare(Path(DATA.root))
    todo = {name: recipe for name, recipe in STUDENTS.items() if not finished(name)}
    for done in train_all(todo, RUNS):
        print(f"{done.name}: {done.minutes:.1f} minutes")
    models = {name: trained(name) for name in STUDENTS}
    torch.set_num_threads(1)
    results = {
        "environment": environment(),
        "size": SIZE,
        "accuracy": {
            name: judge(models[keyframe], models[name], count)
            for name, (keyframe, count) in CARRIED.items()
        },
        "speed": measure(STUDENTS, SIZE),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    header, *rows = show(results)
    print(table(header, rows), f"written: {RESULTS}, {draw(models)}", sep="\n\n")
    return 0


if __name__ == "__main__":
    start_with_allocator("bench.footage")
    sys.exit(main())
