"""The command line `vsegops`: segment videos, say what there is, export, measure.

Every module of this package that has a function `add(subparsers)` is a subcommand. It adds its
parser, with a function as its default `do`, which takes the parsed arguments and returns the exit
status.

Exit status: 0 all is done; 1 something failed, and a line says what; 2 the command line is wrong;
130 Ctrl-C, with what was written until then complete.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """The command line asks for something that there is not."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written."""


def parser() -> argparse.ArgumentParser:
    """Of all subcommands."""
    import vsegops

    top = argparse.ArgumentParser(
        prog="vsegops",
        description="Semantic segmentation of video by the reference models of vsegops.",
        epilog="vsegops COMMAND --help has examples of each command.",
    )
    top.add_argument("--version", action="version", version=f"vsegops {vsegops.__version__}")
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        add = getattr(importlib.import_module(f"{__name__}.{module.name}"), "add", None)
        if add is not None:
            add(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    top = parser()
    parsed = top.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RuntimeWarning)  # of what cannot be decoded
            warnings.showwarning = _warning
            return int(parsed.do(parsed))
    except UsageError as error:
        print(f"vsegops: {one_line(error)} (vsegops --help)", file=sys.stderr)
        return USAGE
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"vsegops: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("vsegops: interrupted", file=sys.stderr)
        return INTERRUPTED


def one_line(error: BaseException | str) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"vsegops: {one_line(str(message))}", file=sys.stderr)
