# mypy: disable-error-code="no-untyped-def"
"""The dense head in Triton: labels, losses, and their gradient at the logits' resolution.

Forward, a program takes some pixels of the full resolution and walks over the classes: 4 loads
(from the cache, where neighbours share them) and 3 interpolations for each. It writes a label or a
loss, or adds the losses up.

Backward is gathered, so that it is the same each time. A first pass writes one number a pixel,
log(sum(exp(Z))). The next gathers along x: a program takes some rows of the full resolution in some
columns of the logits and walks over the pixels that touch these. The last gathers along y.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._layout import dense, empty_like_layout, layout_of
from ..._triton import (
    INTERPRETED,
    Tile,
    base_position,
    channel_at,
    clamped,
    index_dtype,
    last_offset,
    launch,
    pixels_of_block,
    rounded,
)
from .op import label_dtype, loss_dtype

#: A sum is made of so many parts, at most, which are added in a fixed order.
_PARTS = 256

#: What a kernel is not compiled anew for.
_RUN_TIME = (
    "C h w H W blocks target_n target_y target_x ignore_index label_smoothing reach"
).split()


# --- interpolation -----------------------------------------------------------------------------


@triton.jit
def _corners(
    y, x, C, h, w, H, W,
    F: tl.constexpr, INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Of the 4 logits that a pixel of the full resolution lies between: offsets of class 0, and
    fractions (fx, fy)."""
    index, fraction = base_position(y, h, H, F, INDEX, ALIGN_CORNERS)
    y0, y1, fy = clamped(index, fraction, h)
    index, fraction = base_position(x, w, W, F, INDEX, ALIGN_CORNERS)
    x0, x1, fx = clamped(index, fraction, w)
    size = h.to(INDEX) * w
    row0 = y0.to(INDEX) * w
    row1 = y1.to(INDEX) * w
    return (
        channel_at(row0 + x0, 0, C, size, CHANNELS_LAST),
        channel_at(row0 + x1, 0, C, size, CHANNELS_LAST),
        channel_at(row1 + x0, 0, C, size, CHANNELS_LAST),
        channel_at(row1 + x1, 0, C, size, CHANNELS_LAST),
        fx,
        fy,
    )


@triton.jit
def _interpolated(logits, at00, at01, at10, at11, fx, fy, exists, F: tl.constexpr):
    """Z of one class, to which `logits` points."""
    z00 = tl.load(logits + at00, mask=exists, other=0.0).to(F)
    z01 = tl.load(logits + at01, mask=exists, other=0.0).to(F)
    z10 = tl.load(logits + at10, mask=exists, other=0.0).to(F)
    z11 = tl.load(logits + at11, mask=exists, other=0.0).to(F)
    return _between(_between(z00, z10, fy), _between(z01, z11, fy), fx)


@triton.jit
def _between(low, high, fraction):
    """(1 - fraction) * low + fraction * high, along y before x: everywhere in the same order, so
    that forward and backward see the same bits."""
    return tl.fma(low, 1 - fraction, high * fraction)


@triton.jit
def _class_step(h, w, CHANNELS_LAST: tl.constexpr):
    """From a logit to that of the next class."""
    if CHANNELS_LAST:
        return tl.full((), 1, tl.int64)
    else:
        return h.to(tl.int64) * w


@triton.jit
def _add_exponential(largest, total, z):
    """total = sum of exp(z - largest) with one z more."""
    above = z - largest
    e = tl.exp(-tl.abs(above))
    total = tl.where(above > 0, tl.fma(total, e, 1.0), total + e)
    return tl.maximum(largest, z), total


# --- labels ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_RUN_TIME)
def _argmax(
    logits, labels, confidence, C, h, w, H, W,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The first class with the largest Z, and 1 / sum(exp(Z - the largest))."""
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_block(tl.program_id(0), H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    around = _corners(y, x, C, h, w, H, W, F, INDEX, ALIGN_CORNERS, CHANNELS_LAST)
    step = _class_step(h, w, CHANNELS_LAST)
    logits += n * C * h * w
    largest = _interpolated(logits, *around, exists, F)
    label = tl.zeros((BLOCK_P,), tl.int32)
    total = tl.full((BLOCK_P,), 1.0, F)
    for c in range(1, C):
        logits += step
        z = _interpolated(logits, *around, exists, F)
        label = tl.where(z > largest, c, label)
        if confidence is None:
            largest = tl.maximum(largest, z)
        else:
            largest, total = _add_exponential(largest, total, z)
    at = n * H * W + pixel
    tl.store(labels + at, label.to(labels.dtype.element_ty), mask=exists)
    if confidence is not None:
        tl.store(confidence + at, 1.0 / total, mask=exists)


def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    n, c, h, w = logits.shape
    shape, layout = (n, height, width), layout_of(logits)
    labels = logits.new_empty(shape, dtype=label_dtype(c))
    sure = logits.new_empty(shape if confidence else (0,), dtype=loss_dtype(logits))
    if labels.numel() > 0:
        block = 1024 if INTERPRETED.value else 128
        launch(
            _argmax,
            n * triton.cdiv(height * width, block),
            dense(logits, layout),
            labels,
            sure if confidence else None,
            *(c, h, w, height, width),
            INDEX=_index(logits, height, width),
            ALIGN_CORNERS=align_corners,
            CHANNELS_LAST=layout == torch.channels_last,
            BLOCK_P=block,
            num_warps=4,
        )
    return labels, sure


def _index(logits: Tensor, height: int, width: int, *others: int) -> Any:
    """The integer type for offsets in one image, and for positions."""
    c, h, w = logits.shape[1:]
    positions = (2 * (width + 1) * (w + 1), 2 * (height + 1) * (h + 1))
    return index_dtype(c * h * w, height * width, *positions, *others)


# --- losses ------------------------------------------------------------------------------------


@triton.jit
def _target_at(target, n, y, x, exists, target_n, target_y, target_x, C, ignore_index):
    """(class or -1, whether it is not ignored, whether it is no class)."""
    at = n * target_n + y * target_y.to(tl.int64) + x * target_x.to(tl.int64)
    y_true = tl.load(target + at, mask=exists, other=0).to(tl.int64)
    valid = exists & (y_true != ignore_index)
    known = (y_true >= 0) & (y_true < C)
    return tl.where(known, y_true, -1).to(tl.int32), valid, valid & ~known


@triton.jit
def _class_weight(weight, label, wrong, F: tl.constexpr):
    """w_y: NaN for what is no class, so that whatever is made of it is NaN."""
    if weight is None:
        of_class = tl.full(label.shape, 1.0, F)
    else:
        of_class = tl.load(weight + label, mask=label >= 0, other=0.0)
    return tl.where(wrong, float("nan"), of_class)


@triton.jit(do_not_specialize=_RUN_TIME)
def _losses(
    logits, target, weight, losses, sums, normalizers, label_smoothing: tl.float64,
    C, h, w, H, W, blocks, target_n, target_y, target_x, ignore_index,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SMOOTH: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What is not None of:

    losses       (1 - s) * w_y * l_y + s / C * sum_c w_c * l_c, with l_c = log(sum(exp(Z))) - Z_c
    sums         [2, programs]: their sum, and that of w_y, over the blocks of a program
    normalizers  log(sum(exp(Z)))
    """
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    s = tl.full((), label_smoothing, tl.float64).to(F)
    step = _class_step(h, w, CHANNELS_LAST)
    loss_sum = tl.zeros((BLOCK_P,), F)
    weight_sum = tl.zeros((BLOCK_P,), F)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        n, pixel, exists, y, x = pixels_of_block(block, H, W, BLOCK_P, INDEX, CHANNELS_LAST)
        around = _corners(y, x, C, h, w, H, W, F, INDEX, ALIGN_CORNERS, CHANNELS_LAST)
        label, valid, wrong = _target_at(
            target, n, y, x, exists, target_n, target_y, target_x, C, ignore_index
        )
        classes = logits + n * C * h * w
        first = _interpolated(classes, *around, exists, F)
        largest = first
        z_true = first
        total = tl.full((BLOCK_P,), 1.0, F)
        blend = tl.zeros((BLOCK_P,), F)  # sum_c w_c * (Z_c - Z_0)
        weights = tl.full((), 1.0, F) if weight is None else tl.load(weight)
        for c in range(1, C):
            classes += step
            z = _interpolated(classes, *around, exists, F)
            largest, total = _add_exponential(largest, total, z)
            z_true = tl.where(label == c, z, z_true)
            if SMOOTH:
                w_c = 1.0 if weight is None else tl.load(weight + c)
                blend += w_c * (z - first)
                weights += w_c
        at = n * H * W + pixel
        logarithm = tl.log(total)
        if normalizers is not None:
            tl.store(normalizers + at, largest + logarithm, mask=exists)
        if normalizers is None:
            w_true = _class_weight(weight, label, wrong, F)
            loss = (1 - s) * w_true * (logarithm - (z_true - largest))
            if SMOOTH:
                loss += s / C * (weights * (logarithm - (first - largest)) - blend)
            loss = tl.where(valid, loss, 0.0)
            if losses is not None:
                tl.store(losses + at, loss, mask=exists)
            if sums is not None:
                loss_sum += loss
                weight_sum += tl.where(valid, w_true, 0.0)
    if sums is not None:
        sums += tl.program_id(0)
        tl.store(sums, tl.sum(loss_sum))
        tl.store(sums + tl.num_programs(0), tl.sum(weight_sum))


# --- the losses' gradient ----------------------------------------------------------------------


@triton.jit
def _first_touching(i, size, size_out, INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr):
    """The first output pixel beyond i - 1, along one axis: what touches pixel `i` starts there."""
    i = i.to(INDEX)
    if ALIGN_CORNERS:
        after = (i - 1) * tl.maximum(size_out - 1, 1) // tl.maximum(size - 1, 1) + 1
        return tl.where(i > 0, after, 0)
    else:  # j with (j + 0.5) * size / size_out - 0.5 > i - 1
        return tl.maximum((2 * i - 1) * size_out + size, 0) // (2 * size)


@triton.jit
def _tile_at(pixel, c, C, size, CHANNELS_LAST: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_P] of these classes of these pixels, in an image of `size`."""
    return channel_at(pixel[None, :], c[:, None], C, size, CHANNELS_LAST)


@triton.jit
def _column(
    logits, column, row0, row1, fy, c, C, size, real, F: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """The logits of a column, interpolated along y: [BLOCK_C, BLOCK_P]."""
    top = tl.load(logits + _tile_at(row0 + column, c, C, size, CHANNELS_LAST), mask=real, other=0.0)
    bottom = tl.load(
        logits + _tile_at(row1 + column, c, C, size, CHANNELS_LAST), mask=real, other=0.0
    )
    return _between(top.to(F), bottom.to(F), fy[None, :])


@triton.jit
def _classes_and_pixels(
    C, H, W, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    INDEX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """This program's classes, pixels (see `pixels_of_block`), and which of [BLOCK_C, BLOCK_P] are
    real."""
    tiles = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0) // tiles
    c = (tl.program_id(0) - block * tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, pixel, exists, y, x = pixels_of_block(block, H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    return c, n, pixel, exists, y, x, (c < C)[:, None] & exists[None, :]


@triton.jit(do_not_specialize=_RUN_TIME)
def _backward_along_x(
    grad, logits, target, weight, normalizers, rows, label_smoothing: tl.float64,
    C, h, w, H, W, target_n, target_y, target_x, ignore_index, reach,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SMOOTH: tl.constexpr, REDUCED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """rows(y, j) = sum over the x that touch column j of weight_j(x) * d_Z(y, x): [N, C, H, w]

    d_Z_c = g * (softmax_c(Z) * ((1 - s) * w_y + s / C * sum_k w_k)
                 - (1 - s) * w_y * [c = y] - s / C * w_c)

    Whatever touches a column lies between the columns beside it.
    """
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    c, n, pixel, exists, y, j, real = _classes_and_pixels(
        C, H, w, BLOCK_P, BLOCK_C, INDEX, CHANNELS_LAST
    )
    size = h.to(INDEX) * w
    logits += n * C * size
    index, fraction = base_position(y, h, H, F, INDEX, ALIGN_CORNERS)
    y0, y1, fy = clamped(index, fraction, h)
    row0 = y0.to(INDEX) * w
    row1 = y1.to(INDEX) * w
    left = tl.maximum(j - 1, 0)
    right = tl.minimum(j + 1, w - 1)
    z0 = _column(logits, left, row0, row1, fy, c, C, size, real, F, CHANNELS_LAST)
    z1 = _column(logits, j, row0, row1, fy, c, C, size, real, F, CHANNELS_LAST)
    z2 = _column(logits, right, row0, row1, fy, c, C, size, real, F, CHANNELS_LAST)

    s = tl.full((), label_smoothing, tl.float64).to(F)
    weights = tl.zeros((), F) + C
    w_c = tl.full((BLOCK_C,), 1.0, F)
    if SMOOTH and weight is not None:
        w_c = tl.load(weight + c, mask=c < C, other=0.0)
        weights = tl.zeros((), F)
        for k in range(C):
            weights += tl.load(weight + k)

    full = n * H * W + y.to(INDEX) * W
    first = _first_touching(j, w, W, INDEX, ALIGN_CORNERS)
    d = tl.zeros((BLOCK_C, BLOCK_P), F)
    for step in range(reach):
        x = first + step
        index, fraction = base_position(x, w, W, F, INDEX, ALIGN_CORNERS)
        x0, x1, fx = clamped(index, fraction, w)
        before = (x0 < j)[None, :]
        z = _between(tl.where(before, z0, z1), tl.where(before, z1, z2), fx[None, :])
        touches = exists & (x < W) & ((x0 == j) | (x1 == j))
        label, valid, wrong = _target_at(
            target, n, y, x, touches, target_n, target_y, target_x, C, ignore_index
        )
        g = tl.load(grad) if REDUCED else tl.load(grad + full + x, mask=valid, other=0.0)
        softmax = tl.exp(z - tl.load(normalizers + full + x, mask=valid, other=0.0)[None, :])
        hard = (1 - s) * _class_weight(weight, label, wrong, F)
        d_z = softmax * (hard + s / C * weights)[None, :]
        d_z -= tl.where(c[:, None] == label[None, :], hard[None, :], 0.0)
        if SMOOTH:
            d_z -= (s / C * w_c)[:, None]
        share = g * tl.where(x0 < j, fx, 1 - fx)
        d = tl.where(valid[None, :], tl.fma(d_z, share[None, :], d), d)
    size = H.to(INDEX) * w
    tl.store(rows + n * C * size + _tile_at(pixel, c, C, size, CHANNELS_LAST), d, mask=real)


@triton.jit(do_not_specialize=_RUN_TIME)
def _backward_along_y(
    rows, d_logits, C, h, w, H, reach,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """d_logits(i, j) = sum over the y that touch row i of weight_i(y) * rows(y, j)"""
    F: tl.constexpr = rows.dtype.element_ty
    c, n, pixel, exists, i, j, real = _classes_and_pixels(
        C, h, w, BLOCK_P, BLOCK_C, INDEX, CHANNELS_LAST
    )
    size = H.to(INDEX) * w
    rows += n * C * size
    first = _first_touching(i, h, H, INDEX, ALIGN_CORNERS)
    d = tl.zeros((BLOCK_C, BLOCK_P), F)
    for step in range(reach):
        y = first + step
        index, fraction = base_position(y, h, H, F, INDEX, ALIGN_CORNERS)
        y0, y1, fy = clamped(index, fraction, h)
        touches = (y < H) & ((y0 == i) | (y1 == i))
        share = tl.where(y0 < i, fy, 1 - fy)
        at = _tile_at(y.to(INDEX) * w + j, c, C, size, CHANNELS_LAST)
        came = tl.load(rows + at, mask=real & touches[None, :], other=0.0)
        d = tl.fma(came, tl.where(touches, share, 0.0)[None, :], d)
    size = h.to(INDEX) * w
    d_logits += n * C * size + _tile_at(pixel, c, C, size, CHANNELS_LAST)
    tl.store(d_logits, rounded(d, d_logits.dtype.element_ty), mask=real)


# --- launching ---------------------------------------------------------------------------------


def _launch_losses(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    *,
    losses: Tensor | None = None,
    sums: Tensor | None = None,
    normalizers: Tensor | None = None,
) -> None:
    layout = layout_of(logits)
    n, c, h, w = logits.shape
    height, width = target.shape[1:]
    block = 1024 if INTERPRETED.value else 128
    blocks = n * triton.cdiv(height * width, block)
    launch(
        _losses,
        blocks if sums is None else sums.shape[1],
        *(dense(logits, layout), target, weight, losses, sums, normalizers),
        label_smoothing,
        *(c, h, w, height, width, blocks),
        *target.stride(),
        ignore_index,
        INDEX=_index(logits, height, width, last_offset(target)),
        ALIGN_CORNERS=align_corners,
        CHANNELS_LAST=layout == torch.channels_last,
        SMOOTH=label_smoothing > 0,
        BLOCK_P=block,
        num_warps=4,
    )


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    reduce: bool,
) -> tuple[Tensor, Tensor]:
    given = (logits, target, weight, ignore_index, align_corners, label_smoothing)
    dtype = loss_dtype(logits)
    if not reduce:
        losses = logits.new_empty(target.shape, dtype=dtype)
        if losses.numel() > 0:
            _launch_losses(*given, losses=losses)
        return losses, losses.new_empty(0)
    parts = min(_PARTS, triton.cdiv(target.numel(), 256))
    sums = logits.new_empty(2, parts, dtype=dtype)
    if parts > 0:
        _launch_losses(*given, sums=sums)
    return sums[0].sum(), sums[1].sum()


def upsample_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
) -> Tensor:
    layout = layout_of(logits)
    d_logits = empty_like_layout(logits)
    if target.numel() == 0:
        return d_logits.zero_()
    n, c, h, w = logits.shape
    height, width = target.shape[1:]
    logits = dense(logits, layout)
    options = (ignore_index, align_corners, label_smoothing)
    compute = loss_dtype(logits)
    normalizers = logits.new_empty(target.shape, dtype=compute)
    _launch_losses(logits, target, weight, *options, normalizers=normalizers)
    rows = torch.empty((n, c, height, w), dtype=compute, device=logits.device, memory_format=layout)
    tile = _tile(c, compute)
    constants = {
        "INDEX": _index(logits, height, width, c * height * w, last_offset(target)),
        "ALIGN_CORNERS": align_corners,
        "CHANNELS_LAST": layout == torch.channels_last,
        "BLOCK_P": tile.pixels,
        "BLOCK_C": tile.channels,
        "num_warps": tile.num_warps,
    }
    tiles = n * triton.cdiv(c, tile.channels)
    launch(
        _backward_along_x,
        tiles * triton.cdiv(height * w, tile.pixels),
        *(dense(grad, torch.contiguous_format), logits, target, weight, normalizers, rows),
        label_smoothing,
        *(c, h, w, height, width),
        *target.stride(),
        ignore_index,
        _reach(w, width, align_corners),
        SMOOTH=label_smoothing > 0,
        REDUCED=grad.dim() == 0,
        **constants,
    )
    launch(
        _backward_along_y,
        tiles * triton.cdiv(h * w, tile.pixels),
        *(rows, d_logits, c, h, w, height),
        _reach(h, height, align_corners),
        **constants,
    )
    return d_logits


def _tile(classes: int, compute: torch.dtype) -> Tile:
    """A thread has 32 bytes of classes of a pixel, or all there are, which share its positions."""
    padded = triton.next_power_of_2(classes)
    if INTERPRETED.value:  # a program takes milliseconds, whatever its size
        return Tile(1024, padded, 1)
    return Tile(64, min(padded, 32 // compute.itemsize), 2)


def _reach(size: int, size_out: int, align_corners: bool) -> int:
    """How many output pixels, at most, touch a pixel along one axis: those within 1 of it."""
    if size == 1:
        return size_out
    apart = 2 * (size_out - 1) // (size - 1) if align_corners else 2 * size_out // size
    return min(apart + 2, size_out)
