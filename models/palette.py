"""Names and colours of classes: data, for pictures and label files."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Palette(NamedTuple):
    """What the classes are called and how they are painted.

    Attributes:
        names: of each class, by its label.
        colours: RGB in 0..255 of each class. Labels beyond (255: void) are black.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]


#: The 19 classes that Cityscapes is evaluated on, by their training label.
CITYSCAPES = Palette(
    *zip(
        ("road", (128, 64, 128)),
        ("sidewalk", (244, 35, 232)),
        ("building", (70, 70, 70)),
        ("wall", (102, 102, 156)),
        ("fence", (190, 153, 153)),
        ("pole", (153, 153, 153)),
        ("traffic light", (250, 170, 30)),
        ("traffic sign", (220, 220, 0)),
        ("vegetation", (107, 142, 35)),
        ("terrain", (152, 251, 152)),
        ("sky", (70, 130, 180)),
        ("person", (220, 20, 60)),
        ("rider", (255, 0, 0)),
        ("car", (0, 0, 142)),
        ("truck", (0, 0, 70)),
        ("bus", (0, 60, 100)),
        ("train", (0, 80, 100)),
        ("motorcycle", (0, 0, 230)),
        ("bicycle", (119, 11, 32)),
        strict=True,
    )
)


@lru_cache(maxsize=8)
def palette(num_classes: int) -> Palette:
    """Cityscapes for 19 classes, else colours that differ, and numbers for names.

    Example:
        >>> palette(19).names[13], palette(12).names[1], palette(12).colours[1]
        ('car', 'class 1', (128, 0, 0))
    """
    if num_classes == len(CITYSCAPES.names):
        return CITYSCAPES
    names = tuple(f"class {label}" for label in range(num_classes))
    return Palette(names, tuple(_colour(label) for label in range(num_classes)))


def _colour(label: int) -> tuple[int, int, int]:
    """PASCAL VOC's rule: every third bit of the label, to the highest bits of a channel."""
    red, green, blue = (
        sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for channel in range(3)
    )
    return red, green, blue
