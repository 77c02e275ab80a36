"""What stands still: the street, block by block, each made from the world's seed and its number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .actors import SHADE, vehicle
from .patches import ELLIPSE, LEAVES, Builder, Patches

LENGTH = 40.0  # of a block, in metres
ROAD, WALK, FRONT = 5.8, 9.2, 10.8  # from the middle of the street: kerb, verge, house fronts
KEYS = 1 << 12  # of a block

WALLS = (
    (0.9, 0.8, 0.65),
    (0.8, 0.6, 0.5),
    (0.75, 0.75, 0.78),
    (0.95, 0.92, 0.85),
    (0.6, 0.65, 0.7),
)
GREENS = ((0.55, 0.75, 0.35), (0.45, 0.65, 0.35), (0.6, 0.7, 0.3), (0.4, 0.55, 0.3))
STEEL = (0.45, 0.47, 0.5)


def block(seed: int, number: int) -> Patches:
    """From `number * LENGTH` along the street, with keys of its own."""
    rng = np.random.default_rng([seed, number & 0xFFFFFFFF])
    builder = Builder(rng)
    _ground(builder, rng)
    for side in (-1, 1):
        _houses(builder, rng, side)
        _kerbside(builder, rng, side)
    patches = builder.finish()
    parked: list[Patches] = []
    for side, heading in ((-1, np.pi), (1, 0.0)):
        for slot in range(5):
            if rng.random() < 0.35:
                z = 4 + 8 * slot + rng.uniform(-0.8, 0.8)
                kind = "car" if rng.random() < 0.88 else "truck"
                part = vehicle(kind, int(rng.integers(1 << 30)))
                key = len(patches) + sum(len(other) for other in parked)
                parked.append(part.placed(side * 4.75, z, heading, key))
    whole = Patches.join([patches, *parked])
    assert len(whole) <= KEYS
    return whole.placed(0, number * LENGTH, 0.0, (number + (1 << 30)) * KEYS)


def _ground(builder: Builder, rng: np.random.Generator) -> None:
    half, middle = (0, 0, -LENGTH / 2), LENGTH / 2

    def strip(left: float, right: float, height: float, *look: object) -> None:
        a = ((right - left) / 2, 0, 0)
        builder.patch(((left + right) / 2, height, middle), a, half, *look)  # type: ignore[arg-type]

    strip(-ROAD, ROAD, 0, "road", "asphalt", rng.uniform(0.85, 1.1) * np.ones(3))
    for side in (-1, 1):
        inner, outer = sorted((side * ROAD, side * WALK))
        strip(inner, outer, 0.14, "sidewalk", "paving")
        inner, outer = sorted((side * WALK, side * FRONT))
        strip(inner, outer, 0.15, "terrain", "grass", (0.75, 0.9, 0.45))
        kerb = (side * ROAD, 0.07, middle)
        builder.patch(kerb, half, (0, -0.07, 0), "sidewalk", "stone", (1.05, 1.05, 1.05))
        edge = (side * (ROAD - 2.3), 0.012, middle)
        builder.patch(edge, (0.06, 0, 0), half, "road", "stone", (1.25, 1.25, 1.25))
    for z in np.arange(2.5, LENGTH, 10):
        builder.patch((0, 0.012, z), (0.07, 0, 0), (0, 0, -2), "road", "stone", (1.25, 1.25, 1.25))
    if rng.random() < 0.35:
        for x in np.arange(-ROAD + 0.6, ROAD, 1.1):
            o = (x, 0.013, 35.0)
            builder.patch(o, (0.3, 0, 0), (0, 0, -1.6), "road", "stone", (1.3, 1.3, 1.3))


def _houses(builder: Builder, rng: np.random.Generator, side: int) -> None:
    z = 0.0
    while z < LENGTH - 4:
        length = min(rng.uniform(8, 16), LENGTH - z)
        choice = rng.random()
        x, middle = side * FRONT, z + length / 2
        if choice < 0.62:
            height, depth = rng.uniform(5, 15), 9.0
            texel = rng.uniform(2.6, 3.6)
            height = max(1, round(height / texel)) * texel
            tile = rng.choice(["facade0", "facade1", "facade2", "facade3", "facade0", "bricks"])
            tint = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.85, 1.1)
            centre = (x + side * depth / 2, height / 2, middle)
            faces = "front back " + ("left" if side > 0 else "right")
            builder.box(
                centre,
                (depth, height, length),
                "building",
                tile,
                tint,
                texel=texel,
                faces=faces,
                aligned=True,
            )
        else:
            lawn = (x + side * 15, 0.14, middle)
            look = ("terrain", "grass", (0.7, 0.9, 0.4))
            builder.patch(lawn, (15, 0, 0), (0, 0, -length / 2), *look)
            if choice < 0.74:
                o, a = (x, 0.9, middle), (0, 0, length / 2)
                builder.patch(o, a, (0, -0.9, 0), "wall", "bricks", (0.9, 0.65, 0.55))
            elif choice < 0.88:
                o, a = (x, 0.75, middle), (0, 0, length / 2)
                builder.patch(o, a, (0, -0.6, 0), "fence", "fence", (0.7, 0.6, 0.5), texel=1.5)
                for post in np.arange(z, z + length, 2.0):
                    foot, top = (x - 0.02 * side, 0.15, post), (x - 0.02 * side, 1.45, post)
                    builder.ribbon(foot, top, 0.12, "fence", "bark", (0.6, 0.5, 0.4))
            for _ in range(rng.integers(1, 4)):
                place = (x + side * rng.uniform(2, 9), rng.uniform(z, z + length))
                _tree(builder, rng, *place, rng.uniform(0.8, 1.5))
            bush = (x + side * 1.2, 0.6, rng.uniform(z, z + length))
            _crown(builder, rng, bush, rng.uniform(0.7, 1.2))
        z += length


def _kerbside(builder: Builder, rng: np.random.Generator, side: int) -> None:
    for z in (6.0, 19.0, 32.0):
        if rng.random() < 0.55:
            _tree(builder, rng, side * (WALK - 0.7), z + rng.uniform(-1, 1), rng.uniform(0.7, 1.1))
    x = side * (ROAD + 0.45)
    for z in (12.0,) if side > 0 else (26.0,):
        builder.ribbon((x, 0.1, z), (x, 6.5, z), 0.16, "pole", "metal", STEEL)
        builder.ribbon((x, 6.4, z), (x - side * 2.2, 6.7, z), 0.1, "pole", "metal", STEEL)
    for z in rng.uniform(2, LENGTH - 2, rng.integers(1, 4)):
        _sign(builder, rng, x, z)
    if rng.random() < 0.4:
        _light(builder, rng, x + 0.05 * side, LENGTH - 3, side)
    if rng.random() < 0.5:
        tint = rng.uniform(0.3, 0.7, 3)
        bin_at = (side * (ROAD + 0.9), 0.6, rng.uniform(0, LENGTH))
        builder.box(bin_at, (0.5, 0.95, 0.5), "void", "metal", tint)
    for z in rng.uniform(0, LENGTH, 2):  # bollards
        builder.ribbon((x, 0.1, z), (x, 1.0, z), 0.1, "pole", "metal", (0.8, 0.3, 0.25))


def _sign(builder: Builder, rng: np.random.Generator, x: float, z: float) -> None:
    top = rng.uniform(2.2, 3.0)
    builder.ribbon((x, 0.1, z), (x, top + 0.3, z), 0.08, "pole", "metal", STEEL)
    tile = rng.choice(["sign0", "sign1"])
    tint = ((1, 1, 1), (0.35, 0.5, 1.0), (1.1, 0.95, 0.3))[rng.integers(3)]
    size = rng.uniform(0.3, 0.45)
    outline = ELLIPSE if rng.random() < 0.5 else 0
    o, a, b = (x, top, z - 0.06), (size, 0, 0), (0, -size * rng.uniform(0.8, 1.3), 0)
    builder.patch(o, a, b, "traffic_sign", tile, tint, texel=None, outline=outline)


def _light(builder: Builder, rng: np.random.Generator, x: float, z: float, side: int) -> None:
    builder.ribbon((x, 0.1, z), (x, 3.4, z), 0.13, "pole", "metal", STEEL)
    over = x - side * 2.5
    builder.ribbon((x, 3.4, z), (x, 5.4, z), 0.13, "pole", "metal", STEEL)
    builder.ribbon((x, 5.3, z), (over, 5.3, z), 0.1, "pole", "metal", STEEL)
    lit = rng.integers(3)
    for place, height in ((x, 2.9), (over, 5.0)):
        size = (0.36, 1.0, 0.25)
        builder.box((place, height, z - 0.1), size, "traffic_light", "metal", (0.2, 0.2, 0.2))
        colours = ((1.9, 0.25, 0.2), (1.8, 1.2, 0.2), (0.2, 1.7, 0.6))
        for lamp, tint in enumerate(colours):
            o = (place, height + 0.3 - 0.3 * lamp, z - 0.24)
            glow = np.array(tint) * (1.0 if lamp == lit else 0.3)
            a, b = (0.12, 0, 0), (0, -0.12, 0)
            builder.patch(o, a, b, "traffic_light", "skin", glow, outline=ELLIPSE)


def _tree(builder: Builder, rng: np.random.Generator, x: float, z: float, size: float) -> None:
    trunk = size * rng.uniform(2.2, 3.0)
    builder.ribbon(
        (x, 0.1, z), (x, trunk + 0.8, z), 0.3 * size, "vegetation", "bark", (0.6, 0.5, 0.4)
    )
    for _ in range(4):
        offset = rng.uniform(-0.9, 0.9, 3) * size
        _crown(
            builder, rng, (x + offset[0], trunk + 1.3 * size + offset[1], z + offset[2]), 1.7 * size
        )
    if abs(x) < FRONT:  # its shadow
        radius = 1.9 * size
        look = ("sidewalk", "paving", SHADE)
        reach = min(radius, WALK - abs(x), abs(x) - ROAD)
        a, b = (reach, 0, 0), (0, 0, -radius)
        builder.patch((x, 0.155, z), a, b, *look, outline=ELLIPSE)


def _crown(builder: Builder, rng: np.random.Generator, centre: ArrayLike, radius: float) -> None:
    tint = np.array(GREENS[rng.integers(len(GREENS))]) * rng.uniform(0.8, 1.2)
    turn = rng.uniform(-0.5, 0.5)
    a = radius * np.array([np.cos(turn), 0, np.sin(turn)])
    b = radius * rng.uniform(0.8, 1.0) * np.array([0, -1.0, 0])
    builder.patch(centre, a, b, "vegetation", "leaves", tint, outline=LEAVES)
