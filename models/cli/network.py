"""What the subcommands share: arguments that name a model, and the model of them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from ..assignment import parse_assignment
from ..base import Model
from ..registry import create_model, list_models
from ..shipped import SHIPPED, load_weights
from ..untrained import calibrate
from . import UsageError

DEFAULT = "gsvnet_sfnet_lite_resnet18_x0_25"


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--weights`, `--classes`, `--option`."""
    parser.add_argument("--weights", metavar="FILE", help="a published checkpoint, or `streets`")
    parser.add_argument("--classes", type=int, default=19, metavar="N", help="default: 19")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="K=V",
        help="an option of the model (docs/models.md), e.g. layer=2; may be given several times",
    )


def options(pairs: list[str]) -> dict[str, Any]:
    """`["layer=2", "attention=apnb"]` as arguments for `create_model`."""
    try:
        return dict(map(parse_assignment, pairs))
    except ValueError as error:
        raise UsageError(f"--option: {error}") from error


def build(name: str, classes: int, pairs: list[str], weights: str | None) -> Model:
    """The model in evaluation mode; a line says what its labels are worth.

    Without weights it has those that ship with the project, if it has 19 classes and no options;
    else random ones that give varied labels.
    """
    if name not in list_models():
        raise UsageError(f"there is no model {name!r}; vsegops info lists them")
    torch.manual_seed(0)  # every run, and every process of one, has the same random weights
    try:
        model = create_model(name, classes, **options(pairs))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if weights is not None:
        left = load_weights(model, name, weights)
        if left and "keyframe_weights" not in options(pairs):
            _say(f"{weights} has no weights of {left[0]} and {len(left) - 1} more: they are random")
        return model.eval()
    if name in SHIPPED and classes == 19 and not pairs:
        _say(f"{name} has learned from generated streets alone (--weights)")
        load_weights(model, name, "streets")
        return model.eval()
    _say(f"{name} has no weights: an untrained network, whose labels mean nothing (--weights)")
    return calibrate(model)


def _say(what: str) -> None:
    print(f"vsegops: {what}", file=sys.stderr)
