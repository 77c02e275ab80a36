"""`vsegops export`: a model as an ONNX file."""

from __future__ import annotations

import argparse
from typing import Any

from . import Formatter, UsageError, network

EXAMPLES = """examples:
  vsegops export sfnet_df1 sfnet.onnx --size 512 1024 --weights df1.pth
  vsegops export twnet_resnet18 step.onnx --size 720 960 --option layer=2
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a model as ONNX",
        description="Write a model, of a video model its step, as ONNX with standard operators.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("model", help="its name; vsegops info lists them")
    parser.add_argument("output", help="the file to write, *.onnx")
    parser.add_argument("--size", nargs=2, type=int, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    network.add_options(parser)
    parser.set_defaults(do=export)


def export(arguments: argparse.Namespace) -> int:
    from ..export import export_onnx

    if min(*arguments.size, arguments.batch) < 1:
        raise UsageError("--size, --batch: expected positive numbers")
    classes, pairs = arguments.classes, arguments.option
    model = network.build(arguments.model, classes, pairs, arguments.weights)
    export_onnx(model, arguments.output, arguments.size, batch=arguments.batch)
    print(f"{arguments.output}: {arguments.model}, {' x '.join(map(str, arguments.size))}")
    return 0
