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
    """The model in evaluation mode. Without weights those that ship with the project, where it is
    as they are; else it says that it has none, and gives varied labels."""
    if name not in list_models():
        raise UsageError(f"there is no model {name!r}; vsegops info lists them")
    torch.manual_seed(0)  # every run, and every process of one, has the same random weights
    try:
        model = create_model(name, classes, **options(pairs))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    note = ""
    if weights is None and name in SHIPPED and classes == 19 and not pairs:
        weights, note = "streets", "has learned from generated streets alone"
    if weights is None:
        note = "has no weights: an untrained network, whose labels mean nothing"
    if note:
        print(f"vsegops: {name} {note} (--weights)", file=sys.stderr)
    if weights is None:
        return calibrate(model)
    load_weights(model, name, weights)
    return model.eval()
