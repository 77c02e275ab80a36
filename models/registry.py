"""Models by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .base import Model
from .shipped import load_weights

_BUILDERS: dict[str, partial[Model]] = {}


def register(name: str, build: Callable[..., Model], **options: Any) -> None:
    """Let `create_model(name)` build a model.

    Args:
        name: a new one.
        build: the model's class, or a function; takes `num_classes` and its options by keyword.
        options: those that the name stands for. The others are left to `create_model`.

    Raises:
        ValueError: there is a model of that name.

    Example:
        >>> from vsegops.models import register, sfnet
        >>> register("sfnet_df1_wide", sfnet.SFNet, backbone="df1", width=128)  # doctest: +SKIP
    """
    if name in _BUILDERS:
        raise ValueError(f"name: there is a model {name!r} already")
    _BUILDERS[name] = partial(build, **options)


def list_models() -> list[str]:
    """The names that `create_model` knows.

    Example:
        >>> from vsegops.models import list_models
        >>> "sfnet_resnet18" in list_models()
        True
    """
    return sorted(_BUILDERS)


def create_model(
    name: str,
    num_classes: int = 19,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Model:
    """A model by its name, in training mode like any module: call `eval()` before inference.

    Args:
        name: one of `list_models()`.
        num_classes: channels of the logits.
        weights: a published checkpoint, as for `load_upstream`; `"streets"`: those that ship with
            the project for some models (`shipped.SHIPPED`); None: initial weights.
        options: of the model; `help(type(model))` describes them.

    Raises:
        ValueError: there is no such model, or it has no such option; the message lists what it has.

    Example:
        >>> import torch
        >>> from vsegops.models import create_model
        >>> model = create_model("sfnet_lite_stdc1").eval()
        >>> model(torch.zeros(1, 3, 64, 128)).shape
        torch.Size([1, 19, 16, 32])
    """
    build = _BUILDERS.get(name)
    if build is None:
        raise ValueError(f"name: expected one of {', '.join(list_models())}, got {name!r}")
    known = _options(build)
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{option}: {name} has no such option; {has}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes: expected a whole number from 1 on, got {num_classes!r}")
    model = build(num_classes=num_classes, **options)
    if weights is not None:
        load_weights(model, name, weights)
    return model


def _options(build: partial[Model]) -> list[str]:
    parameters = inspect.signature(build.func).parameters
    return [name for name in parameters if name not in ("num_classes", *build.keywords)]
