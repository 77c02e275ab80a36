"""How the demo ends: TWNet with the weights that ship, on the clip and on a generated street."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from vsegops.nn import ConfusionMatrix

from ..palette import CITYSCAPES
from ..registry import create_model
from ..training.world import World, write_clip
from .overlay import add_legend, add_mark, colour_picture, overlay
from .pictures import annotate, mosaic
from .segmenter import Report, Segmented, VideoSegmenter
from .writer import VideoWriter

NETWORK = "twnet_mobilenetv1_x0_5"
#: A street that the weights were not trained on, and how much of it.
STREET, FRAMES = 2_000_003, 48


def segment(path: Path, output: Path) -> Report:
    """A video as overlays with legend and marks of key frames."""
    segmenter = VideoSegmenter(create_model(NETWORK, weights="streets"))
    frames = segmenter.open(path)
    with VideoWriter(output, frames.rate) as video:
        for result in _shown(segmenter(frames), frames.length, "TWNet"):
            picture = overlay(result.frame, result.labels, CITYSCAPES)
            add_legend(picture, result.labels, CITYSCAPES)
            video.write(add_mark(picture, result.index, result.is_key))
    return segmenter.report


def segment_street(output: Path, frames: int = FRAMES) -> float:
    """The same of a generated street, whose labels are known; returns the mean IoU."""
    world = World(STREET, length=frames)
    segmenter = VideoSegmenter(create_model(NETWORK, weights="streets"))
    matrix = ConfusionMatrix(19)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "street.mp4"
        write_clip(world, path)
        source = segmenter.open(path)
        with VideoWriter(output, source.rate) as video:
            for result in _shown(segmenter(source), frames, "a generated street"):
                truth = world[result.index].labels
                matrix.update(result.labels[None], truth[None])
                video.write(_one_above_the_other(result, truth))
    return matrix.mean_iou().item()


def _one_above_the_other(result: Segmented, truth: Tensor) -> Tensor:
    ours = overlay(result.frame, result.labels, CITYSCAPES)
    add_mark(ours, result.index, result.is_key)
    return mosaic([[ours], [annotate(colour_picture(truth, CITYSCAPES), "as it was generated")]])


def _shown(results: Iterator[Segmented], total: int | None, title: str) -> Iterator[Segmented]:
    yield from tqdm(results, total=total, desc=title, unit=" frames", disable=None)
