"""The guided filter in Triton, for both layouts; its family's other operator is in `triton_edges`.

A program blends some pixels, walking over the classes; the weights are made of the guide where
they are used. Offsets are compiled in, each list anew; long lists are left to PyTorch. Triton
cannot address shared memory, so a shifted copy is read anew from the cache for each offset, and
with a flow it is sampled anew; nothing of it is written. The backward of the logits turns the
offsets round: what is read from `p + offset` forward is gathered from `p - offset` there, without
atomics unless a flow scatters it further.

The fewest bytes to move per pixel, with C classes, K guide channels of E bytes, a flow of F bytes:

    forward   (3C + K)E, and 2F more with a flow
    backward  (5C + 2K)E, and 4F more
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
    bilinear_slopes,
    channel_at,
    channel_offsets,
    channel_step,
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
from . import op, reference
from .op import FLOW, GUIDE, INTRA, LOGITS
from .triton_edges import label_edges
from .triton_sampling import RUN_TIME, corners_of, geometry

__all__ = ["guided_filter", "guided_filter_backward", "label_edges"]

_NOWHERE: tl.constexpr = tl.constexpr(op.NOWHERE)


@triton.jit
def _normalizer(
    guide, pixel, exists, size, eps, K: tl.constexpr, F: tl.constexpr,
    NORMALIZE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """What makes weights of a pixel's guide, see `_weight`: (shift, factor)."""
    shift = tl.zeros_like(pixel).to(F)
    total = tl.zeros_like(pixel).to(F)
    if NORMALIZE == "none":
        return shift, total + 1
    if NORMALIZE == "softmax":
        shift += -float("inf")
        for k in range(0, K):
            at = channel_at(pixel, k, K, size, CHANNELS_LAST)
            shift = tl.maximum(shift, tl.load(guide + at, mask=exists, other=0.0).to(F))
    for k in range(0, K):
        at = channel_at(pixel, k, K, size, CHANNELS_LAST)
        raw = tl.load(guide + at, mask=exists, other=1.0).to(F)
        total += tl.exp(raw - shift) if NORMALIZE == "softmax" else raw
    if NORMALIZE == "sum":
        total += tl.full((1,), eps, tl.float64).to(F)
    return shift, 1 / total


@triton.jit
def _weight(
    guide, pixel, channel, mask, size, shift, factor, K: tl.constexpr, F: tl.constexpr,
    NORMALIZE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """g of one guide channel: guide * factor, or exp(guide - shift) * factor; 0 where masked."""
    at = channel_at(pixel, channel, K, size, CHANNELS_LAST)
    raw = tl.load(guide + at, mask=mask, other=0.0).to(F)
    if NORMALIZE == "softmax":
        raw = tl.exp(raw - shift)
    if NORMALIZE == "none":
        return raw
    return tl.where(mask, raw * factor, 0.0)


@triton.jit
def _neighbour(pixel, y, x, exists, H, W, dy, dx):
    """The pixel that is (dy, dx) away, and whether it is in the image: (index, y, x, inside)."""
    y += dy
    x += dx
    inside = exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    return pixel + tl.full((), dy, pixel.dtype) * W + dx, y, x, inside


@triton.jit(do_not_specialize=RUN_TIME)
def _forward(
    logits, intra, guide, flow, output, scale_x: tl.float64, scale_y: tl.float64, eps: tl.float64,
    C, H, W, flow_n, flow_c, flow_y, flow_x,
    OFFSETS: tl.constexpr, K: tl.constexpr, NORMALIZE: tl.constexpr, INDEX: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """output = sum_k g_k * S(p + offset_k) + g_last * intra"""
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    size = H.to(INDEX) * W
    logits += n * C * size
    intra += n * C * size
    output += n * C * size
    guide += n * K * size
    shift, factor = _normalizer(guide, pixel, exists, size, eps, K, F, NORMALIZE, CHANNELS_LAST)
    g_last = _weight(
        guide, pixel, K - 1, exists, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
    )
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    step = channel_step(size, BLOCK_C, CHANNELS_LAST)
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        written = real & exists[None, :]
        out = tl.load(intra + at, mask=written, other=0.0).to(F) * g_last[None, :]
        for k in tl.static_range(K - 1):
            if OFFSETS[2 * k] != _NOWHERE:
                q, q_y, q_x, inside = _neighbour(
                    pixel, y, x, exists, H, W, OFFSETS[2 * k], OFFSETS[2 * k + 1]
                )
                g = _weight(
                    guide, pixel, k, inside, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
                )
                if flow is None:
                    q_at = channel_offsets(q, C, size, BLOCK_C, CHANNELS_LAST)
                    s = tl.load(logits + q_at, mask=real & inside[None, :], other=0.0).to(F)
                else:
                    around = corners_of(
                        flow, n, q_y, q_x, inside, scale_x, scale_y, C, H, W,
                        flow_n, flow_c, flow_y, flow_x, F, INDEX, BORDER, BLOCK_C, CHANNELS_LAST,
                    )  # fmt: skip
                    s = sample(logits, real, *around, F)
                out = tl.fma(s, g[None, :], out)
        tl.store(output + at, rounded(out, output.dtype.element_ty), mask=written)
        logits += step
        intra += step
        output += step


@triton.jit(do_not_specialize=RUN_TIME)
def _backward_pixels(
    grad, logits, intra, guide, flow, d_intra, d_guide, normalizer,
    scale_x: tl.float64, scale_y: tl.float64, eps: tl.float64,
    C, H, W, flow_n, flow_c, flow_y, flow_x,
    OFFSETS: tl.constexpr, K: tl.constexpr, NORMALIZE: tl.constexpr, INDEX: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """What a pixel's gradient needs of its own pixel and what it read, where not None:

    d_intra     = g_last * grad
    d_guide     from r_k = sum_c grad * S(p + offset_k) and r_last = sum_c grad * intra: r_k,
                (r_k - sum_j g_j r_j) * factor for "sum", and times exp(..) as well for "softmax"
    normalizer  [N, 2, H, W], shift and factor, for `_backward_logits`

    One program sees all classes of its pixels: the sums are the same each time.
    """
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    size = H.to(INDEX) * W
    grad += n * C * size
    logits += n * C * size
    intra += n * C * size
    guide += n * K * size
    shift, factor = _normalizer(guide, pixel, exists, size, eps, K, F, NORMALIZE, CHANNELS_LAST)
    if normalizer is not None:
        normalizer += n * 2 * size + pixel
        tl.store(normalizer, shift, mask=exists)
        tl.store(normalizer + size, factor, mask=exists)
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    step = channel_step(size, BLOCK_C, CHANNELS_LAST)
    if d_intra is not None:
        d_intra += n * C * size
        g_last = _weight(
            guide, pixel, K - 1, exists, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
        )
        for start in range(0, C, BLOCK_C):
            real = real_channels(start, C, BLOCK_C, WHOLE) & exists[None, :]
            tile = start // BLOCK_C * step + at
            d = tl.load(grad + tile, mask=real, other=0.0).to(F) * g_last[None, :]
            tl.store(d_intra + tile, rounded(d, d_intra.dtype.element_ty), mask=real)
    if d_guide is not None:
        d_guide += n * K * size
        products = ()
        for k in tl.static_range(K):
            r = tl.zeros((BLOCK_C, BLOCK_P), F)
            if k == K - 1:
                for start in range(0, C, BLOCK_C):
                    real = real_channels(start, C, BLOCK_C, WHOLE) & exists[None, :]
                    tile = start // BLOCK_C * step + at
                    d = tl.load(grad + tile, mask=real, other=0.0).to(F)
                    r = tl.fma(d, tl.load(intra + tile, mask=real, other=0.0).to(F), r)
            else:
                if OFFSETS[2 * k] != _NOWHERE:
                    q, q_y, q_x, inside = _neighbour(
                        pixel, y, x, exists, H, W, OFFSETS[2 * k], OFFSETS[2 * k + 1]
                    )
                    if flow is None:
                        q_at = channel_offsets(q, C, size, BLOCK_C, CHANNELS_LAST)
                    else:
                        around = corners_of(
                            flow, n, q_y, q_x, inside, scale_x, scale_y, C, H, W,
                            flow_n, flow_c, flow_y, flow_x,
                            F, INDEX, BORDER, BLOCK_C, CHANNELS_LAST,
                        )  # fmt: skip
                    for start in range(0, C, BLOCK_C):
                        real = real_channels(start, C, BLOCK_C, WHOLE)
                        read = real & inside[None, :]
                        skip = start // BLOCK_C * step
                        d = tl.load(grad + skip + at, mask=read, other=0.0).to(F)
                        if flow is None:
                            s = tl.load(logits + skip + q_at, mask=read, other=0.0).to(F)
                        else:
                            s = sample(logits + skip, real, *around, F)
                        r = tl.fma(d, s, r)
            products = products + (tl.sum(r, 0),)
        mean = tl.zeros((BLOCK_P,), F)
        if NORMALIZE != "none":
            for k in tl.static_range(K):
                g = _weight(
                    guide, pixel, k, exists, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
                )
                mean = tl.fma(g, products[k], mean)
        for k in tl.static_range(K):
            d = products[k] - mean
            if NORMALIZE == "sum":
                d *= factor
            if NORMALIZE == "softmax":
                d *= _weight(
                    guide, pixel, k, exists, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
                )
            d_at = channel_at(pixel, k, K, size, CHANNELS_LAST)
            tl.store(d_guide + d_at, rounded(d, d_guide.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=RUN_TIME)
def _backward_logits(
    grad, logits, guide, normalizer, flow, d_logits, d_flow,
    scale_x: tl.float64, scale_y: tl.float64, eps: tl.float64,
    C, H, W, flow_n, flow_c, flow_y, flow_x,
    OFFSETS: tl.constexpr, K: tl.constexpr, NORMALIZE: tl.constexpr, INDEX: tl.constexpr,
    BORDER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """d_S(p) = sum_k (g_k * grad)(p - offset_k), and from there, where not None:

    d_logits   = d_S without a flow; with one += weight * d_S at the 4 taps (zeroed by the caller,
                 in the type computed in)
    d_flow     = scale * sum_c d_S * d A(logits) / d position
    """
    F: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    n, pixel, exists, y, x = pixels_of_program(H, W, BLOCK_P, INDEX, CHANNELS_LAST)
    size = H.to(INDEX) * W
    grad += n * C * size
    logits += n * C * size
    guide += n * K * size
    if normalizer is not None:
        normalizer += n * 2 * size
    if d_logits is not None:
        d_logits += n * C * size
    if flow is not None:
        around = corners_of(
            flow, n, y, x, exists, scale_x, scale_y, C, H, W, flow_n, flow_c, flow_y, flow_x,
            F, INDEX, BORDER, BLOCK_C, CHANNELS_LAST,
        )  # fmt: skip
        along_x = tl.zeros((BLOCK_C, BLOCK_P), F)
        along_y = tl.zeros((BLOCK_C, BLOCK_P), F)
    at = channel_offsets(pixel, C, size, BLOCK_C, CHANNELS_LAST)
    step = channel_step(size, BLOCK_C, CHANNELS_LAST)
    shift = tl.zeros((BLOCK_P,), F)
    factor = shift + 1
    for start in range(0, C, BLOCK_C):
        real = real_channels(start, C, BLOCK_C, WHOLE)
        d = tl.zeros((BLOCK_C, BLOCK_P), F)
        for k in tl.static_range(K - 1):
            if OFFSETS[2 * k] != _NOWHERE:
                q, _, _, inside = _neighbour(
                    pixel, y, x, exists, H, W, -OFFSETS[2 * k], -OFFSETS[2 * k + 1]
                )
                if normalizer is not None:
                    shift = tl.load(normalizer + q, mask=inside, other=0.0)
                    factor = tl.load(normalizer + size + q, mask=inside, other=0.0)
                g = _weight(
                    guide, q, k, inside, size, shift, factor, K, F, NORMALIZE, CHANNELS_LAST
                )
                q_at = channel_offsets(q, C, size, BLOCK_C, CHANNELS_LAST)
                came = tl.load(grad + q_at, mask=real & inside[None, :], other=0.0).to(F)
                d = tl.fma(came, g[None, :], d)
        if flow is None:
            written = real & exists[None, :]
            tl.store(d_logits + at, rounded(d, d_logits.dtype.element_ty), mask=written)
        else:
            if d_flow is not None:
                # A tap of weight 0 counts here: the slope towards it is not 0.
                values = read_corners(logits, real, *around[:8], F)
                slope_x, slope_y = bilinear_slopes(*values, around[9], around[8])
                along_x = tl.fma(d, slope_x, along_x)
                along_y = tl.fma(d, slope_y, along_y)
                logits += step
            if d_logits is not None:
                scatter(d_logits, d, real, *around, False)
        grad += step
        if d_logits is not None:
            d_logits += step
    if d_flow is not None:
        store_flow(d_flow, along_x, along_y, scale_x, scale_y, n, pixel, exists, size, F)


def _launch(
    kernel: Any,
    logits: Tensor,
    flow: Tensor | None,
    tensors: Sequence[Tensor | None],
    options: Sequence[Any],
) -> None:
    """Run one of the filter's kernels on `tensors` and on what follows from the options."""
    offsets, normalize, eps, *scale, padding_mode = options
    n, c, h, w = logits.shape
    k = len(offsets) // 2 + 1
    (scales, sizes), constants = geometry(logits, flow, scale, max(c, k))
    tile = tile_of(
        n * h * w,
        c,
        logits.element_size(),
        channels_last=constants["CHANNELS_LAST"],
        backward=True,  # the addresses and weights of all offsets take as many registers
    )
    launch(
        kernel,
        n * triton.cdiv(h * w, tile.pixels),
        *tensors,
        *scales,
        eps,
        *sizes,
        OFFSETS=tuple(offsets),
        K=k,
        NORMALIZE=normalize,
        BORDER=padding_mode == "border",
        BLOCK_P=tile.pixels,
        BLOCK_C=tile.channels,
        WHOLE=c % tile.channels == 0,
        num_warps=tile.num_warps,
        **constants,
    )


#: Code for so many offsets, a window of 5 x 5, is compiled in seconds, for hundreds in minutes.
_MOST_OFFSETS = 25


def guided_filter(
    logits: Tensor, intra: Tensor, guide: Tensor, flow: Tensor | None, *options: Any
) -> Tensor:
    if len(options[0]) > 2 * _MOST_OFFSETS:
        return reference.guided_filter(logits, intra, guide, flow, *options)
    output = empty_like_layout(logits)
    if output.numel() > 0:
        layout = layout_of(logits)
        logits, intra, guide = (dense(x, layout) for x in (logits, intra, guide))
        _launch(_forward, logits, flow, (logits, intra, guide, flow, output), options)
    return output


def guided_filter_backward(
    grad: Tensor,
    logits: Tensor,
    intra: Tensor,
    guide: Tensor,
    flow: Tensor | None,
    *options_and_wanted: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *options, wanted = options_and_wanted
    if len(options[0]) > 2 * _MOST_OFFSETS:
        return reference.guided_filter_backward(
            grad, logits, intra, guide, flow, *options_and_wanted
        )
    if wanted & LOGITS and flow is not None:
        nondeterministic("vsegops_triton::guided_filter_backward")
    layout = layout_of(logits)
    grad, logits, intra, guide = (dense(x, layout) for x in (grad, logits, intra, guide))
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    d_logits = d_intra = d_guide = d_flow = normalizer = None
    if wanted & LOGITS and flow is not None:  # added to
        d_logits = torch.zeros_like(logits, dtype=compute, memory_format=layout)
    elif wanted & LOGITS:
        d_logits = torch.empty_like(logits, memory_format=layout)
    if wanted & INTRA:
        d_intra = torch.empty_like(intra, memory_format=layout)
    if wanted & GUIDE:
        make = torch.empty_like if grad.numel() > 0 else torch.zeros_like
        d_guide = make(guide, memory_format=layout)
    if wanted & FLOW and flow is not None:
        make = torch.empty_like if grad.numel() > 0 else torch.zeros_like
        d_flow = make(flow, memory_format=torch.contiguous_format)
    propagated = d_logits is not None or d_flow is not None
    if propagated and options[1] != "none":
        n, _, h, w = logits.shape
        normalizer = logits.new_empty(n, 2, h, w, dtype=compute)
    if grad.numel() > 0:
        own = (d_intra, d_guide, normalizer)
        if any(x is not None for x in own):
            tensors = (grad, logits, intra, guide, flow, *own)
            _launch(_backward_pixels, logits, flow, tensors, options)
        if propagated:
            given = (grad, logits, guide, normalizer, flow, d_logits, d_flow)
            _launch(_backward_logits, logits, flow, given, options)
    return (
        skipped(logits) if d_logits is None else d_logits.to(logits.dtype),
        skipped(intra) if d_intra is None else d_intra,
        skipped(guide) if d_guide is None else d_guide,
        skipped(logits if flow is None else flow) if d_flow is None else d_flow,
    )
