"""The clip that the demo shows: real footage where it can be fetched, else a generated scene.

Nothing is shipped with the package. The real clip, a motorway with many moving cars (854x480,
30 frames a second, one shot), is an asset of the package `pycsr-cv` (MIT licence): it is fetched
by pip as that package, checked against its SHA-256 and cached.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..fetch import Unavailable, cache_folder, fetch
from .transcode import encode

PACKAGE = "pycsr-cv==1.0.0"
MEMBER = "pycsr_cv/assets/sample_car_video.mp4"
SHA256 = "c58edcc8e509472026b7f12ee6d4809f179259a88d9af5cb548dd429f88701ad"


class Clip(NamedTuple):
    """A video file and what it shows."""

    path: Path
    title: str


def demo_clip(frames: int = 120) -> Clip:
    """The motorway, or where it cannot be had a generated clip of `frames` frames; says which.

    Example:
        >>> demo_clip().path.suffix  # doctest: +SKIP
        '.mp4'
    """
    try:
        return Clip(motorway(), "motorway (pycsr-cv 1.0.0)")
    except Unavailable as reason:
        print(f"The real clip is not available ({reason}).")
        print("A generated scene takes its place; its figures say nothing about real footage.")
    path = cache_folder() / f"generated-{frames}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{os.getpid()}-{path.name}")
        generate(partial, frames=frames)
        partial.replace(path)
    return Clip(path, "generated scene")


def motorway() -> Path:
    """The real clip's file, fetched on first use.

    Raises:
        Unavailable: there is no network, pip fails, or the content is not the expected one.
    """
    return fetch(PACKAGE, MEMBER, SHA256)


# The generated scene: three layers that pan at the speed of their distance, and vehicles between
# them that drive, sway and turn, all at fractions of a pixel.


def generate(
    path: str | os.PathLike[str],
    *,
    frames: int = 120,
    height: int = 480,
    width: int = 854,
    seed: int = 0,
) -> None:
    """Write a clip of a textured scene with independently moving objects; deterministic.

    Args:
        path: the file to write, MPEG-4 Part 2.
        frames: how many, at 30 a second.
        height, width: of a frame, in pixels.
        seed: of the scene.

    Example:
        >>> generate("scene.mp4", frames=24)  # doctest: +SKIP
    """
    scene = _Scene(height, width, np.random.default_rng(seed))
    images = (
        (scene.at(index).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        for index in range(frames)
    )
    encode(images, path, rate=30, gop=60, quantizer=2, options={"b": "20000000"})


class _Scene:
    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width = height, width
        # Texture, top and bottom edge (parts of the height), speed (widths per frame).
        colours = [((0.45, 0.65, 0.9), 0.15), ((0.3, 0.45, 0.25), 0.5), ((0.4, 0.4, 0.42), 0.3)]
        spans = [(0.0, 0.45, 0.0004), (0.32, 0.6, 0.0013), (0.55, 1.0, 0.0042)]
        self.layers = [
            (
                _texture(rng, int((bottom - top) * height) + 1, 2 * width, colour, contrast),
                int(top * height),
                speed * width,
            )
            for (colour, contrast), (top, bottom, speed) in zip(colours, spans, strict=True)
        ]
        self.vehicles = []
        for place in np.linspace(0.56, 0.86, 7):  # far to near, painted in that order
            tall = int(height * (0.05 + 0.35 * (place - 0.5)))
            wide = int(tall * rng.uniform(1.5, 2.6))
            colour = tuple(rng.uniform(0.15, 0.9, 3))
            speed = rng.choice([-1, 1]) * rng.uniform(0.004, 0.012) * width
            start = rng.uniform(0, width)
            sprite = _vehicle(_texture(rng, tall, wide, colour, 0.5))
            self.vehicles.append((sprite, start, speed, place * height, rng.uniform(0, 6)))

    def at(self, time: float) -> Tensor:
        """float32 `[3, H, W]` in 0..1."""
        canvas = torch.zeros(3, self.height, self.width)
        for texture, top, speed in self.layers:
            shift = (time * speed) % self.width
            rows = texture.shape[1]
            view = _sample(texture, 0.0, shift, min(rows, self.height - top), self.width)
            canvas[:, top : top + rows] = view
        for sprite, start, speed, y, phase in self.vehicles:
            _, tall, wide = sprite.shape
            x = (start + time * speed) % (self.width + 2 * wide) - wide
            self._paint(canvas, sprite, x, y + 0.04 * tall * np.sin(0.2 * time + phase))
        return canvas

    def _paint(self, canvas: Tensor, sprite: Tensor, x: float, y: float) -> None:
        """Blend a sprite (RGB and opacity) with its top left corner at the real number (x, y)."""
        left, top = int(np.floor(x)), int(np.floor(y))
        view = _sample(sprite, top - y, left - x, sprite.shape[1] + 1, sprite.shape[2] + 1)
        rows = slice(max(-top, 0), min(view.shape[1], self.height - top))
        columns = slice(max(-left, 0), min(view.shape[2], self.width - left))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        view = view[:, rows, columns]
        target = canvas[
            :, top + rows.start : top + rows.stop, left + columns.start : left + columns.stop
        ]
        target.lerp_(view[:3], view[3:])


def _sample(image: Tensor, y: float, x: float, height: int, width: int) -> Tensor:
    """The window of `image` at the real number (y, x); zero outside."""
    rows, columns = image.shape[1:]
    v = (torch.arange(height) + y + 0.5) * 2 / rows - 1
    u = (torch.arange(width) + x + 0.5) * 2 / columns - 1
    grid = torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(image[None], grid[None].float(), align_corners=False)[0]


def _texture(
    rng: np.random.Generator,
    height: int,
    width: int,
    colour: tuple[float, ...],
    contrast: float,
) -> Tensor:
    """Noise of several octaves around a colour: `[3, height, width]`."""
    total = torch.zeros(3, height, width)
    for octave, weight in ((64, 0.35), (24, 0.25), (9, 0.2), (4, 0.2), (2, 0.15)):
        grid = rng.standard_normal((1, 3, height // octave + 2, width // octave + 2))
        noise = torch.from_numpy(0.7 * grid[:, :1] + 0.3 * grid).float()  # mostly grey
        total += weight * F.interpolate(noise, (height, width), mode="bicubic")[0]
    return (torch.tensor(colour).float()[:, None, None] * (1 + contrast * total)).clamp(0, 1)


def _vehicle(texture: Tensor) -> Tensor:
    """A body with a band of windows and a soft round outline: RGB and opacity `[4, h, w]`."""
    _, height, width = texture.shape
    v = torch.linspace(-1, 1, height)[:, None]
    u = torch.linspace(-1, 1, width)
    windows = ((v + 0.4).abs() < 0.22) & (u.abs() < 0.75) & ((u * 4).frac().abs() > 0.12)
    wheels = (v > 0.72) & ((u.abs() - 0.6).abs() < 0.2)
    body = torch.where(windows, 0.25 + 0.2 * texture, texture)
    body = torch.where(wheels, 0.08 * torch.ones(3, 1, 1), body)
    opacity = ((1 - v.abs() ** 6 - u.abs() ** 6) * 8).clamp(0, 1)
    return torch.cat([body, opacity[None]])
