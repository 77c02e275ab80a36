"""Weights and inputs that are functions of a name and a shape.

The golden files in `tests/data` were made with these values: NumPy's PCG64, seeded with the CRC-32
of the name, drawn in float64 and rounded to float32.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def weight(name: str, *shape: int) -> Tensor:
    """A convolution's weight: normal, with deviation sqrt(2 / fan-in)."""
    values = _generator(name).standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def features(name: str, *shape: int, bound: float) -> Tensor:
    """Uniform in [-bound, bound)."""
    values = _generator(f"input/{name}").uniform(-bound, bound, shape)
    return torch.from_numpy(values.astype(np.float32))
