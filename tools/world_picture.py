#!/usr/bin/env python3
"""Draws docs/generated-world.png: frames of generated streets, their labels and their motion.

python tools/world_picture.py          (with the package and its extra `models` installed)
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from vsegops.models.training.classes import label_picture
from vsegops.models.training.world import World
from vsegops.models.video.pictures import annotate, flow_picture, mosaic

TARGET = Path(__file__).resolve().parent.parent / "docs" / "generated-world.png"
SIZE = (192, 384)
STREETS = ((5, 36), (8, 30), (2, 20))  # seed and frame
LARGEST = 12.0  # flow, in pixels a frame, that is fully saturated


def main() -> None:
    rows = []
    for seed, index in STREETS:
        frame = World(seed, SIZE, length=index + 1)[index]
        flow = flow_picture(-frame.flow, frame.valid, largest=LARGEST)
        rows.append([frame.image.clone(), label_picture(frame.labels), flow])
    for picture, text in zip(
        rows[0], ("frame", "labels", "motion; grey: not seen in the frame before"), strict=True
    ):
        annotate(picture, text)
    picture = Image.fromarray(mosaic(rows).numpy())
    palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(
        TARGET, optimize=True
    )
    print(f"{TARGET.relative_to(TARGET.parent.parent)}: {TARGET.stat().st_size // 1000} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
