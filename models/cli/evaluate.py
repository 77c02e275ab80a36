"""`vsegops evaluate`: how well a trained model does."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..weights import load_upstream
from . import Formatter, train

EXAMPLES = """examples:
  vsegops evaluate sfnet_lite_streets runs/sfnet_lite_streets/model.pt
  vsegops evaluate twnet_streets runs/twnet_streets/model.pt --csv twnet.csv
  vsegops evaluate sfnet_cityscapes published.pth --set data.root=/data/cityscapes
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="evaluate trained weights",
        description="Mean IoU, and the IoU of each class and category, on what a recipe holds out;"
        "\nof a model of videos over the distance from the key frame.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("recipe", help="vsegops train lists them")
    parser.add_argument("checkpoint", help="model.pt or checkpoint.pt of a run, or published")
    train.add_changes(parser)
    parser.add_argument("--csv", metavar="FILE", help="write the table there as well")
    parser.add_argument("--device", help="cpu, cuda; default: CUDA where it is")
    parser.set_defaults(do=evaluate)


def evaluate(arguments: argparse.Namespace) -> int:
    recipe = train.chosen(arguments)
    from ..training import report, tasks

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = tasks.build_model(recipe)
    load_upstream(model, arguments.checkpoint)
    result = report.evaluate(recipe, model.to(device))
    print(result.table())
    if arguments.csv:
        result.write(arguments.csv)
    return 0
