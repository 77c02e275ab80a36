"""The pyramid over time, frame by frame, so that a video pools each frame once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ... import _checks
from . import Level, pyramid_levels, pyramid_pool

#: `pyramid_pool`, or what a module runs in its place.
Pool = Callable[[Tensor, Sequence[Level]], Tensor]


def pyramid_pool_frame(input: Tensor, sizes: Sequence[Level]) -> Tensor:
    """What one frame contributes to a pyramid over time: its half of `pyramid_pool`.

    A bin `(t, h, w)` of a pyramid over frames is the mean, over the frames of t, of the bins
    `(h, w)` of each. These do not change as the window moves on: only the new frame is pooled, at
    the spatial levels that occur, each once, and `pyramid_pool_time` takes the means over time.

    Args:
        input: one frame `[N, C, H, W]`, as for `pyramid_pool`.
        sizes: the levels `(t, h, w)` of the pyramid over time; a number s is `(s, s, s)`.

    Returns:
        `[N, C, F]`: the frame's bins at the distinct `(h, w)`, in the order of their first level.

    Raises:
        ValueError: a wrong rank, shape, dtype or level.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> sizes = ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8))
        >>> vsegops.pyramid_pool_frame(torch.randn(1, 64, 90, 120), sizes).shape
        torch.Size([1, 64, 110])
    """
    return pool_frame(pyramid_pool, input, sizes)


def pool_frame(pool: Pool, input: Tensor, sizes: Sequence[Level]) -> Tensor:
    _checks.check_tensor("input", input, ("N", "C", "H", "W"))
    return pool(input, tuple(_spatial(pyramid_levels(sizes, 3))))


def pyramid_pool_time(input: Tensor, sizes: Sequence[Level]) -> Tensor:
    """Finish `pyramid_pool` over frames of which each was pooled by `pyramid_pool_frame`.

    `pyramid_pool(torch.stack(frames, 2), sizes)` is, but for roundings,
    `pyramid_pool_time(torch.stack([pyramid_pool_frame(x, sizes) for x in frames], 2), sizes)`, and
    differentiates like it. The cost is that of reading the anchors of T frames.

    Args:
        input: the pooled frames `[N, C, T, F]`.
        sizes: the levels `(t, h, w)` that they were pooled for.

    Returns:
        `[N, C, S]`, as `pyramid_pool`.

    Raises:
        ValueError: a wrong rank, shape, dtype or level.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> sizes = ((1, 1, 1), (2, 2, 2))
        >>> frames = [torch.randn(1, 8, 9, 12) for _ in range(3)]
        >>> pooled = [vsegops.pyramid_pool_frame(frame, sizes) for frame in frames]
        >>> anchors = vsegops.pyramid_pool_time(torch.stack(pooled, 2), sizes)
        >>> whole = vsegops.pyramid_pool(torch.stack(frames, 2), sizes)
        >>> torch.allclose(anchors, whole, atol=1e-6)
        True
    """
    return pool_time(pyramid_pool, input, sizes)


def pool_time(pool: Pool, input: Tensor, sizes: Sequence[Level]) -> Tensor:
    levels = pyramid_levels(sizes, 3)
    first = _spatial(levels)
    bins = sum(h * w for h, w in first)
    _checks.check_tensor("input", input, ("N", "C", "T", bins))
    parts = []
    for t, h, w in levels:
        of_level = input.narrow(3, first[h, w], h * w)
        parts.append(pool(of_level, ((t, h * w),)))
    return torch.cat(parts, 2)


def _spatial(levels: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], int]:
    """The distinct (h, w), and which of a frame's bins is the first of each."""
    distinct = list(dict.fromkeys((h, w) for _, h, w in levels))
    return dict(zip(distinct, accumulate((h * w for h, w in distinct), initial=0), strict=False))
