#!/usr/bin/env python3
"""Draws docs/demo.png, the README's picture: the demo on its generated scene.

    python tools/readme_picture.py          (with the package and its extra `models` installed)

Generated, because footage does not belong into the repository. The picture is reduced to 256
colours and to a width that a page shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from vsegops.models.video import demo
from vsegops.models.video.clips import Clip, generate

TARGET = Path(__file__).resolve().parent.parent / "docs" / "demo.png"
WIDTH = 1200
FRAMES = 36


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = Clip(Path(folder) / "scene.mp4", "generated scene")
        generate(clip.path, frames=FRAMES)
        demo.run(clip, FRAMES, Path(folder), demo.Caller())
        picture = Image.open(Path(folder) / "prediction.png").convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    TARGET.parent.mkdir(exist_ok=True)
    palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    picture = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    picture.save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(TARGET.parent.parent)}: {TARGET.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
