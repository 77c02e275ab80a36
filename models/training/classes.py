"""The classes of each data set, how they are merged into Cityscapes' 19, and their colours.

Where several data sets are trained on together (UDS), their labels become Cityscapes' train ids;
what has no counterpart is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import palette

IGNORED = 255

#: Of Cityscapes' train ids.
CITYSCAPES = tuple(name.replace(" ", "_") for name in palette.CITYSCAPES.names)
COLOURS = palette.CITYSCAPES.colours

#: The category that the benchmark counts each of them in, in their order.
_CATEGORIES = (
    *("flat",) * 2,
    *("construction",) * 3,
    *("object",) * 3,
    *("nature",) * 2,
    "sky",
    *("human",) * 2,
    *("vehicle",) * 6,
)
#: Of each category, the train ids in it.
CATEGORIES: Mapping[str, tuple[int, ...]] = {
    category: tuple(i for i, other in enumerate(_CATEGORIES) if other == category)
    for category in dict.fromkeys(_CATEGORIES)
}

#: Cityscapes' label ids (`*_labelIds.png`) to train ids.
CITYSCAPES_IDS = {
    label: train
    for train, label in enumerate(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    )
}

#: Mapillary Vistas v1's label indices to Cityscapes' train ids.
MAPILLARY_IDS = {
    label: train
    for train, labels in enumerate(
        (
            (13, 24, 41),  # road; general lane marking; manhole
            (2, 15),  # curb; sidewalk
            (17,),
            (6,),
            (3,),
            (45, 47),  # pole; utility pole
            (48,),
            (50,),  # the front of a traffic sign
            (30,),
            (29,),
            (27,),
            (19,),
            (20, 21, 22),  # bicyclist; motorcyclist; other rider
            (55,),
            (61,),
            (54,),
            (58,),
            (57,),
            (52,),
        )
    )
    for label in labels
}
#: On its own Mapillary is trained on with all 65 classes; this is the unlabelled one.
MAPILLARY_CLASSES = 65
MAPILLARY_IGNORED = 65

#: IDD's ids (`*_labelids.png`) to Cityscapes' train ids; terrain is its non-drivable fallback.
IDD_IDS = {
    label: train
    for train, label in enumerate(
        (0, 3, 29, 20, 21, 26, 25, 24, 32, 5, 33, 6, 8, 12, 13, 14, 17, 9, 10)
    )
}

#: CamVid's 11 classes, in the order of GSVNet's class weights, and the colours of its 32 classes
#: that are merged into each (SegNet's merging).
CAMVID: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "sky": ((128, 128, 128),),
    "building": (
        (128, 0, 0),
        (0, 128, 64),  # bridge
        (64, 192, 0),  # wall
        (64, 0, 64),  # tunnel
        (192, 0, 128),  # archway
    ),
    "column_pole": ((192, 192, 128), (0, 0, 64)),  # traffic cone
    "road": (
        (128, 64, 128),
        (128, 0, 192),  # driving lane markings
        (192, 0, 64),  # other lane markings
    ),
    "sidewalk": (
        (0, 0, 192),
        (64, 192, 128),  # parking block
        (128, 128, 192),  # road shoulder
    ),
    "tree": ((128, 128, 0), (192, 192, 0)),  # other vegetation
    "sign_symbol": (
        (192, 128, 128),
        (128, 128, 64),  # other text
        (0, 64, 64),  # traffic light
    ),
    "fence": ((64, 64, 128),),
    "car": (
        (64, 0, 128),
        (64, 128, 192),  # pick-up truck or van
        (192, 128, 192),  # truck or bus
        (192, 64, 128),  # train
        (128, 64, 64),  # other moving thing
    ),
    "pedestrian": (
        (64, 64, 0),
        (192, 128, 64),  # child
        (64, 0, 192),  # cart, luggage or pram
        (64, 128, 64),  # animal
    ),
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # motorcycle or scooter
}


def merging(ids: Mapping[int, int]) -> Tensor:
    """A table `[256]`, uint8, from a file's values to train ids; what is not named is ignored.

    Example:
        >>> merging({7: 0})[torch.tensor([7, 8])]
        tensor([  0, 255], dtype=torch.uint8)
    """
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    for label, train in ids.items():
        table[label] = train
    return table


def label_picture(labels: Tensor) -> Tensor:
    """Train ids of Cityscapes `[H, W]` in its colours, uint8 `[H, W, 3]`; black where ignored.

    Example:
        >>> label_picture(torch.tensor([[0, 255]])).tolist()
        [[[128, 64, 128], [0, 0, 0]]]
    """
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[: len(COLOURS)] = torch.tensor(COLOURS, dtype=torch.uint8)
    return table[labels.long()]
