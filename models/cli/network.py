"""What the subcommands share: arguments that name a model, and the model of them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from ..assignment import parse_assignment
from ..base import Model
from ..registry import create_model, list_models
from ..untrained import calibrate
from ..weights import load_upstream
from . import UsageError

DEFAULT = "gsvnet_swiftnet_resnet18"


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--weights`, `--classes`, `--option`."""
    parser.add_argument("--weights", metavar="FILE", help="a published checkpoint; default: none")
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
    """The model in evaluation mode; without weights one that says so and gives varied labels."""
    if name not in list_models():
        raise UsageError(f"there is no model {name!r}; vsegops info lists them")
    torch.manual_seed(0)  # every run, and every process of one, has the same random weights
    try:
        model = create_model(name, classes, **options(pairs))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if weights is None:
        note = f"{name} has no weights: an untrained network, whose labels mean nothing"
        print(f"vsegops: {note} (--weights)", file=sys.stderr)
        return calibrate(model)
    load_upstream(model, weights)
    return model.eval()
