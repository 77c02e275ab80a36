"""`vsegops train`: train a model by a recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from . import Formatter, UsageError

EXAMPLES = """examples:
  vsegops train                                          the recipes
  vsegops train sfnet_lite_streets                       into runs/sfnet_lite_streets
  vsegops train sfnet_lite_streets --resume              go on after an interruption
  vsegops train twnet_streets --set steps=50 --set options.layer=2
  vsegops train sfnet_cityscapes --set data.root=/data/cityscapes --workers 8
  torchrun --nproc-per-node 8 -m vsegops.models.cli train sfnet_lite_cityscapes
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe, and evaluate it.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("recipe", nargs="?", help="default: all of them in a list")
    parser.add_argument("-o", "--output", metavar="DIR", help="default: runs/RECIPE")
    add_changes(parser)
    parser.add_argument("--resume", action="store_true", help="go on from DIR's checkpoint, if any")
    parser.add_argument("--device", help="cpu, cuda; default: CUDA where it is")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that load; default: 0"
    )
    parser.set_defaults(do=train)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """`--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value in the recipe, e.g. optimiser.rate=0.02; may be given several times",
    )


def chosen(arguments: argparse.Namespace) -> Any:
    """The recipe that is asked for, with its changes."""
    try:
        from ..training.recipe import changed
        from ..training.recipes import RECIPES
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'vsegops[models]'") from None
    if arguments.recipe not in RECIPES:
        raise UsageError(f"there is no recipe {arguments.recipe!r}; vsegops train lists them")
    try:
        return changed(RECIPES[arguments.recipe], arguments.set)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error


def train(arguments: argparse.Namespace) -> int:
    if arguments.recipe is None:
        from ..training.recipes import RECIPES

        for name, recipe in RECIPES.items():
            print(f"{name:<26}{recipe.about}")
        return 0
    recipe = chosen(arguments)
    from ..training import checkpoint, trainer

    folder = Path(arguments.output or Path("runs") / arguments.recipe)
    result = trainer.train(
        recipe,
        folder,
        resume=arguments.resume,
        device=arguments.device,
        workers=arguments.workers,
    )
    if os.environ.get("RANK", "0") == "0":
        print(result.table())
        print(f"{folder / checkpoint.WEIGHTS}")
    return 0
