"""The guided filter family in plain PyTorch: the executable definition, in float64 the truth.

The forwards are differentiable (outside the dispatcher); the backward is written out, because
autograd cannot be used inside a registered kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._layout import empty_like_layout, skipped
from ..warp import op as warp
from ..warp.reference import Options, compute_dtype, flow_warp_backward, rounded_like, sample
from .op import FLOW, GUIDE, INTRA, LOGITS


def _warp_options(scale_x: float, scale_y: float, semantic: bool, padding_mode: str) -> Options:
    return Options(scale_x, scale_y, semantic, True, "bilinear", padding_mode)


def _sampled(logits: Tensor, flow: Tensor | None, *options: Any) -> Tensor:
    """S, not yet rounded to the dtype of the logits."""
    if flow is None:
        return logits.to(compute_dtype(logits))
    return sample(logits, flow, _warp_options(*options))


def _weights(guide: Tensor, normalize: str, eps: float) -> Tensor:
    """g, the guide normalised over its channels."""
    guide = guide.to(compute_dtype(guide))
    if normalize == "sum":
        return guide / (guide.sum(1, keepdim=True) + eps)
    return guide.softmax(1) if normalize == "softmax" else guide


def _taps(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (dy, dx)."""
    return list(zip(offsets[::2], offsets[1::2], strict=True))


def _shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """`out(p) = x(p + (dy, dx))`, 0 outside."""
    height, width = x.shape[-2:]
    if abs(dy) >= height or abs(dx) >= width:
        return torch.zeros_like(x)
    return F.pad(x, (-dx, dx, -dy, dy))


def guided_filter(
    logits: Tensor,
    intra: Tensor,
    guide: Tensor,
    flow: Tensor | None,
    offsets: Sequence[int],
    normalize: str,
    eps: float,
    *sampling: Any,
) -> Tensor:
    source = _sampled(logits, flow, *sampling)
    weights = _weights(guide, normalize, eps)
    out = weights[:, -1:] * intra.to(source.dtype)
    for k, (dy, dx) in enumerate(_taps(offsets)):
        out = out + weights[:, k : k + 1] * _shifted(source, dy, dx)
    return rounded_like(out, logits)


def guided_filter_backward(
    grad: Tensor,
    logits: Tensor,
    intra: Tensor,
    guide: Tensor,
    flow: Tensor | None,
    offsets: Sequence[int],
    normalize: str,
    eps: float,
    *sampling_and_wanted: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With r_k = sum_c grad * S(p + offset_k), r_last = sum_c grad * intra, and g the weights:

    d_S(q)     = sum_k g_k(q - offset_k) * grad(q - offset_k), from there as `flow_warp`
    d_intra    = g_last * grad
    d_guide_k  = (r_k - sum_j g_j r_j) / (sum_j guide_j + eps) | g_k (r_k - sum_j g_j r_j) | r_k
    """
    *sampling, wanted = sampling_and_wanted
    source = _sampled(logits, flow, *sampling)
    grad = grad.to(source.dtype)
    weights = _weights(guide, normalize, eps)
    d_source = torch.zeros_like(source)
    products = []
    for k, (dy, dx) in enumerate(_taps(offsets)):
        d_source += _shifted(weights[:, k : k + 1] * grad, -dy, -dx)
        products.append((grad * _shifted(source, dy, dx)).sum(1))
    products.append((grad * intra.to(source.dtype)).sum(1))
    d_guide = torch.stack(products, 1)
    if normalize != "none":
        d_guide = d_guide - (weights * d_guide).sum(1, keepdim=True)
        if normalize == "sum":
            d_guide = d_guide / (guide.to(source.dtype).sum(1, keepdim=True) + eps)
        else:
            d_guide = d_guide * weights
    d_logits, d_flow = d_source, skipped(logits)
    if flow is not None:
        d_logits, d_flow = flow_warp_backward(
            d_source,
            logits,
            flow,
            *_warp_options(*sampling),
            warp.INPUT | (warp.FLOW if wanted & FLOW else 0),
        )
    return (
        rounded_like(d_logits, logits) if wanted & LOGITS else skipped(logits),
        rounded_like(weights[:, -1:] * grad, logits) if wanted & INTRA else skipped(intra),
        rounded_like(d_guide, logits) if wanted & GUIDE else skipped(guide),
        d_flow,
    )


def label_edges(logits: Tensor, flow: Tensor | None, *options: Any) -> Tensor:
    *sampling, response = options
    label = _sampled(logits, flow, *sampling).argmax(1, keepdim=True)  # the lowest of equals
    laplacian = -9 * label
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            laplacian += _shifted(label, dy, dx)
    edges = laplacian != 0 if response == "binary" else laplacian.double().sigmoid()
    return empty_like_layout(logits, edges.shape).copy_(edges)
