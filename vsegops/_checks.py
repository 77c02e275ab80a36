"""Argument checks: every error names the argument, what was expected and what came.

They run before every call, for longer than a small kernel: what is usual is found right first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PADDING_MODES = ("zeros", "border")

#: Positions are integers of 32 bits with room for a clamped flow (see csrc/common/sampling.h).
MAX_SIZE = 2**30

_LARGEST = torch.finfo(torch.float32).max


def describe(value: Any) -> str:
    """A tensor as shape, dtype and device; anything else as its type and value."""
    if isinstance(value, Tensor):
        shape = ", ".join(str(size) for size in value.shape)
        return f"a [{shape}] {value.dtype} tensor on {value.device}"
    return f"{type(value).__name__} {value!r}"


def error(name: str, expected: str, came: Any) -> ValueError:
    """The exception for an argument that is not what was expected."""
    return ValueError(f"{name}: expected {expected}, got {describe(came)}")


def check_tensor(
    name: str,
    value: Any,
    shape: Sequence[int | str],
    *,
    like: Tensor | None = None,
    dtypes: Sequence[torch.dtype] = FLOATING,
) -> None:
    """Check type, rank, sizes, dtype and device of one tensor argument.

    Args:
        shape: for each dimension its size, or a letter where any size will do.
        like: a tensor on whose device `value` has to be.
        dtypes: the dtypes that will do.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(value)}")
    fits = value.dim() == len(shape)
    for expected, size in zip(shape, value.shape, strict=False):
        if not isinstance(expected, str) and expected != size:
            fits = False
    if not fits:
        raise error(name, f"a [{', '.join(str(size) for size in shape)}] tensor", value)
    if value.dtype not in dtypes:
        raise error(name, f"dtype {' or '.join(str(dtype) for dtype in dtypes)}", value)
    if value.layout != torch.strided:
        raise error(name, "a dense (strided) tensor", value.layout)
    if like is not None and value.device != like.device:
        raise error(name, f"a tensor on {like.device}", value)


def effective_dtype(x: Tensor) -> torch.dtype:
    """The dtype that an operator's features have once autocast, if it is on, has cast them."""
    device = x.device.type
    if x.dtype != torch.float64 and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def check_dtype(name: str, value: Tensor, features: Tensor) -> None:
    """Check that a tensor has, under autocast, the dtype of the features it goes with."""
    if value.dtype != features.dtype:
        dtype = effective_dtype(features)
        if effective_dtype(value) != dtype:
            raise error(name, f"dtype {dtype}", value)


def check_option(name: str, value: Any, options: Sequence[str]) -> None:
    """Check an option that is one of a few words."""
    if value not in options:
        raise error(name, " or ".join(repr(option) for option in options), value)


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise error(name, "True or False", value)


def check_size(name: str, value: Tensor) -> None:
    """Check that positions in an image can be counted."""
    if not 0 < value.numel() <= MAX_SIZE and max(value.shape[2:]) > MAX_SIZE:
        raise error(name, f"height and width up to {MAX_SIZE}", value)


def check_flow(name: str, flow: Any, shape: Sequence[int | str], features: Tensor) -> None:
    """Check a flow along which `features` are sampled."""
    check_tensor(name, flow, shape, like=features)
    if flow.dtype != torch.float32 and flow.dtype != effective_dtype(features):
        # (autocast leaves a flow)
        raise error(name, f"dtype {effective_dtype(features)} or torch.float32", flow)
    check_size(name, flow)


def check_source(name: str, source: Tensor, flow: Tensor) -> None:
    """Check that there is something to sample where a flow asks for it."""
    if source.numel() == 0 and 0 in source.shape[2:] and flow.numel() > 0:
        raise error(name, "at least one pixel to sample", source)


def flow_scale(scale: Any, name: str = "scale") -> tuple[float, float, bool]:
    """A flow's `scale` as the operators take it: (scale_x, scale_y, semantic)."""
    if isinstance(scale, str) and scale == "semantic":
        return 1.0, 1.0, True  # computed from the sizes, inside: a float would be recompiled for
    if is_finite(scale):
        return float(scale), float(scale), False
    if not isinstance(scale, Sequence) or len(scale) != 2 or not all(map(is_finite, scale)):
        raise error(name, "a finite number, a pair (x, y) of them or 'semantic'", scale)
    return float(scale[0]), float(scale[1]), False


def is_finite(x: Any) -> bool:  # (math.isfinite cannot be traced with a symbolic number)
    """Whether `x` is a number that float32 can hold."""
    return isinstance(x, (int, float)) and -_LARGEST < x < _LARGEST
