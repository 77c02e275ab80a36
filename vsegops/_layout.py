"""Memory layouts of outputs: as the first input's, channels_last or contiguous."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last (channels_last_3d) if `x` is that and not contiguous as well."""
    channels_last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    if x.is_contiguous() or not x.is_contiguous(memory_format=channels_last):
        return torch.contiguous_format
    return channels_last


def empty_like_layout(
    x: Tensor, shape: Sequence[int] | None = None, *, layout: torch.memory_format | None = None
) -> Tensor:
    """Uninitialised, of the dtype and device of `x`, its shape and layout unless stated."""
    return torch.empty(
        x.shape if shape is None else shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=layout_of(x) if layout is None else layout,
    )


def dense(x: Tensor, layout: torch.memory_format) -> Tensor:
    """`x` in that layout, copied where it is not."""
    return x.contiguous(memory_format=layout)


def skipped(x: Tensor) -> Tensor:
    """What stands for a gradient that nobody wants."""
    return x.new_empty(0)
