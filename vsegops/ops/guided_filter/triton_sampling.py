# mypy: disable-error-code="no-untyped-def"
"""What the guided filter's Triton kernels share: logits sampled along a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import layout_of
from ..._triton import corners, flow_scales, index_dtype, last_offset

#: What a kernel is not compiled anew for. C is not among it: vectors of channels need its divisors.
RUN_TIME = "scale_x scale_y eps H W flow_n flow_c flow_y flow_x".split()


@triton.jit
def corners_of(
    flow, n, y, x, exists, scale_x, scale_y, C, H, W, flow_n, flow_c, flow_y, flow_x,
    F: tl.constexpr, INDEX: tl.constexpr, BORDER: tl.constexpr, BLOCK_C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The `corners` of where the flow samples at (y, x), in logits of the output's size."""
    return corners(
        flow, n, y, x, exists, scale_x, scale_y, C, H, W, H, W, flow_n, flow_c, flow_y, flow_x,
        F, INDEX, True, True, False, BORDER, BLOCK_C, CHANNELS_LAST,
    )  # fmt: skip


def geometry(
    logits: Tensor, flow: Tensor | None, scale: Sequence[Any], channels: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What follows from the sizes: the run-time arguments of a kernel and its constants.

    Args:
        scale: (scale_x, scale_y, semantic)
        channels: the most of any tensor.
    """
    _, c, h, w = logits.shape
    strides = (0, 0, 0, 0) if flow is None else flow.stride()
    index = index_dtype(
        channels * h * w, 0 if flow is None else last_offset(flow), 2 * max(h, w) * (max(h, w) + 1)
    )
    scale_x, scale_y, semantic = scale
    scales = flow_scales(scale_x, scale_y, semantic, True, (h, w), (h, w))
    constants = {"INDEX": index, "CHANNELS_LAST": layout_of(logits) == torch.channels_last}
    return (scales, (c, h, w, *strides)), constants
