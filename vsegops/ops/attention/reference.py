"""The attention family in plain PyTorch: the executable definition, in float64 the truth.

The forwards are differentiable (outside the dispatcher); the backwards are written out, because
autograd cannot be used inside a registered kernel. Here the similarity map is written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._layout import layout_of, skipped
from ..warp.reference import compute_dtype, rounded_like
from .op import KEY, QUERY, VALUE, levels_of

# --- pyramid pooling ---------------------------------------------------------------------------


def pyramid_pool(input: Tensor, sizes: Sequence[int]) -> Tensor:
    pool: Any = F.adaptive_avg_pool2d if input.dim() == 4 else F.adaptive_avg_pool3d
    x = input.to(compute_dtype(input))
    levels = [pool(x, tuple(level)).flatten(2) for level in levels_of(sizes, input.dim() - 2)]
    return torch.cat(levels, 2).to(input.dtype)


def pyramid_pool_backward(
    grad: Tensor, shape: Sequence[int], channels_last: bool, sizes: Sequence[int]
) -> Tensor:
    """Pooling is linear, and separable: each dimension has a matrix of its own, transposed here."""
    dtype = compute_dtype(grad)
    d_input = grad.new_zeros(tuple(shape), dtype=dtype)
    start = 0
    for level in levels_of(sizes, len(shape) - 2):
        bins = torch.Size(level).numel()
        spread = grad[:, :, start : start + bins].to(dtype).unflatten(2, tuple(level))
        start += bins
        for along, (count, size) in enumerate(zip(level, shape[2:], strict=True), 2):
            means = _means(count, size).to(spread)
            spread = torch.movedim(torch.movedim(spread, along, -1) @ means, -1, along)
        d_input += spread
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats[len(shape)] if channels_last else torch.contiguous_format
    return d_input.to(grad.dtype).contiguous(memory_format=layout)


def _means(bins: int, size: int) -> Tensor:
    """[bins, size]: row i has the mean over [floor(i * size / bins), ceil((i+1) * size / bins))."""
    means = torch.zeros(bins, size, dtype=torch.float64)
    for i in range(bins):
        first, end = i * size // bins, -(-(i + 1) * size // bins)
        means[i, first:end] = 1 / (end - first)
    return means


# --- attention over anchors --------------------------------------------------------------------


def asymmetric_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    q, k, v = _computed(query.flatten(2), key, value)
    weights = _weights(q, k, _factor(query, scale))
    out = torch.einsum("nps,ncs->ncp", weights, v)
    return rounded_like(out.unflatten(2, query.shape[2:]), query)


def asymmetric_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, g = _computed(query.flatten(2), key, value, grad.flatten(2))
    factor = _factor(query, scale)
    weights = _weights(q, k, factor)
    d_logits = factor * _softmax_backward(weights, torch.einsum("ncp,ncs->nps", g, v))
    d_query = torch.einsum("nps,ncs->ncp", d_logits, k).unflatten(2, query.shape[2:])
    d_key = torch.einsum("nps,ncp->ncs", d_logits, q).to(key.dtype).contiguous()
    d_value = torch.einsum("nps,ncp->ncs", weights, g).to(value.dtype).contiguous()
    return (
        rounded_like(d_query, query) if wanted & QUERY else skipped(query),
        d_key if wanted & KEY else skipped(key),
        d_value if wanted & VALUE else skipped(value),
    )


def _computed(*tensors: Tensor) -> list[Tensor]:
    return [x.to(compute_dtype(x)) for x in tensors]


def _factor(query: Tensor, scale: float | None) -> float:
    return float(query.shape[1] ** -0.5) if scale is None else scale


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """softmax_s(scale * q . k_s): [N, pixels, anchors]."""
    return (scale * torch.einsum("ncp,ncs->nps", query, key)).softmax(-1)


def _softmax_backward(weights: Tensor, d_weights: Tensor) -> Tensor:
    return weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))


# --- criss-cross -------------------------------------------------------------------------------


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = _computed(query, key, value)
    column, row = _cross_weights(q, k)
    out = torch.einsum("nhwi,nciw->nchw", column, v) + torch.einsum("nhwj,nchj->nchw", row, v)
    return rounded_like(out, query)


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, g = _computed(query, key, value, grad)
    column, row = _cross_weights(q, k)
    d_weights = torch.cat(_along(g, v), -1)
    d_logits = _softmax_backward(torch.cat((column, row), -1), d_weights)
    d_column, d_row = d_logits.split(query.shape[2:], -1)

    def spread(by_column: Tensor, by_row: Tensor, x: Tensor) -> Tensor:
        """To the pixels that were attended to."""
        return torch.einsum("nhwi,nchw->nciw", by_column, x) + torch.einsum(
            "nhwj,nchw->nchj", by_row, x
        )

    d_query = torch.einsum("nhwi,nciw->nchw", d_column, k)
    d_query = d_query + torch.einsum("nhwj,nchj->nchw", d_row, k)
    layout = layout_of(query)
    return (
        rounded_like(d_query, query) if wanted & QUERY else skipped(query),
        spread(d_column, d_row, q).to(key.dtype).contiguous(memory_format=layout)
        if wanted & KEY
        else skipped(key),
        spread(column, row, g).to(value.dtype).contiguous(memory_format=layout)
        if wanted & VALUE
        else skipped(value),
    )


def _along(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """q . k of each pixel with those of its column, [N, H, W, H], and of its row, [N, H, W, W]."""
    column = torch.einsum("nchw,nciw->nhwi", query, key)
    return column, torch.einsum("nchw,nchj->nhwj", query, key)


def _cross_weights(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """One softmax over column and row. The pixel itself counts in its row alone."""
    column, row = _along(query, key)
    itself = torch.eye(column.shape[1], dtype=torch.bool, device=column.device).unsqueeze(1)
    column = column.masked_fill(itself, float("-inf"))
    weights = torch.cat((column, row), -1).softmax(-1)
    by_column, by_row = weights.split((column.shape[-1], row.shape[-1]), -1)
    return by_column, by_row
