"""The dual warp family in Triton: one kernel forward and one backward for each operator.

A program computes the positions of its pixels once, for all channels.

The fewest bytes to move per output pixel, with C channels of E bytes, flows of F bytes, and a
coarse map of 1/r of the pixels (pooling: C channels in both tensors together):

    warp     forward  (2 + 1/r)CE + 4F + E    backward  (3 + 2/r)CE + 8F + 2E
    pooling  forward  (C + 4)E                backward  (2C + 4)E
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._determinism import nondeterministic
from ..._layout import dense, empty_like_layout, layout_of, skipped
from ..._register import only_wanted
from ..._triton import (
    add_weighted,
    bilinear_slopes,
    channel_at,
    channel_offsets,
    channel_step,
    corners,
    flow_scales,
    index_dtype,
    last_offset,
    launch,
    pixels_of_program,
    read_corners,
    real_channels,
    rounded,
    sample,
    scatter,
    store_flow,
    tile_of,
)
from .op import GATE, HIGH, HIGH_FLOW, LOW, LOW_FLOW, empty_places, pool_gradients

#: What a kernel is not compiled anew for. C is not among it: vectors of channels need its divisors.
_RUN_TIME = (
    "high_scale_x high_scale_y low_scale_x low_scale_y h w H W"
    " high_n high_c high_y high_x low_n low_c low_y low_x gate_n gate_y gate_x"
).split()


@triton.jit(do_not_specialize=_RUN_TIME)
def _forward(
    high, low, high_flow, low_flow, gate, output,
    high_scale_x: tl.float64, high_scale_y: tl.float64,
    low_scale_x: tl.float64, low_scale_y: tl.float64, C, h, w, H, W,
    high_n, high_c, high_y, high_x, low_n, low_c, low_y, low_x, gate_n, gate_y, gate_x,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """output = gate * A(high) + (1 - gate) * A(low)"""
    F: tl.constexpr = tl.float64 if high.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    coarse = corners(
        high_flow, n, y, x, exists, high_scale_x, high_scale_y, C, h, w, H, W,
        high_n, high_c, high_y, high_x,
        F, INDEX, ALIGN_CORNERS, SAME_SIZE, False, BORDER, BLOCK_C, CHANNELS_LAST,
    )  # fmt: skip
    fine = corners(
        low_flow, n, y, x, exists, low_scale_x, low_scale_y, C, H, W, H, W,
        low_n, low_c, low_y, low_x,
        F, INDEX, ALIGN_CORNERS, True, False, BORDER, BLOCK_C, CHANNELS_LAST,
    )  # fmt: skip
    gate += n * gate_n + y * gate_y + x * gate_x
    share = tl.load(gate, mask=exists, other=0.0).to(F)[None, :]
    high_size = h.to(INDEX) * w
    size = H.to(INDEX) * W
    high += n * C * high_size
    low += n * C * size
    output += n * C * size
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        out = sample(low, real, *fine, F) * (1 - share)
        out = tl.fma(sample(high, real, *coarse, F), share, out)
        tl.store(output + at, rounded(out, output.dtype.element_ty), mask=real & exists[None, :])
        high += channel_step(high_size, BLOCK_C, CHANNELS_LAST)
        low += channel_step(size, BLOCK_C, CHANNELS_LAST)
        output += channel_step(size, BLOCK_C, CHANNELS_LAST)


@triton.jit
def _one_backward(
    grad, at, step, source, flow, share, d_source, d_flow, d_gate,
    scale_x, scale_y, n, pixel, exists, y, x, C, h, w, H, W, flow_n, flow_c, flow_y, flow_x,
    F: tl.constexpr, INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The gradients of one of the maps and its flow that are not None, from `share * grad`.

    Returns sum_c grad * A(source) where `d_gate` is not None.
    """
    product = tl.zeros((BLOCK_C, BLOCK_P), F)
    if d_source is not None or d_flow is not None or d_gate is not None:
        around = corners(
            flow, n, y, x, exists, scale_x, scale_y, C, h, w, H, W, flow_n, flow_c, flow_y, flow_x,
            F, INDEX, ALIGN_CORNERS, SAME_SIZE, False, BORDER, BLOCK_C, CHANNELS_LAST,
        )  # fmt: skip
        fx, fy = around[8], around[9]
        size = h.to(INDEX) * w
        source_step = channel_step(size, BLOCK_C, CHANNELS_LAST)
        source += n * C * size
        if d_source is not None:
            d_source += n * C * size
        along_x = tl.zeros((BLOCK_C, BLOCK_P), F)
        along_y = tl.zeros((BLOCK_C, BLOCK_P), F)
        for start in range(0, C, BLOCK_C):
            real = real_channels(start, C, BLOCK_C, WHOLE)
            g = tl.load(grad + at, mask=real & exists[None, :], other=0.0).to(F)
            grad += step
            if d_flow is not None or d_gate is not None:
                # A tap of weight 0 counts here: the slope towards it is not 0.
                i00, i01, i10, i11 = read_corners(source, real, *around[:8], F)
                source += source_step
                if d_flow is not None:
                    slope_x, slope_y = bilinear_slopes(i00, i01, i10, i11, fy, fx)
                    along_x = tl.fma(g, slope_x, along_x)
                    along_y = tl.fma(g, slope_y, along_y)
                if d_gate is not None:
                    warped = add_weighted(tl.zeros_like(g), i00, i01, i10, i11, fy, fx)
                    product = tl.fma(g, warped, product)
            if d_source is not None:
                scatter(d_source, g * share[None, :], real, *around, False)
                d_source += source_step
        if d_flow is not None:
            along_x *= share[None, :]
            along_y *= share[None, :]
            size_out = H.to(INDEX) * W
            store_flow(d_flow, along_x, along_y, scale_x, scale_y, n, pixel, exists, size_out, F)
    return tl.sum(product, 0)


@triton.jit(do_not_specialize=_RUN_TIME)
def _backward(
    grad, high, low, high_flow, low_flow, gate, d_high, d_low, d_high_flow, d_low_flow, d_gate,
    high_scale_x: tl.float64, high_scale_y: tl.float64,
    low_scale_x: tl.float64, low_scale_y: tl.float64, C, h, w, H, W,
    high_n, high_c, high_y, high_x, low_n, low_c, low_y, low_x, gate_n, gate_y, gate_x,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The gradients that are not None, from `grad` [N, C, H, W]; of the warps as in `flow_warp`:

    d_high, d_high_flow  from gate * grad (d_high zeroed by the caller, in the type computed in)
    d_low, d_low_flow    from (1 - gate) * grad
    d_gate             = sum_c grad * (A(high) - A(low))

    One map after the other, so that the addresses of 4 taps take registers and not of 8; the second
    time `grad` comes from the cache. One program sees all channels of its pixels: the sums are the
    same each time.
    """
    F: tl.constexpr = tl.float64 if high.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    gate += n * gate_n + y * gate_y + x * gate_x
    share = tl.load(gate, mask=exists, other=0.0).to(F)
    size = H.to(INDEX) * W
    grad += n * C * size
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    step = channel_step(size, BLOCK_C, CHANNELS_LAST)
    of_high = _one_backward(
        grad, at, step, high, high_flow, share, d_high, d_high_flow, d_gate,
        high_scale_x, high_scale_y, n, pixel, exists, y, x, C, h, w, H, W,
        high_n, high_c, high_y, high_x,
        F, INDEX, ALIGN_CORNERS, SAME_SIZE, BORDER, CHANNELS_LAST, BLOCK_P, BLOCK_C, WHOLE,
    )  # fmt: skip
    of_low = _one_backward(
        grad, at, step, low, low_flow, 1 - share, d_low, d_low_flow, d_gate,
        low_scale_x, low_scale_y, n, pixel, exists, y, x, C, H, W, H, W,
        low_n, low_c, low_y, low_x,
        F, INDEX, ALIGN_CORNERS, True, BORDER, CHANNELS_LAST, BLOCK_P, BLOCK_C, WHOLE,
    )  # fmt: skip
    if d_gate is not None:
        d = rounded(of_high - of_low, d_gate.dtype.element_ty)
        tl.store(d_gate + n * size + pixel, d, mask=exists)


def _launch_warp(
    kernel: Any, tensors: Sequence[Tensor | None], inputs: Sequence[Tensor], options: Sequence[Any]
) -> None:
    """Run `kernel` on `tensors` and on what follows from the inputs' geometry and the options."""
    *scales, align_corners, padding_mode = options
    high, low, high_flow, low_flow, gate = inputs
    n, c, h, w = high.shape
    height, width = low.shape[2:]
    fine = (height, width)
    index = index_dtype(
        c * max(h * w, height * width),
        *(last_offset(x) for x in (high_flow, low_flow, gate)),
        2 * width * (max(w, width) + 1),
        2 * height * (max(h, height) + 1),
    )
    channels_last = layout_of(high) == torch.channels_last
    tile = tile_of(
        n * height * width,
        c,
        high.element_size(),
        channels_last=channels_last,
        backward=kernel is _backward,
    )
    launch(
        kernel,
        n * triton.cdiv(height * width, tile.pixels),
        *tensors,
        *flow_scales(*scales[:3], align_corners, (h, w), fine),
        *flow_scales(*scales[3:], align_corners, fine, fine),
        *(c, h, w, height, width),
        *high_flow.stride(),
        *low_flow.stride(),
        *(gate.stride(i) for i in (0, 2, 3)),
        INDEX=index,
        ALIGN_CORNERS=align_corners,
        SAME_SIZE=(h, w) == fine,
        BORDER=padding_mode == "border",
        CHANNELS_LAST=channels_last,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        WHOLE=c % tile.channels == 0,
        num_warps=tile.num_warps,
    )


def gated_dual_warp(
    high: Tensor, low: Tensor, high_flow: Tensor, low_flow: Tensor, gate: Tensor, *options: Any
) -> Tensor:
    layout = layout_of(high)
    output = empty_like_layout(low, layout=layout)
    if output.numel() > 0:
        inputs = (dense(high, layout), dense(low, layout), high_flow, low_flow, gate)
        _launch_warp(_forward, (*inputs, output), inputs, options)
    return output


def gated_dual_warp_backward(
    grad: Tensor,
    high: Tensor,
    low: Tensor,
    high_flow: Tensor,
    low_flow: Tensor,
    gate: Tensor,
    *options_and_wanted: Any,
) -> tuple[Tensor, ...]:
    *options, wanted = options_and_wanted
    if wanted & (HIGH | LOW):
        nondeterministic("vsegops_triton::gated_dual_warp_backward")
    layout, contiguous = layout_of(high), torch.contiguous_format
    compute = torch.float64 if high.dtype == torch.float64 else torch.float32
    gradients: list[Tensor | None] = []
    for x, bit in ((high, HIGH), (low, LOW)):  # added to
        d_x = torch.zeros_like(x, dtype=compute, memory_format=layout) if wanted & bit else None
        gradients.append(d_x)
    make = torch.zeros_like if grad.numel() == 0 else torch.empty_like
    for x, bit in ((high_flow, HIGH_FLOW), (low_flow, LOW_FLOW), (gate, GATE)):
        gradients.append(make(x, memory_format=contiguous) if wanted & bit else None)
    if grad.numel() > 0 and wanted:
        inputs = (dense(high, layout), dense(low, layout), high_flow, low_flow, gate)
        tensors = (dense(grad, layout), *inputs, *gradients)
        _launch_warp(_backward, tensors, inputs, options)
    return tuple(
        skipped(x) if d_x is None else d_x.to(x.dtype)
        for x, d_x in zip((high, low, high_flow, low_flow, gate), gradients, strict=True)
    )


@triton.jit
def _larger(value, best):
    """Whether a value takes the place of the best one so far; NaN is larger than any number."""
    return (value > best) | ((value != value) & (best == best))


@triton.jit
def _pool(
    x, output, places, which: tl.constexpr, n, pixel, exists, C, size,
    F: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Channel `which` of the output is the mean of x, channel `which` + 2 its maximum."""
    x += n * C * size
    output += n * 4 * size
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    channel = tl.arange(0, BLOCK_C)[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_P), F)
    best = tl.full((BLOCK_C, BLOCK_P), -float("inf"), F)
    where = tl.zeros((BLOCK_C, BLOCK_P), tl.int32) + channel  # the lane's first is its own
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, False)
        value = tl.load(x + at, mask=real & exists[None, :], other=0.0).to(F)
        total += value
        larger = real & _larger(value, best)
        best = tl.where(larger, value, best)
        if places is not None:
            where = tl.where(larger, start + channel, where)
        x += channel_step(size, BLOCK_C, CHANNELS_LAST)
    mean = tl.sum(total, 0) / C
    strange = best != best
    any_strange = tl.max(strange.to(tl.int32), 0) == 1
    largest = tl.max(best, 0)
    if places is not None:
        first = tl.where(any_strange[None, :], strange, best == largest[None, :])
        place = tl.min(tl.where(first, where, C), 0)
        tl.store(places + (n * 2 + which) * size + pixel, place, mask=exists)
    largest = tl.where(any_strange, float("nan"), largest)
    mean_at = channel_at(pixel, which, 4, size, CHANNELS_LAST)
    largest_at = channel_at(pixel, which + 2, 4, size, CHANNELS_LAST)
    tl.store(output + mean_at, rounded(mean, output.dtype.element_ty), mask=exists)
    tl.store(output + largest_at, rounded(largest, output.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=("H", "W"))
def _pool_forward(
    first, second, output, places, C, D, H, W, INDEX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """output = mean(first), mean(second), max(first), max(second) over the channels

    places (None: unwanted) = the first channels that have the maxima
    """
    F: tl.constexpr = tl.float64 if first.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, _, _ = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    size = H.to(INDEX) * W
    _pool(first, output, places, 0, n, pixel, exists, C, size, F, BLOCK_P, BLOCK_C, CHANNELS_LAST)
    _pool(second, output, places, 1, n, pixel, exists, D, size, F, BLOCK_P, BLOCK_C, CHANNELS_LAST)


@triton.jit
def _unpool(
    grad, places, d_x, which: tl.constexpr, n, pixel, exists, C, size,
    F: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """d_x = d_mean / C, and d_max more at the maximum's place."""
    if d_x is not None:
        grad += n * 4 * size
        d_x += n * C * size
        at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
        step = channel_step(size, BLOCK_C, CHANNELS_LAST)
        channel = tl.arange(0, BLOCK_C)[:, None]
        place = tl.load(places + (n * 2 + which) * size + pixel, mask=exists, other=0)[None, :]
        mean_at = channel_at(pixel, which, 4, size, CHANNELS_LAST)
        largest_at = channel_at(pixel, which + 2, 4, size, CHANNELS_LAST)
        each = tl.load(grad + mean_at, mask=exists, other=0.0).to(F)[None, :] / C
        most = each + tl.load(grad + largest_at, mask=exists, other=0.0).to(F)[None, :]
        for start in range(0, C, BLOCK_C):
            real = real_channels(start, C, BLOCK_C, False)
            d = tl.where(start + channel == place, most, each)
            tl.store(d_x + at, rounded(d, d_x.dtype.element_ty), mask=real & exists[None, :])
            d_x += step


@triton.jit(do_not_specialize=("H", "W"))
def _pool_backward(
    grad, places, d_first, d_second, C, D, H, W,
    INDEX: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients that are not None."""
    F: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, _, _ = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    size = H.to(INDEX) * W
    _unpool(grad, places, d_first, 0, n, pixel, exists, C, size, F, BLOCK_C, CHANNELS_LAST)
    _unpool(grad, places, d_second, 1, n, pixel, exists, D, size, F, BLOCK_C, CHANNELS_LAST)


def _launch_pool(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    like: Tensor,
    first: int,
    second: int,
    channels_last: bool,
) -> None:
    """Run `kernel` on `tensors`; `like` is any of them, of the size and dtype of the features."""
    n, _, h, w = like.shape
    channels = max(first, second)
    tile = tile_of(
        n * h * w,
        channels,
        like.element_size(),
        channels_last=channels_last,
        backward=False,  # nothing is scattered
    )
    launch(
        kernel,
        n * triton.cdiv(h * w, tile.pixels),
        *tensors,
        *(first, second, h, w),
        INDEX=index_dtype(max(channels, 4) * h * w),
        CHANNELS_LAST=channels_last,
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        num_warps=tile.num_warps,
    )


def _pooled(first: Tensor, second: Tensor, places: Tensor | None) -> Tensor:
    layout = layout_of(first)
    n, _, h, w = first.shape
    output = empty_like_layout(first, (n, 4, h, w))
    if output.numel() > 0:
        both = [dense(x, layout) for x in (first, second)]
        channels = [x.shape[1] for x in both]
        channels_last = layout == torch.channels_last
        tensors = (*both, output, places)
        _launch_pool(_pool_forward, tensors, output, *channels, channels_last)
    return output


def channel_pool(first: Tensor, second: Tensor) -> Tensor:
    return _pooled(first, second, None)


def channel_pool_with_places(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    places = empty_places(first)
    return _pooled(first, second, places), places


def channel_pool_backward(
    grad: Tensor, places: Tensor, first: int, second: int, channels_last: bool, wanted: int
) -> tuple[Tensor, ...]:
    gradients = pool_gradients(grad, first, second, channels_last, wanted)
    if grad.numel() > 0 and wanted:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        tensors = (dense(grad, layout), places.contiguous(), *only_wanted(wanted, gradients))
        _launch_pool(_pool_backward, tensors, grad, first, second, channels_last)
    return gradients
