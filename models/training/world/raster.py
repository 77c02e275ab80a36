"""Patches to pixels: which patch is nearest at each one, its colour, and where it came from.

With M the matrix whose columns are a patch's a, b, o in the camera's coordinates, and d = (x, y,
1) the ray of a pixel, `M (u, v, 1) = z d`. So `inverse(M) d = (u, v, 1) / z`: three linear
functions of the pixel give u, v and the depth. And the same point of the patch in the frame before
lies on the ray `M' inverse(M) d`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .patches import LEAVES, QUAD, RING, TAPER, Patches
from .textures import SIZE, Atlas

Array = NDArray[Any]

NEAR = 0.4  # metres before the camera, where everything begins
TOP_OF_TAPER = 0.55
HAZE = (0.80, 0.84, 0.88)
CLEAR = 220.0  # metres, in which haze takes all but 1/e


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        size: height and width of its pictures.
        position: `[3]`.
        rotation: `[3, 3]`, whose rows are what its pictures have to the right, downwards and ahead.
    """

    size: tuple[int, int]
    position: Array
    rotation: Array

    @property
    def intrinsics(self) -> Array:
        """Rays to pixels; the horizon of a level camera lies a little above the middle."""
        height, width = self.size
        focal = 0.9 * width
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, 0.44 * height], [0, 0, 1]])

    def matrices(self, patches: Patches) -> Array:
        """Of each patch `[K, 3, 3]`: u, v, 1 to pixels (homogeneous; the third is depth)."""
        frame = patches.frame.copy()
        turning = patches.width > 0
        if turning.any():
            b, o = frame[turning, :, 1], frame[turning, :, 2] - self.position
            a = np.cross(b, o)
            length = np.linalg.norm(a, axis=1)
            # Not less than a pixel, or thin ribbons would be dotted lines.
            least = 0.55 * np.linalg.norm(o, axis=1) / self.intrinsics[0, 0]
            scale = np.maximum(patches.width[turning], least) / np.maximum(length, 1e-9)
            frame[turning, :, 0] = a * scale[:, None]
        frame[:, :, 2] -= self.position
        matrices: Array = (self.intrinsics @ self.rotation) @ frame
        return matrices

    def faces(self, patches: Patches) -> Array:
        """bool `[K]`: not the back of a closed body."""
        a, b, o = np.moveaxis(patches.frame, 2, 0)
        towards = np.einsum("ki,ki->k", np.cross(a, b), o - self.position)
        seen: Array = ~patches.closed | (towards < 0)
        return seen


def bounds(matrices: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """What part of the picture each patch may cover: `[K, 4]`, x and y from and to (exclusive); and
    its least depth, `[K]`."""
    corners = matrices @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    following = np.roll(corners, -1, axis=2)
    z, z_next = corners[:, 2], following[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where an edge comes from behind, it begins at the near plane.
        share = (NEAR - z) / (z_next - z)
        crossing = (share > 0) & (share < 1)
        cut = corners + np.where(crossing, share, 0)[:, None] * (following - corners)
        points = np.concatenate([corners, cut], axis=2)
        seen = np.concatenate([z >= NEAR, crossing], axis=1)
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    height, width = size
    low = [np.where(seen, p, np.inf).min(1) for p in (x, y)]
    high = [np.where(seen, p, -np.inf).max(1) for p in (x, y)]
    edges = [np.ceil(low[0]), np.floor(high[0]) + 1, np.ceil(low[1]), np.floor(high[1]) + 1]
    limits = (width, width, height, height)
    clipped = [np.clip(edge, 0, most) for edge, most in zip(edges, limits, strict=True)]
    return np.stack(clipped, 1).astype(np.int64), z.min(1).clip(NEAR)


def nearest(
    matrices: Array, inverses: Array, patches: Patches, drawn: Array, size: tuple[int, int]
) -> Array:
    """The number of the patch that each pixel shows, int32 `[H, W]`; 0, the sky, where no other.

    Args:
        matrices: of the patches, from `Camera.matrices`.
        inverses: of these.
        drawn: bool `[K]`: which may be seen at all.
    """
    boxes, depths = bounds(matrices, size)
    drawn = drawn & (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])
    closest = np.zeros(size, np.float32)  # 1 / depth
    shown = np.zeros(size, np.int32)
    x, y = (np.arange(length, dtype=np.float32) for length in (size[1], size[0]))
    across, down, rest = (inverses[:, :, i, None].astype(np.float32) for i in range(3))
    most = (1.0001 / depths).tolist()
    outlines, boxes = patches.outline.tolist(), boxes.tolist()
    # The nearest first, so that most of what is hidden by others is known to be at a glance.
    for k in np.flatnonzero(drawn)[np.argsort(depths[drawn])].tolist():
        left, right, top, bottom = boxes[k]
        area = closest[top:bottom, left:right]
        if area.min() >= most[k]:
            continue
        p, q, w = (down[k] * y[top:bottom] + rest[k])[..., None] + (across[k] * x[left:right])[
            :, None
        ]
        hit = w > area
        hit &= w < np.float32(1 / NEAR)
        hit &= _inside(p, q, w, outlines[k])
        np.copyto(area, w, where=hit)
        np.copyto(shown[top:bottom, left:right], np.int32(k), where=hit)
    return shown


def _inside(p: Array, q: Array, w: Array, outline: int) -> Array:
    """Whether (u, v) = (p, q) / w is within the outline, for w > 0."""
    inside: Array
    if outline == QUAD:
        inside = np.maximum(np.abs(p), np.abs(q)) <= w
    elif outline == TAPER:
        half = 0.5 * (1 + TOP_OF_TAPER) * w + 0.5 * (1 - TOP_OF_TAPER) * q
        inside = (np.abs(p) <= half) & (np.abs(q) <= w)
    elif outline == LEAVES:
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = p / w, q / w
        # Two waves across, of an irregular phase: the border goes in and out.
        wave = np.sin(8 * u + 5 * v + 1.3) * np.sin(9 * v - 4 * u)
        wave += 0.5 * np.sin(19 * u) * np.sin(17 * v)
        inside = (u * u + v * v) * (1 + 0.35 * wave) <= 0.7
    else:
        radius, square = p * p + q * q, w * w
        inside = radius <= square
        if outline == RING:
            inside &= radius >= 0.74 * square
    return inside


def colours(
    shown: Tensor,
    inverses: Array,
    patches: Patches,
    atlas: Atlas,
    light: Array,
) -> Tensor:
    """What the camera sees, float32 `[3, H, W]` in 0..1.

    Args:
        shown: int64 `[H, W]`, the number of the patch at each pixel.
        light: `[K, 3]`, of each patch.
    """
    table = np.concatenate(
        [
            inverses.reshape(-1, 9),
            patches.repeat / 2,
            patches.repeat / 2 + patches.offset,
            patches.tile[:, None],
            patches.tint * light,
        ],
        axis=1,
    )
    gathered = _spread(table, shown)
    x, y = _axes(shown)
    p0, p1, p2, q0, q1, q2, w0, w1, w2, su, sv, ou, ov, tile, *tint = gathered
    z = (w2.addcmul_(w1, y).addcmul_(w0, x)).reciprocal_()
    u = p2.addcmul_(p1, y).addcmul_(p0, x).mul_(z)
    v = q2.addcmul_(q1, y).addcmul_(q0, x).mul_(z)
    # How many texels a step to the next pixel is: du/dx = (p0 - u w0) z, and so on.
    steps = [(a - c * w) for a, c, w in ((p0, u, w0), (p1, u, w1), (q0, v, w0), (q1, v, w1))]
    across = torch.maximum(steps[0].abs_(), steps[1].abs_()).mul_(su)
    down = torch.maximum(steps[2].abs_(), steps[3].abs_()).mul_(sv)
    texels = torch.maximum(across, down).mul_(z).mul_(SIZE)
    level = texels.clamp_(min=1e-6).log2_()
    colour = atlas.sample(tile, u.mul_(su).add_(ou), v.mul_(sv).add_(ov), level)
    colour *= torch.stack(tint)
    haze = torch.tensor(HAZE)[:, None, None] * torch.from_numpy(light[0]).float()[:, None, None]
    return haze + (colour - haze) * torch.exp(z.clamp_(max=CLEAR / 2) * (-1 / CLEAR))


def motion(shown: Tensor, changes: Array) -> tuple[Tensor, Tensor]:
    """Where the points at the pixels were in the frame before.

    Args:
        shown: int64 `[H, W]`, the number of the patch at each pixel.
        changes: `[K, 3, 3]`, this frame's pixels to those of the frame before.

    Returns:
        flow: float32 `[2, H, W]`, from a pixel to its place in the frame before.
        ahead: bool `[H, W]`: it was in front of the camera.
    """
    x, y = _axes(shown)
    rows = _spread(changes.reshape(-1, 9), shown)
    u, v, w = (rows[i + 2].addcmul_(rows[i + 1], y).addcmul_(rows[i], x) for i in (0, 3, 6))
    ahead = w > 1e-3
    w = torch.where(ahead, w, 1.0)
    return torch.stack((u / w - x, v / w - y)), ahead


def _spread(table: Array, shown: Tensor) -> Tensor:
    """The rows of a table `[K, C]` at each pixel, `[C, H, W]`."""
    columns = torch.from_numpy(np.ascontiguousarray(table.T, np.float32))
    return columns.index_select(1, shown.flatten()).view(-1, *shown.shape)


def _axes(shown: Tensor) -> tuple[Tensor, Tensor]:
    height, width = shown.shape
    return torch.arange(width, dtype=torch.float32), torch.arange(height).float()[:, None]
