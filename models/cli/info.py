"""`vsegops info`: versions, backends, models."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import torch

from ..base import VideoModel
from ..registry import create_model, list_models
from ..summary import summary
from . import Formatter, UsageError, network

EXAMPLES = """examples:
  vsegops info                                            what is installed, and the models
  vsegops info sfnet_df1 --size 1024 2048                 what one costs, stage by stage
  vsegops info twnet_resnet18 --step --option layer=3     a frame that is no key frame
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="say what is installed and which models there are",
        description="Versions, backends with the reasons of those that do not run, models with "
        "their parameters;\nor, of one model, what it costs.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("model", nargs="?", help="default: all of them in a list")
    parser.add_argument("--size", nargs=2, type=int, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--step", action="store_true", help="a frame after a key frame")
    parser.add_argument("--classes", type=int, default=19, metavar="N", help="default: 19")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="of the model")
    parser.set_defaults(do=info)


def info(arguments: argparse.Namespace) -> int:
    if arguments.model is not None:
        if arguments.model not in list_models():
            raise UsageError(f"there is no model {arguments.model!r}; vsegops info lists them")
        chosen = {"num_classes": arguments.classes, **network.options(arguments.option)}
        summary(arguments.model, arguments.size, step=arguments.step, **chosen)
        return 0
    from vsegops.__main__ import report

    print(report())
    print("\nModels (19 classes)")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        count = sum(x.numel() for x in model.parameters())
        kind = f"video, key frames: {model.schedule}" if isinstance(model, VideoModel) else "images"
        what = (inspect.getdoc(type(model)) or "").partition(":")[0]
        print(f"  {name:<34}{count / 1e6:>8.2f} M parameters   {what}; {kind}")
    return 0
