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
from ..._triton import (
    bilinear_taps,
    bilinear_weights,
    channel_offsets,
    flow_scales,
    index_dtype,
    last_offset,
)

#: What a kernel is not compiled anew for. C is not among it: vectors of channels need its divisors.
RUN_TIME = "scale_x scale_y eps H W flow_n flow_c flow_y flow_x".split()


@triton.jit
def corners_of(
    flow, n, y, x, exists, scale_x, scale_y, C, H, W, flow_n, flow_c, flow_y, flow_x,
    F: tl.constexpr, INDEX: tl.constexpr, BORDER: tl.constexpr, BLOCK_C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Where the flow samples at (y, x): offsets of the 4 pixels, whether inside, the fractions."""
    p00, p01, p10, p11, in00, in01, in10, in11, fx, fy = bilinear_taps(
        flow, n, y, x, exists, scale_x, scale_y, H, W, H, W, flow_n, flow_c, flow_y, flow_x,
        F, INDEX, True, True, False, BORDER,
    )  # fmt: skip
    size = H.to(INDEX) * W
    return (
        channel_offsets(p00, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(p01, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(p10, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(p11, C, size, BLOCK_C, CHANNELS_LAST),
        in00, in01, in10, in11, fx, fy,
    )  # fmt: skip


@triton.jit
def sample(logits, real, at00, at01, at10, at11, in00, in01, in10, in11, fx, fy, F: tl.constexpr):
    """One tile of classes at the positions of `corners_of`; a tap of weight 0 is not read."""
    w00, w01, w10, w11 = bilinear_weights(fy, fx)
    i00 = tl.load(logits + at00, mask=real & (in00 & (w00 != 0))[None, :], other=0.0).to(F)
    i01 = tl.load(logits + at01, mask=real & (in01 & (w01 != 0))[None, :], other=0.0).to(F)
    i10 = tl.load(logits + at10, mask=real & (in10 & (w10 != 0))[None, :], other=0.0).to(F)
    i11 = tl.load(logits + at11, mask=real & (in11 & (w11 != 0))[None, :], other=0.0).to(F)
    out = tl.fma(i01, w01[None, :], i00 * w00[None, :])
    return tl.fma(i11, w11[None, :], tl.fma(i10, w10[None, :], out))


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
