"""Published checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import Backbone
from .base import Model

#: What published files hold beside tensors: results such as `mean_iu`, as NumPy scalars.
_SCALARS: tuple[Any, ...] = (
    np.dtype,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
)
