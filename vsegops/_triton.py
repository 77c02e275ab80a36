# mypy: disable-error-code="no-untyped-def"
"""What the Triton kernels of all families share: launching, tiles, and exact sampling positions.

A program takes some pixels of one image and walks over the channels in tiles [BLOCK_C channels,
BLOCK_P pixels]. Of contiguous tensors neighbouring lanes hold neighbouring pixels, one each, so
that a gather touches few cache lines. Of channels_last ones a lane holds neighbouring channels, 16
bytes of them.

Kernels are launched without contraction (`enable_fp_fusion=False`): a product and a sum that the
compiler fuses behind our backs would spoil the exact products below and make results differ
between layouts. Fused multiply-adds stand where they are wanted, as `tl.fma`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Triton's interpreter is running the kernels, on a CPU.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

#: A flow is clamped to so many pixels, so that positions fit an integer of 32 bits.
_FARTHEST: tl.constexpr = tl.constexpr(2.0**30)


def launch(kernel: Any, programs: int, *arguments: Any, num_warps: int, **constants: Any) -> None:
    """Run `kernel` on the current stream of the device that its first argument lives on."""
    x: Tensor = arguments[0]
    with torch.cuda.device_of(x) if x.is_cuda else nullcontext():
        kernel[(programs,)](*arguments, num_warps=num_warps, enable_fp_fusion=False, **constants)


def index_dtype(*largest: int) -> Any:
    """The integer type for indices up to `largest`, and beyond by the padding of a tile."""
    return tl.int32 if max(largest) < 2**31 - 2**12 else tl.int64


def last_offset(x: Tensor) -> int:
    """The offset of the last element within one image, the first dimension apart."""
    strided = zip(x.shape[1:], x.stride()[1:], strict=True)
    return sum((size - 1) * stride for size, stride in strided)


def flow_scales(
    scale_x: float,
    scale_y: float,
    semantic: bool,
    align_corners: bool,
    source: tuple[int, int],
    size: tuple[int, int],
) -> tuple[float, float]:
    """Pixels per unit of flow along x and y."""
    if not semantic:
        return scale_x, scale_y
    less = 1 if align_corners else 0
    (h, w), (height, width) = source, size
    return (w - less) / (2 * width), (h - less) / (2 * height)


# --- tiles -------------------------------------------------------------------------------------


class Tile(NamedTuple):
    pixels: int
    channels: int
    num_warps: int


#: Programs that fill a large GPU (132 to 148 multiprocessors) a few times over.
_ENOUGH_PROGRAMS = 512


def tile_of(
    pixels: int, channels: int, itemsize: int, *, channels_last: bool, backward: bool
) -> Tile:
    """Tile and number of warps, by reasoning; the place for recorded configurations.

    A thread holds a few elements of the tile, so that a few gathers are in flight beside those of
    the other warps; the backward needs more registers for each. Where the pixels are few, a
    program takes fewer of them and its warps share out the channels. channels_last: a thread holds
    one access of 16 bytes (backward: of what is added, which is float32) where Triton vectorises,
    and few threads share a pixel, because each of them computes the position anew.
    """
    padded = triton.next_power_of_2(channels)
    if INTERPRETED.value:  # a program takes milliseconds, whatever its size
        return Tile(256, min(padded, 16), 1)
    if channels_last:
        vector = min(16 // itemsize, 4 if backward else 8)
        if channels % 16 != 0:  # one channel a lane, and so many pixels
            vector = 1 if backward else 2
        num_warps, block_c = 4, min(padded, 32)
        return Tile(32 * num_warps * vector // block_c, block_c, num_warps)
    block_p = 128
    while block_p > 32 and pixels < block_p * _ENOUGH_PROGRAMS:
        block_p //= 2
    num_warps = 8 if pixels < block_p * _ENOUGH_PROGRAMS and padded >= 32 else 4
    elements = 32 * num_warps * (2 if backward else 4)
    return Tile(block_p, min(padded, elements // block_p), num_warps)


@triton.jit
def pixels_of_program(
    H, W, BLOCK_P: tl.constexpr, INDEX: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """This program's image and pixels: n, index in the image, whether it is in the image, y, x."""
    return pixels_of_block(tl.program_id(0), H, W, BLOCK_P, INDEX, CHANNELS_LAST)


@triton.jit
def pixels_of_block(
    block, H, W, BLOCK_P: tl.constexpr, INDEX: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """The same of the `block`-th so many pixels of the batch; no block reaches into two images."""
    size = H.to(INDEX) * W
    blocks = tl.cdiv(size, BLOCK_P)
    n = block // blocks
    pixel = (block - n * blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    if not CHANNELS_LAST:
        # One pixel a lane: told that they are contiguous, the compiler would give 4 to each, and
        # each gather would touch four times the cache lines.
        pixel = tl.max_contiguous(pixel, 1)
    y = pixel // W
    return n.to(tl.int64), pixel, pixel < size, y, pixel - y * W


@triton.jit
def channel_offsets(pixel, C, size, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets of the first tile of channels in one image of `size` pixels: [BLOCK_C, BLOCK_P]."""
    channel = tl.arange(0, BLOCK_C)[:, None]
    if CHANNELS_LAST:
        return channel + pixel[None, :] * C
    else:
        return channel * size + pixel[None, :]


@triton.jit
def channel_step(size, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """From one tile of channels to the next, in an image of `size` pixels."""
    if CHANNELS_LAST:
        return tl.full((), BLOCK_C, tl.int64)
    else:
        return size.to(tl.int64) * BLOCK_C


@triton.jit
def channel_at(pixel, channel, C, size, CHANNELS_LAST: tl.constexpr):
    """Offset of one channel of `pixel`, in an image of `size` pixels."""
    if CHANNELS_LAST:
        return pixel * C + channel
    else:
        return channel * size + pixel


@triton.jit
def real_channels(start, C, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr):
    """Which channels of a tile exist: [BLOCK_C, 1]. `WHOLE`: known to be all."""
    if WHOLE:
        return tl.full((BLOCK_C, 1), True, tl.int1)
    else:
        return (start + tl.arange(0, BLOCK_C) < C)[:, None]


@triton.jit
def add(pointer, value, mask):
    """Add to memory, in any order."""
    tl.atomic_add(pointer, value, mask=mask, sem="relaxed")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """`x` rounded to `dtype`, half to even. (The interpreter's own bfloat16 conversion is not.)"""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = tl.where(x == x, ((bits >> 16) << 16).to(tl.float32, bitcast=True), x)
    return x.to(dtype)


# --- positions ---------------------------------------------------------------------------------


@triton.jit
def base_position(
    j, size, size_out, COMPUTE: tl.constexpr, INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr
):
    """Where output pixel `j` lies in the source without flow, along one axis: (index, fraction).

    j * (size - 1) / (size_out - 1) or ((2j + 1) * size - size_out) / (2 * size_out), divided in
    integers, so that the fraction keeps its precision at any size.
    """
    size = size.to(INDEX)
    if ALIGN_CORNERS:
        numerator = j * (size - 1)
        denominator = tl.maximum(size_out.to(INDEX) - 1, 1)
        index = numerator // denominator
        remainder = numerator - index * denominator
    else:
        denominator = 2 * size_out.to(INDEX)
        # Down to -size_out: shifted by a whole, because division rounds towards zero.
        numerator = (2 * j + 1) * size + size_out
        index = numerator // denominator - 1
        remainder = numerator - (index + 1) * denominator
    if COMPUTE == tl.float64:
        fraction = remainder.to(COMPUTE) / denominator.to(COMPUTE)
    else:  # a plain division would be an approximate one
        fraction = tl.div_rn(remainder.to(COMPUTE), denominator.to(COMPUTE))
    return index.to(tl.int32), fraction


@triton.jit
def add_flow(index, fraction, flow, scale, COMPUTE: tl.constexpr):
    """The position `(index, fraction) + scale * flow`, again as index and fraction in [0, 1).

    The product is `whole + part` to twice the precision of float32: `product + error`, where
    `error` is what the rounding of the product left and what the rounding of the scale left. NaN
    counts as far to the left.
    """
    scale = tl.full((1,), scale, tl.float64)
    flow = flow.to(COMPUTE)
    high = scale.to(COMPUTE)
    product = flow * high
    error = tl.fma(flow, high, -product) + flow * (scale - high.to(tl.float64)).to(COMPUTE)
    near = (product > -_FARTHEST) & (product < _FARTHEST)
    product = tl.where(product > -_FARTHEST, product, -_FARTHEST)
    product = tl.where(product < _FARTHEST, product, _FARTHEST)
    whole = tl.floor(product)
    part = fraction + ((product - whole) + tl.where(near, error, 0.0))
    carry = tl.floor(part)
    return index + whole.to(tl.int32) + carry.to(tl.int32), part - carry


@triton.jit
def axis_taps(
    j,
    flow,
    scale,
    size,
    size_out,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    SAME_SIZE: tl.constexpr,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
):
    """The two pixels that output pixel `j` lies between along one axis: (low, whether it is
    inside, high, whether it is inside, fraction). For NEAREST low is the pixel and that is all.

    Args:
        COMPUTE: float32, or float64 for float64 features.
        INDEX: an integer type that holds `2 * size_out * (size + 1)`, see `index_dtype`.
        SAME_SIZE: source and output are of one size, which spares the division.
        BORDER: positions are clamped into the image. Beyond a border, `low` and `high` are both
            the pixel there, so that the difference between them, the slope, vanishes as well.
    """
    if SAME_SIZE:
        index, fraction = add_flow(j.to(tl.int32), 0.0, flow, scale, COMPUTE)
    else:
        index, fraction = base_position(j, size, size_out, COMPUTE, INDEX, ALIGN_CORNERS)
        index, fraction = add_flow(index, fraction, flow, scale, COMPUTE)
    if NEAREST:  # halves go to the even index
        odd = (index & 1) == 1
        index += ((fraction > 0.5) | ((fraction == 0.5) & odd)).to(tl.int32)
        fraction = tl.zeros_like(fraction)
    low = index
    high = index + 1
    low_inside = (index >= 0) & (index < size)
    high_inside = (index >= -1) & (index < size - 1)
    if BORDER:
        low, high, fraction = clamped(index, fraction, size)
        low_inside = low >= 0  # always
        high_inside = low_inside
    return low, low_inside, high, high_inside, fraction


@triton.jit
def clamped(index, fraction, size):
    """A position, clamped into the image, as the two pixels that it lies between: (low, high,
    fraction). On the border and beyond both are the pixel there."""
    between = (index >= 0) & (index < size - 1)
    low = tl.minimum(tl.maximum(index, 0), size - 1)
    return low, tl.where(between, low + 1, low), tl.where(between, fraction, 0.0)


# --- sampling ----------------------------------------------------------------------------------


@triton.jit
def corners(
    flow, n, y, x, exists, scale_x, scale_y, C, h, w, H, W, flow_n, flow_c, flow_y, flow_x,
    F: tl.constexpr, INDEX: tl.constexpr, ALIGN_CORNERS: tl.constexpr, SAME_SIZE: tl.constexpr,
    NEAREST: tl.constexpr, BORDER: tl.constexpr, BLOCK_C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The 4 pixels between which the flow samples at (y, x), for the functions below: offsets of
    their first tile of channels, whether they are inside, and the fractions (fx, fy).

    They come in the order (v, u), (v, u+1), (v+1, u), (v+1, u+1). For the arguments see
    `axis_taps`.
    """
    flow += n * flow_n + y * flow_y + x * flow_x
    along_x = tl.load(flow, mask=exists, other=0.0)
    along_y = tl.load(flow + flow_c, mask=exists, other=0.0)
    x0, x0_inside, x1, x1_inside, fx = axis_taps(
        x, along_x, scale_x, w, W, F, INDEX, ALIGN_CORNERS, SAME_SIZE, NEAREST, BORDER
    )
    y0, y0_inside, y1, y1_inside, fy = axis_taps(
        y, along_y, scale_y, h, H, F, INDEX, ALIGN_CORNERS, SAME_SIZE, NEAREST, BORDER
    )
    y0_inside &= exists
    y1_inside &= exists
    size = h.to(INDEX) * w
    row0 = y0.to(INDEX) * w
    row1 = y1.to(INDEX) * w
    return (
        channel_offsets(row0 + x0, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(row0 + x1, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(row1 + x0, C, size, BLOCK_C, CHANNELS_LAST),
        channel_offsets(row1 + x1, C, size, BLOCK_C, CHANNELS_LAST),
        y0_inside & x0_inside, y0_inside & x1_inside, y1_inside & x0_inside, y1_inside & x1_inside,
        fx, fy,
    )  # fmt: skip


@triton.jit
def bilinear_weights(fy, fx):
    """The weights of the 4 pixels, in the same order."""
    return (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx


@triton.jit
def read_corners(
    source, real, at00, at01, at10, at11, in00, in01, in10, in11, F: tl.constexpr
):  # fmt: skip
    """A tile of channels of the 4 pixels; 0 where a pixel is outside or a channel is not `real`."""
    i00 = tl.load(source + at00, mask=real & in00[None, :], other=0.0).to(F)
    i01 = tl.load(source + at01, mask=real & in01[None, :], other=0.0).to(F)
    i10 = tl.load(source + at10, mask=real & in10[None, :], other=0.0).to(F)
    i11 = tl.load(source + at11, mask=real & in11[None, :], other=0.0).to(F)
    return i00, i01, i10, i11


@triton.jit
def add_weighted(out, i00, i01, i10, i11, fy, fx):
    """out + (1-fy) * ((1-fx) * i00 + fx * i01) + fy * ((1-fx) * i10 + fx * i11)"""
    w00, w01, w10, w11 = bilinear_weights(fy, fx)
    out = tl.fma(i00, w00[None, :], out)
    out = tl.fma(i01, w01[None, :], out)
    out = tl.fma(i10, w10[None, :], out)
    return tl.fma(i11, w11[None, :], out)


@triton.jit
def add_sample(
    out, source, real, at00, at01, at10, at11, in00, in01, in10, in11, fx, fy,
    NEAREST: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """out + A(source), for one tile of channels and the `corners` of its pixels."""
    if NEAREST:
        return out + tl.load(source + at00, mask=real & in00[None, :], other=0.0).to(F)
    else:
        # A tap of weight 0 is not read: it costs time, and it may be infinite.
        w00, w01, w10, w11 = bilinear_weights(fy, fx)
        i00, i01, i10, i11 = read_corners(
            source, real, at00, at01, at10, at11,
            in00 & (w00 != 0), in01 & (w01 != 0), in10 & (w10 != 0), in11 & (w11 != 0), F,
        )  # fmt: skip
        return add_weighted(out, i00, i01, i10, i11, fy, fx)


@triton.jit
def sample(
    source, real, at00, at01, at10, at11, in00, in01, in10, in11, fx, fy, F: tl.constexpr
):  # fmt: skip
    """A(source), bilinear, for one tile of channels and the `corners` of its pixels."""
    return add_sample(
        tl.zeros_like(at00).to(F), source, real,
        at00, at01, at10, at11, in00, in01, in10, in11, fx, fy, False, F,
    )  # fmt: skip


@triton.jit
def scatter(
    d_source, d, real, at00, at01, at10, at11, in00, in01, in10, in11, fx, fy,
    NEAREST: tl.constexpr,
):  # fmt: skip
    """The adjoint of `add_sample`: d_source += weight * d at the 4 pixels, in any order."""
    w00, w01, w10, w11 = bilinear_weights(fy, fx)
    add(d_source + at00, d * w00[None, :], real & (in00 & (w00 != 0))[None, :])
    if not NEAREST:
        add(d_source + at01, d * w01[None, :], real & (in01 & (w01 != 0))[None, :])
        add(d_source + at10, d * w10[None, :], real & (in10 & (w10 != 0))[None, :])
        add(d_source + at11, d * w11[None, :], real & (in11 & (w11 != 0))[None, :])


@triton.jit
def store_flow(
    d_flow, along_x, along_y, scale_x, scale_y, n, pixel, exists, size, F: tl.constexpr
):  # fmt: skip
    """d_flow [N, 2, H, W] = scale * the sums over the channels, [BLOCK_C, BLOCK_P] each."""
    d_flow += n * 2 * size + pixel
    d_x = tl.sum(along_x, 0) * tl.full((1,), scale_x, tl.float64).to(F)
    d_y = tl.sum(along_y, 0) * tl.full((1,), scale_y, tl.float64).to(F)
    tl.store(d_flow, rounded(d_x, d_flow.dtype.element_ty), mask=exists)
    tl.store(d_flow + size, rounded(d_y, d_flow.dtype.element_ty), mask=exists)


@triton.jit
def bilinear_slopes(i00, i01, i10, i11, fy, fx):
    """How the sampled value changes along x and along y."""
    along_x = tl.fma(i11 - i10, fy[None, :], (i01 - i00) * (1 - fy)[None, :])
    along_y = tl.fma(i11 - i01, fx[None, :], (i10 - i00) * (1 - fx)[None, :])
    return along_x, along_y
