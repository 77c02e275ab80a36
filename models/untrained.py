"""Random weights that give varied labels, for demos and measurements."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from .twnet import TWNet

M = TypeVar("M", bound=nn.Module)


def calibrate(model: M, size: tuple[int, int] = (128, 128)) -> M:
    """Normalisations that fit random weights, without which activations vanish or overflow.

    Residual branches are weaker than their shortcuts: else roundings grow from block to block.

    Args:
        model: of this package, fresh from `create_model`; it is changed.
        size: of the random images that are looked at.

    Returns:
        The model, in evaluation mode.
    """
    network: Any = model.keyframe if hasattr(model, "keyframe") else model
    norms = [x for x in model.modules() if isinstance(x, nn.BatchNorm2d)]
    momenta = [x.momentum for x in norms]
    for norm in norms:
        norm.momentum = None  # the statistics of the one call below
    for name, x in model.named_parameters():
        if name.endswith(("bn2.weight", "bn3.weight")):
            x.data.mul_(0.3)
    like = next(model.parameters())
    with torch.no_grad():
        network.train()(torch.randn(2, 3, *size, dtype=like.dtype, device=like.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if isinstance(model, TWNet):  # heads and tails are the key frames'
        model.begin_second_step()
    return model.eval()
