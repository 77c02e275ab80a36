"""`vsegops bench`: the tables of operators, models and videos, by the checkout's `bench/`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import vsegops

from . import Formatter

EXAMPLES = """examples:
  vsegops bench operators --quick                  a look at all operators
  vsegops bench operators --operator flow_warp     one of them, with baselines
  vsegops bench models sfnet_df1 twnet_resnet18    frames per second of models
  vsegops bench video twnet_resnet18               of whole videos, with decoding and writing
"""
MODULES = {
    "operators": ["bench", "run"],
    "models": ["bench.models"],
    "video": ["bench.video"],
}


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure operators, models and videos",
        description="Run the benchmarks of the source checkout; bench/README.md says what a number "
        "means.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("table", choices=list(MODULES), help="what to measure")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="...", help="for the benchmark; --help lists them"
    )
    parser.set_defaults(do=bench)


def checkout() -> Path | None:
    """The folder of the sources, where the package runs from there or is called from there."""
    for folder in (Path(vsegops.__file__).resolve().parent.parent, Path.cwd()):
        if (folder / "bench" / "cases.py").exists() and (folder / "csrc").is_dir():
            return folder
    return None


def bench(arguments: argparse.Namespace) -> int:
    folder = checkout()
    if folder is None:
        raise RuntimeError(
            "the benchmarks are part of the sources, which are not here: run it in a checkout, "
            "with pip install -e '.[bench]'"
        )
    # A process of its own: the benchmarks choose their allocator when they start.
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", *MODULES[arguments.table], *arguments.rest]
    return subprocess.run(command, env=environment).returncode
