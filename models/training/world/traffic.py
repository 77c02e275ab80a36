"""Where the camera and all others are: a function of the time alone, nothing is stepped."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .actors import figure, posed, ride, stride, vehicle
from .patches import Array, Builder, Patches
from .street import ROAD, WALK

SIGHT = 160.0  # metres that are seen of the street
_BEHIND = 12.0  # metres after which those who are overtaken come back, in the distance
_STEP = 1.4  # metres per pair of steps
_CROSSING = 0.42  # metres across the road per metre that the camera comes nearer

_SKY_KEY, _TRAFFIC_KEY = 0, 1 << 58
SKY = (0.85, 0.95, 1.12)
_PARTS = 64  # keys of one vehicle or figure


class Drive:
    """How the camera moves: along its lane, at a speed that changes, swaying and looking about."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.speed = rng.uniform(5.0, 9.0)
        self._surge = rng.uniform(1.0, 4.0), rng.uniform(4, 9), rng.uniform(0, 2 * np.pi)
        self._height = rng.uniform(1.3, 1.7)
        # Of sideways, vertical, yaw, pitch: the amplitude, in metres and radians, and the period.
        amplitudes, periods = (0.35, 0.02, 0.035, 0.006), (7.0, 0.8, 5.0, 1.3)
        self._sway = [
            (a * rng.uniform(0.5, 1.0), p * rng.uniform(0.8, 1.3), rng.uniform(0, 2 * np.pi))
            for a, p in zip(amplitudes, periods, strict=True)
        ]

    def along(self, time: float) -> float:
        surge, period, phase = self._surge
        return float(self.speed * time + surge * np.sin(2 * np.pi * time / period + phase))

    def pose(self, time: float) -> tuple[Array, Array]:
        """Position, and the rotation of `raster.Camera`."""
        side, rise, yaw, pitch = (a * np.sin(2 * np.pi * time / p + f) for a, p, f in self._sway)
        position = np.array([1.75 + side, self._height + rise, self.along(time)])
        ahead = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        return position, np.stack([right, -np.cross(ahead, right), ahead])


class Traffic:
    """All who move. Who has fallen behind comes back far ahead, as somebody else."""

    def __init__(self, seed: int, drive: Drive) -> None:
        self._seed, self._drive = seed, drive
        rng = np.random.default_rng([seed, 2])
        self._ahead = rng.uniform(14, 24), rng.uniform(2, 6), rng.uniform(5, 9)
        self._kinds = rng.choice(["car", "truck", "bus", "motorcycle"], 3, p=[0.6, 0.15, 0.1, 0.15])
        self._oncoming = rng.uniform(5, 10), rng.uniform(0, SIGHT)
        self._tram = rng.random() < 0.3
        self._walkers = [
            (
                rng.choice([-1, 1]) * rng.uniform(ROAD + 0.7, WALK - 0.2),
                rng.choice([-1, 1]) * rng.uniform(0.9, 1.8),
                rng.uniform(0, SIGHT),
                rng.uniform(0.85, 1.1),
            )
            for _ in range(26)
        ]
        self._crossing = [(rng.choice([-1, 1]), rng.uniform(0, SIGHT)) for _ in range(5)]
        self._riders = [
            ("bicycle", 3.2, rng.uniform(3, 5), rng.uniform(8, 20)),
            ("bicycle", -3.2, -4.5, rng.uniform(20, 60)),
            ("motorcycle", 3.1, self._drive.speed - 1, rng.uniform(25, 50)),
            ("motorcycle", -3.0, -9.0, rng.uniform(30, SIGHT)),
        ]

    def at(self, time: float) -> list[Patches]:
        found: list[Patches] = []
        camera = self._drive.along(time)
        gap, change, period = self._ahead
        for number, kind in enumerate(self._kinds):  # in the camera's lane
            z = camera + gap + 19 * number + change * np.sin(2 * np.pi * time / period + number)
            found.append(self._mover(number, 0, kind, 1.75, z, 0.0))
        speed, start = self._oncoming
        for number in range(5):
            z, turn = _around(start + 32 * number - speed * time, camera)
            kind = ("car", "car", "truck", "car", "bus")[(number + turn) % 5]
            if self._tram and number == 2:
                kind = "train"
            found.append(self._mover(8 + number, turn, kind, -1.75, z, np.pi))
        for number, (kind, x, speed, start) in enumerate(self._riders):
            z, turn = _around(start + speed * time, camera)
            heading = 0.0 if speed > 0 else np.pi
            found.append(self._mover(16 + number, turn, kind, x, z, heading))
        return found + self._figures(time, camera)

    def _figures(self, time: float, camera: float) -> list[Patches]:
        places, phases = [], []
        for number, (x, speed, start, size) in enumerate(self._walkers):
            z, turn = _around(start + speed * time, camera)
            places.append((24 + number, turn, x, z, 0.0 if speed > 0 else np.pi, size))
            phases.append(abs(speed) * time)
        for number, (side, start) in enumerate(self._crossing):
            # Across the road ahead of the camera, and over before it arrives.
            z, turn = _around(start, camera)
            gone = _CROSSING * (z - camera)
            x = float(np.clip(side * (gone - 14), -WALK + 1, WALK - 1))
            places.append((52 + number, turn, x, z, -side * np.pi / 2, 1.0))
            phases.append(-gone)
        found = []
        limbs = stride(2 * np.pi / _STEP * np.array(phases) + np.arange(len(phases)))
        for (number, turn, x, z, heading, size), own in zip(places, limbs, strict=True):
            seed, key = _identity(self._seed, number, turn)
            parts = posed(figure("walker", seed), size * own).placed(x, z, heading, key)
            parts.frame[:, 1, 2] += 0.15 if abs(x) > ROAD else 0.0
            found.append(parts)
        return found

    def _mover(
        self, number: int, turn: int, kind: str, x: float, z: float, heading: float
    ) -> Patches:
        seed, key = _identity(self._seed, number, turn)
        if kind in ("bicycle", "motorcycle"):
            phase = 1.3 * z if kind == "bicycle" else 0.0
            parts = posed(figure(kind, seed), ride(np.array([phase]))[0])
            return parts.placed(x, z, heading, key)
        return vehicle(kind, seed).placed(x, z, heading, key)


@lru_cache(maxsize=4096)
def _identity(seed: int, number: int, turn: int) -> tuple[int, int]:
    """The seed and the first key of one who moves."""
    code = (turn + (1 << 20)) * 64 + number
    own = int(np.random.default_rng([seed, 3, code]).integers(1 << 30))
    return own, _TRAFFIC_KEY + code * _PARTS


def _around(z: float, camera: float) -> tuple[float, int]:
    """Between a little behind the camera and the end of its sight, and which time around it is."""
    turn, rest = divmod(z - camera + _BEHIND, SIGHT)
    return camera - _BEHIND + rest, int(turn)


def backdrop(position: Array) -> Patches:
    """What is so far away that it moves with the camera: the sky first, and a rim of trees."""
    builder = Builder(np.random.default_rng(0))
    x, y, z = position
    far, wide = 2000.0, 2500.0
    builder.patch((x, y, z + far), (wide, 0, 0), (0, -wide, 0), "sky", "clouds", SKY, texel=900.0)
    rim = SIGHT + 40
    look = ("vegetation", "leaves", (0.5, 0.62, 0.4))
    builder.patch((x, 3.0, z + rim), (2 * rim, 0, 0), (0, -4.5, 0), *look, texel=6.0)
    ground = (x, -0.05, z + rim / 2)
    look = ("terrain", "grass", (0.7, 0.85, 0.45))
    builder.patch(ground, (3 * rim, 0, 0), (0, 0, -rim), *look, texel=8.0)
    return builder.finish(_SKY_KEY)
