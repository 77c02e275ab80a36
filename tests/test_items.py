"""Videos cut into items: the same labels, whoever makes them; work that is done stays done."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("av", reason="PyAV is not installed")

from test_codec import encode  # noqa: E402

from vsegops.models import VideoSegmenter, create_model  # noqa: E402
from vsegops.models.untrained import calibrate  # noqa: E402
from vsegops.models.video import CodecError  # noqa: E402
from vsegops.models.video.engines import Inline, Job, Processes, Ray, Run, WorkerDied  # noqa: E402
from vsegops.models.video.items import Item, cut, job_key, read_labels  # noqa: E402

SIZE = (96, 128)
Labels = list[tuple[Tensor, bool]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames, I-frames at 0, 12, 24 and 36."""
    path = tmp_path_factory.mktemp("items") / "clip.mp4"
    return encode(path, frames=40, size=SIZE, shift=(3.0, 2.0))


def segmenter(name: str, schedule: str = "auto", **options: Any) -> VideoSegmenter:
    torch.manual_seed(0)
    model, _, option = name.partition(" ")
    chosen = dict([option.split("=")]) if option else {}
    return VideoSegmenter(calibrate(create_model(model, **chosen)), schedule, **options)


@pytest.fixture(scope="module")
def gsvnet() -> VideoSegmenter:
    return segmenter("gsvnet_swiftnet_resnet18")


@pytest.fixture(scope="module")
def twnet() -> VideoSegmenter:
    return segmenter("twnet_mobilenetv2")


def uncut(segmenter: VideoSegmenter, video: Path) -> Labels:
    return [(result.labels, result.is_key) for result in segmenter(str(video))]


def read(files: Sequence[Path]) -> Labels:
    return [each for file in files for each in read_labels(file)]


def same(ours: Labels, theirs: Labels) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) and a_is_key == b_is_key
        for (a, a_is_key), (b, b_is_key) in zip(ours, theirs, strict=True)
    )


# --- cutting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schedule", "places"),
    [
        ("gsvnet_swiftnet_resnet18", "every:4", [(0, 0), (12, 0), (24, 0), (36, 0)]),
        ("gsvnet_swiftnet_resnet18", "every:5", [(0, 0), (15, 3), (25, 1)]),
        ("gsvnet_swiftnet_resnet18", "codec", [(0, 0), (12, 0), (24, 0), (36, 0)]),
        ("gsvnet_swiftnet_resnet18", "adaptive", [(0, 0)]),
        ("gsvnet_swiftnet_resnet18 flow_network=codec", "every:5", [(0, 0), (15, 3), (25, 1)]),
        ("swiftnet_resnet18", "auto", [(0, 0), (12, 0), (24, 0), (36, 0)]),
        ("twnet_mobilenetv2", "codec", [(0, 0), (12, 0), (24, 0), (36, 0)]),
        ("twnet_mobilenetv2", "every:5", [(0, 0), (15, 3), (25, 1)]),
        ("twnet_mobilenetv2", "adaptive", [(0, 0), (12, 0), (24, 0), (36, 0)]),
    ],
)
def test_cut_and_uncut_labels_are_the_same(
    video: Path, tmp_path: Path, name: str, schedule: str, places: list[tuple[int, int]]
) -> None:
    network = segmenter(name, schedule)
    items = list(cut(video, network, 8))
    assert [(item.first, item.skip) for item in items] == places
    outcome = Run(network, Inline(network), tmp_path, least=8)([video])
    assert not outcome.failed and not outcome.whole and len(outcome.files[video]) == len(places)
    truth = uncut(network, video)
    assert same(read(outcome.files[video]), truth)
    assert len({int(x) for labels, _ in truth for x in labels.unique()}) > 1


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {"bf": 2}),
        ("clip.mp4", "libx264", {"bf": 2, "x264-params": "open-gop=1"}),
        ("clip.ts", "libx264", {"refs": 1}),
        ("clip.avi", "mpeg4", {}),
        ("clip.mpg", "mpeg2video", {}),
        ("clip.mkv", "mjpeg", {}),
    ],
)
def test_codecs_and_containers(
    tmp_path: Path, gsvnet: VideoSegmenter, name: str, codec: str, options: dict[str, Any]
) -> None:
    path = encode(tmp_path / name, codec=codec, frames=30, size=SIZE, **options)
    outcome = Run(gsvnet, Inline(gsvnet), tmp_path, least=8)([path])
    assert len(outcome.files[path]) > 1 and not outcome.whole
    assert same(read(outcome.files[path]), uncut(gsvnet, path))


def test_items_have_at_least_so_many_frames(video: Path, gsvnet: VideoSegmenter) -> None:
    assert [item.count for item in cut(video, gsvnet, 13)] == [24, 16]
    assert [item.count for item in cut(video, gsvnet, 100)] == [None]
    with pytest.raises(ValueError, match="least"):
        list(cut(video, gsvnet, 0))


def test_an_item_is_named_by_what_is_in_it(video: Path, gsvnet: VideoSegmenter) -> None:
    job = job_key(gsvnet, "one thread")
    names = [item.key(job) for item in cut(video, gsvnet, 8)]
    assert len(set(names)) == len(names) == 4
    assert names == [item.key(job) for item in cut(video, gsvnet, 8)]
    others = [
        job_key(gsvnet, "two threads"),
        job_key(VideoSegmenter(gsvnet.model, "every:2"), "one thread"),
        job_key(VideoSegmenter(gsvnet.model, precision="bfloat16"), "one thread"),
        job_key(segmenter("gsvnet_bisenet_resnet18"), "one thread"),
    ]
    assert len({job, *others}) == 5


def test_a_damaged_video_stays_whole(video: Path, tmp_path: Path, twnet: VideoSegmenter) -> None:
    data = bytearray(video.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 60, 3):
        data[place] ^= 255
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = uncut(twnet, damaged)
        outcome = Run(twnet, Inline(twnet), tmp_path, least=8)([damaged])
    assert outcome.whole == [damaged] and not outcome.failed
    assert same(read(outcome.files[damaged]), truth)


def test_motion_made_on_the_way_is_not_cut(video: Path, tmp_path: Path) -> None:
    network = segmenter("twnet_mobilenetv2", transcode=True)
    outcome = Run(network, Inline(network), tmp_path, least=8)([video])
    assert len(outcome.files[video]) == 1
    assert same(read(outcome.files[video]), uncut(network, video))


# --- resuming and failing -------------------------------------------------------------------------


class Engine(Inline):
    """Counts what it does, several items at a time, and fails where `fails` says so."""

    slots = 3

    def __init__(self, network: VideoSegmenter, fails: Any = lambda item, tries: None) -> None:
        super().__init__(network)
        self.fails, self.begun, self.together = fails, list[int](), list[int]()

    def wait(self, running: Sequence[Item]) -> Sequence[Item]:
        self.together.append(len(running))
        return running[:1]

    def result(self, ended: Item) -> bytes:
        self.begun.append(ended.first)
        error = self.fails(ended, self.begun.count(ended.first))
        if error is not None:
            raise error
        return super().result(ended)


def test_finished_items_are_not_done_again(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    first = Engine(gsvnet)
    files = Run(gsvnet, first, tmp_path, least=8)([video]).files[video]
    assert first.begun == [0, 12, 24, 36]
    before = read(files)
    files[2].unlink()
    seen: list[Path] = []
    second = Engine(gsvnet)
    outcome = Run(gsvnet, second, tmp_path, least=8, done=seen.append)([video])
    assert second.begun == [24] and outcome.resumed == 3
    assert sorted(seen) == sorted(files) == sorted(outcome.files[video])
    assert same(read(files), before)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


def test_a_run_that_is_stopped_goes_on(video: Path, tmp_path: Path, gsvnet: VideoSegmenter) -> None:
    done: list[Path] = []
    engine = Engine(gsvnet)
    run = Run(gsvnet, engine, tmp_path, least=8, done=done.append, stop=lambda: len(done) > 0)
    assert run([video]).stopped and engine.begun == [0, 12, 24]  # those that were running
    again = Engine(gsvnet)
    outcome = Run(gsvnet, again, tmp_path, least=8)([video])
    assert again.begun == [36] and not outcome.stopped
    assert same(read(outcome.files[video]), uncut(gsvnet, video))


def test_an_item_that_fails_is_tried_again(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    engine = Engine(
        gsvnet,
        lambda item, tries: OSError("no space") if item.first == 12 and tries < 3 else None,
    )
    outcome = Run(gsvnet, engine, tmp_path, least=8, retries=2)([video])
    assert not outcome.failed and engine.begun.count(12) == 3
    assert same(read(outcome.files[video]), uncut(gsvnet, video))


def test_an_item_that_keeps_failing_is_reported(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    engine = Engine(gsvnet, lambda item, _: OSError("no space") if item.first == 12 else None)
    outcome = Run(gsvnet, engine, tmp_path, least=8, retries=1)([video])
    assert outcome.failed == {video: [f"{video}, frames 12 to 23: no space"]}
    assert engine.begun.count(12) == 2 and set(engine.begun) == {0, 12, 24, 36}
    assert [file.exists() for file in outcome.files[video]] == [True, False, True, True]


def test_what_may_kill_a_worker_runs_alone(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    """When a process dies, all its items fail: the others must not pay for the one that did it."""

    def fails(item: Item, tries: int) -> Exception | None:
        innocent = item.first == 0 and tries == 1
        return WorkerDied("killed") if item.first == 12 or innocent else None

    engine = Engine(gsvnet, fails)
    outcome = Run(gsvnet, engine, tmp_path, least=8, retries=2)([video])
    assert list(outcome.failed) == [video] and "frames 12 to 23" in outcome.failed[video][0]
    assert [file.exists() for file in outcome.files[video]] == [True, False, True, True]
    assert 1 in engine.together


def test_what_is_no_video_is_reported_and_the_rest_is_done(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    text, missing = tmp_path / "text.mp4", tmp_path / "missing.mp4"
    text.write_text("no video")
    outcome = Run(gsvnet, Inline(gsvnet), tmp_path / ".")([text, missing, video])
    assert set(outcome.failed) == {text, missing}
    assert same(read(outcome.files[video]), uncut(gsvnet, video))


def test_a_video_that_does_not_fit_the_model_is_tried_once(
    tmp_path: Path, twnet: VideoSegmenter
) -> None:
    path = encode(tmp_path / "clip.mp4", codec="libx264", frames=24, size=SIZE, bf=2)
    engine = Engine(twnet)
    outcome = Run(twnet, engine, tmp_path, least=8)([path])
    assert list(outcome.failed) == [path] and len(engine.begun) == len(set(engine.begun))
    with pytest.raises(CodecError):
        uncut(twnet, path)


# --- several processes ----------------------------------------------------------------------------


def job(network: VideoSegmenter) -> Job:
    return Job(network.model, network.schedule, "float32", 1)


class Killed(Processes):
    """Its first worker is killed as soon as there is one."""

    killed = False

    def submit(self, item: Item) -> Any:
        future = super().submit(item)
        if not self.killed:
            self.killed = True
            for process in multiprocessing.active_children():
                process.kill()
        return future


def test_a_process_that_dies_is_replaced(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter
) -> None:
    engine = Killed(job(gsvnet), ["cpu"])
    try:
        outcome = Run(gsvnet, engine, tmp_path, least=8)([video])
    finally:
        engine.close()
    assert engine.killed and not outcome.failed
    assert same(read(outcome.files[video]), uncut(gsvnet, video))


def test_ray(
    video: Path, tmp_path: Path, gsvnet: VideoSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    engine = Ray(job(gsvnet), "cpu")
    try:
        outcome = Run(gsvnet, engine, tmp_path, least=8)([text, video])
    finally:
        engine.close()
    assert set(outcome.failed) == {text}
    assert same(read(outcome.files[video]), uncut(gsvnet, video))
