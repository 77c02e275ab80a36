"""What `vsegops segment` writes of a video: a picture of each frame, labels, a strip of frames."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..palette import Palette
from ..video.overlay import add_legend, add_mark, overlay
from ..video.pictures import mosaic, strip
from ..video.segmenter import Segmented
from ..video.writer import VideoWriter, save_labels, save_png

#: Frames of a strip.
STRIP = 6


class Outputs:
    """Takes the frames of one video in order; leaving the context completes what was written.

    Args:
        palettes: of each model that segments the video.
        titles: their names, in the pictures of two; empty for one.
        rate: frames per second of the video.
        opacity: of the colours.
        video: the file for the pictures, or None.
        labels: the folder for the labels (of the first model), or None.
        strip: the file for the strip, or None.
    """

    def __init__(
        self,
        palettes: Sequence[Palette],
        titles: Sequence[str],
        rate: Fraction | None,
        *,
        opacity: float,
        video: Path | None = None,
        labels: Path | None = None,
        strip: Path | None = None,
    ) -> None:
        self._palettes, self._titles, self._opacity = palettes, titles, opacity
        self._strip_path, self._shown, self._step = strip, list[tuple[int, Tensor]](), 1
        self._labels, self._open = labels, ExitStack()
        self.paths = [path for path in (video, labels, strip) if path is not None]
        for path in self.paths:
            (path if path is labels else path.parent).mkdir(parents=True, exist_ok=True)
        self._video = self._open.enter_context(VideoWriter(video, rate)) if video else None

    def add(self, results: Sequence[Segmented]) -> None:
        """A frame, as each of the models sees it."""
        index = results[0].index
        if self._labels is not None:
            save_labels(results[0].labels, self._labels / f"{index:06}.png", self._palettes[0])
        wanted = self._strip_path is not None and index % self._step == 0
        if self._video is None and not wanted:
            return
        picture = self._picture(results)
        if self._video is not None:
            self._video.write(picture)
        if wanted:
            self._shown.append((index, picture))
            if len(self._shown) > 2 * STRIP:  # however long the video is
                self._step *= 2
                self._shown = [x for x in self._shown if x[0] % self._step == 0]

    def _picture(self, results: Sequence[Segmented]) -> Tensor:
        pictures = []
        titles = self._titles or [""]
        for result, palette, title in zip(results, self._palettes, titles, strict=True):
            picture = overlay(result.frame, result.labels, palette, opacity=self._opacity)
            add_legend(picture, result.labels, palette)
            pictures.append(add_mark(picture, result.index, result.is_key, title))
        return mosaic([pictures])

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self._strip_path is not None and self._shown:
            places = torch.linspace(0, len(self._shown) - 1, min(STRIP, len(self._shown)))
            pictures = [self._shown[round(x)][1] for x in places.tolist()]
            save_png(strip(pictures), self._strip_path)
