"""The command `vsegops`: what it writes, what it says, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from PIL import Image  # noqa: E402
from test_codec import encode  # noqa: E402

import vsegops  # noqa: E402
from vsegops.models import VideoSegmenter, cli, create_model, export, list_models  # noqa: E402
from vsegops.models.cli import bench, outputs  # noqa: E402
from vsegops.models.untrained import calibrate  # noqa: E402
from vsegops.models.video import clips  # noqa: E402

SIZE = (64, 96)
MODEL = "gsvnet_swiftnet_resnet18"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "clip.mp4"
    return encode(path, frames=30, size=SIZE, shift=(3.0, 2.0))


def run(*arguments: object) -> int:
    try:
        return cli.main([str(x) for x in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def segment(*arguments: object) -> int:
    """With random weights, unless another model is asked for."""
    model = () if "--model" in arguments else ("--model", MODEL)
    return run("segment", *arguments, *model, "--threads", 1)


def pictures(path: Path) -> list[torch.Tensor]:
    with av.open(str(path)) as container:
        return [
            torch.from_numpy(frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]


def labels(folder: Path) -> list[torch.Tensor]:
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{i:06}.png" for i in range(len(files))]
    return [torch.from_numpy(np.array(Image.open(file))) for file in files]


def truth(video: Path, schedule: str = "auto") -> list[torch.Tensor]:
    torch.manual_seed(0)
    segmenter = VideoSegmenter(calibrate(create_model(MODEL)), schedule)
    return [result.labels for result in segmenter(str(video))]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# --- segment --------------------------------------------------------------------------------------


def test_a_video(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(video, "-o", tmp_path / "out.mp4", "--strip") == 0
    said = capsys.readouterr()
    assert "30 frames, 27% key, decoded, segmented and written" in said.out
    assert "untrained" in said.err and len(said.err.splitlines()) == 1
    shown = pictures(tmp_path / "out.mp4")
    assert len(shown) == 30 and shown[0].shape == (*SIZE, 3)
    with Image.open(tmp_path / "out.png") as strip:
        assert strip.size[1] == 160 and strip.size[0] > 6 * 200


def test_the_default_network_has_weights_of_streets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    street = tmp_path / "street.mp4"
    assert cli.main(["clip", str(street), "--street", "1000", "--frames", "6"]) == 0
    assert len(pictures(street)) == 6
    assert cli.main(["clip", str(street), "--street", "-1"]) == cli.USAGE
    capsys.readouterr()
    command = ["segment", str(street), "-o", str(tmp_path / "out"), "--labels", "png"]
    assert cli.main(command) == 0
    assert "generated streets alone" in capsys.readouterr().err
    model = create_model("gsvnet_sfnet_lite_resnet18_x0_25", weights="streets").eval()
    assert same(
        labels(tmp_path / "out" / "street"), [x.labels for x in VideoSegmenter(model)(str(street))]
    )
    assert cli.main([*command, "--weights", "streets", "--option", "flow_network=light"]) == 0
    assert cli.main([*command, "--weights", "streets", "--model", MODEL]) == cli.FAILED
    assert "streets" in capsys.readouterr().err


def test_labels_overlay_and_schedule(video: Path, tmp_path: Path) -> None:
    options = ("--labels", "png", "--overlay", "--schedule", "every:2")
    assert segment(video, "-o", tmp_path / "out", *options) == 0
    assert same(labels(tmp_path / "out" / "clip"), truth(video, "every:2"))
    assert len(pictures(tmp_path / "out" / "clip.mp4")) == 30


def test_weights_and_options(video: Path, tmp_path: Path) -> None:
    model = calibrate(create_model("twnet_mobilenetv2", 5, layer=2))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    chosen = ("--model", "twnet_mobilenetv2", "--option", "layer=2", "--classes", 5)
    weights = ("--weights", tmp_path / "weights.pth", "--labels", "png")
    assert segment(video, "-o", tmp_path / "out", *chosen, *weights) == 0
    expected = [result.labels for result in VideoSegmenter(model)(str(video))]
    assert same(labels(tmp_path / "out" / "clip"), expected)


def test_side_by_side(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.mp4"
    assert segment(video, "-o", out, "--side-by-side", "swiftnet_resnet18") == 0
    assert pictures(out)[0].shape == (SIZE[0], 2 * SIZE[1], 3)


def test_a_folder_of_images_and_motion_on_the_way(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, picture in enumerate(pictures(video)[:5]):
        Image.fromarray(picture.numpy()).save(folder / f"{index}.png")
    options = ("--model", "twnet_mobilenetv2", "--labels", "png")
    assert segment(folder, "-o", tmp_path / "out", *options) == 1
    assert segment(folder, "-o", tmp_path / "out", *options, "--transcode") == 0
    assert len(labels(tmp_path / "out" / "images")) == 5


def test_pieces_and_their_folder(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = encode(tmp_path / "other.mp4", frames=13, size=SIZE)
    inputs, kept = (video, other), tmp_path / "kept"
    options = ("--labels", "png", "--item-frames", 8)
    assert segment(*inputs, "-o", tmp_path / "out", *options, "--items", kept) == 0
    assert "43 frames segmented in 5 pieces:" in capsys.readouterr().out
    assert same(labels(tmp_path / "out" / "clip"), truth(video))
    assert same(labels(tmp_path / "out" / "other"), truth(other))
    next(kept.iterdir()).unlink()
    assert segment(*inputs, "-o", tmp_path / "out", *options, "--items", kept) == 0
    assert "in 5 pieces, 4 of them there before" in capsys.readouterr().out


def test_workers(video: Path, tmp_path: Path) -> None:
    options = ("--labels", "png", "--overlay", "--item-frames", 8, "--workers", 2)
    assert segment(video, "-o", tmp_path / "out", *options) == 0
    assert same(labels(tmp_path / "out" / "clip"), truth(video))
    assert len(pictures(tmp_path / "out" / "clip.mp4")) == 30
    assert not (tmp_path / "out.items").exists()


def test_one_of_several_fails(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for options in ((), ("--items", tmp_path / "kept")):
        out = tmp_path / f"out{len(options)}"
        assert segment(text, video, "-o", out, *options) == 1
        lines = [x for x in capsys.readouterr().err.splitlines() if "untrained" not in x]
        assert "text.mp4" in lines[0] and len(lines) == 1 + bool(options)
        assert len(pictures(out / "clip.mp4")) == 30 and not (out / "text.mp4").exists()


@pytest.mark.parametrize("options", [(), ("--items", "kept", "--item-frames", "8")])
def test_ctrl_c_finishes_the_file(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    add, before = outputs.Outputs.add, signal.getsignal(signal.SIGINT)

    def interrupted(self: outputs.Outputs, results: list) -> None:
        add(self, results)
        if results[0].index == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(outputs.Outputs, "add", interrupted)
    assert segment(video, "-o", "out.mp4", *options) == cli.INTERRUPTED == 130
    assert "interrupted after 5 frames" in capsys.readouterr().out
    assert len(pictures(tmp_path / "out.mp4")) == 5
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{video}",), "-o/--output"),
        (("{video}", "-o", "out.mp4", "--model", "nope"), "there is no model 'nope'"),
        (("{video}", "-o", "out.mp4", "--option", "layer=2"), "layer: gsvnet_.* no such option"),
        (("{video}", "-o", "out.mp4", "--option", "layer"), "expected NAME=VALUE, got 'layer'"),
        (("{video}", "-o", "out.mp4", "--schedule", "every:x"), "--schedule: expected 'every:N'"),
        (("{video}", "{video}", "-o", "out.mp4"), "expected a folder for several files"),
        (("{video}", "-o", "out.mp4", "--labels", "png"), "expected a folder"),
        (("{video}", "x/clip.mp4", "-o", "out"), "two of 'clip'"),
        (("{video}", "-o", "{video}"), "is an input"),
        (("http://x/y", "-o", "out.mp4", "--workers", "2"), "files and folders with workers"),
        (("{video}", "-o", "o.mp4", "--side-by-side", MODEL, "--workers", "2"), "--side-by-side"),
        (("{video}", "-o", "out.mp4", "--opacity", "2"), "expected 0 to 1"),
        (("{video}", "-o", "out.mp4", "--workers", "0"), "expected 1 or more"),
    ],
)
def test_wrong_command_lines(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = video.read_bytes()
    assert segment(*(x.replace("{video}", str(video)) for x in arguments)) == cli.USAGE == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert video.read_bytes() == content and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.mp4", (), "missing.mp4: No such file or directory"),
        ("{video}", ("--weights", "missing.pth"), "missing.pth"),
        ("{video}", ("--precision", "float16", "--device", "nope"), "nope"),
    ],
)
def test_failures_are_one_line(
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert segment(source.replace("{video}", str(video)), "-o", "out.mp4", *options) == cli.FAILED
    lines = [x for x in capsys.readouterr().err.splitlines() if "untrained" not in x]
    assert len(lines) == 1 and lines[0].startswith("vsegops: ") and message in lines[0]


# --- the others -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["segment", "info", "export", "bench", "clip", "train", "evaluate"]
)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"\n  vsegops {command} " in capsys.readouterr().out


def test_commands_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE) == [
        "bench",
        "clip",
        "evaluate",
        "export",
        "info",
        "segment",
        "train",
    ]
    assert run("--version") == 0 and vsegops.__version__ in capsys.readouterr().out
    assert run() == 2 and run("nope") == 2


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    text = capsys.readouterr().out
    for name, status in vsegops.backends().items():
        assert re.search(rf"^  {name} +{re.escape(status.reason)}$", text, re.MULTILINE)
    for name in list_models():
        assert re.search(rf"^  {name} +\d+\.\d\d M parameters", text, re.MULTILINE)
    assert re.search(r"sfnet_resnet18 +12\.87 M", text)
    step = ("--step", "--size", 64, 128, "--option", "layer=3")
    assert run("info", "twnet_resnet18", *step) == 0
    assert "total" in capsys.readouterr().out
    assert run("info", "nope") == 2 and run("info", "sfnet_df1", "--step") == 1


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That what it writes is right is in test_export.py."""
    seen = []
    monkeypatch.setattr(export, "export_onnx", lambda *given, **options: seen.append(given))
    path = tmp_path / "model.onnx"
    assert run("export", "sfnet_df1", path, "--size", 64, 96, "--classes", 4) == 0
    model, *rest = seen[0]
    assert model.num_classes == 4 and not model.training and rest == [str(path), [64, 96]]
    assert run("export", "sfnet_df1", path, "--size", 0, 96) == 2 and len(seen) == 1


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def stand_in(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        seen.append(command[1:])
        assert env["PYTHONPATH"].startswith(str(bench.checkout()))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", stand_in)
    assert run("bench", "operators", "--operator", "flow_warp", "--quick") == 3
    assert run("bench", "models", "--help") == 3
    assert seen[0] == ["-m", "bench", "run", "--operator", "flow_warp", "--quick"]
    assert seen[1] == ["-m", "bench.models", "--help"]
    monkeypatch.setattr(bench, "checkout", lambda: None)
    assert run("bench", "models") == 1 and len(seen) == 2
    assert "part of the sources" in capsys.readouterr().err


def test_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = encode(tmp_path / "source.mp4", frames=20, size=SIZE)
    monkeypatch.setattr(clips, "demo_clip", lambda frames: clips.Clip(source, "a scene"))
    assert run("clip", tmp_path / "clip.mp4", "--frames", 14) == 0
    assert len(pictures(tmp_path / "clip.mp4")) == 14
    assert run("clip", tmp_path / "clip.mp4", "--frames", 0) == 2


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "vsegops.models.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and vsegops.__version__ in done.stdout
