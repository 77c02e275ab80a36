"""Training: it goes on exactly after a kill, and on several devices; the recipes run."""

from __future__ import annotations

import csv
import doctest
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from PIL import Image  # noqa: E402

from vsegops.models import cli, create_model, export_onnx  # noqa: E402
from vsegops.models.training import (  # noqa: E402
    checkpoint,
    losses,
    recipe,
    report,
    tasks,
    trainer,
)
from vsegops.models.training.recipe import Optimiser, changed  # noqa: E402
from vsegops.models.training.recipes import RECIPES  # noqa: E402
from vsegops.models.training.sampling import Draws  # noqa: E402

#: Where the samples of these tests are.
STORED = Path(tempfile.gettempdir()) / f"vsegops-trainer-{os.getpid()}"
#: `sfnet_lite_streets` on another network, very small. It has a dropout.
SMALL = [
    "model=sfnet_df1",
    "loss=tmanet",
    "loss_options={}",
    f"data.root={STORED}",
    "data.size=(32, 64)",
    "data.tile=32",
    "data.streets=2",
    "data.labelled=(1, 2)",
    "data.held_out=1",
    "crop=(32, 32)",
    "batch=4",
]
TINY = changed(RECIPES["sfnet_lite_streets"], SMALL)
#: Samples of a batch do not depend on each other: no dropout either.
APART = ["model=twnet_mobilenetv2", "part=keyframe", "normalisation=frozen", "steps=3"]


@pytest.fixture(autouse=True, scope="module")
def no_samples_are_left() -> Iterator[None]:
    yield
    shutil.rmtree(STORED, ignore_errors=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read(folder / checkpoint.WEIGHTS)["state_dict"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[k]) for k, x in ours.items())


def command(*arguments: object) -> list[str]:
    return [*map(str, arguments), "-m", "vsegops.models.cli", "train", "sfnet_lite_streets"]


def environment() -> dict[str, str]:
    paths = [str(Path(cli.__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def sets(*pairs: str) -> list[str]:
    return [word for pair in (*SMALL, *pairs) for word in ("--set", pair)]


def test_it_learns(tmp_path: Path) -> None:
    chosen = replace(TINY, steps=20, augmentation="", evaluate_every=8)
    trainer.train(chosen, tmp_path)
    losses = [float(row["loss"]) for row in rows(tmp_path)]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    assert [row["mean_iou"] != "" for row in rows(tmp_path)].index(True) == 7


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    steps = ("steps=16", "checkpoint_every=4")
    arguments = [*command(sys.executable), "-o", str(tmp_path / "killed"), *sets(*steps)]
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    kept, until = tmp_path / "killed" / checkpoint.CHECKPOINT, time.monotonic() + 120
    while not kept.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 4 <= checkpoint.read(kept)["step"] < 16
    subprocess.run([*arguments, "--resume"], env=environment(), check=True)

    trainer.train(changed(TINY, steps), tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert [int(row["step"]) for row in rows(tmp_path / "whole")] == list(range(1, 17))


def test_a_checkpoint_has_all_that_a_run_depends_on(tmp_path: Path) -> None:
    """With Adam's moments, in the middle of an epoch."""
    changes = ["model=twnet_mobilenetv2", "part=keyframe", "batch=3"]
    chosen = replace(
        changed(TINY, changes), optimiser=Optimiser("adam"), steps=7, checkpoint_every=5
    )
    trainer.train(chosen, tmp_path / "whole")

    def stop(self: trainer.Run, *arguments: Any) -> dict[str, float]:
        if self.step == 6:
            raise KeyboardInterrupt
        return advance(self, *arguments)

    advance = trainer.Run._advance
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Run, "_advance", stop)
        trainer.train(chosen, tmp_path / "parts")
    trainer.train(chosen, tmp_path / "parts", resume=True, workers=1)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    start = command(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2
    )
    arguments = [*start, "-o", str(tmp_path / "two"), *sets(*APART), "--device", "cpu"]
    done = subprocess.run(arguments, env=environment(), check=True, capture_output=True, text=True)
    assert done.stdout.count("model.pt") == 1
    trainer.train(changed(TINY, APART), tmp_path / "one")
    alike(tmp_path / "two", tmp_path / "one")


def test_accumulating_is_a_larger_batch(tmp_path: Path) -> None:
    chosen = changed(TINY, APART)
    trainer.train(chosen, tmp_path / "whole")
    trainer.train(replace(chosen, accumulate=2), tmp_path / "parts")
    alike(tmp_path / "parts", tmp_path / "whole")
    trainer.train(replace(chosen, seed=1), tmp_path / "other")
    with pytest.raises(AssertionError):
        alike(tmp_path / "other", tmp_path / "whole")
    with pytest.raises(ValueError, match="batch: expected a multiple of 3"):
        trainer.train(replace(chosen, accumulate=3), tmp_path / "none")


def alike(ours: Path, theirs: Path) -> None:
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    losses = [[float(row["loss"]) for row in rows(folder)] for folder in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Failing(nn.Module):
    """A loss that is not a number when it is asked for the fourth time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, output: Any, labels: Tensor) -> Tensor:
        self.calls += 1
        return output.mean() * (float("nan") if self.calls == 4 else 1)


def test_a_loss_that_is_not_finite_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "LOSSES", {"failing": Failing})
    chosen = replace(TINY, loss="failing", steps=9, checkpoint_every=2)
    with pytest.raises(checkpoint.NotFinite, match=r"step 4: the loss is nan; .* is of step 2"):
        trainer.train(chosen, tmp_path)
    saved = checkpoint.read(tmp_path / checkpoint.CHECKPOINT)
    assert all(x.isfinite().all() for x in saved["model"].values())
    early = replace(chosen, checkpoint_every=9)
    with pytest.raises(checkpoint.NotFinite, match="there is no checkpoint yet"):
        trainer.train(early, tmp_path / "early")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"step": 1})
    with pytest.raises(checkpoint.NotFinite, match="step 2: conv.weight is not finite"):
        checkpoint.check_finite({"conv.weight": torch.tensor([1.0, float("inf")])}, 2)
    assert checkpoint.read(path) == {"step": 1}


def test_a_checkpoint_is_written_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.write(path, {"step": lambda: 2})
    assert checkpoint.read(path) == {"step": 1}


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    chosen = replace(TINY, steps=1)
    trainer.train(chosen, tmp_path, resume=True)  # nothing to go on from: it starts
    with pytest.raises(ValueError, match="there is a run; go on with --resume"):
        trainer.train(chosen, tmp_path)
    with pytest.raises(ValueError, match="another recipe: optimiser.rate is 0.1, was 0.003"):
        trainer.train(changed(chosen, ["optimiser.rate=0.1"]), tmp_path, resume=True)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(tmp_path: Path, precision: str) -> None:
    trainer.train(replace(TINY, steps=2, precision=precision), tmp_path)
    trained = weights(tmp_path)
    assert all(x.isfinite().all() for x in trained.values())
    assert all(x.dtype == torch.float32 for x in trained.values() if x.is_floating_point())
    scaler = checkpoint.read(tmp_path / checkpoint.CHECKPOINT)["scaler"]
    assert bool(scaler) == (precision == "float16")


def test_batches_follow_each_other_over_epochs_and_processes() -> None:
    def drawn(size: int, numbers: range) -> Iterator[Any]:
        draws = Draws(5, seed=3)
        return (draw for batch in trainer.Batches(draws, size, numbers) for draw in batch)

    whole = list(drawn(4, range(3)))
    assert sorted(draw.sample for draw in whole[:5]) == list(range(5)) and whole[5:10] != whole[:5]
    assert list(drawn(4, range(1, 3))) == whole[4:]  # from a later step on
    first, second = list(drawn(2, range(0, 6, 2))), list(drawn(2, range(1, 6, 2)))
    assert first == whole[0:2] + whole[4:6] + whole[8:10]
    assert second == whole[2:4] + whole[6:8] + whole[10:12]


def test_rates() -> None:
    poly = Optimiser(power=0.9, floor=1e-4)
    assert poly.rate_at(0, 10, 0.01) == 0.01
    assert poly.rate_at(5, 10, 0.01) == pytest.approx(0.01 * 0.5**0.9)
    assert poly.rate_at(9999, 10_000, 0.01) == 1e-4 and poly.rate_at(9, 10, 1e-5) == 1e-5
    decay = Optimiser(schedule="decay", power=0.992, every=100)
    assert [decay.rate_at(x, 1000, 1.0) for x in (99, 100, 250)] == [1, 0.992, 0.992**2]
    model = create_model("gsvnet_swiftnet_resnet18")
    optimiser = trainer.build_optimiser(RECIPES["gsvnet_cityscapes"].optimiser, model)
    counts = {group["lr"]: len(group["params"]) for group in optimiser.param_groups}
    named = dict(model.named_parameters())
    trained = [name for name, x in named.items() if x.requires_grad]
    assert not any(name.startswith("keyframe.") for name in trained)
    assert counts.keys() == {0.01, 0.04, 1e-4} and sum(counts.values()) == len(trained)
    assert counts[1e-4] == sum(name.startswith("flow.") for name in trained)
    with pytest.raises(ValueError, match="optimiser.rates: expected beginnings of parameters"):
        trainer.build_optimiser(Optimiser(rates={"nothing.": 1.0}), model)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["steps=2", "batch=2", "data.size=(64, 64)", "data.streets=1", "data.held_out=1"]
    small += ["data.labelled=(4, 5)", "data.tile=32", "data.name=streets", "data.root="]
    chosen = changed(RECIPES[name], small)
    if chosen.crop is not None:
        chosen = replace(chosen, crop=(64, 64))
    chosen = replace(chosen, distances=min(chosen.distances, 2))
    for source in chosen.parts.values():
        part = tasks.build_model(RECIPES[source])
        (tmp_path / source).mkdir()
        checkpoint.write(tmp_path / source / checkpoint.WEIGHTS, {"state_dict": part.state_dict()})
    written: dict[str, Any] = {}  # not to a disk
    monkeypatch.setattr(checkpoint, "write", lambda path, x: written.update({path.name: x}))
    result = trainer.train(chosen, tmp_path / name)
    assert len(rows(tmp_path / name)) == 2
    assert 0 <= result.mean_iou() <= 1
    video = chosen.task != "images"
    assert list(result.matrices) == ["all", *map(str, range(chosen.distances if video else 0))]
    trained = written[checkpoint.WEIGHTS]["state_dict"]
    for part, source in chosen.parts.items():  # frozen
        own = weights(tmp_path / source)
        assert all(torch.equal(trained[f"{part}.{key}"], x) for key, x in own.items())


def test_no_step_puts_parts_together(tmp_path: Path) -> None:
    """As TWNet's "warp only" wants it: the second step's network is the first's."""
    small = ["steps=1", "batch=2", "data.streets=1", "data.held_out=1", "data.labelled=(4, 5)"]
    small += ["data.size=(64, 64)", "data.root=", "data.share=0.0", "crop=(64, 64)", "distances=2"]
    first = changed(RECIPES["twnet_keyframe_streets"], small)
    trainer.train(first, tmp_path / "twnet_keyframe_streets")
    second = changed(RECIPES["twnet_streets"], [*small, "steps=0", "options.cfr=False"])
    result = trainer.train(second, tmp_path / "warp")
    assert len(rows(tmp_path / "warp")) == 0 and 0 <= result.mean_iou() <= 1
    own, theirs = weights(tmp_path / "warp"), weights(tmp_path / "twnet_keyframe_streets")
    assert all(torch.equal(own[f"keyframe.{name}"], x) for name, x in theirs.items())
    assert torch.equal(own["tail.0.fuse.0.weight"], theirs["decoder.1.fuse.0.weight"])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train it first: vsegops train sfnet_lite_streets"):
        trainer.train(RECIPES["gsvnet_streets"], tmp_path)
    chosen = changed(RECIPES["sfnet_cityscapes"], [f"data.root={tmp_path / 'none'}"])
    with pytest.raises(FileNotFoundError, match="cityscapes: expected a folder"):
        trainer.train(chosen, tmp_path)
    name = "train/a/a_000000_000019"  # also what is needed at the end alone
    for folder, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        path = tmp_path / "city" / folder / f"{name}_{ending}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB" if folder == "leftImg8bit" else "L", (64, 64)).save(path)
    chosen = changed(chosen, [f"data.root={tmp_path / 'city'}", "steps=1", "batch=1"])
    with pytest.raises(FileNotFoundError, match="cityscapes: expected .*val"):
        trainer.train(chosen, tmp_path / "run")
    assert not rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("steps", "expected NAME=VALUE"),
        ("stepz=3", "stepz: no such value; there are about, model"),
        ("optimiser.momentun=3", "optimiser.momentun: no such value"),
        ("steps=many", "steps: expected a value as 1500, got 'many'"),
        ("steps=-1", "steps: expected a whole number from 0 on"),
        ("steps.x=1", "steps.x: there is nothing below 'x'"),
        ("optimiser.name=lion", "optimiser.name: expected"),
    ],
)
def test_a_wrong_change_is_refused(
    pair: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        changed(RECIPES["sfnet_lite_streets"], [pair])
    assert cli.main(["train", "sfnet_lite_streets", "--set", pair]) == cli.USAGE
    assert "--set" in capsys.readouterr().err


def test_tensorboard_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path) and purge_step == 1

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    module = types.ModuleType("tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trainer.train(replace(TINY, steps=2), tmp_path)
    found = {(name, step): value for name, value, step in written[:-1]}
    for row in rows(tmp_path):
        assert all(found[name, int(row["step"])] == float(row[name]) for name in ("loss", "rate"))
    assert len(found) == 6 and written[-1][0] == "closed"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    assert cli.main(["train", "no_such"]) == cli.USAGE
    arguments = ["sfnet_lite_streets", *sets("steps=1")]
    assert cli.main(["train", *arguments, "-o", str(tmp_path / "run")]) == 0
    trained = capsys.readouterr().out
    file = tmp_path / "again.csv"
    for name in (checkpoint.WEIGHTS, checkpoint.CHECKPOINT):
        path = str(tmp_path / "run" / name)
        assert cli.main(["evaluate", *arguments[:1], path, *arguments[1:], "--csv", str(file)]) == 0
        assert capsys.readouterr().out.strip() in trained
        assert file.read_text() == (tmp_path / "run" / "evaluation.csv").read_text()
    assert "category human" in trained
    assert cli.main(["evaluate", "sfnet_lite_streets", str(tmp_path / "none.pt")]) == cli.FAILED


def test_a_table_has_classes_and_distances() -> None:
    matrices = {name: report.ConfusionMatrix(11) for name in ("all", "0", "1")}
    for matrix in matrices.values():
        matrix.update(torch.tensor([[[0, 1, 3]]]), torch.tensor([[[0, 1, 1]]]))
    result = report.Evaluation(matrices)
    assert result.mean_iou() == pytest.approx(1.5 / 3)
    lines = result.table().splitlines()
    assert lines[0].split() == ["all", "0", "1"] and lines[1].split() == ["mean", *["50.0%"] * 3]
    assert ["building", *["50.0%"] * 3] in map(str.split, lines)


def test_examples() -> None:
    found = doctest.testmod(recipe)
    assert found.attempted > 0 and not found.failed


# --- distillation ---------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Frames without labels to train on, with labels to evaluate with."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        folder = tmp_path / "clips" / split / "a"
        (folder / "frames").mkdir(parents=True)
        for number in range(2):
            frame = torch.randint(256, (32, 64, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(frame.numpy()).save(folder / "frames" / f"{number}.png")
    (folder / "labels").mkdir()
    Image.new("L", (64, 32), 3).save(folder / "labels" / "1.png")
    return tmp_path / "clips"


def distilled(clips: Path, teacher: Any, **changes: Any) -> recipe.Recipe:
    data = replace(TINY.data, name="clips", root=str(clips), share=0.0)
    options = {"teacher": teacher, "labels": 0.0}
    return replace(TINY, data=data, task="distilled", task_options=options, batch=2, **changes)


def test_a_student_comes_closer_to_its_teacher(clips: Path, tmp_path: Path) -> None:
    """Of frames without labels, where nothing else could be learned from."""
    torch.manual_seed(1)
    teacher = create_model("sfnet_df2").eval()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    chosen = distilled(clips, f"sfnet_df2:{tmp_path / 'teacher.pt'}", steps=12, augmentation="")
    result = trainer.train(chosen, tmp_path / "run")
    found = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert found[-1] < 0.5 * found[0]
    assert result.matrices["all"].counts.sum() == 32 * 64  # the one frame with labels
    assert not any(name.startswith("_teacher") for name in weights(tmp_path / "run"))


@pytest.mark.parametrize("labels", [0.0, 2.0])
def test_the_loss_of_a_student(labels: float) -> None:
    student, wanted = create_model("sfnet_df1").eval(), torch.randn(2, 19, 4, 8)
    task = tasks.Distilled(student, losses.tmanet(), lambda x: wanted, labels, 3.0, temperature=2.0)
    frames = torch.randint(256, (2, 1, 32, 64, 3), dtype=torch.uint8)
    truth = torch.randint(19, (2, 32, 64), dtype=torch.uint8)
    logits = student(student.preprocess(frames[:, 0]))
    expected = 3.0 * losses.distillation(
        logits, wanted, (32, 64), temperature=2.0, align_corners=True
    )
    expected = expected + labels * losses.tmanet()(logits, truth)
    assert torch.allclose(task(frames, truth, None, 0), expected)


def test_an_onnx_file_teaches(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "teacher.onnx"
    export_onnx(create_model("sfnet_df1").eval(), file, size=(32, 32), batch=2)
    trainer.train(distilled(clips, str(file), steps=2), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2


def test_frames_without_labels_among_others() -> None:
    """They count for the teacher alone: a mean over no label would be no number."""
    student = create_model("sfnet_df1", deep_supervision=True).train()
    task = tasks.Distilled(student, losses.sfnet(min_kept=10), lambda x: torch.zeros(2, 19, 2, 4))
    frames = torch.randint(256, (2, 1, 32, 64, 3), dtype=torch.uint8)
    loss = task(frames, torch.full((2, 32, 64), 255, dtype=torch.uint8), None, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.parameters())


def test_a_teacher_that_does_not_fit(tmp_path: Path) -> None:
    student = create_model("sfnet_df1")
    for name in ("swiftnet_resnet18", "twnet_mobilenetv1"):
        torch.save(create_model(name).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match="teacher: expected an image model whose"):
            tasks.Distilled(student, losses.sfnet(), f"{name}:{tmp_path / 'weights.pt'}")
    with pytest.raises(
        ValueError, match="teacher: expected FILE.onnx or MODEL:FILE, got str 'sfnet"
    ):
        tasks.Distilled(student, losses.sfnet(), "sfnet_df2")
    with pytest.raises(ValueError, match="model: expected an image model"):
        tasks.Distilled(create_model("tmanet_resnet18_x0_25"), losses.sfnet(), lambda x: x)
