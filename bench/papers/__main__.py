"""`python -m bench.papers`: trains what is missing, measures speed, then writes the report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsegops.models.training.checkpoint import WEIGHTS
from vsegops.models.training.recipe import Recipe, differences
from vsegops.models.training.report import Evaluation

from .. import papers
from ..environment import environment, start_with_allocator
from . import report, speed
from .pool import train_all
from .runs import RUNS, folder, with_seed

RESULTS = Path(__file__).parent.parent / "results" / "papers.json"
RUNS_FOLDER = Path("runs") / "papers"


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """In per cent: means by distance and over intervals, and of all counts each class."""
    rows = {row.pop("distance"): row for row in evaluation.rows()}
    distances = [rows[name]["mean"] for name in rows if name != "all"]
    return {
        "curve": _percent(distances),
        "average": _percent(evaluation.average(count + 1) for count in range(len(distances))),
        "all": dict(zip(rows["all"], _percent(rows["all"].values()), strict=True)),
    }


def _percent(values: Iterable[float]) -> list[float | None]:
    return [None if x != x else round(100 * x, 3) for x in values]


def missing(
    chosen: Sequence[str], seeds: int, done: Mapping[str, Any]
) -> dict[tuple[str, int], Recipe]:
    """What is still to be trained, with its parts. A result of another recipe is refused."""
    found: dict[tuple[str, int], Recipe] = {}
    for paper in chosen:
        for run, recipe in RUNS[paper].items():
            for seed in range(seeds):
                seeded = with_seed(recipe, seed)
                result = done.get(run, {}).get(str(seed))
                if result is None:
                    for part in recipe.parts.values():  # known, but not kept here
                        if not (RUNS_FOLDER / folder(part, seed) / WEIGHTS).exists():
                            found[part, seed] = with_seed(RUNS[paper][part], seed)
                    found[run, seed] = seeded
                elif changes := differences(seeded, result["recipe"]):
                    raise SystemExit(
                        f"{RESULTS.name}: {run}, seed {seed} is of another recipe "
                        f"({'; '.join(changes)}); remove it there, and in {RUNS_FOLDER}"
                    )
    return found


def train(
    todo: Mapping[tuple[str, int], Recipe], results: dict[str, Any], processes: int, device: str
) -> None:
    """Train, and write each result when it is there."""
    names = {folder(run, seed): (run, seed) for run, seed in todo}
    recipes = {name: todo[at] for name, at in names.items()}
    for trained in train_all(recipes, RUNS_FOLDER, processes, device):
        run, seed = names[trained.name]
        results["runs"].setdefault(run, {})[str(seed)] = {
            "recipe": recipes[trained.name].json(),
            "minutes": round(trained.minutes, 2),
            **figures(trained.evaluation),
        }
        write(results)


def write(results: dict[str, Any]) -> None:
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    partial.replace(RESULTS)


def main(argv: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m bench.papers", None, papers.__doc__, formatter_class=layout
    )
    parser.add_argument("papers", nargs="*", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0, help="default: one for each core")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument("--report", action="store_true", help="train nothing, measure nothing")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.papers) - set(RUNS):
        parser.error(f"no such paper: {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"runs": {}, "speed": {}}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    if not arguments.report:
        results["environment"] = environment()
        chosen = arguments.papers or list(RUNS)
        todo = missing(chosen, arguments.seeds, results["runs"])
        train(todo, results, arguments.processes, arguments.device)
        for paper in chosen:
            results["speed"][paper] = speed.measure(RUNS[paper])
            write(results)
    print(*report.write(results), sep="\n")
    return 0


if __name__ == "__main__":
    start_with_allocator("bench.papers")
    sys.exit(main())
