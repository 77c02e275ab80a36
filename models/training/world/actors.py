"""Those who move: vehicles, which are rigid, and figures, which walk and ride."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .patches import ELLIPSE, RING, TAPER, Array, Builder, Patches

PAINTS = (
    (0.85, 0.85, 0.88),
    (0.15, 0.15, 0.17),
    (0.6, 0.12, 0.1),
    (0.15, 0.25, 0.5),
    (0.5, 0.52, 0.55),
    (0.75, 0.65, 0.2),
    (0.2, 0.4, 0.3),
)
DARK = (0.25, 0.25, 0.27)
SHADE = (0.45, 0.45, 0.5)  # of a shadow, times the asphalt's colour


@lru_cache(maxsize=512)
def vehicle(kind: str, seed: int) -> Patches:
    """A car, truck, bus or train with its origin on the ground below its middle, heading to +z."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng)
    places: tuple[float, ...]
    paint = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.85, 1.15)
    if kind == "car":
        width, height, length = 1.8, rng.uniform(1.4, 1.65), rng.uniform(3.9, 4.7)
        builder.box((0, 0.6, 0), (width, 0.7, length), kind, "paint", paint)
        middle, rise = (0, 0.95 + (height - 0.95) / 2, -0.25), height - 0.95
        cabin = (0.88 * width, rise, 0.6 * length)
        builder.box(middle, cabin, kind, "glass", DARK, outline=TAPER, texel=1.0)
        roof = (0, height + 0.01, -0.25)
        builder.patch(roof, (0.4 * width, 0, 0), (0, 0, -0.2 * length), kind, "paint", paint)
        radius, places = 0.33, (0.31 * length, -0.31 * length)
    elif kind == "truck":
        width, length, height = 2.4, rng.uniform(6.5, 9.0), rng.uniform(2.9, 3.6)
        cargo, cab = 0.72 * length, 0.25 * length
        cloth = PAINTS[rng.integers(len(PAINTS))]
        place = (0, 0.8 + height / 2 - 0.4, -length / 2 + cargo / 2)
        builder.box(place, (width, height - 0.8, cargo), kind, "metal", cloth)
        builder.box((0, 1.4, length / 2 - cab / 2), (width, 1.9, cab), kind, "paint", paint)
        pane = (0, 1.85, length / 2 + 0.01)
        builder.patch(pane, (-1.05, 0, 0), (0, -0.35, 0), kind, "glass", DARK, closed=True)
        builder.box((0, 0.65, 0), (0.9 * width, 0.4, length), kind, "metal", DARK)
        radius, places = 0.48, (0.38 * length, -0.2 * length, -0.38 * length)
    else:
        width, height = (2.5, 3.0) if kind == "bus" else (2.6, 3.4)
        length = rng.uniform(9, 12) if kind == "bus" else 26.0
        size = (width, height - 0.35, length)
        centre = (0, 0.35 + (height - 0.35) / 2, 0)
        texel = height - 0.35
        builder.box(centre, size, kind, "windows", paint * 1.2, texel=texel, aligned=True)
        radius = 0.48 if kind == "bus" else 0.3
        places = (0.3 * length, -0.3 * length)
    for z in places:
        for side in (-1, 1):
            o = (side * (width / 2 + 0.01), radius, z)
            builder.patch(
                o,
                (0, 0, side * radius),
                (0, -radius, 0),
                kind,
                "wheel",
                texel=None,
                outline=ELLIPSE,
                closed=True,
            )
    for end, lamp in ((1, (1.2, 1.2, 1.0)), (-1, (1.0, 0.12, 0.1))):
        for side in (-1, 1):
            o = (side * 0.36 * width, 0.75, end * (length / 2 + 0.02))
            a, b = (-end * 0.09 * width, 0, 0), (0, -0.08, 0)
            builder.patch(o, a, b, kind, "glass", np.array(lamp) * 1.7, closed=True)
    builder.patch(
        (0, 0.02, 0), (0.55 * width, 0, 0), (0, 0, 0.52 * length), "road", "asphalt", SHADE
    )
    return builder.finish()


@lru_cache(maxsize=512)
def figure(kind: str, seed: int) -> Patches:
    """The parts of a walker or rider, in the order of the limbs that `stride` and `ride` give; what
    they ride follows, in its own place."""
    rng = np.random.default_rng(seed)
    builder = Builder(rng)
    label = "person" if kind == "walker" else "rider"
    coat, trousers, skin = rng.uniform(0.15, 0.95, 3), rng.uniform(0.1, 0.5, 3), (0.95, 0.72, 0.6)
    start, end = (0, 0, 0), (0, 1, 0)
    builder.ribbon(start, end, 0.42, label, "cloth", coat)
    builder.ribbon(start, end, 0.2, label, "skin", skin, outline=ELLIPSE)
    for width, tint in ((0.17, trousers), (0.13, trousers), (0.11, coat), (0.08, skin)):
        for _ in range(2):
            builder.ribbon(start, end, width, label, "cloth", tint)
    if kind == "walker":
        return builder.finish()
    tint = PAINTS[rng.integers(len(PAINTS))]
    radius = 0.34 if kind == "bicycle" else 0.3
    for z in (-0.52, 0.52) if kind == "bicycle" else (-0.65, 0.65):
        outline = RING if kind == "bicycle" else ELLIPSE
        a, b = (0, 0, radius), (0, -radius, 0)
        builder.patch((0, radius, z), a, b, kind, "metal", DARK, outline=outline)
        thick = 0.05 if kind == "bicycle" else 0.14
        builder.ribbon((0, 0, z), (0, 2 * radius, z), thick, kind, "metal", DARK)
    if kind == "bicycle":
        seat, pedals, fork = (0, 0.85, -0.2), (0, 0.3, 0.0), (0, 0.8, 0.42)
        for one, other in (
            (seat, pedals),
            (pedals, fork),
            (seat, fork),
            (pedals, (0, radius, -0.52)),
            ((0, radius, 0.52), (0, 1.0, 0.4)),
            ((-0.25, 1.0, 0.38), (0.25, 1.0, 0.38)),
        ):
            builder.ribbon(one, other, 0.05, kind, "metal", tint)
    else:
        builder.ribbon((0, 0.55, -0.8), (0, 0.7, 0.45), 0.38, kind, "paint", tint)
        builder.ribbon((0, 0.35, -0.3), (0, 0.4, 0.35), 0.3, kind, "metal", DARK)
        builder.ribbon((-0.35, 1.0, 0.4), (0.35, 1.0, 0.4), 0.06, kind, "metal", DARK)
        builder.ribbon((0, 0.3, 0.65), (0, 1.0, 0.42), 0.1, kind, "metal", DARK)
    return builder.finish()


def stride(phase: Array) -> Array:
    """Walkers' limbs `[F, 10, 2, 3]`, from joint to joint: trunk, head, thighs, shanks, upper arms,
    forearms; each pair swings at half a step from the other. `phase`: `[F]`."""
    bounce = 0.025 * np.cos(2 * phase)[:, None]
    phases = phase[:, None] + (0, np.pi)
    swing = 0.5 * np.sin(phases)
    bend = 0.15 + 0.55 * np.cos(phases).clip(0)
    hips = _pair(0.09, 0.88 + bounce, 0)
    knees = hips + 0.44 * _down(swing)
    ankles = knees + 0.44 * _down(swing - bend)
    shoulders = _pair(0.23, 1.4 + bounce, 0)
    elbows = shoulders + 0.29 * _down(-0.8 * swing)
    hands = elbows + 0.27 * _down(0.35 - 0.8 * swing)
    return _limbs(bounce, 0.84, 1.48, hips, knees, ankles, shoulders, elbows, hands)


def ride(phase: Array) -> Array:
    """Riders' limbs, as `stride`: the feet go round on pedals of that phase."""
    phases = phase[:, None] + (0, np.pi)
    hips = _pair(0.09, 0.92 + 0 * phases, -0.2)
    ankles = _pair(0.12, 0.3 + 0.16 * np.cos(phases), 0.02 + 0.16 * np.sin(phases))
    # The knee lies before the line from hip to ankle, so that thigh and shank keep their lengths.
    line = ankles - hips
    length = np.linalg.norm(line, axis=-1, keepdims=True)
    out = np.sqrt(0.42**2 - length**2 / 4)
    forward = np.stack([0 * phases, line[..., 2], -line[..., 1]], -1)
    knees = (hips + ankles) / 2 + out * forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    shoulders = _pair(0.22, 1.44 + 0 * phases, 0.02)
    hands = _pair(0.25, 1.02 + 0 * phases, 0.36)
    elbows = (shoulders + hands) / 2 + (0, -0.1, -0.05)
    return _limbs(0 * phases, 0.87, 1.52, hips, knees, ankles, shoulders, elbows, hands)


def posed(parts: Patches, limbs: Array) -> Patches:
    """With the first patches, all of them ribbons, along these limbs."""
    frame = parts.frame.copy()
    frame[: len(limbs), :, 1] = (limbs[:, 1] - limbs[:, 0]) / 2
    frame[: len(limbs), :, 2] = (limbs[:, 1] + limbs[:, 0]) / 2
    return Patches(**{**parts.__dict__, "frame": frame})


def _pair(side: float, height: Array, ahead: float | Array) -> Array:
    """A point at the left and one at the right: `[F, 2, 3]`."""
    return np.stack(np.broadcast_arrays([-side, side], height, ahead), -1)


def _down(angles: Array) -> Array:
    """Unit vectors `[F, 2, 3]` that hang down at an angle forwards."""
    return np.stack([0 * angles, -np.cos(angles), np.sin(angles)], -1)


def _limbs(rise: Array, seat: float, neck: float, *joints: Array) -> Array:
    """Trunk and head above one another, and from hips to feet and from shoulders to hands."""
    hips, knees, ankles, shoulders, elbows, hands = joints
    spine = _pair(0.0, np.array([seat, neck]), np.array([0.0, 0.04])) + rise[:, :1, None] * (
        0,
        1,
        0,
    )
    skull = spine[:, 1:] + np.array([[0, 0, 0], [0, 0.28, 0.02]])
    chains = ((hips, knees), (knees, ankles), (shoulders, elbows), (elbows, hands))
    limbs = [np.stack(chain, 2) for chain in chains]
    return np.concatenate([spine[:, None], skull[:, None], *limbs], 1)
