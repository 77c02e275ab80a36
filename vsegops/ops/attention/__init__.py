"""Attention over pooled anchors (ANN's asymmetric blocks, TMANet's memory) and criss-cross.

    asymmetric_attention    out(p) = sum over s of softmax_s(scale * query(p) . key_s) * value_s
    criss_cross_attention   the same over the pixels of p's column and row

Anchors are what is attended to: `pyramid_pool`'s bins, or every position of a memory. The map of
similarities, pixels times anchors, is never written to memory, forward or backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _checks
from ..._register import call
from . import op  # noqa: F401  (registers the operators)

Level = int | Sequence[int]

#: As kMaxLevels in csrc/attention/attention.h.
MAX_LEVELS = 16

_RANKS = {
    3: ("N", "C", "L"),
    4: ("N", "C", "H", "W"),
    5: ("N", "C", "T", "H", "W"),
}


def pyramid_pool(input: Tensor, sizes: Sequence[Level]) -> Tensor:
    """Means over the bins of several grids: the anchors of a pyramid.

    Section 3.2 of "Asymmetric Non-local Neural Networks for Semantic Segmentation" (ANN), and, over
    time as well, the cube pooling of its temporal variants. Each level is adaptive average
    pooling, with exactly its bins (they overlap where sizes do not divide, and repeat where a level
    is finer than the input); all levels are computed in one read of the input.

    Args:
        input: features `[N, C, H, W]`, or `[N, C, T, H, W]` of T frames; float64, float32, float16
            or bfloat16, any layout. At least one pixel.
        sizes: one entry for each level, 1 to 16 of them: the bins along each pooled dimension,
            `(h, w)` or `(t, h, w)`; a plain number s stands for s along each of them.

    Returns:
        `[N, C, S]`, contiguous: the levels one after the other, each flattened row by row. S is
        110 for `(1, 3, 6, 8)` over images, 756 over frames.

    Raises:
        ValueError: a wrong rank, shape, dtype or level.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> vsegops.pyramid_pool(image, (1, 2)).tolist()
        [[[1.5, 0.0, 1.0, 2.0, 3.0]]]
        >>> frames = torch.randn(1, 64, 4, 90, 120)
        >>> vsegops.pyramid_pool(frames, ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8))).shape
        torch.Size([1, 64, 210])
    """
    _check("input", input, (4, 5))
    levels = pyramid_levels(sizes, input.dim() - 2)
    if 0 in input.shape[2:]:
        raise _checks.error("input", "at least one pixel to pool", input)
    return _pool(input, levels)


def asymmetric_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sizes: Sequence[Level] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Each pixel of `query` reads a mean of `value`, weighted by the similarity of `key`.

    `out(p) = sum_s softmax_s(scale * query(p) . key_s) * value_s` over the anchors s, which are
    the bins of a pyramid over key and value (ANN's APNB and AFNB, section 3.2), or all of their
    positions (non-local attention; over T frames TMANet's memory read, there with `scale=1`).

    Args:
        query: `[N, Ck, H, W]`, or with one or three dimensions behind the channels; float64,
            float32, float16 or bfloat16, any layout.
        key: `[N, Ck, *K]` with one to three dimensions, not necessarily the query's: a memory
            `[N, Ck, T, H, W]` beside a frame, or anchors `[N, Ck, S]` that were pooled before.
            Without sizes it is read where it is, whatever its strides, if the dimensions behind
            the channels are evenly spaced; else copied.
        value: `[N, Cv, *K]`.
        sizes: levels of a pyramid over key and value, as for `pyramid_pool`; None attends over
            every position of them.
        scale: what the products are multiplied by; None is `Ck ** -0.5`.

    Returns:
        `[N, Cv, ...]` with the query's remaining sizes, in its dtype and layout.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> query = torch.randn(1, 64, 90, 120)  # the current frame
        >>> key, value = torch.randn(1, 64, 4, 90, 120), torch.randn(1, 256, 4, 90, 120)
        >>> sizes = ((1, 1, 1), (1, 3, 3), (2, 6, 6), (2, 8, 8))
        >>> vsegops.asymmetric_attention(query, key, value, sizes=sizes).shape
        torch.Size([1, 256, 90, 120])
    """
    _check("query", query, (3, 4, 5))
    n, channels = query.shape[:2]
    if channels == 0:
        raise _checks.error("query", "at least one channel", query)
    pooled = sizes is not None
    _check("key", key, (4, 5) if pooled else (3, 4, 5), n=n, channels=channels, like=query)
    _checks.check_tensor("value", value, (n, "Cv", *key.shape[2:]), like=query)
    _checks.check_dtype("key", key, query)
    _checks.check_dtype("value", value, query)
    if scale is not None and not _checks.is_finite(scale):
        raise _checks.error("scale", "a finite number or None", scale)
    levels = None if sizes is None else pyramid_levels(sizes, key.dim() - 2)
    if 0 in key.shape[2:]:
        raise _checks.error("key", "at least one position to attend to", key)
    if levels is None:
        key, value = key.flatten(2), value.flatten(2)
    else:
        key, value = _pool(key, levels), _pool(value, levels)
    factor = None if scale is None else float(scale)
    return call(  # type: ignore[no-any-return]
        "asymmetric_attention", query, query, key, value, factor
    )


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each pixel attends to the pixels of its column and of its row, to itself once.

    `out(p) = sum_s softmax_s(query(p) . key(s)) * value(s)` over the H + W - 1 pixels s that share
    p's column or row. Applied to its own result, it reaches every pixel: section 3.2 of "CCNet:
    Criss-Cross Attention for Semantic Segmentation". The products are not scaled, as published.

    Args:
        query: `[N, Ck, H, W]`, float64, float32, float16 or bfloat16, any layout.
        key: `[N, Ck, H, W]`.
        value: `[N, Cv, H, W]`.

    Returns:
        `[N, Cv, H, W]` in the query's dtype and layout.

    Raises:
        ValueError: a wrong rank, shape, dtype or device.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> query, value = torch.zeros(1, 8, 2, 2), 3 * torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> vsegops.criss_cross_attention(query, query, value).round().flatten().tolist()
        [3.0, 4.0, 5.0, 6.0]
    """
    _check("query", query, (4,))
    n, channels, h, w = query.shape
    if channels == 0:
        raise _checks.error("query", "at least one channel", query)
    _checks.check_tensor("key", key, (n, channels, h, w), like=query)
    _checks.check_tensor("value", value, (n, "Cv", h, w), like=query)
    _checks.check_dtype("key", key, query)
    _checks.check_dtype("value", value, query)
    return call("criss_cross_attention", query, query, key, value)  # type: ignore[no-any-return]


def pyramid_levels(sizes: Any, dimensions: int) -> tuple[tuple[int, ...], ...]:
    """The levels of a pyramid, checked, each with a size for every pooled dimension."""
    listed = isinstance(sizes, Sequence) and not isinstance(sizes, (str, bytes))
    if listed and 1 <= len(sizes) <= MAX_LEVELS:
        levels = tuple(
            (level,) * dimensions if isinstance(level, int) else level for level in sizes
        )
        if all(_is_level(level, dimensions) for level in levels):
            return tuple(tuple(level) for level in levels)
    form = ", ".join("thw"[-dimensions:])
    raise _checks.error(
        "sizes", f"1 to {MAX_LEVELS} levels, each ({form}) or a number, all positive", sizes
    )


def _is_level(level: Any, dimensions: int) -> bool:
    return (
        isinstance(level, Sequence)
        and len(level) == dimensions
        and all(isinstance(size, int) and size > 0 for size in level)
    )


def _pool(input: Tensor, levels: Sequence[Sequence[int]]) -> Tensor:
    flat = [size for level in levels for size in level]
    return call("pyramid_pool", input, input, flat)  # type: ignore[no-any-return]


def _check(
    name: str,
    x: Any,
    ranks: Sequence[int],
    *,
    n: int | None = None,
    channels: int | None = None,
    like: Tensor | None = None,
) -> None:
    """Check a tensor of several possible ranks, of `n` images and so many channels if stated."""
    if isinstance(x, Tensor) and x.dim() not in ranks:
        forms = " or ".join(f"[{', '.join(_RANKS[rank])}]" for rank in ranks)
        raise _checks.error(name, f"a {forms} tensor", x)
    _, _, *rest = _RANKS[x.dim() if isinstance(x, Tensor) else ranks[0]]
    shape = ("N" if n is None else n, "C" if channels is None else channels, *rest)
    _checks.check_tensor(name, x, shape, like=like)
