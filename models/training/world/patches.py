"""What the world is made of: flat patches in space, and figures put together from them.

A patch is the part of a plane `o + u * a + v * b`, with its outline given in u and v between -1 and
1. x points to the right, y up and z along the street, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..classes import CITYSCAPES, IGNORED
from .textures import NUMBER

Array = NDArray[Any]

#: Outlines. Leaves: an ellipse with an irregular border; taper: narrow at the top (v = -1).
QUAD, ELLIPSE, RING, LEAVES, TAPER = range(5)

#: Cityscapes' train ids; `void` belongs to no class.
LABEL = {name: number for number, name in enumerate(CITYSCAPES)} | {"void": IGNORED}


@dataclass
class Patches:
    """K patches.

    Attributes:
        frame: `[K, 3, 3]`, whose columns are a, b and o.
        width: `[K]`: of a ribbon, which turns about its own b to face the camera, half the length
            that its a then has; 0 for a patch that does not turn.
        outline, label, tile: `[K]`.
        closed: `[K]`: part of a closed body, so that its back (against a x b) is never seen.
        tint: `[K, 3]`, times the texture.
        repeat, offset: `[K, 2]`, in tiles: how many of them there are along u and v, and the first
            one's place.
        key: `[K]`: what a patch is known by in other frames.
    """

    frame: Array
    width: Array
    outline: Array
    label: Array
    tile: Array
    closed: Array
    tint: Array
    repeat: Array
    offset: Array
    key: Array

    def __len__(self) -> int:
        return len(self.key)

    @staticmethod
    def join(parts: list[Patches]) -> Patches:
        names = [field.name for field in fields(Patches)]
        return Patches(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    def placed(self, x: float, z: float, heading: float, key: int) -> Patches:
        """Turned about the vertical (0 looks along the street), moved, and known by other keys."""
        sine, cosine = np.sin(heading), np.cos(heading)
        turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        frame = turn @ self.frame
        frame[:, :, 2] += (x, 0, z)
        changed = {"frame": frame, "key": key + np.arange(len(self))}
        return Patches(**{**self.__dict__, **changed})


class Builder:
    """Collects patches one by one; keys count from 0."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._rows: list[tuple[Any, ...]] = []

    def patch(
        self,
        o: ArrayLike,
        a: ArrayLike,
        b: ArrayLike,
        label: str,
        tile: str,
        tint: ArrayLike = (1, 1, 1),
        *,
        texel: float | None = 2.0,
        outline: int = QUAD,
        closed: bool = False,
        width: float = 0.0,
        aligned: bool = False,
    ) -> None:
        """`texel`: the length of a tile, in metres; None: one tile over the whole patch. `aligned`:
        the first one begins at the corner, not anywhere."""
        frame = np.stack([np.asarray(a, float), np.asarray(b, float), np.asarray(o, float)], 1)
        repeat, offset = np.full(2, 1.0), np.zeros(2)
        if texel is not None:
            lengths = np.linalg.norm(frame[:, :2], axis=0)
            repeat = 2 * np.maximum(lengths, [width, 0]) / texel
            offset = np.zeros(2) if aligned else self.rng.random(2)
        row = (frame, width, outline, LABEL[label], NUMBER[tile], closed, tint, repeat, offset)
        self._rows.append(row)

    def ribbon(
        self,
        start: ArrayLike,
        end: ArrayLike,
        width: float,
        label: str,
        tile: str,
        tint: ArrayLike = (1, 1, 1),
        *,
        texel: float | None = 0.5,
        outline: int = QUAD,
    ) -> None:
        """From one point to another, `width` broad, facing the camera."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        self.patch(
            (start + end) / 2,
            (0, 0, 0),
            (end - start) / 2,
            label,
            tile,
            tint,
            texel=texel,
            outline=outline,
            width=width / 2,
        )

    def box(
        self,
        centre: ArrayLike,
        size: ArrayLike,
        label: str,
        tile: str,
        tint: ArrayLike = (1, 1, 1),
        *,
        texel: float = 2.0,
        faces: str = "left right front back top",
        outline: int = QUAD,
        aligned: bool = False,
    ) -> None:
        """`outline` is that of the faces at the sides."""
        centre = np.asarray(centre, float)
        x, y, z = np.diag(np.asarray(size, float) / 2)
        sides = {
            "left": (-x, -z, -y, outline),
            "right": (x, z, -y, outline),
            "front": (z, -x, -y, QUAD),
            "back": (-z, x, -y, QUAD),
            "top": (y, x, -z, QUAD),
        }
        for name in faces.split():
            o, a, b, shape = sides[name]
            self.patch(
                centre + o,
                a,
                b,
                label,
                tile,
                tint,
                texel=texel,
                outline=shape,
                closed=True,
                aligned=aligned,
            )

    def finish(self, key: int = 0) -> Patches:
        columns = [np.array(column) for column in zip(*self._rows, strict=True)]
        columns.append(key + np.arange(len(self._rows)))
        return Patches(*columns)
