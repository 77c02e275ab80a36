"""Labels over frames: the colours of the classes, their legend, marks of key frames.

A frame and its picture are uint8 `[H, W, 3]`, RGB; labels are uint8 `[H, W]`; all on the CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..palette import Palette
from .pictures import MARGIN, darken, text_opacity

KEY, OTHER = (255, 205, 0), (120, 120, 120)  # of the marks
#: Of the pixels: classes with less are left out of the legend.
LEAST_SHARE = 0.002


def overlay(frame: Tensor, labels: Tensor, palette: Palette, *, opacity: float = 0.5) -> Tensor:
    """The frame under its labels' colours: `frame * (1 - opacity) + colour * opacity`.

    Some 8 ms for 1024x2048 on one core: both products are looked up, two bytes at a time.

    Args:
        frame, labels: of one size.
        palette: colours; labels without one are black.
        opacity: from 0, the frame alone, to 1, the colours alone.

    Example:
        >>> import torch
        >>> from vsegops.models.palette import CITYSCAPES
        >>> white, road = torch.full((1, 1, 3), 255, dtype=torch.uint8), torch.zeros(1, 1).byte()
        >>> overlay(white, road, CITYSCAPES, opacity=1.0).tolist()
        [[[128, 64, 128]]]
    """
    if frame.shape != (*labels.shape, 3) or frame.dtype != torch.uint8:
        expected = f"uint8 {[*labels.shape, 3]}, as the labels have it"
        raise ValueError(f"frame: expected {expected}, got {frame.dtype} {list(frame.shape)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity}")
    colours, dimmed = _tables(palette, opacity)
    picture = _look_up(dimmed, frame)
    picture += _look_up(colours, labels).reshape(picture.shape)
    return torch.from_numpy(picture).view(frame.shape)


def colour_picture(labels: Tensor, palette: Palette) -> Tensor:
    """The labels' colours alone: uint8 `[H, W, 3]`."""
    picture = _look_up(_tables(palette, 1.0)[0], labels)
    return torch.from_numpy(picture).view(*labels.shape, 3)


@lru_cache(maxsize=8)
def _tables(palette: Palette, opacity: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """What each value of a byte becomes, of labels uint8 `[256, 3]` and of channels `[256, 1]`."""
    colours = np.zeros((256, 3))
    colours[: len(palette.colours)] = palette.colours
    values = np.arange(256)[:, None]
    # One rounded up and the other down: their sum is at most 255, and less than 1 off.
    painted = np.ceil(opacity * colours).astype(np.uint8)
    return _pairs(painted), _pairs((values - opacity * values).astype(np.uint8))


def _pairs(table: NDArray[Any]) -> NDArray[Any]:
    """A table for each byte as one for two bytes: uint8 `[65536, 2, channels]`."""
    first, second = np.meshgrid(table_index := np.arange(256), table_index, indexing="xy")
    pairs = np.stack([table[first.ravel()], table[second.ravel()]], axis=1)
    return np.ascontiguousarray(pairs)


def _look_up(pairs: NDArray[Any], values: Tensor) -> NDArray[Any]:
    """Each byte of `values` through a table of `_pairs`: uint8 `[bytes * channels]`."""
    flat = values.contiguous().view(-1).numpy()
    channels, even = pairs.shape[2], flat.size // 2 * 2
    result = np.empty((flat.size, channels), np.uint8)
    items = pairs.reshape(65536, 2 * channels).view(f"V{2 * channels}").ravel()
    into = result[:even].reshape(-1, 2 * channels).view(f"V{2 * channels}").ravel()
    np.take(items, flat[:even].view(np.uint16), mode="clip", out=into)
    result[even:] = pairs[flat[even:], 0]
    return result.reshape(-1)


def present(labels: Tensor, palette: Palette) -> tuple[int, ...]:
    """The classes in it, the most frequent first; those with few pixels are left out."""
    seen = labels[::4, ::4].contiguous()
    counts = np.bincount(seen.view(-1).numpy(), minlength=256)[: len(palette.names)]
    order = np.argsort(-counts, kind="stable")
    return tuple(int(label) for label in order if counts[label] > LEAST_SHARE * seen.numel())


def add_legend(picture: Tensor, labels: Tensor, palette: Palette) -> Tensor:
    """Names and colours of the classes present, in the lower left corner, in place.

    Where there is no room for all of them, the most frequent are named.
    """
    height, width = picture.shape[:2]
    pixels = text_size(height)
    room = (height - 3 * pixels) // _row(pixels)
    classes = tuple(sorted(present(labels, palette)[: max(room, 0)]))
    if classes:
        colours, opacity = _legend(palette, classes, pixels)
        rows, columns = opacity.shape[0], min(opacity.shape[1], width)
        corner = darken(picture[height - rows :, :columns])
        corner += (colours[:, :columns] - corner) * opacity[:, :columns, None]
        picture[height - rows :, :columns] = corner.round().byte()
    return picture


@lru_cache(maxsize=256)
def _legend(palette: Palette, classes: tuple[int, ...], pixels: int) -> tuple[Tensor, Tensor]:
    """float32: what is painted, `[h, w, 3]` in 0..255, and its opacity `[h, w]` in 0..1."""
    texts = [text_opacity(palette.names[label], pixels) for label in classes]
    row, left = _row(pixels), 2 * pixels
    height = row * len(classes) + pixels // 2
    width = left + max(text.shape[1] for text in texts) + pixels // 2
    colours, opacity = torch.full((height, width, 3), 255.0), torch.zeros(height, width)
    for index, (label, text) in enumerate(zip(classes, texts, strict=True)):
        top = pixels // 4 + index * row
        swatch = slice(top + row // 8, top + row - row // 8), slice(pixels // 2, left)
        colours[swatch] = torch.tensor(palette.colours[label]).float()
        opacity[swatch] = 1
        cut = (text.shape[0] - row) // 2
        opacity[top : top + row, left : left + text.shape[1]] = text[cut : cut + row]
    return colours, opacity


def _row(pixels: int) -> int:
    return pixels * 5 // 4


def text_size(height: int) -> int:
    """Of letters in a picture, in pixels."""
    return min(max(height // 40, 9), 22)


def add_mark(picture: Tensor, index: int, is_key: bool, title: str = "") -> Tensor:
    """The frame's number and whether it is a key frame, on a dark strip along the top, in place.

    Key frames have a yellow square, and the strip's lower edge is yellow; others a grey square.
    """
    pixels = text_size(picture.shape[0])
    gap = torch.zeros(2 * pixels, pixels // 2)
    parts = [text_opacity(title, pixels), gap] if title else []
    parts += [text_opacity("frame", pixels), gap, *(_digit(x, pixels) for x in str(index)), gap]
    parts += [text_opacity("key", pixels)] if is_key else []
    left = 2 * pixels
    line = torch.cat(parts, dim=1)[: picture.shape[0], : max(picture.shape[1] - left, 0)]
    height, width = line.shape
    strip = darken(picture[:height])
    strip[:, left : left + width] += (255 - strip[:, left : left + width]) * line[..., None]
    colour = torch.tensor(KEY if is_key else OTHER).float()
    strip[pixels // 2 : pixels * 3 // 2, pixels // 2 : pixels * 3 // 2] = colour
    if is_key:
        strip[-2:] = colour
    picture[:height] = strip.round().byte()
    return picture


@lru_cache(maxsize=64)
def _digit(digit: str, pixels: int) -> Tensor:
    """A digit in a cell of all digits' width, so that numbers need no drawing of their own."""
    text, width = text_opacity(digit, pixels), round(0.64 * pixels)  # of the font's em
    cell = torch.zeros(text.shape[0], width)
    drawn = text[:, MARGIN : MARGIN + width]
    cell[:, : drawn.shape[1]] = drawn
    return cell
