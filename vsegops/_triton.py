# mypy: disable-error-code="no-untyped-def"
"""What the Triton kernels of all families share: launching, and exact sampling positions.

Kernels are launched without contraction (`enable_fp_fusion=False`): a product and a sum that the
compiler fuses behind our backs would spoil the exact products below and make results differ
between layouts. Fused multiply-adds stand where they are wanted, as `tl.fma`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

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


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """`x` rounded to `dtype`, half to even. (The interpreter's own bfloat16 conversion is not.)"""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = tl.where(x == x, ((bits >> 16) << 16).to(tl.float32, bitcast=True), x)
    return x.to(dtype)


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
        between = low_inside & high_inside
        low = tl.minimum(tl.maximum(index, 0), size - 1)
        high = tl.where(between, low + 1, low)
        fraction = tl.where(between, fraction, 0.0)
        low_inside = low >= 0  # always
        high_inside = low_inside
    return low, low_inside, high, high_inside, fraction
