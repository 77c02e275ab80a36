"""Distillation on real footage, without it: labels of instances, parts of clips, tables."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # `bench` is not installed
pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from bench.footage import __main__ as command  # noqa: E402
from bench.footage import data  # noqa: E402
from bench.footage.teacher import Teacher  # noqa: E402
from vsegops.models.training import tasks  # noqa: E402


def instance(box: tuple[float, float, float, float], number: int, score: float) -> Any:
    """A row of the network's output: centre and size, scores, coefficients of one prototype."""
    row = np.zeros(4 + 80 + 32, np.float32)
    x0, y0, x1, y1 = box
    row[:4] = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    row[4 + number] = score
    row[84] = 1.0
    return row


def teacher(monkeypatch: pytest.MonkeyPatch, *rows: Any) -> Teacher:
    """One whose network always finds these; its only prototype is yes everywhere."""
    prototypes = np.full((1, 32, 160, 160), 9.0, np.float32)

    class Session:
        def __init__(self, path: str) -> None:
            pass

        def run(self, names: Any, given: dict[str, Any]) -> list[Any]:
            assert given["images"].shape == (1, 3, 640, 640)
            return [np.stack(rows, 1)[None], prototypes]

    module = types.ModuleType("onnxruntime")
    module.InferenceSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return Teacher("some.onnx")


def test_instances_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """640 x 320 pixels lie in the middle of the square; the more confident is on top."""
    found = teacher(
        monkeypatch,
        instance((100, 200, 300, 300), 2, 0.9),  # a car, at rows 40 to 140
        instance((110, 200, 300, 300), 2, 0.5),  # the same car again
        instance((200, 200, 400, 300), 0, 0.6),  # a person, partly behind it
        instance((500, 200, 600, 300), 7, 0.2),  # a truck, not confident
        instance((500, 400, 600, 470), 16, 0.9),  # a dog
    )
    labels = found(torch.zeros(320, 640, 3, dtype=torch.uint8))
    expected = torch.zeros(320, 640, dtype=torch.uint8)
    expected[40:140, 200:400] = 1
    expected[40:140, 100:300] = 3
    assert (labels != expected).float().mean() < 0.002  # masks have a quarter of the resolution


def test_frames_are_cut_to_one_shape() -> None:
    for height, width in ((480, 854), (600, 800), (563, 1000), (100, 50)):
        cut = data._cut(torch.zeros(height, width))
        assert cut.shape[0] == height or cut.shape[1] == width
        assert cut.shape[1] / cut.shape[0] == pytest.approx(448 / 256, rel=0.03)


def test_parts_are_apart() -> None:
    for clip in data.CLIPS:
        assert clip.trained < clip.held_out[0]
        assert len(clip.held_out) >= command.LONGEST


def test_students_are_judged_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random clips, with random weights."""
    monkeypatch.setattr(data, "SIZE", (64, 112))
    generator = torch.Generator().manual_seed(0)
    for split, clip, count in (("val", "a", 14), ("street", "street", 5)):
        for index in range(count):
            frame = torch.randint(256, (64, 112, 3), generator=generator, dtype=torch.uint8)
            labels = torch.randint(5, (64, 112), generator=generator, dtype=torch.uint8)
            data._write(tmp_path / split / clip, index, frame, labels)
    monkeypatch.setattr(command, "DATA", replace(command.DATA, root=str(tmp_path)))
    monkeypatch.setattr(command, "PICTURES", tmp_path)
    models = {name: tasks.build_model(recipe).eval() for name, recipe in command.STUDENTS.items()}
    results = {
        "accuracy": {
            name: command.judge(models[keyframe], models[name], count)
            for name, (keyframe, count) in command.CARRIED.items()
        },
        "speed": {name: {"frame": 20.0, "step": 5.0} for name in models},
    }
    for name, (_, count) in command.CARRIED.items():
        found = results["accuracy"][name]
        assert found["frames"] == 3 and len(found["curve"]) == count
        assert 0 <= found["street, carried"] <= 1
    table = command.show(results)
    assert [row[0] for row in table[1:]] == [
        "sfnet_lite, every frame",
        "gsvnet, key frame every 5",
        "twnet_keyframe, every frame",
        "twnet, key frame every 12",
    ]
    assert [row[4] for row in table[1:]] == ["50.0", "125", "50.0", "160"]
    assert command.draw(models).stat().st_size > 0


def test_weights_of_another_recipe_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RUNS", tmp_path)
    assert not command.finished("gsvnet")
    for name in ("gsvnet", "sfnet_lite"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").write_bytes(b"")
        (tmp_path / name / "recipe.json").write_text(command.STUDENTS[name].json())
    assert command.finished("gsvnet")
    (tmp_path / "sfnet_lite" / "model.pt").unlink()
    assert not command.finished("gsvnet")
    (tmp_path / "gsvnet" / "recipe.json").write_text(command.STUDENTS["twnet"].json())
    with pytest.raises(SystemExit, match="of another recipe"):
        command.finished("gsvnet")
