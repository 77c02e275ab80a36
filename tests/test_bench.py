"""The benchmarks' machinery: what is written, what is refused, what is compared. No timings."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import vsegops
from vsegops._spec import Case, Maker, OperatorSpec, specs

sys.path.append(str(Path(__file__).parents[1]))  # `bench` is not installed
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from bench import __main__ as command
from bench import agreement, models, plot, report, targets, temporal, timing
from bench.cases import FILLING, REPEATED, Selection, candidate
from bench.compare import compare
from bench.measure import run
from bench.precompile import precompile

EFFORT = timing.Effort(least=3, most=3, batches=3)


def tiny_spec(**changes: Any) -> OperatorSpec:
    """flow_warp, measured at a size that takes no time."""
    spec = next(spec for spec in specs() if spec.name == "flow_warp")

    def make(maker: Any) -> dict[str, Any]:
        return {"input": maker.features(1, 3, 5, 6), "flow": maker.flow(1, 5, 6)}

    return dataclasses.replace(spec, **{"benchmarks": [Case("tiny", make)], **changes})


def measure(*operators: OperatorSpec, **selection: Any) -> dict[str, Any]:
    chosen = Selection(**{"backends": ("reference",), "baselines": ("eager",), **selection})
    clock = timing.CpuClock(evicted=4096)
    return run(operators, chosen, EFFORT, clock, copy_bytes=4096, progress=False)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found = measure(tiny_spec(), threads=(1, 2))
    found["targets"] = targets.verdicts(found["records"])
    return found


def test_the_json_holds_every_case(results: dict[str, Any]) -> None:
    read = json.loads(json.dumps(results))
    assert read["schema"] == 1
    cases = {(r["layout"], r["direction"], r["threads"]) for r in read["records"]}
    assert len(cases) == len(read["records"]) == 8
    for record in read["records"]:
        assert record["agreement"]["passed"]
        assert record["timing"]["samples"] == 3
        assert record["timing"]["p20_ms"] <= record["timing"]["median_ms"]
        assert record["timing"]["median_ms"] <= record["timing"]["p80_ms"]
        assert record["baselines"]["eager"]["ratio"] > 0
        assert all(record[key] > 0 for key in ("bytes", "operations", "times_floor", "gbps"))
        assert (record["memory"] is None) == (record["direction"] == "backward")
    assert [copied["threads"] for copied in read["copy_bandwidth"]] == [1, 2]
    assert {o["grad"] for o in read["overhead"]} == {False, True}
    assert {o["candidate"] for o in read["overhead"]} == {"reference", "eager"}


def test_the_environment_is_recorded(results: dict[str, Any]) -> None:
    environment = results["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["vsegops"] == vsegops.__version__
    assert environment["cores"] >= 1
    assert {"MALLOC_TOP_PAD_", "ATEN_CPU_CAPABILITY"} <= set(environment["variables"])


def test_a_table_and_a_figure_are_made(results: dict[str, Any], tmp_path: Path) -> None:
    text = report.report(results)
    assert "tiny, channels_last, backward, reference" in text
    assert "flow_warp, without grad" in text
    paths = plot.plots(results, tmp_path)
    assert [path.name for path in paths] == [
        "roofline-cpu-1-thread.png",
        "roofline-cpu-2-threads.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def wrong_in_float32(input: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Right where the truth is computed, and a hundredth off where it is measured."""
    out = vsegops.flow_warp(input, flow)
    return out if out.dtype == torch.float64 else 1.01 * out


def test_a_wrong_operator_gets_no_ratio(tmp_path: Path) -> None:
    found = measure(tiny_spec(function=wrong_in_float32))
    for record in found["records"]:
        assert not record["agreement"]["passed"]
        assert record["timing"] is not None
        assert record["baselines"]["eager"]["ratio"] is None
        assert record["times_floor"] is record["gbps"] is record["gops"] is None
    assert "disagrees with the truth: error 1.0e-02" in report.report(found)
    assert plot.plots(found, tmp_path)


def test_a_wrong_baseline_gets_no_ratio() -> None:
    found = measure(tiny_spec(eager=lambda input, flow: 1.1 * input))
    assert [r["baselines"]["eager"]["ratio"] for r in found["records"]] == [None] * 4
    assert all(record["times_floor"] for record in found["records"])
    assert "(disagrees)" in report.report(found)


def test_samples_are_repeated() -> None:
    """Each is drawn once, in the inputs as in the gradient that comes in."""
    found = measure(tiny_spec(), batches=(1, 3), layouts=("channels_last",))
    assert [r["shape"] for r in found["records"]] == ["tiny"] * 2 + ["tiny, times 3"] * 2
    assert all(record["agreement"]["passed"] for record in found["records"])
    one, _, three, _ = found["records"]
    assert three["bytes"] == 3 * one["bytes"]
    chosen = Selection(batches=(3,), layouts=("channels_last",), directions=("backward",))
    (setting,) = chosen.settings([tiny_spec()])
    for x in (*setting.arguments().values(), setting.grad_output(torch.empty(3, 2, 5, 6))):
        assert x.shape[0] == 3 and torch.equal(x[:1].expand_as(x), x)
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_a_gpu_is_filled() -> None:
    """Shapes: the first of every operator first."""
    chosen = list(Selection(device="cuda", layouts=("contiguous",)).settings(specs()))
    first = [s for s in chosen if s.case is s.spec.benchmarks[0]]
    assert first == chosen[: len(first)]
    for setting in first:
        moved = setting.spec.bytes_moved(setting.case.make(Maker(device="meta")), "forward")
        filling = max(s.batch for s in first if s.spec is setting.spec)
        assert FILLING <= filling * moved < 2 * FILLING or filling == 1
        assert setting.batch in (1, filling)


def test_what_does_not_fit_the_time_is_left_out() -> None:
    clock = timing.CpuClock(evicted=4096)
    selection = Selection(backends=("reference",), baselines=())
    found = run(
        [tiny_spec()], selection, EFFORT, clock, copy_bytes=4096, progress=False, seconds=-1
    )
    assert not found["records"]
    assert found["left_out"][0] == "flow_warp, tiny, float32, contiguous, forward, 1 thread"
    assert len(found["left_out"]) == 4
    assert "Left out, for want of time: 4 cases" in report.report(found)


def test_compiled_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By other processes, whose cache is found."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    chosen = {"shapes": ("C64 90x120",), "layouts": ("contiguous",), "directions": ("forward",)}
    selection = Selection(operators=("flow_warp",), **chosen)
    precompile(selection, 1, 0.0)
    assert not list(tmp_path.rglob("*.so"))  # there was no time
    precompile(selection, 1, 600.0)
    made = set(tmp_path.rglob("*.so"))
    assert made
    (setting,) = selection.settings(specs())
    counters.clear()
    candidate(setting, "compile").calls[0]()
    assert (
        counters["inductor"]["fxgraph_cache_hit"] or counters["aot_autograd"]["autograd_cache_hit"]
    )
    assert set(tmp_path.rglob("*.so")) == made


def test_nan_never_agrees() -> None:
    exact = torch.ones(100, dtype=torch.float64)
    out = exact.clone()
    out[0] = float("nan")
    assert not agreement.compare(out, [exact], 1.0).passed
    assert agreement.compare(out, [exact], 1.0, share=0.01).passed
    assert not agreement.compare(exact[:50], [exact], 1.0).passed
    assert agreement.compare(out, [exact], 1.0).json()["error"] is None
    assert not agreement.compare((exact, exact), [exact], 1.0).passed


def test_labels_have_to_be_equal() -> None:
    labels = torch.arange(100)
    other = labels.clone()
    other[0] += 1
    assert agreement.compare(labels, [labels], 1e-6).passed
    assert not agreement.compare(other, [labels], 1e-6).passed
    assert agreement.compare(other, [labels], 1e-6, share=0.01).passed


def test_what_does_not_compile_or_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    chosen = {"layouts": ("contiguous",), "directions": ("forward",)}
    (record,) = measure(tiny_spec(), baselines=("eager", "compile"), **chosen)["records"]
    assert record["baselines"]["compile"]["failed"] == "RuntimeError: no compiler"
    assert record["baselines"]["eager"]["ratio"] > 0

    broken = measure(tiny_spec(), backends=("reference", "cuda"), **chosen)
    by_name = {record["backend"]: record for record in broken["records"]}
    if not vsegops.backends()["cuda"].available:
        assert "not available" in by_name["cuda"]["failed"]
        assert by_name["cuda"]["timing"] is None
    assert by_name["reference"]["agreement"]["passed"]
    assert report.report(broken)


def with_median(results: dict[str, Any], factor: float, spread: float) -> dict[str, Any]:
    """The results with every median multiplied, and a given spread around it."""
    changed = copy.deepcopy(results)
    for record in changed["records"]:
        median = factor
        record["timing"] |= {
            "median_ms": median,
            "p20_ms": median * (1 - spread / 2),
            "p80_ms": median * (1 + spread / 2),
        }
    return changed


@pytest.mark.parametrize(
    ("factor", "spread", "verdict"),
    [
        (1.04, 0.0, "same"),  # within what any two runs differ by
        (1.06, 0.0, "slower"),
        (1.13, 0.1, "same"),  # within the two spreads together: 0.1 * sqrt(2)
        (1.15, 0.1, "slower"),
        (1 / 1.13, 0.1, "same"),
        (1 / 1.15, 0.1, "faster"),
    ],
)
def test_compare_fails_beyond_the_noise_only(
    results: dict[str, Any], factor: float, spread: float, verdict: str
) -> None:
    before, after = with_median(results, 1.0, spread), with_median(results, factor, spread)
    comparison = compare(before, after)
    assert {change.verdict for change in comparison.changes} == {verdict}
    assert comparison.failed == (verdict == "slower")


def test_compare_names_what_is_missing(results: dict[str, Any]) -> None:
    fewer = copy.deepcopy(results)
    gone = fewer["records"].pop(0)
    comparison = compare(results, fewer)
    assert not comparison.failed
    (name,) = comparison.only_before
    assert f"only in the first: {name}" in str(comparison)
    assert all(str(gone[key]) in name for key in ("operator", "shape", "layout", "backend"))
    assert compare(fewer, results).only_after == [name]
    assert compare({"records": []}, results).failed


def test_compare_fails_where_agreement_is_lost(results: dict[str, Any]) -> None:
    broken = copy.deepcopy(results)
    broken["records"][0]["agreement"]["passed"] = False
    assert compare(results, broken).failed
    assert not compare(broken, results).failed


def test_the_exit_status_of_compare(results: dict[str, Any], tmp_path: Path) -> None:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, factor in zip(paths, (1.0, 2.0), strict=True):
        path.write_text(json.dumps(with_median(results, factor, 0.1)))
    before, after = map(str, paths)
    assert command.main(["compare", before, after]) == 1
    assert command.main(["compare", before, before]) == 0
    assert command.main(["compare", after, before]) == 0


def test_targets_take_the_lowest_ratio(results: dict[str, Any]) -> None:
    record = results["records"][0]
    assert record["threads"] == 1
    every = [
        record | {"shape": shape, "baselines": {"eager": {"ratio": a}, "compile": {"ratio": b}}}
        for shape, a, b in (("first", 3.0, 1.5), ("second", 2.0, None))
    ]
    of: dict[str, Any] = {"operator": "flow_warp", "backend": "reference"}
    wanted = [
        targets.Target(**of, ratio=2, against="eager"),
        targets.Target(**of, ratio=2, against="best"),
        targets.Target(**of, ratio=2, against="compile", shape="third"),
        targets.Target(**of, ratio=0.5, against="floor", dtype=""),
        targets.Target(**of, ratio=2.5, against="eager", filled=True),
    ]
    every[0]["times_floor"], every[1]["times_floor"] = 1.25, 1.6
    every[0]["shape"] += f"{REPEATED}16"
    found = targets.verdicts(every, wanted)
    assert [(v["lowest"], v["met"]) for v in found] == [
        (2.0, True),
        (1.5, False),
        (None, None),
        (0.625, True),
        (3.0, True),
    ]
    assert found[1]["where"].startswith("first, times 16")


def test_a_selection_knows_its_names() -> None:
    operators = specs()
    settings = list(Selection(threads=(1, 1)).settings(operators))
    assert len(settings) == len(set(map(repr, (s.names() for s in settings))))
    with pytest.raises(ValueError, match=r"operator: expected some of .*, got 'nothing'"):
        list(Selection(operators=("nothing",)).settings(operators))
    with pytest.raises(ValueError, match="shape"):
        list(Selection(shapes=("nothing",)).settings(operators))


def test_samples_are_interleaved_and_rotated() -> None:
    order: list[str] = []

    def say(name: str) -> Any:
        return lambda: order.append(name)

    three = [timing.Candidate(name, [say(name), say(name.lower())]) for name in "ABC"]
    samples = timing.interleave(three, timing.CpuClock(4096), timing.Effort.exactly(3))
    # Each sample comes after the same call on other tensors.
    untimed, timed = order[-18::2], order[-17::2]
    assert "".join(timed).upper() == "".join(untimed).upper() == "ABCBCACAB"
    assert all(before != then for before, then in zip(untimed, timed, strict=True))
    assert {name: len(taken) for name, taken in samples.items()} == {"A": 3, "B": 3, "C": 3}


def test_temporal_attention_is_measured_and_drawn(tmp_path: Path) -> None:
    clock, size = timing.CpuClock(evicted=4096), (3, 4)
    found = {
        "environment": {"cpu": "a processor", "torch": torch.__version__},
        "sizes": [temporal.measure(clock, 2, size)],
        "frames": [temporal.measure(clock, frames, size) for frames in (1, 2)],
        "stream": [temporal.stream(clock, 2, size)],
    }
    assert len(found["sizes"][0]["ways"]) == len(found["stream"][0]["ways"]) == 4
    temporal.draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    recorded = json.loads(temporal.RESULTS.read_text())
    assert recorded.keys() == {"environment", "levels", "sizes", "frames", "stream"}


def test_models_are_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "EFFORT", EFFORT)
    monkeypatch.setattr(models, "clock_for", lambda device: timing.CpuClock(evicted=4096))
    chosen = ["twnet_mobilenetv2", "sfnet_df1", "--size", "64", "96"]
    assert models.main([*chosen, "--device", "cpu", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "models-cpu.json").read_text())
    assert [m["options"].get("layer") for m in results["models"]] == [1, 2, 3, None]
    for model in results["models"]:
        assert list(model["passes"]) == ["frame"] + ["step"] * (model["name"] != "sfnet_df1")
        for record in model["passes"].values():
            assert models.agrees(record, "cpu") and not record["failed"]
    printed = capsys.readouterr().out
    assert "twnet_mobilenetv2, layer=3" in printed and "3.59" in printed
    results["models"][0]["passes"]["step"]["difference"]["operators"] = 0.5
    assert "disagrees" in models.speed_table(results)
    assert "layer=1" not in models.video_table(results)
    with pytest.raises(SystemExit, match="2"):
        models.main(["no_such_model"])


def test_videos_are_measured_by_scope_and_by_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    from bench import video

    names = ["sfnet_df1", "twnet_mobilenetv2"]
    effort = ["--size", "64", "96", "--frames", "3", "--rounds", "1", "--device", "cpu"]
    assert video.main([*names, *effort, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "video-cpu.json").read_text())
    assert [(x["model"], x["keys"], x["frames"]) for x in found["models"]] == [
        ("sfnet_df1", 3, 3),
        ("twnet_mobilenetv2", 1, 3),
    ]
    for record in found["models"]:
        assert record["ms"].keys() == {*video.SCOPES, *video.STAGES}
        assert all(value > 0 for value in record["ms"].values())
    text = capsys.readouterr().out
    assert video.speed_table(found) in text and video.overlap_table(found) in text
    with pytest.raises(SystemExit):
        video.main(["nothing"])
