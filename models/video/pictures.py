"""Pictures of flow fields, residuals and labels; all of them are uint8 `[H, W, 3]`, RGB."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: What was coded without motion: no direction of the wheel has this colour.
INTRA_GREY = 96


@lru_cache(maxsize=1)
def colour_wheel() -> Tensor:
    """The hues of Baker et al. (Middlebury), float32 `[55, 3]` in 0..1, red first.

    Six ramps between red, yellow, green, cyan, blue and magenta. Their lengths differ, so that
    steps look alike to the eye.
    """
    corners = torch.tensor(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]]
    ).float()
    ramps = []
    for start, end, length in zip(corners, corners[1:], (15, 6, 4, 11, 13, 6), strict=False):
        ramps.append(torch.lerp(start, end, torch.arange(length)[:, None] / length))
    return torch.cat(ramps)


def flow_picture(flow: Tensor, mask: Tensor | None = None, *, largest: float) -> Tensor:
    """A vector field in the usual colours: hue is direction, saturation is length, white is rest.

    Args:
        flow: float `[2, H, W]`, x to the right and y down. Colours show the vectors as given: pass
            `-flow` of a backward flow to see where things move.
        mask: bool `[H, W]`; grey where False.
        largest: the length that is fully saturated; beyond it colours darken.

    Returns:
        uint8 `[H, W, 3]`.

    Example:
        >>> flow_picture(torch.zeros(2, 1, 1), largest=1.0).tolist()
        [[[255, 255, 255]]]
    """
    x, y = flow.float() / max(largest, 1e-6)
    wheel = colour_wheel()
    position = (torch.atan2(-y, -x) / torch.pi + 1) / 2 * (len(wheel) - 1)
    lower = position.floor().long().clamp(0, len(wheel) - 1)
    upper = (lower + 1) % len(wheel)
    hue = torch.lerp(wheel[lower], wheel[upper], (position - lower)[..., None])
    length = torch.hypot(x, y)[..., None]
    colour = torch.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    picture = (colour * 255).round().byte()
    if mask is not None:
        picture[~mask] = INTRA_GREY
    return picture


def wheel_picture(size: int) -> Tensor:
    """The legend to `flow_picture`: a disc with each colour at the tip of its vector.

    Returns:
        uint8 `[size, size, 4]`, RGB and opacity (0 outside the disc).
    """
    axis = torch.linspace(-1.02, 1.02, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.hypot(x, y)
    colours = flow_picture(torch.stack([x, y]) / radius.clamp(min=1), largest=1.0)
    opacity = ((1 - radius) * size / 2).clamp(0, 1) * 255
    return torch.cat([colours, opacity.round().byte()[..., None]], dim=-1)


def residual_picture(residual: Tensor, *, gain: float = 4.0) -> Tensor:
    """A signed residual float `[3, H, W]` around mid-grey, amplified: uint8 `[H, W, 3]`."""
    return image_picture(128 + gain * residual)


def image_picture(image: Tensor) -> Tensor:
    """An image `[3, H, W]` in 0..255, rounded and clipped: uint8 `[H, W, 3]`."""
    return image.float().round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()


#: Columns that are left free before a text.
MARGIN = 6


@lru_cache(maxsize=512)
def text_opacity(text: str, pixels: int) -> Tensor:
    """A line of text, `pixels` high letters with half of that above and below.

    Returns:
        float32 `[2 * pixels, w]` in 0..1, up to the last letter; shared, not to be written to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 0.5), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(MARGIN / 1200, 0.5, text, fontsize=pixels * 0.72, va="center")
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    opacity = 1 - drawn[..., :3].mean(-1, dtype=np.float32) / 255
    columns = np.flatnonzero(opacity.any(0))
    end = columns[-1] + 1 if len(columns) else 1
    middle = opacity.shape[0] // 2
    return torch.from_numpy(opacity[middle - pixels : middle + pixels, :end].copy())


def darken(part: Tensor) -> Tensor:
    """Float32, dark enough for white letters."""
    return part.float() * 0.35


def annotate(picture: Tensor, text: str, *, pixels: int = 13) -> Tensor:
    """White text on a darkened strip along the top, in place; returns the picture."""
    opacity = text_opacity(text, pixels)[: picture.shape[0], : picture.shape[1]]
    height, width = opacity.shape
    strip = darken(picture[:height])
    strip[:, :width] += (255 - strip[:, :width]) * opacity[..., None]
    picture[:height] = strip.round().byte()
    return picture


def add_wheel(picture: Tensor, text: str = "") -> Tensor:
    """The legend to `flow_picture` into its lower right corner, in place; returns the picture.

    Args:
        picture: of a flow.
        text: what the rim of the wheel means, e.g. `"6 px"`.
    """
    height, width = picture.shape[:2]
    size = min(height, width) // 4
    if size < 8:
        return picture
    corner = picture[height - size - 4 : height - 4, width - size - 4 : width - 4]
    wheel = _wheel(size)
    opacity = wheel[..., 3:].float() / 255
    corner.copy_(torch.lerp(corner.float(), wheel[..., :3].float(), opacity).round().byte())
    pixels = min(max(size // 6, 9), 22)
    if text and 2 * pixels <= size:
        letters = text_opacity(text, pixels)[:, :size]
        rows, columns = letters.shape
        at = corner[size - rows :, size - columns :]
        at.copy_((at.float() * (1 - letters[..., None])).round().byte())
    return picture


_wheel = lru_cache(maxsize=4)(wheel_picture)


def mosaic(rows: list[list[Tensor]]) -> Tensor:
    """Pictures of one size side by side and one row above the other."""
    return torch.cat([torch.cat(row, dim=1) for row in rows], dim=0)


def strip(pictures: list[Tensor], *, height: int = 160, gap: int = 4) -> Tensor:
    """Pictures in a row from left to right, each reduced to one height, white between them."""
    if not pictures:
        raise ValueError("pictures: expected at least one")
    reduced = []
    for picture in pictures:
        rows, columns = picture.shape[:2]
        size = (height, max(round(columns * height / rows), 1))
        image = picture.permute(2, 0, 1)[None].float()
        small = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
        reduced += [torch.full((height, gap, 3), 255, dtype=torch.uint8), image_picture(small[0])]
    return torch.cat(reduced[1:], dim=1)
