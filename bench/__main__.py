"""The command line: `python -m bench run` and `python -m bench compare`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .cases import BASELINES, DIRECTIONS, DTYPES, LAYOUTS, Selection
from .environment import cores, start_with_allocator

OUTPUT = Path(__file__).parent / "output"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    return int(arguments.do(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="measure, print a table, write JSON and a figure")
    run.set_defaults(do=_run)
    run.add_argument("--operator", nargs="+", default=(), help="default: all")
    run.add_argument("--shape", nargs="+", default=(), help="names from the spec; default: all")
    run.add_argument("--dtype", nargs="+", default=("float32",), choices=DTYPES)
    run.add_argument("--layout", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    run.add_argument("--direction", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    run.add_argument("--backend", nargs="+", default=(), help="default: all but the reference")
    run.add_argument("--baseline", nargs="*", default=BASELINES, choices=BASELINES)
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    run.add_argument("--threads", nargs="+", type=_threads, default=None, help="numbers or 'all'")
    run.add_argument(
        "--batch",
        nargs="+",
        type=_count,
        default=(),
        help="times the shapes' samples; default: 1, on a GPU also so many that memory is busy",
    )
    run.add_argument(
        "--seconds", type=float, default=math.inf, help="what does not fit is left out"
    )
    run.add_argument(
        "--compile-jobs",
        type=_count,
        default=0,
        help="fill torch.compile's cache first, in so many processes",
    )
    effort = run.add_mutually_exclusive_group()
    effort.add_argument("--repeats", type=int, help="samples of each case; default: as many as fit")
    effort.add_argument(
        "--quick", action="store_true", help="a look: one thread, first shape, few samples"
    )
    run.add_argument("--output", type=Path, default=OUTPUT, help="directory; default: bench/output")

    compare = commands.add_parser("compare", help="exit with 1 if a case got slower beyond noise")
    compare.set_defaults(do=_compare)
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    return parser


def _threads(text: str) -> int:
    return cores() if text == "all" else _count(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from vsegops._spec import specs

    from . import plot, report, targets
    from .measure import run
    from .precompile import precompile
    from .timing import QUICK, Effort

    quick = arguments.quick
    effort = QUICK if quick else Effort()
    if arguments.repeats is not None:
        effort = Effort.exactly(arguments.repeats)
    selection = Selection(
        operators=arguments.operator,
        shapes=arguments.shape,
        dtypes=arguments.dtype,
        layouts=arguments.layout,
        directions=arguments.direction,
        backends=arguments.backend,
        baselines=arguments.baseline,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        threads=arguments.threads or ((1,) if quick else (1, cores())),
        first_shape_only=quick and not arguments.shape,
        batches=arguments.batch,
    )
    operators = specs()
    try:
        list(selection.settings(operators))
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    if arguments.compile_jobs:
        precompile(selection, arguments.compile_jobs, arguments.seconds)
    left = arguments.seconds - (time.monotonic() - begin)
    results = run(operators, selection, effort, seconds=left)
    results["targets"] = targets.verdicts(results["records"])
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    figures = plot.plots(results, arguments.output)
    print(report.report(results))
    print("\nwritten:", ", ".join(str(p) for p in (path, *figures)))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from .compare import compare

    before, after = (json.loads(p.read_text()) for p in (arguments.before, arguments.after))
    comparison = compare(before, after)
    print(comparison)
    return 1 if comparison.failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        start_with_allocator("bench")
    sys.exit(main())
