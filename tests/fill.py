"""Weights and inputs that are functions of a name and a shape.

The golden files in `tests/data` were made with these values: NumPy's PCG64, seeded with the CRC-32
of the name, drawn in float64 and rounded to float32.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def weight(name: str, *shape: int) -> Tensor:
    """A convolution's weight: normal, with deviation sqrt(2 / fan-in)."""
    values = _generator(name).standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def features(name: str, *shape: int, bound: float) -> Tensor:
    """Uniform in [-bound, bound)."""
    return uniform(name, *shape, low=-bound, high=bound)


def uniform(name: str, *shape: int, low: float, high: float) -> Tensor:
    """Uniform in [low, high)."""
    values = _generator(f"input/{name}").uniform(low, high, shape)
    return torch.from_numpy(values.astype(np.float32))


def parameter(name: str, *shape: int) -> Tensor:
    """An entry of a state dict: a weight, or what belongs to a normalisation layer or a bias."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        values = 0.5 + _generator(name).random(shape)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * _generator(name).standard_normal(shape)
    elif len(shape) == 1:  # the scale of a normalisation layer
        values = 1.0 + 0.1 * _generator(name).standard_normal(shape)
    else:
        return weight(name, *shape)
    return torch.from_numpy(values.astype(np.float32))


def fill(module: nn.Module, prefix: str) -> None:
    """Give the entries of a module that the golden module calls `prefix` their values."""
    state = module.state_dict()
    module.load_state_dict({k: parameter(f"{prefix}.{k}", *x.shape) for k, x in state.items()})
