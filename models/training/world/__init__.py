"""A street to drive along: frames with exact labels and exact motion, from nothing but a seed.

A camera follows a street of the 19 classes of Cityscapes. Vehicles drive, figures walk and ride and
swing their limbs; poles, signs and limbs are thin; light and view change; things hide each other.
Everything is made of textured patches of planes (`patches`), so that labels and flow are what they
are by geometry, not by estimation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsegops._checks import error

from ...video.transcode import encode
from . import raster, street, traffic
from .patches import Array, Patches
from .textures import Atlas

__all__ = ["RATE", "World", "WorldFrame", "write_clip"]

#: Frames per second, as in Cityscapes.
RATE = 17


class WorldFrame(NamedTuple):
    """A frame, and what is known of it.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        labels: uint8 `[H, W]`, train ids of Cityscapes; 255 where no class applies.
        flow: float32 `[2, H, W]`, backward, in pixels: the point at p was at p + flow(p) in the
            frame before.
        valid: bool `[H, W]`: it could be seen there. Where it could not (hidden, outside, behind
            the camera) flow still tells where it was; where there was no such point, it is 0.
        surface: int64 `[H, W]`: a number of the flat part that is seen; the same in all frames.
    """

    image: Tensor
    labels: Tensor
    flow: Tensor
    valid: Tensor
    surface: Tensor


class _Geometry(NamedTuple):
    patches: Patches
    matrices: Array
    inverses: Array
    shown: Array


class World:
    """The street of a seed, as a sequence of frames.

    Any frame can be asked for, from 0 on; one after the other is fastest. The same seed, size and
    index give the same frame.

    Args:
        seed: of the street and all in it.
        size: height and width of the frames.
        length: what `len` says, and where iteration ends. (There is a street behind it.)

    Example:
        >>> world = World(7, (64, 128), length=3)
        >>> [tuple(frame.image.shape) for frame in world]
        [(64, 128, 3), (64, 128, 3), (64, 128, 3)]
    """

    def __init__(self, seed: int, size: tuple[int, int] = (256, 512), length: int = 30) -> None:
        if len(size) != 2 or min(size) < 16:
            raise error("size", "a height and a width, at least 16 each", size)
        if length < 1:
            raise error("length", "at least 1", length)
        self.seed, self.size, self.length = seed, (int(size[0]), int(size[1])), length
        rng = np.random.default_rng([seed, 1])
        self._atlas = Atlas(rng)
        self._drive = traffic.Drive(rng)
        self._traffic = traffic.Traffic(seed, self._drive)
        self._sun = rng.uniform(0.15, 0.4), rng.uniform(0, 2 * np.pi), rng.uniform(60, 140)
        self._tone = rng.uniform((0.94, 0.98, 0.94), (1.06, 1.0, 1.06))
        self._blocks: dict[int, Patches] = {}
        self._recent: dict[int, _Geometry] = {}

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[WorldFrame]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: int) -> WorldFrame:
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        before, now = self._geometry(index - 1), self._geometry(index)
        self._recent = {index - 1: before, index: now}
        patches, shown = now.patches, torch.from_numpy(now.shown).long()
        # The same patches in the frame before; where there is none, the motion is zero.
        order = np.argsort(before.patches.key)
        place = np.searchsorted(before.patches.key, patches.key, sorter=order)
        former = order[place.clip(max=len(order) - 1)]
        known = before.patches.key[former] == patches.key
        changes = np.where(known[:, None, None], before.matrices[former] @ now.inverses, np.eye(3))
        flow, ahead = raster.motion(shown, changes)
        former_shown = torch.from_numpy(np.where(known, former, -1))[shown]
        valid = ahead & _seen(torch.from_numpy(before.shown), former_shown, flow)
        image = raster.colours(
            shown, now.inverses, patches, self._atlas, self._light(index, patches)
        )
        return WorldFrame(
            image.mul_(255).round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous(),
            torch.from_numpy(patches.label.astype(np.uint8))[shown],
            flow,
            valid,
            torch.from_numpy(patches.key)[shown],
        )

    def _geometry(self, index: int) -> _Geometry:
        if index in self._recent:
            return self._recent[index]
        time = index / RATE
        position, rotation = self._drive.pose(time)
        camera = raster.Camera(self.size, position, rotation)
        patches = Patches.join(
            [traffic.backdrop(position), *self._street(position[2]), *self._traffic.at(time)]
        )
        matrices = camera.matrices(patches)
        drawn = camera.faces(patches)
        drawn[0] = False  # the sky is behind everything
        inverses = _inverted(matrices)
        shown = raster.nearest(matrices, inverses, patches, drawn, self.size)
        return _Geometry(patches, matrices, inverses, shown)

    def _street(self, z: float) -> list[Patches]:
        first = int((z - 4) // street.LENGTH)
        wanted = range(first, first + int(traffic.SIGHT // street.LENGTH) + 1)
        self._blocks = {
            number: self._blocks.get(number) or street.block(self.seed, number) for number in wanted
        }
        return list(self._blocks.values())

    def _light(self, index: int, patches: Patches) -> Array:
        """Of each patch, `[K, 3]`: the sun by its direction, clouds over time."""
        share, angle, period = self._sun
        a, b = patches.frame[:, :, 0], patches.frame[:, :, 1]
        normal = np.cross(a, b)
        length = np.linalg.norm(normal, axis=1)
        sun = np.array([0.6 * np.cos(angle), 0.7, 0.6 * np.sin(angle)])
        slope = np.abs(normal @ sun) / np.maximum(length, 1e-9)
        slope = np.where(patches.width > 0, 0.5, slope)  # ribbons are round
        slope[0] = 1
        cloud = 1 + 0.18 * np.sin(2 * np.pi * index / period + angle)
        light: Array = (1 - share + share * slope)[:, None] * (cloud * self._tone)
        return light


def _inverted(matrices: Array) -> Array:
    """Inverses; of a patch that is seen from its edge, zero, so that no pixel is inside it."""
    determinants = np.linalg.det(matrices)
    flat = np.abs(determinants) < 1e-9
    safe = np.where(flat[:, None, None], np.eye(3), matrices)
    return np.where(flat[:, None, None], 0.0, np.linalg.inv(safe))


def _seen(shown: Tensor, wanted: Tensor, flow: Tensor) -> Tensor:
    """Whether the pixel nearest to where flow leads shows the patch that is wanted there."""
    height, width = shown.shape
    x = (torch.arange(width) + flow[0]).round()
    y = (torch.arange(height)[:, None] + flow[1]).round()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at = (y * width + x).where(inside, 0).long()
    return inside & (shown.take(at) == wanted)


def write_clip(
    world: World,
    path: str | os.PathLike[str],
    frames: int | None = None,
    *,
    gop: int = 12,
    quantizer: int = 4,
) -> None:
    """Write a world as MPEG-4 Part 2, whose motion and residuals `CodecReader` reads.

    Args:
        world: whose frames.
        path: of the file; its ending names the container.
        frames: how many, from the first; None: all.
        gop: frames from one key frame to the next.
        quantizer: fixed, from 1 (best) to 31.

    Example:
        >>> write_clip(World(7, length=30), "street.mp4")  # doctest: +SKIP
    """
    count = len(world) if frames is None else frames
    images = (world[index].image for index in range(count))
    encode(images, path, rate=RATE, gop=gop, quantizer=quantizer)
