"""Warping along a flow, and warping fused with a correction (TWNet, and the base of the others).

With source size h x w and output size H x W, output pixel (x, y) samples the source at

    align_corners=True :  u = x * (w-1) / (W-1) + scale_x * flow_x
    align_corners=False:  u = (x + 0.5) * w / W - 0.5 + scale_x * flow_x

and likewise v from y, h, H, scale_y. `A(input)` below is the input sampled at (u, v).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _checks
from ..._register import call
from . import op  # noqa: F401  (registers the operators)

MODES = ("bilinear", "nearest")


def flow_warp(
    input: Tensor,
    flow: Tensor,
    *,
    scale: float | Sequence[float] | str = 1.0,
    align_corners: bool = True,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Sample `input` where `flow` points: `out(p) = input(p + scale * flow(p))`.

    TWNet equation 4 (its `Mv` enters with `scale=-1`), and with `scale="semantic"` the warp of
    SFNet's flow alignment module.

    Args:
        input: features `[N, C, h, w]`, float64, float32, float16 or bfloat16, any layout. They
            have to be finite: infinity and NaN spread to results that touch a neighbour, also with
            weight 0.
        flow: `[N, 2, H, W]`, backward flow: channel 0 is x (to the right), channel 1 is y (down).
            Of the input's dtype or float32. H x W is the size of the output, h x w need not be
            the same.
        scale: pixels of the input per unit of flow: one number, a pair `(x, y)`, or `"semantic"`,
            SFNet's `((w-1) / 2W, (h-1) / 2H)` (`(w / 2W, h / 2H)` for `align_corners=False`).
        align_corners: which points of input and output coincide without flow: the centres of the
            corner pixels (True) or the outer corners of the images (False).
        mode: `"bilinear"`, or `"nearest"` (halves round to even), where flow gets no gradient.
        padding_mode: what lies outside: `"zeros"`, or `"border"`, the nearest pixel inside. NaN
            positions sample 0 under zeros and index 0 under border.

    Returns:
        `[N, C, H, W]` of the input's dtype, channels_last if the input is, else contiguous.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> image = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> flow = torch.zeros(1, 2, 1, 4)
        >>> flow[:, 0] = 1.0  # look one pixel to the right
        >>> vsegops.flow_warp(image, flow).flatten().tolist()
        [1.0, 2.0, 3.0, 0.0]
    """
    _check(input, "input", flow)
    options = _options(scale, align_corners, mode, padding_mode)
    return call("flow_warp", input, input, flow, *options)  # type: ignore[no-any-return]


def warp_correct(
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor | None = None,
    *,
    scale: float | Sequence[float] | str = 1.0,
    align_corners: bool = True,
    mode: str = "bilinear",
    padding_mode: str = "border",
) -> Tensor:
    """Warp and correct in one pass: `out = A(previous) + attention * correction`.

    TWNet equations 5 and 7 (and equation 3, for images). The warped features are never written to
    memory. With `scale="semantic", padding_mode="zeros"` it is SFNet's alignment and its sum.

    Args:
        previous: features of the previous frame `[N, C, h, w]`, as the input of `flow_warp`.
        flow: `[N, 2, H, W]`, as for `flow_warp`.
        correction: `[N, C, H, W]`, of the dtype of `previous`.
        attention: `[N, 1, H, W]` of the dtype of `previous`, one weight for all channels of a
            pixel; None is 1 everywhere.
        scale, align_corners, mode, padding_mode: as for `flow_warp`.

    Returns:
        `[N, C, H, W]` of the dtype of `previous`, channels_last if `previous` is.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> previous, flow = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
        >>> correction, attention = torch.full((1, 1, 2, 2), 4.0), torch.full((1, 1, 2, 2), 0.5)
        >>> vsegops.warp_correct(previous, flow, correction, attention).flatten().tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    _check(previous, "previous", flow)
    n, c, (height, width) = previous.shape[0], previous.shape[1], flow.shape[2:]
    _checks.check_tensor("correction", correction, (n, c, height, width), like=previous)
    _checks.check_dtype("correction", correction, previous)
    if attention is not None:
        _checks.check_tensor("attention", attention, (n, 1, height, width), like=previous)
        _checks.check_dtype("attention", attention, previous)
    options = _options(scale, align_corners, mode, padding_mode)
    return call(  # type: ignore[no-any-return]
        "warp_correct", previous, previous, flow, correction, attention, *options
    )


def _check(input: Any, name: str, flow: Any) -> None:
    _checks.check_tensor(name, input, ("N", "C", "h", "w"))
    _checks.check_size(name, input)
    _checks.check_flow("flow", flow, (input.shape[0], 2, "H", "W"), input)
    _checks.check_source(name, input, flow)


def _options(scale: Any, align_corners: Any, mode: Any, padding_mode: Any) -> tuple[Any, ...]:
    """The options as the operators take them: (scale_x, scale_y, semantic, ...)."""
    _checks.check_bool("align_corners", align_corners)
    _checks.check_option("mode", mode, MODES)
    _checks.check_option("padding_mode", padding_mode, _checks.PADDING_MODES)
    return *_checks.flow_scale(scale), align_corners, mode, padding_mode
