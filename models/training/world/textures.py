"""The surfaces' textures: tiles that repeat without a seam, at all their sizes in one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

SIZE = 128  # of a tile, in texels
LEVELS = 7  # each half the size of the one before
_PITCH = SIZE + 2  # a level has a border of one texel, taken from its other side
_LEFT = np.cumsum([0] + [(SIZE >> level) + 2 for level in range(LEVELS)]).tolist()

_V, _U = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2, indexing="ij")


def _noise(rng: np.random.Generator, slope: float, stretch: tuple[float, float] = (1, 1)) -> Array:
    """Periodic noise, mean 0 and deviation 1: the amplitude falls with frequency ** slope."""
    fy = np.fft.fftfreq(SIZE)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(SIZE)[None] * stretch[1]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * frequency**-slope
    values: Array = np.fft.irfft2(spectrum, (SIZE, SIZE))
    values /= values.std()
    return values


def _rough(level: float, contrast: float, slope: float = 0.8) -> Callable[..., Array]:
    return lambda rng: level + contrast * _noise(rng, slope)


def _paving(rng: np.random.Generator) -> Array:
    joints = (np.minimum(_U * 4 % 1, _V * 4 % 1) < 0.06) * 0.18
    return 0.66 + 0.05 * _noise(rng, 0.7) - joints


def _bricks(rng: np.random.Generator) -> Array:
    row = np.floor(_V * 12)
    joints = (np.minimum((_U * 6 + 0.5 * (row % 2)) % 1 * 2, _V * 12 % 1) < 0.14) * 0.2
    return 0.72 + 0.08 * _noise(rng, 0.6) - joints


def _facade(rng: np.random.Generator) -> Array:
    """One window in a wall."""
    left, top = rng.uniform(0.15, 0.3, 2)
    right, bottom = rng.uniform(0.65, 0.85, 2)
    wall = 0.75 + 0.07 * _noise(rng, 0.9)
    frame = (_U > left - 0.05) & (_U < right + 0.05) & (_V > top - 0.05) & (_V < bottom + 0.05)
    glass = (_U > left) & (_U < right) & (_V > top) & (_V < bottom)
    glass &= (np.abs(_U - 0.5 * (left + right)) > 0.02) & (np.abs(_V - 0.45) > 0.015)
    return np.where(glass, 0.28 + 0.06 * _noise(rng, 1.4), np.where(frame, 0.95, wall))


def _fence(rng: np.random.Generator) -> Array:
    bars = (np.abs(_U * 8 % 1 - 0.5) < 0.22) | (np.abs(_V * 2 % 1 - 0.2) < 0.05)
    return np.where(bars, 0.85 + 0.05 * _noise(rng, 0.8), 0.3)


def _leaves(rng: np.random.Generator) -> Array:
    return 0.6 + 0.17 * np.tanh(_noise(rng, 0.9)) + 0.1 * _noise(rng, 0.3)


def _clouds(rng: np.random.Generator) -> Array:
    return 0.82 + 0.14 * np.tanh(_noise(rng, 1.5))


def _bark(rng: np.random.Generator) -> Array:
    return 0.6 + 0.12 * _noise(rng, 0.8, (0.2, 1.0))


def _glass(rng: np.random.Generator) -> Array:
    return 0.5 + 0.14 * np.tanh(_noise(rng, 1.3))


def _cloth(rng: np.random.Generator) -> Array:
    return 0.75 + 0.07 * _noise(rng, 0.6) + 0.12 * (np.sin(2 * np.pi * 3 * _V) > 0.3)


def _wheel(rng: np.random.Generator) -> Array:
    radius, angle = np.hypot(_U - 0.5, _V - 0.5), np.arctan2(_V - 0.5, _U - 0.5)
    spokes = (radius < 0.3) & (np.cos(5 * angle) > -0.2)
    return np.where(spokes, 0.75, 0.2) + 0.03 * _noise(rng, 0.6)


def _windows(rng: np.random.Generator) -> Array:
    """A part of a bus's side: a broad pane above painted metal."""
    pane = (_U > 0.08) & (_U < 0.92) & (_V > 0.12) & (_V < 0.52)
    return np.where(pane, 0.22, 0.85) + 0.04 * _noise(rng, 1.1)


def _sign(rng: np.random.Generator) -> Array:
    """White with a coloured border and a mark: red, green and blue differ."""
    radius = np.maximum(np.abs(_U - 0.5), np.abs(_V - 0.5)) * 0.5 + np.hypot(_U - 0.5, _V - 0.5)
    ring = (radius > 0.5)[..., None] * np.array([0.1, 0.8, 0.85])
    width, height = rng.uniform(0.06, 0.2, 2)
    mark = (np.abs(_U - 0.5) < width) & (np.abs(_V - 0.5) < height)
    colour: Array = 0.95 - ring - 0.75 * mark[..., None]
    return colour + 0.02 * _noise(rng, 0.7)[..., None]


#: By name, how a tile is drawn: `[SIZE, SIZE]` (grey) or `[SIZE, SIZE, 3]`, around 0..1.
TILES: dict[str, Callable[[np.random.Generator], Array]] = {
    "asphalt": _rough(0.5, 0.07, 0.7),
    "paving": _paving,
    "stone": _rough(0.7, 0.06),
    "bricks": _bricks,
    "facade0": _facade,
    "facade1": _facade,
    "facade2": _facade,
    "facade3": _facade,
    "fence": _fence,
    "metal": _rough(0.8, 0.04, 1.2),
    "paint": _rough(0.85, 0.05, 1.5),
    "leaves": _leaves,
    "grass": _rough(0.55, 0.1, 0.5),
    "clouds": _clouds,
    "bark": _bark,
    "glass": _glass,
    "cloth": _cloth,
    "skin": _rough(0.8, 0.04, 1.0),
    "wheel": _wheel,
    "windows": _windows,
    "sign0": _sign,
    "sign1": _sign,
}
NUMBER = {name: number for number, name in enumerate(TILES)}


class Atlas:
    """All tiles with all their levels, float32 `[1, 3, height, width]`: tiles lie below each other,
    their levels side by side."""

    def __init__(self, rng: np.random.Generator) -> None:
        image = torch.zeros(1, 3, _PITCH * len(TILES), _LEFT[-1])
        for number, draw in enumerate(TILES.values()):
            drawn: NDArray[Any] = draw(rng)
            drawn = np.broadcast_to(drawn.reshape(SIZE, SIZE, -1), (SIZE, SIZE, 3))
            tile = torch.from_numpy(drawn.clip(0, 1)).permute(2, 0, 1)[None].float()
            for level in range(LEVELS):
                side = (SIZE >> level) + 2
                top, left = number * _PITCH, _LEFT[level]
                bordered = F.pad(tile, (1, 1, 1, 1), mode="circular")
                image[..., top : top + side, left : left + side] = bordered
                tile = F.avg_pool2d(tile, 2)
        self.image = image

    def sample(self, number: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Colours `[3, H, W]`, linear between texels and between levels.

        Args:
            number: of the tile, float32 `[H, W]`, as all of them.
            u, v: in tiles; only their fractions count.
            level: 0 is full size; between levels are fractions.
        """
        u, v = u - u.floor(), v - v.floor()
        level = level.clamp(0, LEVELS - 1.001)
        lower = level.floor()
        share = level - lower
        fine, coarse = (self._at(number, u, v, lower + step) for step in (0, 1))
        return fine.lerp_(coarse, share)

    def _at(self, number: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        height, width = self.image.shape[2:]
        side = SIZE * torch.exp2(-level)
        left = 2 * (SIZE - side + level)  # (_LEFT, of the level)
        x = (u * side + (left + 0.5)) * (2 / (width - 1)) - 1
        y = (v * side + (number * _PITCH + 0.5)) * (2 / (height - 1)) - 1
        grid = torch.stack((x, y), -1)[None]
        return F.grid_sample(self.image, grid, align_corners=True)[0]
