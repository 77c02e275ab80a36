"""Two feature maps warped to meet, and blended by a gate (SFNet's alignment, SFNet-Lite's).

A coarse, semantic map and a fine one are sampled, each along a flow of its own (as `flow_warp`
does; `A` below), and blended pixel by pixel:

    out = gate * A(high) + (1 - gate) * A(low)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import _checks
from ..._register import call
from . import op  # noqa: F401  (registers the operators)


def gated_dual_warp(
    high: Tensor,
    low: Tensor,
    high_flow: Tensor,
    low_flow: Tensor,
    gate: Tensor,
    *,
    high_scale: float | Sequence[float] | str = "semantic",
    low_scale: float | Sequence[float] | str = "semantic",
    align_corners: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """Warp two feature maps and blend them: `out = gate * A(high) + (1 - gate) * A(low)`.

    The gated dual flow alignment of SFNet-Lite (equation 6) in one pass: neither of the warped
    maps is written to memory. The gate weighs the coarse map, as in the published code; the paper's
    equation has it on the other.

    Args:
        high: coarse, semantic features `[N, C, h, w]`, float64, float32, float16 or bfloat16, any
            layout; finite, as the input of `flow_warp`.
        low: fine features `[N, C, H, W]`, of the dtype of `high`; finite, too.
        high_flow: `[N, 2, H, W]` as for `flow_warp`, along which `high` is sampled.
        low_flow: the same for `low`. Both of one dtype: that of the features or float32.
        gate: `[N, 1, H, W]` of the dtype of `high`, one weight for all channels of a pixel.
        high_scale: pixels of `high` per unit of its flow, as `scale` of `flow_warp`. The default is
            that of the published networks.
        low_scale: pixels of `low` per unit of its flow.
        align_corners, padding_mode: as for `flow_warp`, of both.

    Returns:
        `[N, C, H, W]` of the dtype of `high`, channels_last if `high` is, else contiguous.

    Raises:
        ValueError: a wrong rank, shape, dtype, device or option.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> high, low = torch.ones(1, 1, 1, 1), torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> flow, gate = torch.zeros(1, 2, 1, 4), torch.full((1, 1, 1, 4), 0.5)
        >>> vsegops.gated_dual_warp(high, low, flow, flow, gate).flatten().tolist()
        [0.5, 1.0, 1.5, 2.0]
    """
    _checks.check_tensor("high", high, ("N", "C", "h", "w"))
    _checks.check_size("high", high)
    n, c = high.shape[:2]
    _check_beside("low", low, (n, c, "H", "W"), high)
    _checks.check_size("low", low)
    height, width = low.shape[2:]
    _checks.check_flow("high_flow", high_flow, (n, 2, height, width), high)
    _checks.check_flow("low_flow", low_flow, (n, 2, height, width), high)
    if low_flow.dtype != high_flow.dtype:
        raise _checks.error("low_flow", f"dtype {high_flow.dtype}, as high_flow", low_flow)
    _check_beside("gate", gate, (n, 1, height, width), high)
    _checks.check_source("high", high, low_flow)
    high_scales = _checks.flow_scale(high_scale, "high_scale")
    low_scales = _checks.flow_scale(low_scale, "low_scale")
    _checks.check_bool("align_corners", align_corners)
    _checks.check_option("padding_mode", padding_mode, _checks.PADDING_MODES)
    options = (*high_scales, *low_scales, align_corners, padding_mode)
    return call(  # type: ignore[no-any-return]
        "gated_dual_warp", high, high, low, high_flow, low_flow, gate, *options
    )


def channel_pool(first: Tensor, second: Tensor) -> Tensor:
    """Mean and maximum over the channels of two feature maps, in one read of both.

    What SFNet-Lite's gate is computed from. The gradient of a maximum goes to the first channel
    that has it, as in `torch.max`; NaN counts as the maximum.

    Args:
        first: features `[N, C, H, W]` with at least one channel, float64, float32, float16 or
            bfloat16, any layout.
        second: features `[N, D, H, W]` of the same dtype; D need not be C.

    Returns:
        `[N, 4, H, W]`: mean of the first, mean of the second, maximum of the first, maximum of the
        second; of the dtype of `first`, channels_last if `first` is, else contiguous.

    Raises:
        ValueError: a wrong rank, shape, dtype or device.
        TypeError: not a tensor.

    Example:
        >>> import torch, vsegops
        >>> first, second = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([-2.0, 0.0])
        >>> vsegops.channel_pool(first.view(1, 3, 1, 1), second.view(1, 2, 1, 1)).flatten().tolist()
        [3.0, -1.0, 5.0, 0.0]
    """
    _checks.check_tensor("first", first, ("N", "C", "H", "W"))
    n, _, height, width = first.shape
    _check_beside("second", second, (n, "D", height, width), first)
    for name, x in (("first", first), ("second", second)):
        if x.shape[1] == 0:
            raise _checks.error(name, "at least one channel", x)
    return call("channel_pool", first, first, second)  # type: ignore[no-any-return]


def _check_beside(name: str, value: Any, shape: Sequence[int | str], first: Tensor) -> None:
    _checks.check_tensor(name, value, shape, like=first)
    _checks.check_dtype(name, value, first)
