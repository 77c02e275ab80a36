"""The warp family in Triton: one kernel forward, one backward, for both operators and layouts.

A program computes the positions of its pixels once, for all channels.

The fewest bytes to move per output pixel, with C channels of E bytes, a flow of F bytes, and a
source of the output's size (`spec.bytes_moved` has the general case):

    forward   2CE + 2F, and (C + 1)E more for a correction with attention
    backward  3CE + 4F, and (2C + 2)E more
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
from ..._triton import (
    add_sample,
    bilinear_slopes,
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
    scatter,
    store_flow,
    tile_of,
)
from .op import ATTENTION, CORRECTION, FLOW, INPUT

#: What a kernel is not compiled anew for. C is not among it: vectors of channels need its divisors.
_RUN_TIME = (
    "scale_x scale_y h w H W flow_n flow_c flow_y flow_x attention_n attention_y attention_x"
).split()


@triton.jit(do_not_specialize=_RUN_TIME)
def _forward(
    input, flow, correction, attention, output, scale_x: tl.float64, scale_y: tl.float64,
    C, h, w, H, W, flow_n, flow_c, flow_y, flow_x, attention_n, attention_y, attention_x,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    NEAREST: tl.constexpr, BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """output = A(input) + attention * correction; a correction that is None is not added.

    A(input) = (1-fy) * ((1-fx) * i00 + fx * i01) + fy * ((1-fx) * i10 + fx * i11)
    """
    F: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    around = corners(
        flow, n, y, x, exists, scale_x, scale_y, C, h, w, H, W, flow_n, flow_c, flow_y, flow_x,
        F, INDEX, ALIGN_CORNERS, SAME_SIZE, NEAREST, BORDER, BLOCK_C, CHANNELS_LAST,
    )  # fmt: skip
    source_size = h.to(INDEX) * w
    output_size = H.to(INDEX) * W
    input += n * C * source_size
    output += n * C * output_size
    if correction is not None:
        correction += n * C * output_size
    if attention is not None:
        attention += n * attention_n + y * attention_y + x * attention_x
        gate = tl.load(attention, mask=exists, other=0.0).to(F)
    at = channel_offsets(pixel, C, output_size, BLOCK_C, CHANNELS_LAST)
    source_step = channel_step(source_size, BLOCK_C, CHANNELS_LAST)
    output_step = channel_step(output_size, BLOCK_C, CHANNELS_LAST)
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        written = real & exists[None, :]
        if correction is not None:
            out = tl.load(correction + at, mask=written, other=0.0).to(F)
            correction += output_step
            if attention is not None:
                out *= gate[None, :]
        else:
            out = tl.zeros((BLOCK_C, BLOCK_P), F)
        out = add_sample(out, input, real, *around, NEAREST, F)
        tl.store(output + at, rounded(out, output.dtype.element_ty), mask=written)
        input += source_step
        output += output_step


@triton.jit(do_not_specialize=_RUN_TIME)
def _backward(
    grad, input, flow, correction, attention, d_input, d_flow, d_correction, d_attention,
    scale_x: tl.float64, scale_y: tl.float64,
    C, h, w, H, W, flow_n, flow_c, flow_y, flow_x, attention_n, attention_y, attention_x,
    INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    NEAREST: tl.constexpr, BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The gradients that are not None, from `grad` [N, C, H, W]:

    d_input      += weight * grad at the taps (zeroed by the caller, in the type computed in)
    d_flow        = scale * sum_c grad * d A(input) / d position; 0 for NEAREST: None
    d_correction  = grad * attention
    d_attention   = sum_c grad * correction

    One program sees all channels of its pixels, so that the sums need neither atomics nor a second
    pass, and are the same each time. (Few pixels fill a GPU by warps side by side along the
    channels: see `tile_of`.)
    """
    F: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    around = corners(
        flow, n, y, x, exists, scale_x, scale_y, C, h, w, H, W, flow_n, flow_c, flow_y, flow_x,
        F, INDEX, ALIGN_CORNERS, SAME_SIZE, NEAREST, BORDER, BLOCK_C, CHANNELS_LAST,
    )  # fmt: skip
    source_size = h.to(INDEX) * w
    output_size = H.to(INDEX) * W
    grad += n * C * output_size
    input += n * C * source_size
    if d_input is not None:
        d_input += n * C * source_size
    if d_flow is not None:
        d_x = tl.zeros((BLOCK_C, BLOCK_P), F)
        d_y = tl.zeros((BLOCK_C, BLOCK_P), F)
    if d_correction is not None:
        d_correction += n * C * output_size
        attention += n * attention_n + y * attention_y + x * attention_x
        gate = tl.load(attention, mask=exists, other=0.0).to(F)
    if d_attention is not None:
        correction += n * C * output_size
        d_gate = tl.zeros((BLOCK_C, BLOCK_P), F)
    at = channel_offsets(pixel, C, output_size, BLOCK_C, CHANNELS_LAST)
    source_step = channel_step(source_size, BLOCK_C, CHANNELS_LAST)
    output_step = channel_step(output_size, BLOCK_C, CHANNELS_LAST)
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        read = real & exists[None, :]
        g = tl.load(grad + at, mask=read, other=0.0).to(F)
        grad += output_step
        if d_flow is not None:
            # A tap of weight 0 counts here: the slope towards it is not 0.
            values = read_corners(input, real, *around[:8], F)
            along_x, along_y = bilinear_slopes(*values, around[9], around[8])
            d_x = tl.fma(g, along_x, d_x)
            d_y = tl.fma(g, along_y, d_y)
            input += source_step
        if d_input is not None:
            scatter(d_input, g, real, *around, NEAREST)
            d_input += source_step
        if d_correction is not None:
            d_c = rounded(g * gate[None, :], d_correction.dtype.element_ty)
            tl.store(d_correction + at, d_c, mask=read)
            d_correction += output_step
        if d_attention is not None:
            d_gate = tl.fma(g, tl.load(correction + at, mask=read, other=0.0).to(F), d_gate)
            correction += output_step
    if d_flow is not None:
        store_flow(d_flow, d_x, d_y, scale_x, scale_y, n, pixel, exists, output_size, F)
    if d_attention is not None:
        d_gate = rounded(tl.sum(d_gate, 0), d_attention.dtype.element_ty)
        tl.store(d_attention + n * output_size + pixel, d_gate, mask=exists)


def _launch(
    kernel: Any,
    source: Tensor,
    flow: Tensor,
    attention: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    options: Sequence[Any],
) -> None:
    """Run `kernel` on `tensors` and on what follows from the geometry and the options."""
    scale_x, scale_y, semantic, align_corners, mode, padding_mode = options
    n, c, h, w = source.shape
    height, width = flow.shape[2:]
    scale_x, scale_y = flow_scales(
        scale_x, scale_y, semantic, align_corners, (h, w), (height, width)
    )
    index = index_dtype(
        c * max(h * w, height * width),
        last_offset(flow),
        0 if attention is None else last_offset(attention),
        2 * width * (w + 1),
        2 * height * (h + 1),
    )
    channels_last = layout_of(source) == torch.channels_last
    blocks = tile_of(
        n * height * width,
        c,
        source.element_size(),
        channels_last=channels_last,
        backward=kernel is _backward,
    )
    launch(
        kernel,
        n * triton.cdiv(height * width, blocks.pixels),
        *tensors,
        *(scale_x, scale_y),
        *(c, h, w, height, width),
        *flow.stride(),
        *((0, 0, 0) if attention is None else (attention.stride(i) for i in (0, 2, 3))),
        INDEX=index,
        ALIGN_CORNERS=align_corners,
        SAME_SIZE=(h, w) == (height, width),
        NEAREST=mode == "nearest",
        BORDER=padding_mode == "border",
        CHANNELS_LAST=channels_last,
        BLOCK_P=blocks.pixels,
        BLOCK_C=blocks.channels,
        WHOLE=c % blocks.channels == 0,
        num_warps=blocks.num_warps,
    )


def flow_warp(input: Tensor, flow: Tensor, *options: Any) -> Tensor:
    return warp_correct(input, flow, None, None, *options)


def warp_correct(
    previous: Tensor,
    flow: Tensor,
    correction: Tensor | None,
    attention: Tensor | None,
    *options: Any,
) -> Tensor:
    layout = layout_of(previous)
    output = empty_like_layout(previous, (*previous.shape[:2], *flow.shape[2:]))
    if output.numel() > 0:
        previous = dense(previous, layout)
        correction = None if correction is None else dense(correction, layout)
        tensors = (previous, flow, correction, attention, output)
        _launch(_forward, previous, flow, attention, tensors, options)
    return output


def flow_warp_backward(
    grad: Tensor, input: Tensor, flow: Tensor, *options_and_wanted: Any
) -> tuple[Tensor, Tensor]:
    *options, wanted = options_and_wanted
    if wanted & INPUT:
        nondeterministic("vsegops_triton::flow_warp_backward")
    d_input, d_flow, _, _ = _gradients(grad, input, flow, None, None, options, wanted)
    return d_input, d_flow


def warp_correct_backward(
    grad: Tensor,
    previous: Tensor,
    flow: Tensor,
    correction: Tensor,
    attention: Tensor,
    *options_and_wanted: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, wanted = options_and_wanted
    if wanted & INPUT:
        nondeterministic("vsegops_triton::warp_correct_backward")
    return _gradients(grad, previous, flow, correction, attention, options, wanted)


def _gradients(
    grad: Tensor,
    source: Tensor,
    flow: Tensor,
    correction: Tensor | None,
    attention: Tensor | None,
    options: Sequence[Any],
    wanted: int,
) -> tuple[Any, ...]:
    layout, contiguous = layout_of(source), torch.contiguous_format
    compute = torch.float64 if source.dtype == torch.float64 else torch.float32
    nearest = options[4] == "nearest"  # positions are rounded: the flow's gradient is 0
    d_source = d_flow = d_correction = d_attention = None
    if wanted & INPUT:
        d_source = torch.zeros_like(source, dtype=compute, memory_format=layout)
    if wanted & FLOW:
        make = torch.zeros_like if nearest or grad.numel() == 0 else torch.empty_like
        d_flow = make(flow, memory_format=contiguous)
    if correction is not None and wanted & CORRECTION:
        d_correction = torch.empty_like(correction, memory_format=layout)
    if attention is not None and wanted & ATTENTION:
        make = torch.zeros_like if grad.numel() == 0 else torch.empty_like
        d_attention = make(attention, memory_format=contiguous)
    written = (d_source, None if nearest else d_flow, d_correction, d_attention)
    if grad.numel() > 0 and any(x is not None for x in written):
        read = (
            dense(grad, layout),
            dense(source, layout),
            flow,
            None if d_attention is None else dense(correction, layout),
            None if d_correction is None else attention,
        )
        _launch(_backward, source, flow, attention, (*read, *written), options)
    if d_source is not None:
        d_source = d_source.to(source.dtype)
    return (
        skipped(source) if d_source is None else d_source,
        skipped(flow) if d_flow is None else d_flow,
        skipped(correction) if d_correction is None and correction is not None else d_correction,
        skipped(attention) if d_attention is None and attention is not None else d_attention,
    )
