# mypy: disable-error-code="no-untyped-def"
"""`label_edges` in Triton: labels stay in registers, neighbours are fetched from other threads.

The fewest bytes to move per pixel, with C classes of E bytes, a flow of F bytes: (C + 1)E, and 2F
more with a flow.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..._layout import dense, empty_like_layout, layout_of
from ..._triton import (
    INTERPRETED,
    channel_offsets,
    channel_step,
    launch,
    real_channels,
    rounded,
    sample,
)
from .triton_sampling import RUN_TIME, corners_of, geometry


@triton.jit(do_not_specialize=RUN_TIME)
def _edges(
    logits, flow, output, scale_x: tl.float64, scale_y: tl.float64,
    C, H, W, flow_n, flow_c, flow_y, flow_x,
    INDEX: tl.constexpr, BORDER: tl.constexpr, SIGMOID: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """output = response(sum of the 3 x 3 labels around a pixel - 9 * its own)

    A program labels ROWS x COLUMNS pixels, each once, and writes those that are not at the rim.
    """
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    across = tl.cdiv(W, COLUMNS - 2)
    down = tl.cdiv(H, ROWS - 2)
    image = tl.program_id(0) // (across * down)
    tile = tl.program_id(0) - image * (across * down)
    tile_y = tile // across
    lane = tl.arange(0, ROWS * COLUMNS)
    row = lane // COLUMNS
    column = lane - row * COLUMNS
    y = (tile_y * (ROWS - 2) + row - 1).to(INDEX)
    x = ((tile - tile_y * across) * (COLUMNS - 2) + column - 1).to(INDEX)
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    n = image.to(tl.int64)
    size = H.to(INDEX) * W
    pixel = y * W + x
    logits += n * C * size
    if flow is None:
        at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    else:
        around = corners_of(
            flow, n, y, x, inside, scale_x, scale_y, C, H, W, flow_n, flow_c, flow_y, flow_x,
            F, INDEX, BORDER, BLOCK_C, CHANNELS_LAST,
        )  # fmt: skip
    best = tl.full((ROWS * COLUMNS,), -float("inf"), F)
    label = tl.zeros((ROWS * COLUMNS,), tl.int32)
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        if flow is None:
            s = tl.load(logits + at, mask=real & inside[None, :], other=0.0).to(F)
        else:
            s = sample(logits, real, *around, F)
        s = tl.where(real, s, -float("inf"))
        value, channel = tl.max(s, 0, return_indices=True, return_indices_tie_break_left=True)
        label = tl.where(value > best, start + channel, label)  # the lowest of equals stays
        best = tl.maximum(value, best)
        logits += channel_step(size, BLOCK_C, CHANNELS_LAST)
    label = tl.where(inside, label, 0)
    last: tl.constexpr = ROWS * COLUMNS - 1
    total = label + tl.gather(label, tl.maximum(lane - 1, 0), 0)
    total += tl.gather(label, tl.minimum(lane + 1, last), 0)
    above = tl.gather(total, tl.maximum(lane - COLUMNS, 0), 0)
    below = tl.gather(total, tl.minimum(lane + COLUMNS, last), 0)
    laplacian = above + total + below - 9 * label
    if SIGMOID:
        small = tl.exp(-tl.abs(laplacian).to(F))
        edge = tl.where(laplacian < 0, small, 1.0) / (1 + small)
    else:
        edge = (laplacian != 0).to(F)
    inner = (row > 0) & (row < ROWS - 1) & (column > 0) & (column < COLUMNS - 1)
    edge = rounded(edge, output.dtype.element_ty)
    tl.store(output + n * size + pixel, edge, mask=inside & inner)


#: A program's labels: with a rim of one pixel 70% of them are written.
_ROWS, _COLUMNS = 8, 32


def label_edges(logits: Tensor, flow: Tensor | None, *options: Any) -> Tensor:
    *scale, padding_mode, response = options
    n, c, h, w = logits.shape
    output = empty_like_layout(logits, (n, 1, h, w))  # one channel: the same in both layouts
    if output.numel() == 0:
        return output
    logits = dense(logits, layout_of(logits))
    (scales, sizes), constants = geometry(logits, flow, scale, c)
    block = min(triton.next_power_of_2(c), 16 if INTERPRETED.value else 4)
    launch(
        _edges,
        n * triton.cdiv(h, _ROWS - 2) * triton.cdiv(w, _COLUMNS - 2),
        logits,
        flow,
        output,
        *scales,
        *sizes,
        BORDER=padding_mode == "border",
        SIGMOID=response == "sigmoid",
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        BLOCK_C=block,
        WHOLE=c % block == 0,
        num_warps=4,
        **constants,
    )
    return output
