# mypy: disable-error-code="no-untyped-def"
"""Pyramid pooling in Triton.

The forward is two kernels. The first reads the input, once, and writes the means of each row over
the column bins of all levels: a product with a matrix that is made where it is used, of zeros and
ones. The second averages these, some tenth of the input, over rows and frames. The backward is one
kernel: each pixel gathers the gradients of the bins that cover it, few of each level, so that each
output is written once, without atomics.

The fewest bytes to move are the input's, or those of its gradient, and the anchors'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import dense, layout_of
from ..._triton import INTERPRETED, dot, index_dtype, last_offset, launch, rounded
from .op import anchors_of, levels_of


@triton.jit
def _bins(i, bins, size):
    """Where bin `i` begins and ends along a dimension, or, of `size` bins over `bins` pixels, the
    bins that cover pixel `i`: the two are one formula."""
    return i * size // bins, ((i + 1) * size + bins - 1) // bins


@triton.jit
def _tile(rows, C, BLOCK_C: tl.constexpr):
    """This program's (image, row of the image, channels)."""
    tiles = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // tiles
    channel = (tl.program_id(0) % tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = row // rows
    return n.to(tl.int64), row - n * rows, channel


@triton.jit
def _row_means(
    input, means, C, rows, W, J, input_n, input_c, input_row, input_w,
    WIDTHS: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """means[n, row, c, j] = mean of input[n, c, row, :] over column bin j, of all the widths."""
    F: tl.constexpr = means.dtype.element_ty
    n, row, channel = _tile(rows, C, BLOCK_C)
    real = channel < C
    input += n * input_n + row.to(INDEX) * input_row
    input += (channel.to(INDEX) * input_c)[:, None]
    means += (n * rows + row) * C * J + channel[:, None].to(INDEX) * J
    for start in range(0, J, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        first = tl.zeros((BLOCK_J,), INDEX)
        end = tl.zeros((BLOCK_J,), INDEX)
        before = 0
        for level in tl.static_range(len(WIDTHS)):
            bin = (j - before).to(INDEX)
            begins, ends = _bins(bin, WIDTHS[level], W)
            among = (bin >= 0) & (bin < WIDTHS[level])
            first = tl.where(among, begins, first)
            end = tl.where(among, ends, end)
            before += WIDTHS[level]
        sums = tl.zeros((BLOCK_C, BLOCK_J), F)
        for left in range(0, W, BLOCK_W):
            w = left + tl.arange(0, BLOCK_W).to(INDEX)
            x = tl.load(input + (w * input_w)[None, :], mask=real[:, None] & (w < W)[None, :],
                        other=0.0)  # fmt: skip
            inside = (w[:, None] >= first[None, :]) & (w[:, None] < end[None, :])
            sums = dot(x, tl.where(inside, 1.0, 0.0).to(x.dtype), sums)
        width = tl.maximum(end - first, 1).to(F)
        tl.store(means + j[None, :], sums / width[None, :], mask=real[:, None] & (j < J)[None, :])


@triton.jit
def _pool(
    means, out, C, T, H, J, S, bands, blocks,
    FRAMES: tl.constexpr, HEIGHTS: tl.constexpr, WIDTHS: tl.constexpr,
    BANDS: tl.constexpr, COLUMNS: tl.constexpr, ANCHORS: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """out[n, c, s] = mean of `means` over the frames and rows of bin s.

    A program takes a band, the bins of one level that share frames and rows, for some channels.
    """
    F: tl.constexpr = means.dtype.element_ty
    block = tl.program_id(0) % blocks
    n = tl.program_id(0) // blocks // bands
    band = tl.program_id(0) // blocks - n * bands
    n = n.to(tl.int64)
    index = band
    frames = tl.full((), FRAMES[0], tl.int32)
    height = tl.full((), HEIGHTS[0], tl.int32)
    width = tl.full((), WIDTHS[0], tl.int32)
    column = tl.full((), COLUMNS[0], tl.int32)
    anchor = tl.full((), ANCHORS[0], tl.int32)
    for level in tl.static_range(1, len(FRAMES)):
        if band >= BANDS[level]:  # the last level that says so has the band
            index = band - BANDS[level]
            frames = tl.full((), FRAMES[level], tl.int32)
            height = tl.full((), HEIGHTS[level], tl.int32)
            width = tl.full((), WIDTHS[level], tl.int32)
            column = tl.full((), COLUMNS[level], tl.int32)
            anchor = tl.full((), ANCHORS[level], tl.int32)
    first_frame, last_frame = _bins((index // height).to(INDEX), frames, T)
    first_row, last_row = _bins((index % height).to(INDEX), height, H)
    q = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = (q // width).to(INDEX)
    j = q % width
    real = channel < C
    means += (channel * J + column + j)[None, :]
    sums = tl.zeros((BLOCK_Q,), F)
    for frame in range(first_frame, last_frame):
        for top in range(first_row, last_row, BLOCK_R):
            row = top + tl.arange(0, BLOCK_R)
            at = ((n * T + frame) * H + row) * C * J
            read = (row < last_row)[:, None] & real[None, :]
            sums += tl.sum(tl.load(means + at[:, None], mask=read, other=0.0), 0)
    count = ((last_frame - first_frame) * (last_row - first_row)).to(F)
    out += n * C * S + channel * S + anchor + index * width + j
    tl.store(out, rounded(sums / count, out.dtype.element_ty), mask=real)


@triton.jit
def _pool_backward(
    grad, d_input, C, T, H, W, rows, columns, grad_n, grad_c, grad_s, d_n, d_c, d_row, d_w,
    FRAMES: tl.constexpr, HEIGHTS: tl.constexpr, WIDTHS: tl.constexpr, ANCHORS: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """d_input[n, c, t, h, w] = sum of grad[n, c, s] / (size of s) over the bins s that cover it."""
    F: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    n, row, channel = _tile(rows, C, BLOCK_C)
    column = row % columns
    row = row // columns
    w = (column * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    real = channel < C
    grad += n * grad_n + (channel.to(INDEX) * grad_c)[:, None]
    d = tl.zeros((BLOCK_C, BLOCK_W), F)
    for level in tl.static_range(len(FRAMES)):
        first_frame, last_frame = _bins((row // H).to(INDEX), T, FRAMES[level])
        first_row, last_row = _bins((row % H).to(INDEX), H, HEIGHTS[level])
        first, last = _bins(w, W, WIDTHS[level])
        for also in range(0, (WIDTHS[level] + W - 1) // W + 1):
            j = first + also
            left, right = _bins(j, WIDTHS[level], W)
            read = real[:, None] & ((j < last) & (w < W))[None, :]
            sums = tl.zeros((BLOCK_C, BLOCK_W), F)
            for t in range(first_frame, last_frame):
                front, back = _bins(t, FRAMES[level], T)
                for h in range(first_row, last_row):
                    top, bottom = _bins(h, HEIGHTS[level], H)
                    at = ANCHORS[level] + (t * HEIGHTS[level] + h) * WIDTHS[level] + j
                    g = tl.load(grad + (at * grad_s)[None, :], mask=read, other=0.0)
                    sums += g.to(F) / ((back - front) * (bottom - top)).to(F)
            d += sums / (right - left).to(F)[None, :]
    d_input += n * d_n + row.to(INDEX) * d_row + (channel.to(INDEX) * d_c)[:, None]
    d = rounded(d, d_input.dtype.element_ty)
    tl.store(d_input + (w * d_w)[None, :], d, mask=real[:, None] & (w < W)[None, :])


# --- launching ---------------------------------------------------------------------------------


class _Pyramid(NamedTuple):
    """What is pooled, `[N, C, T, H, W]`, and its levels: of each one the bins along each dimension,
    and what comes before it: bands (of `t * h` in each level), columns of other widths, anchors."""

    t: int
    h: int
    w: int
    frames: tuple[int, ...]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    bands: tuple[int, ...]
    columns: tuple[int, ...]
    anchors: tuple[int, ...]

    @property
    def distinct(self) -> tuple[int, ...]:
        """The widths, each once."""
        return tuple(dict.fromkeys(self.widths))

    @property
    def all_bands(self) -> int:
        return self.bands[-1] + self.frames[-1] * self.heights[-1]


def _pyramid(shape: Sequence[int], sizes: Sequence[int]) -> _Pyramid:
    t, h, w = (1, *shape[2:])[-3:]
    levels = [(1, *level)[-3:] for level in levels_of(sizes, len(shape) - 2)]
    frames, heights, widths = zip(*levels, strict=True)
    distinct = list(dict.fromkeys(widths))
    column = {w: sum(distinct[:i]) for i, w in enumerate(distinct)}
    bands = [0, *accumulate(i * j for i, j, _ in levels)]
    anchors = [0, *accumulate(i * j * k for i, j, k in levels)]
    return _Pyramid(
        *(t, h, w, frames, heights, widths),
        bands=tuple(bands[:-1]),
        columns=tuple(column[w] for w in widths),
        anchors=tuple(anchors[:-1]),
    )


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    """From image to image, channel to channel, row to row (frames being rows), pixel to pixel."""
    return x.stride(0), x.stride(1), x.stride(-2), x.stride(-1)


def _block(size: int, most: int) -> int:
    return int(min(max(triton.next_power_of_2(size), 16), most))


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def pyramid_pool(input: Tensor, sizes: Sequence[int]) -> Tensor:
    n, c = input.shape[:2]
    pyramid = _pyramid(input.shape, sizes)
    anchors = anchors_of(sizes, input.dim() - 2)
    out = input.new_empty(n, c, anchors)
    if out.numel() == 0:
        return out
    input = dense(input, layout_of(input))
    rows, columns = pyramid.t * pyramid.h, sum(pyramid.distinct)
    means = input.new_empty(n, rows, c, columns, dtype=_compute(input.dtype))
    index = index_dtype(
        input[0].numel(), means[0].numel(), out[0].numel(), pyramid.w * (max(pyramid.widths) + 1)
    )
    block_c = _block(c, 32)
    launch(
        _row_means,
        n * rows * triton.cdiv(c, block_c),
        *(input, means, c, rows, pyramid.w, columns),
        *_strides(input),
        WIDTHS=pyramid.distinct,
        INDEX=index,
        BLOCK_C=block_c,
        BLOCK_W=_block(pyramid.w, 32),
        BLOCK_J=_block(columns, 32),
        num_warps=4,
    )
    block_q = 1024 if INTERPRETED.value else 128
    blocks, bands = triton.cdiv(c * max(pyramid.widths), block_q), pyramid.all_bands
    launch(
        _pool,
        n * bands * blocks,
        *(means, out, c, pyramid.t, pyramid.h, columns, anchors, bands, blocks),
        FRAMES=pyramid.frames,
        HEIGHTS=pyramid.heights,
        WIDTHS=pyramid.widths,
        BANDS=pyramid.bands,
        COLUMNS=pyramid.columns,
        ANCHORS=pyramid.anchors,
        INDEX=index,
        BLOCK_R=16,
        BLOCK_Q=block_q,
        num_warps=4,
    )
    return out


def pyramid_pool_backward(
    grad: Tensor, shape: Sequence[int], channels_last: bool, sizes: Sequence[int]
) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats[len(shape)] if channels_last else torch.contiguous_format
    d_input = torch.empty(tuple(shape), dtype=grad.dtype, device=grad.device, memory_format=layout)
    if d_input.numel() == 0:
        return d_input
    n, c = shape[:2]
    if channels_last:  # neighbouring lanes hold neighbouring channels
        grad = grad.mT.contiguous().mT
    pyramid = _pyramid(shape, sizes)
    block_c, block_w = _block(c, 16), _block(pyramid.w, 64)
    columns = triton.cdiv(pyramid.w, block_w)
    rows = pyramid.t * pyramid.h * columns
    launch(
        _pool_backward,
        n * rows * triton.cdiv(c, block_c),
        *(grad, d_input, c, pyramid.t, pyramid.h, pyramid.w, rows, columns),
        *grad.stride(),
        *_strides(d_input),
        FRAMES=pyramid.frames,
        HEIGHTS=pyramid.heights,
        WIDTHS=pyramid.widths,
        ANCHORS=pyramid.anchors,
        INDEX=index_dtype(d_input[0].numel(), last_offset(grad), max(shape) * (max(sizes) + 1)),
        BLOCK_C=block_c,
        BLOCK_W=block_w,
        num_warps=4,
    )
    return d_input
