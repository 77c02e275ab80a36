"""Guided spatially-varying filtering of logits (GSVNet), and the edges of a label map.

Shifted copies of the propagated logits and a prediction of the current frame are blended, pixel by
pixel, by the weights that a small network guides. With `S` the logits, sampled along a flow where
one is given (as `flow_warp` does), and 0 outside the image:

    out(p) = sum_k g_k(p) * S(p + offset_k) + g_last(p) * intra(p)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _checks
from ..._register import call
from . import op

Offset = tuple[int, int] | None

NORMALIZATIONS = ("sum", "softmax", "none")
RESPONSES = ("binary", "sigmoid")

#: Kernels take the offsets by value, so many at most: a window of 15 x 15 and more.
MAX_OFFSETS = 256

#: (dy, dx) of a 3 x 3 window, in raster order.
DELAYS_3X3: tuple[Offset, ...] = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))

#: The same and then its neighbours at twice the distance, in raster order: GSVNet's 17 of 5 x 5.
DELAYS_5X5: tuple[Offset, ...] = DELAYS_3X3 + tuple(
    (dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0)
)


def guided_filter(
    logits: Tensor,
    intra: Tensor,
    guide: Tensor,
    *,
    offsets: Sequence[Offset] = DELAYS_3X3,
    normalize: str = "sum",
    eps: float = 1e-9,
    flow: Tensor | None = None,
    scale: float | Sequence[float] | str = 1.0,
    padding_mode: str = "zeros",
) -> Tensor:
    """Blend shifted copies of `logits` with `intra`, by weights that differ from pixel to pixel.

    GSVNet's guided spatially-varying convolution: what a flow has put a little beside its place,
    a shift puts back. With `flow`, warp, shifts and filter are one pass: neither the warped logits
    nor the shifted copies are written to memory.

    Args:
        logits: `[N, C, H, W]`, float64, float32, float16 or bfloat16, any layout. With a flow they
            have to be finite, as the input of `flow_warp`.
        intra: `[N, C, H, W]`, the prediction of the current frame, of the dtype of `logits`.
        guide: `[N, K, H, W]`, of the dtype of `logits`: a channel for each offset, the last for
            `intra`.
        offsets: K - 1 pairs `(dy, dx)` of whole pixels, at most 256: `DELAYS_3X3` (9),
            `DELAYS_5X5` (17) or any others. None is an empty tap: its guide takes part in the
            normalisation, and it adds nothing. What is shifted in from outside is 0.
        normalize: how the guide becomes weights: `"sum"` divides by its sum over the channels plus
            `eps` (meant for guides that are not negative; all-zero ones give 0), `"softmax"`, or
            `"none"`.
        eps: as said; a finite number that is not negative.
        flow: `[N, 2, H, W]` as for `flow_warp`: the logits are sampled along it first. None: they
            are taken as they are.
        scale: pixels per unit of flow, as for `flow_warp`; `"semantic"` is that of
            `align_corners=True`. (The sizes are equal, so that `align_corners` decides nothing
            else.)
        padding_mode: what the flow samples outside, as for `flow_warp`.

    Returns:
        `[N, C, H, W]` of the dtype of `logits`, channels_last if they are, else contiguous.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> logits = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> guide = torch.zeros(1, 3, 1, 4)
        >>> guide[:, 1] = 1.0  # all weight to the second offset
        >>> vsegops.guided_filter(
        ...     logits, torch.zeros_like(logits), guide, offsets=[(0, 0), (0, 1)]
        ... ).flatten().tolist()
        [1.0, 2.0, 3.0, 0.0]
    """
    flat = _flat(offsets)
    _check_logits(logits, flow)
    n, c, h, w = logits.shape
    channels = len(offsets) + 1
    for name, value, shape in (
        ("intra", intra, (n, c, h, w)),
        ("guide", guide, (n, channels, h, w)),
    ):
        _checks.check_tensor(name, value, shape, like=logits)
        _checks.check_dtype(name, value, logits)
    _checks.check_option("normalize", normalize, NORMALIZATIONS)
    if isinstance(eps, bool) or not _checks.is_finite(eps) or eps < 0:
        raise _checks.error("eps", "a finite number that is not negative", eps)
    sampling = _sampling(scale, padding_mode)
    return call(  # type: ignore[no-any-return]
        "guided_filter", logits, logits, intra, guide, flow, flat, normalize, float(eps), *sampling
    )


def label_edges(
    logits: Tensor,
    *,
    flow: Tensor | None = None,
    scale: float | Sequence[float] | str = 1.0,
    padding_mode: str = "zeros",
    response: str = "binary",
) -> Tensor:
    """Where the labels change: the Laplacian of the map of best classes, as GSVNet's guide sees it.

    The label of a pixel is the class of its largest logit, the lowest class of equal ones (a pixel
    that a flow samples outside has zeros, and so class 0). Its Laplacian is the sum over the eight
    neighbours less eight times the pixel itself, with label 0 outside the image: along the border
    every label but 0 is an edge. With `flow`, neither the warped logits nor the labels are written
    to memory.

    Not differentiable: no gradient flows through the result.

    Args:
        logits: `[N, C, H, W]` with at least one class, as for `guided_filter`; no NaN.
        flow, scale, padding_mode: as for `guided_filter`.
        response: of the Laplacian: `"binary"`, 1 where it is not 0 and else 0 (as GSVNet was
            published), or `"sigmoid"`, the logistic function (as its paper has it).

    Returns:
        `[N, 1, H, W]` of the dtype of `logits`.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> logits = torch.zeros(1, 2, 1, 6)
        >>> logits[:, 1, :, 3:] = 1.0  # class 1 on the right
        >>> vsegops.label_edges(logits).flatten().tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    _check_logits(logits, flow)
    if logits.shape[1] == 0:
        raise _checks.error("logits", "at least one class", logits)
    _checks.check_option("response", response, RESPONSES)
    sampling = _sampling(scale, padding_mode)
    logits, flow = logits.detach(), None if flow is None else flow.detach()
    return call("label_edges", logits, logits, flow, *sampling, response)  # type: ignore[no-any-return]


def _check_logits(logits: Any, flow: Any) -> None:
    _checks.check_tensor("logits", logits, ("N", "C", "H", "W"))
    _checks.check_size("logits", logits)
    if flow is not None:
        n, _, h, w = logits.shape
        _checks.check_flow("flow", flow, (n, 2, h, w), logits)


def _sampling(scale: Any, padding_mode: Any) -> tuple[float, float, bool, str]:
    _checks.check_option("padding_mode", padding_mode, _checks.PADDING_MODES)
    return *_checks.flow_scale(scale), padding_mode


def _flat(offsets: Any) -> list[int]:
    """dy and dx of each tap in turn; an empty tap is one that is outside every image."""
    flat: list[int] = []
    farthest = op.NOWHERE
    right = isinstance(offsets, (tuple, list)) and 0 < len(offsets) <= MAX_OFFSETS
    for offset in offsets if right else ():
        if offset is None:
            offset = (op.NOWHERE, op.NOWHERE)
        right = right and isinstance(offset, (tuple, list)) and len(offset) == 2
        for x in offset if right else ():
            right = right and type(x) is int and -farthest <= x <= farthest
            flat.append(x)
    if not right:
        raise _checks.error(
            "offsets", f"1 to {MAX_OFFSETS} pairs (dy, dx) of whole numbers, or None", offsets
        )
    return flat
