"""The papers' tables: what is trained, what is shown of it, that an interrupted night goes on."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # `bench` is not installed
pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from bench import timing  # noqa: E402
from bench.papers import __main__ as command  # noqa: E402
from bench.papers import report, speed  # noqa: E402
from bench.papers.runs import RUNS, folder, with_seed  # noqa: E402
from bench.papers.tables import CURVES, TABLES  # noqa: E402
from vsegops.models.training import classes, tasks  # noqa: E402
from vsegops.models.training.recipe import changed  # noqa: E402

TINY = ["steps=1", "batch=2", "crop=(32, 32)", "distances=2", "data.before=(1,)"]
TINY += ["data.size=(32, 64)", "data.streets=1", "data.labelled=(2, 3)", "data.held_out=1"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """GSVNet's two runs of table 4, as small as they can be, in another place."""
    runs = {name: RUNS["gsvnet"][name] for name in ("sfnet_lite", "gsvnet")}
    small = {
        name: changed(run, [*TINY, f"data.root={tmp_path / 'streets'}", "data.share=0.0"])
        for name, run in runs.items()
    }
    monkeypatch.setattr(command, "RUNS", {"gsvnet": small})
    monkeypatch.setattr(command, "RESULTS", tmp_path / "papers.json")
    monkeypatch.setattr(command, "RUNS_FOLDER", tmp_path / "runs")
    return small


def invented(run: str, seed: int) -> dict[str, Any]:
    """A result whose numbers tell where they came from."""
    base = 10.0 * (1 + seed)
    step, distances = len(run) / 10, range(12 if run.startswith("twnet") else 5)
    names = ["mean", *classes.CITYSCAPES, *(f"category {name}" for name in classes.CATEGORIES)]
    return {
        "recipe": "",
        "minutes": 1.5,
        "curve": [base - step * x for x in distances],
        "average": [base - step * x / 2 for x in distances],
        "all": dict.fromkeys(names, base + step),
    }


@pytest.fixture
def results() -> dict[str, Any]:
    names = {name for runs in RUNS.values() for name in runs}
    return {
        "runs": {name: {str(s): invented(name, s) for s in range(3)} for name in names},
        "speed": {
            paper: dict.fromkeys(runs, {"frame": 20.0, "step": 12.345, "state": 1.5})
            for paper, runs in RUNS.items()
        },
        "environment": {"cpu": "a processor"},
    }


def test_every_run_can_be_built() -> None:
    for runs in RUNS.values():
        for recipe in runs.values():
            tasks.build_model(recipe)
            # what parts are named is trained in the same table
            assert set(recipe.parts.values()) <= runs.keys()


def test_tables_and_curves_name_runs_of_their_paper() -> None:
    for table in TABLES:
        assert {row.run for row in table.rows} <= RUNS[table.paper].keys()
        assert all(len(row.paper) == len(table.paper_columns) for row in table.rows)
    for curve in CURVES:
        shown = {run for panel in curve.panels.values() for run in panel.values()}
        assert shown <= RUNS[curve.paper].keys()


def test_rows_of_a_table_have_the_same_budget() -> None:
    for table in TABLES:
        recipes = [RUNS[table.paper][row.run] for row in table.rows]
        budgets = {(r.steps, r.batch, replace(r.data, before=())) for r in recipes if r.steps}
        assert len(budgets) == 1, table.title


def test_the_report(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "papers.md")
    del results["runs"]["tmanet_apnb"]  # a paper that is not whole is left out
    paths = report.write(results)
    assert {path.name for path in paths} == {"papers.md", *(curve.file for curve in CURVES)}
    assert all(path.stat().st_size for path in paths)
    text = (tmp_path / "papers.md").read_text()
    assert "over 3 seeds" in text and "a processor" in text and "TMANet" not in text
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in text.splitlines()}
    assert cells["| FPN + PPM"] == [*["20.9 ± 10.0"] * 3, "20", "76.6", "40.3 |"]
    assert cells["| + one GD-FAM (SFNet-Lite)"][0] == "21.0 ± 10.0 (+0.1 ± 0.0)"
    # 1.4 less with each frame, after 0.6; where nothing is carried both are the same
    gains = ["", *(f" (-{1.4 * x:.1f} ± 0.0)" for x in range(1, 5))]
    expected = [f"{20 - 2.0 * x:.1f} ± 10.0{gain}" for x, gain in enumerate(gains)]
    assert cells["| without"][:5] == expected


def test_a_paper_that_is_not_whole_is_left_out(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted: a seed is missing, or speed was not measured."""
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "papers.md")
    del results["runs"]["twnet_1_rga"]["2"], results["speed"]["gsvnet"]
    assert [path.name for path in report.write(results)] == ["papers.md"]
    text = (tmp_path / "papers.md").read_text()
    assert "SFNet" in text and "TMANet" in text
    assert "## GSVNet" not in text and "## TWNet" not in text


def test_a_night_goes_on(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not trained again; of another recipe it is refused."""
    monkeypatch.setattr(speed, "measure", lambda runs: dict.fromkeys(runs, {}))
    monkeypatch.setattr(report, "write", lambda results: [])
    assert command.main(["gsvnet", "--seeds", "1", "--processes", "1"]) == 0
    found = json.loads(command.RESULTS.read_text())
    assert found["runs"].keys() == {"sfnet_lite", "gsvnet"}
    result = found["runs"]["gsvnet"]["0"]
    assert len(result["curve"]) == len(result["average"]) == 2
    assert 0 <= result["all"]["mean"] <= 100
    before = copy.deepcopy(found["runs"])
    assert not command.missing(["gsvnet"], 1, before)
    todo = command.missing(["gsvnet"], 2, before)
    assert set(todo) == {("sfnet_lite", 1), ("gsvnet", 1)}
    assert todo["gsvnet", 1].parts == {"keyframe": folder("sfnet_lite", 1)}
    # what is known but not kept here, as after a clone, is trained again for those over it
    (command.RUNS_FOLDER / folder("sfnet_lite", 0)).rename(command.RUNS_FOLDER / "elsewhere")
    only_part = {"sfnet_lite": before["sfnet_lite"]}
    assert set(command.missing(["gsvnet"], 1, only_part)) == {("sfnet_lite", 0), ("gsvnet", 0)}
    other = {**tiny, "gsvnet": replace(tiny["gsvnet"], batch=4)}
    monkeypatch.setattr(command, "RUNS", {"gsvnet": other})
    with pytest.raises(SystemExit, match="gsvnet, seed 0 is of another recipe .*batch is 4, was 2"):
        command.missing(["gsvnet"], 1, before)


def test_speed_is_of_frames_and_steps(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "EFFORT", timing.Effort(least=3, most=3, warmup=1))
    monkeypatch.setattr(speed, "CpuClock", lambda: timing.CpuClock(4096))
    found = speed.measure({name: with_seed(run, 0) for name, run in tiny.items()}, (32, 64))
    assert found["sfnet_lite"].keys() == {"frame"}
    assert found["gsvnet"].keys() == {"frame", "step", "state"}
    assert found["gsvnet"]["state"] == pytest.approx((19 + 3) * 4 * 8 * 4 / 1e6)
    assert all(value > 0 for each in found.values() for value in each.values())
