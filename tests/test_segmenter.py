"""A video in, labels out: schedules, sources, the pipeline, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import doctest
import gc
import itertools
import random
import resource
import signal
import socket
import threading
import time
import warnings
import wave
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import fill
import pytest
import torch
from helpers import HAS_MALLINFO, allocated
from torch import Tensor, nn

av = pytest.importorskip("av", reason="PyAV is not installed")

from test_codec import encode, flip, packets, texture  # noqa: E402

from vsegops import flow_warp  # noqa: E402
from vsegops.models import ImageModel, Motion, VideoModel, create_model  # noqa: E402
from vsegops.models import video as public  # noqa: E402
from vsegops.models.video import (  # noqa: E402
    Adaptive,
    CodecError,
    CodecReader,
    Every,
    Facts,
    VideoSegmenter,
    open_frames,
    parse_schedule,
    transcode,
)
from vsegops.models.video import source as opening  # noqa: E402
from vsegops.models.video.network import Captured, Eager  # noqa: E402
from vsegops.models.video.pipeline import pipeline  # noqa: E402
from vsegops.models.video.source import decode, open_video  # noqa: E402

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _one_thread_and_none_left() -> Iterator[None]:
    torch.set_num_threads(1)
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


# -- small models ----------------------------------------------------------------------------------


class Small(ImageModel):
    """One convolution."""

    align_corners, stride, num_classes = False, 4, 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.conv.load_state_dict(
            {k: fill.parameter(k, *x.shape) for k, x in self.conv.state_dict().items()}
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class State(NamedTuple):
    logits: Tensor


class Following(VideoModel):
    """Mixes the logits before with the present ones: what it says depends on all frames so far."""

    align_corners, stride, num_classes = False, 4, 5

    def __init__(self) -> None:
        super().__init__()
        self.image = Small()

    def start(self, frame: Tensor) -> tuple[Tensor, State]:
        logits = self.image(frame)
        return logits, State(logits)

    def step(
        self, frame: Tensor, state: State, motion: Motion | None = None
    ) -> tuple[Tensor, State]:
        return self.mixed(state.logits, frame)

    def mixed(self, before: Tensor, frame: Tensor) -> tuple[Tensor, State]:
        logits = 0.8 * before + 0.2 * self.image(frame)
        return logits, State(logits)

    def disagreement(self, logits: Tensor, state: State) -> Tensor:
        return (logits.argmax(1) == 0).float().mean()


class Warping(Following):
    """And warps the ones before along the codec's motion."""

    motion_stride, schedule = 4, "codec"

    def step(
        self, frame: Tensor, state: State, motion: Motion | None = None
    ) -> tuple[Tensor, State]:
        motion = self.check_motion(frame, motion)
        warped = flow_warp(state.logits, motion.flow, padding_mode="border")
        return self.mixed(warped + motion.residual.mean() / 10, frame)


def frames_of(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Tensor]:
    """A texture that moves."""
    return [torch.from_numpy(texture(*size, (2.0 * i, i), seed)) for i in range(count)]


def one_by_one(
    model: Any, images: Iterable[Tensor], keys: Iterable[bool], motions: Any = None
) -> list[Tensor]:
    """Labels by calls of the model, one frame after the other."""
    state, labels = None, []
    with torch.no_grad():
        for i, (image, key) in enumerate(zip(images, keys, strict=True)):
            frame = model.preprocess(image[None])
            if isinstance(model, ImageModel):
                labels.append(model.predict(frame)[0])
                continue
            motion = None if motions is None or key else Motion.of(motions[i])
            logits, state = model.start(frame) if key else model.step(frame, state, motion)
            labels.append(model.labels(logits, frame.shape[2:])[0])
    return labels


def agrees(results: Any, labels: list[Tensor], keys: list[bool]) -> bool:
    assert [r.index for r in results] == list(range(len(keys)))
    assert [r.is_key for r in results] == keys
    assert all(r.labels.dtype == torch.uint8 for r in results)
    assert all(r.labels.shape == r.frame.shape[:2] for r in results)
    return all(torch.equal(r.labels, x) for r, x in zip(results, labels, strict=True))


# -- the labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "keys"),
    [
        ("every:1", [True] * 9),
        ("every:4", [i % 4 == 0 for i in range(9)]),
        ("every:20", [i == 0 for i in range(9)]),
        ("frame", [True] * 9),
        ("first", [i == 0 for i in range(9)]),
        ("auto", [i == 0 for i in range(9)]),
        (Adaptive(residual=None, longest=3), [i % 3 == 0 for i in range(9)]),
    ],
    ids=str,
)
def test_labels_are_those_of_calls_frame_by_frame(schedule: Any, keys: list[bool]) -> None:
    model, images = Following().eval(), frames_of(9)
    segmenter = VideoSegmenter(model, schedule)
    results = list(segmenter(images))
    assert segmenter.model is model
    assert agrees(results, one_by_one(model, images, keys), keys)
    assert all(torch.equal(r.frame, x) for r, x in zip(results, images, strict=True))
    assert (segmenter.report.frames, segmenter.report.key_frames) == (9, sum(keys))
    if not all(keys):  # else the schedule would not matter
        assert not agrees(results, one_by_one(model, images, [True] * 9), keys)


@pytest.mark.parametrize("name", ["sfnet_df1", "gsvnet_swiftnet_resnet18", "twnet_resnet18"])
def test_the_reference_models(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(name, 7).eval()
    path = encode(tmp_path / "clip.mp4", frames=8, size=(64, 96), g=5)
    motions = list(CodecReader(path, stride=getattr(model, "motion_stride", None) or 1))
    images = [frame.image.permute(1, 2, 0) for frame in motions]
    interval = {"s": 1, "g": 4, "t": 5}[name[0]]
    keys = [i % interval == 0 for i in range(8)]
    labels = one_by_one(model, images, keys, motions if name[0] == "t" else None)
    assert agrees(list(VideoSegmenter(model)(path)), labels, keys)


def test_codec_key_frames_and_motion(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=14, g=6)
    model = Warping().eval()
    motions = list(CodecReader(path, stride=4))
    images = [frame.image.permute(1, 2, 0) for frame in motions]
    codec = [i % 6 == 0 for i in range(14)]
    assert agrees(
        list(VideoSegmenter(model)(path)), one_by_one(model, images, codec, motions), codec
    )
    # Elsewhere the codec's key frames have no motion, so they are the model's as well.
    keys = [i in (0, 4, 6, 8, 12) for i in range(14)]
    results = list(VideoSegmenter(model, "every:4")(path))
    assert agrees(results, one_by_one(model, images, keys, motions), keys)
    # A reader is a source, and so is what was opened before.
    for source in (CodecReader(path, stride=4), open_frames(path, motion_stride=4)):
        results = list(VideoSegmenter(model)(source))
        assert agrees(results, one_by_one(model, images, codec, motions), codec)
    # Part of a video, from a key frame on, is a video.
    with open_frames(path, motion_stride=4) as frames:
        results = list(VideoSegmenter(model)(itertools.islice(frames, 6, None)))
    assert agrees(results, one_by_one(model, images[6:], codec[6:], motions[6:]), codec[6:])
    # Without motion: any model can follow the codec's key frames, and per frame none is needed.
    following = Following().eval()
    results = list(VideoSegmenter(following, "codec")(path))
    assert agrees(results, one_by_one(following, images, codec), codec)
    assert len(list(VideoSegmenter(model, "frame")(frames_of(3)))) == 3


def test_adaptive_key_frames() -> None:
    model = Following().eval()
    still, other = frames_of(1)[0], frames_of(1, seed=1)[0]
    cut = [still] * 4 + [other] * 4
    results = list(VideoSegmenter(model, Adaptive(residual=None, cut=20))(cut))
    assert [r.is_key for r in results] == [i in (0, 4) for i in range(8)]
    # Residuals add up until the threshold is passed.
    images = [torch.full((*SIZE, 3), i, dtype=torch.uint8) for i in range(12)]
    results = list(VideoSegmenter(model, Adaptive(residual=5))(images))
    assert [r.is_key for r in results] == [i % 5 == 0 for i in range(12)]
    # Too much disagreement: the frame itself is redone.
    images = frames_of(8)
    for most, redone in ((1.0, False), (0.0, True)):
        schedule = Adaptive(residual=None, disagreement=most)
        keys = [i == 0 or redone for i in range(8)]
        results = list(VideoSegmenter(model, schedule)(images))
        assert agrees(results, one_by_one(model, images, keys), keys)


def test_the_residual_is_motion_compensated_where_the_codec_has_motion(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=12, g=60, shift=(4.0, 2.0))
    schedule = Adaptive(residual=40)
    by_motion = VideoSegmenter(Warping().eval(), schedule)
    by_difference = VideoSegmenter(Following().eval(), schedule)
    for segmenter in (by_motion, by_difference):
        assert len(list(segmenter(path))) == 12
    assert by_motion.report.key_frames < by_difference.report.key_frames


def test_gsvnet_disagrees_with_its_intra_prediction() -> None:
    model = create_model("gsvnet_swiftnet_resnet18", 5).eval()
    with torch.no_grad():
        logits, state = model.start(torch.randn(1, 3, 64, 96))
    share = model.disagreement(logits, state)
    intra = model.grm.intra_net(state.image)
    assert share == (intra.argmax(1) != logits.argmax(1)).float().mean()
    assert model.disagreement(intra, state) == 0
    twnet = create_model("twnet_mobilenetv2")
    with pytest.raises(ValueError, match="disagreement: expected None.*intra prediction.*'TWNet'"):
        VideoSegmenter(twnet, Adaptive(disagreement=0.2))


def test_schedules_have_names() -> None:
    for name in ("every:3", "codec", "frame", "first", "adaptive"):
        schedule = parse_schedule(name)
        assert parse_schedule(schedule) is schedule
    assert parse_schedule("every:3") == Every(3)
    for wrong in ("every", "every:", "every:x", "sometimes", 4):
        with pytest.raises(ValueError, match="schedule: expected 'every:N', 'codec'"):
            parse_schedule(wrong)  # type: ignore[arg-type]
    wrong_ones: list[Callable[[], Any]] = [
        lambda: Every(0),
        lambda: Every(1.5),  # type: ignore[arg-type]
        lambda: Adaptive(residual=-1),
        lambda: Adaptive(disagreement=2),
        lambda: Adaptive(longest=0),
    ]
    for build in wrong_ones:
        with pytest.raises(ValueError, match="interval|residual|disagreement|longest"):
            build()
    assert not Adaptive().is_key(Facts(99, 99, None, 1.0, 20.0))


def test_precision() -> None:
    images = frames_of(4)
    model = Following()  # in training mode: it is copied
    exact = list(VideoSegmenter(model)(images))
    half = VideoSegmenter(model, precision="bfloat16")
    assert half.model.image.conv.weight.dtype == torch.bfloat16
    assert model.training and model.image.conv.weight.dtype == torch.float32
    for a, b in zip(exact, half(images), strict=True):
        assert (a.labels == b.labels).float().mean() > 0.9
    with pytest.raises(
        ValueError, match="precision: expected 'float32' or 'float16' or 'bfloat16'"
    ):
        VideoSegmenter(model, precision="int8")
    with pytest.raises(ValueError, match="queue: expected a whole number from 1 on"):
        VideoSegmenter(model, queue=0)
    model.num_classes = 300
    with pytest.raises(ValueError, match="model: expected at most 256 classes"):
        VideoSegmenter(model)


def test_recorded_steps_are_those_of_the_model(tmp_path: Path) -> None:
    """Two graphs over fixed memory, but for the recording: here the functions are called again."""

    def record(function: Callable[[], Any]) -> Any:
        for _ in range(4):  # warm-up and capture, of which nothing may remain
            results = function()

        def replay() -> None:
            for kept, new in zip(results, function(), strict=True):
                if kept is not None:
                    kept.copy_(new)

        return replay, results

    motions = list(CodecReader(encode(tmp_path / "clip.mp4", frames=7, size=SIZE), stride=4))
    for model, measured in ((Small(), False), (Following(), True), (Warping(), False)):
        model.eval()
        frames = [model.preprocess(f.image.permute(1, 2, 0)[None]) for f in motions]
        with torch.no_grad():
            captured = Captured(model, measured, frames[3], record)
            eager = Eager(model, measured)
            for i, frame in enumerate(frames):
                if i in (0, 5) or isinstance(model, Small):
                    assert torch.equal(captured.start(frame), eager.start(frame))
                    continue
                motion = Motion.of(motions[i]) if model.motion_stride else None
                ours, theirs = captured.step(frame, motion), eager.step(frame, motion)
                assert torch.equal(ours[0], theirs[0])
                assert ours[1] == theirs[1] and (ours[1] is None) == (not measured)


# -- sources ---------------------------------------------------------------------------------------


def test_folders_files_and_tensors(tmp_path: Path) -> None:
    images, segmenter = frames_of(11), VideoSegmenter(Small())
    expected = [r.labels for r in segmenter(images)]
    for i, image in enumerate(images):
        with av.open(str(tmp_path / f"frame{i}.png"), "w", format="image2") as output:
            stream = output.add_stream("png", width=SIZE[1], height=SIZE[0], pix_fmt="rgb24")
            frame = av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")
            output.mux([*stream.encode(frame), *stream.encode()])
    (tmp_path / "notes.txt").write_text("not an image")
    sources: list[Any] = [
        tmp_path,
        str(tmp_path),
        torch.stack(images),
        (image.permute(2, 0, 1) for image in images),
        [image.numpy() for image in images],
    ]
    for source in sources:
        results = list(segmenter(source))
        assert all(torch.equal(r.labels, x) for r, x in zip(results, expected, strict=True))
        assert all(torch.equal(r.frame, x) for r, x in zip(results, images, strict=True))
    assert (open_frames(tmp_path).length, open_frames(images).length) == (11, 11)
    (tmp_path / "frame3.png").write_bytes(b"no image")
    with pytest.warns(RuntimeWarning, match="frame3.png"):
        assert len(list(segmenter(tmp_path))) == 10
    assert segmenter.report.skipped == 1 and "frame3.png" in segmenter.report.problem


def test_wrong_sources(tmp_path: Path) -> None:
    segmenter = VideoSegmenter(Small())
    with pytest.raises(FileNotFoundError):
        segmenter(tmp_path / "missing.mp4")
    with pytest.raises(CodecError, match="expected images in it"):
        segmenter(tmp_path)
    with pytest.raises(ValueError, match="source: expected a path"):
        segmenter(3)  # type: ignore[arg-type]
    for wrong in (torch.zeros(4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8), None):
        with pytest.raises(ValueError, match="source: expected frames that are uint8"):
            list(segmenter([wrong]))  # type: ignore[list-item]


def test_motion_that_is_not_there(tmp_path: Path) -> None:
    segmenter = VideoSegmenter(Warping())
    with pytest.raises(CodecError, match="exports no motion vectors.*transcode"):
        segmenter(encode(tmp_path / "clip.avi", codec="mjpeg", frames=2))
    with pytest.raises(CodecError, match="expected a video with motion"):
        segmenter(tmp_path)
    path = encode(tmp_path / "b.mp4", bf=2)
    with pytest.raises(CodecError, match="a B-frame.*transcode"):
        list(segmenter(path))
    with pytest.raises(ValueError, match="source: expected frames opened with motion_stride=4"):
        segmenter(open_frames(path))
    for schedule in ("codec", "every:4"):
        with pytest.raises(CodecError, match="expected a (compressed )?video"):
            list(VideoSegmenter(Warping(), schedule)(frames_of(2)))
    with pytest.raises(CodecError, match="choose another schedule"):
        list(VideoSegmenter(Following(), "codec")(frames_of(2)))


def test_motion_made_on_the_way(tmp_path: Path) -> None:
    source = encode(tmp_path / "b.mp4", bf=2, frames=15)
    transcode(source, tmp_path / "plain.mp4")
    model = Warping().eval()
    by_file = list(VideoSegmenter(model)(tmp_path / "plain.mp4"))
    keys = [i % 12 == 0 for i in range(15)]
    segmenter = VideoSegmenter(model, transcode=True)
    results = list(segmenter(source))
    assert [r.is_key for r in results] == [r.is_key for r in by_file] == keys
    for a, b in zip(results, by_file, strict=True):  # but for a conversion to RGB and back
        assert (a.frame.int() - b.frame.int()).abs().float().mean() < 1.5
        assert (a.labels == b.labels).float().mean() > 0.9
    images = [r.frame for r in results]
    motions = list(itertools.chain(CodecReader(tmp_path / "plain.mp4", stride=4)))
    assert not agrees(results, one_by_one(model, images, [True] * 15, motions), keys)
    # Of images in memory, and of two sizes.
    mixed = frames_of(3) + frames_of(3, (32, 40))
    results = list(segmenter(mixed))
    assert [r.is_key for r in results] == [True, False, False] * 2
    assert [r.labels.shape for r in results] == [x.shape[:2] for x in mixed]


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.ts", frames=12, size=SIZE, bf=2)
    segmenter = VideoSegmenter(Small())
    expected = [r.labels for r in segmenter(path)]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(path.read_bytes())
                connection.recv(1)  # nothing more comes, until the other side leaves

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(opening, "TIMEOUT", 1.0)
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.warns(RuntimeWarning, match="ends early, .* nothing came for 1 seconds"):
            results = list(segmenter(address))
        thread.join()
        assert segmenter.report.skipped == 1
        assert all(torch.equal(r.labels, x) for r, x in zip(results, expected, strict=True))
        with pytest.raises(CodecError, match="cannot open tcp.*: nothing came"):
            segmenter(address)


def test_a_change_of_size(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / "1.m4v", frames=5),
        encode(tmp_path / "2.m4v", frames=5, size=(96, 128)),
    ]
    joined = tmp_path / "joined.m4v"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    for model, schedule in ((Warping(), "codec"), (Following(), "every:5"), (Small(), "auto")):
        segmenter = VideoSegmenter(model, schedule)
        results = list(segmenter(joined))
        apart = [r for part in parts for r in segmenter(part)]
        assert [r.labels.shape for r in results] == [(144, 176)] * 5 + [(96, 128)] * 5
        assert results[5].is_key
        assert agrees(results, [r.labels for r in apart], [r.is_key for r in apart])
    results = list(VideoSegmenter(Following(), "every:3")(joined))
    assert [r.index for r in results if r.is_key] == [0, 3, 5, 6, 9]


# -- damage ----------------------------------------------------------------------------------------


def decodable(path: Path) -> int:
    name, container, stream = open_video(path)
    with container:
        return sum(1 for _ in decode(name, container, stream))


def test_what_cannot_be_decoded_is_skipped_and_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", codec="libx264", refs=1, sc_threshold=0)
    start, size = packets(path)[15]
    flip(path, start, size)
    for model, schedule in ((Warping(), "codec"), (Following(), "every:4")):
        segmenter = VideoSegmenter(model, schedule)
        with pytest.warns(RuntimeWarning, match="packet 15 is skipped"):
            results = list(segmenter(path))
        assert len(results) == 29 and segmenter.report.skipped == 1
        assert "packet 15" in segmenter.report.problem
        keys = [i for i, r in enumerate(results) if r.is_key]
        # No motion can be trusted from there to the next intact key frame of the codec.
        assert keys == ([0, 12, *range(15, 24)] if schedule == "codec" else list(range(0, 29, 4)))


def damaged(path: Path, kind: str, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[generator.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    else:
        for _ in range(generator.choice((1, 20, 400))):
            data[generator.randrange(len(data))] = generator.randrange(256)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty"])
@pytest.mark.parametrize("suffix", ["mp4", "avi", "ts", "m4v", "mkv"])
def test_damaged_files(tmp_path: Path, kind: str, suffix: str) -> None:
    generator = random.Random(f"{kind} {suffix}")
    sound = encode(tmp_path / f"sound.{suffix}", frames=15, size=SIZE, g=5).read_bytes()
    path = tmp_path / f"clip.{suffix}"
    models = [VideoSegmenter(Small()), VideoSegmenter(Warping())]
    for _ in range(1 if kind == "empty" else 5):
        path.write_bytes(sound)
        damaged(path, kind, generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for segmenter in models:
                reader = decodable if segmenter is models[0] else readable
                try:
                    expected = reader(path)
                except CodecError as error:
                    with pytest.raises(CodecError) as caught:
                        list(segmenter(path))
                    assert str(caught.value) == str(error)
                    continue
                results = list(segmenter(path))
                assert len(results) == expected == segmenter.report.frames
                assert not results or results[0].is_key


def readable(path: Path) -> int:
    with CodecReader(path, stride=4, any_size=True) as reader:
        return sum(1 for _ in reader)


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    for model in (Small(), Warping()):
        with pytest.raises(CodecError, match="expected video that can be decoded, found audio"):
            VideoSegmenter(model)(path)


# -- the pipeline ----------------------------------------------------------------------------------


def test_short_streams() -> None:
    segmenter = VideoSegmenter(Following(), "every:4", queue=1)
    for count in (0, 1, 2, 3):
        results = list(segmenter(iter(frames_of(count))))
        assert [r.is_key for r in results] == [True, False, False][:count]
        assert segmenter.report.frames == count
    assert all(seconds >= 0 for seconds in results[-1].timing)


@pytest.mark.parametrize("stage", ["source", "prepare", "network"])
def test_errors_come_after_the_results_before_them(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Following().eval()
    images: list[Any] = frames_of(6)
    if stage == "source":
        images[4] = "no image"
    elif stage == "prepare":
        make = model.preprocess
        model.preprocess = lambda x: 1 / 0 if (x == images[4]).all() else make(x)  # type: ignore
    else:
        calls = itertools.count()
        once = model.image.forward
        model.image.forward = lambda x: 1 / 0 if next(calls) == 4 else once(x)  # type: ignore
    seen = []
    with pytest.raises((ValueError, ZeroDivisionError)):
        for result in VideoSegmenter(model)(images):
            seen.append(result.index)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_early_ends_the_threads(error: type[BaseException], tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=30, size=SIZE)
    before = threading.active_count()
    with pytest.raises(error), contextlib.closing(VideoSegmenter(Small())(path)) as results:
        for result in results:
            assert threading.active_count() == before + 3
            if result.index == 3:
                raise error
    assert threading.active_count() == before
    for result in VideoSegmenter(Small())(path):
        if result.index == 3:
            break
    del result
    gc.collect()
    assert threading.active_count() == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as usual: in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_waiting_for_a_frame(interruptible: None) -> None:
    def slow() -> Iterator[Tensor]:
        yield from frames_of(2)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
        yield from frames_of(1)

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for result in VideoSegmenter(Small())(slow()):
            seen.append(result.index)
    assert seen in ([], [0], [0, 1])


def test_stages_overlap_and_queues_are_bounded() -> None:
    made, taken, lead = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal made
        for i in range(24):
            time.sleep(0.005)
            made += 1
            yield i

    def stage(x: int) -> int:
        time.sleep(0.01)
        return 2 * x

    start = time.perf_counter()
    for value, seconds in pipeline(items(), [stage, stage], queue=2):
        assert value == 4 * taken and len(seconds) == 3 and seconds[1] >= 0.01
        taken += 1
        lead = max(lead, made - taken)
        time.sleep(0.005)
    assert taken == 24
    # One after the other: 24 * 0.03. The slowest stage alone: 24 * 0.01.
    assert time.perf_counter() - start < 24 * 0.025
    assert lead <= 3 * 2 + 3  # in three queues, and in three threads' hands


def test_two_streams_at_once() -> None:
    model, images = Following().eval(), frames_of(7)
    segmenter = VideoSegmenter(model, "every:3")
    keys = [i % 3 == 0 for i in range(7)]
    expected = one_by_one(model, images, keys)
    for pair in zip(segmenter(images), segmenter(images), strict=True):
        assert all(torch.equal(r.labels, expected[r.index]) for r in pair)


@pytest.mark.skipif(not HAS_MALLINFO, reason="needs glibc 2.33")
@pytest.mark.parametrize(("kind", "count"), [("images", 10_000), ("file", 3_000)])
def test_memory_does_not_grow(kind: str, count: int, tmp_path: Path) -> None:
    pictures = [texture(16, 16, (i, 0.0)) for i in range(30)]
    model: VideoModel = Following()
    clip: Any = itertools.islice(itertools.cycle(pictures), count)
    if kind == "file":  # with motion, through every stage
        model, path = Warping(), tmp_path / "clip.avi"
        write(path, clip)
        clip = path
    segmenter = VideoSegmenter(model, "every:4")
    for result in segmenter(clip):
        if result.index == 1000:
            gc.collect()
            pages, early, tensors = resident(), allocated(), live_tensors()
    gc.collect()
    assert result.index == count - 1
    assert live_tensors() <= tensors + 20
    # Kept frames would be 768 bytes each, labels 256, logits 320, and their objects more.
    assert allocated() - early < 5e5
    assert resident() - pages < 2e7  # where small blocks between large ones keep these apart


def write(path: Path, pictures: Iterable[Any]) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25, options={"g": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def live_tensors() -> int:
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


# -- documentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", public.__all__)
def test_examples(name: str) -> None:
    value = getattr(public, name)
    assert value.__doc__
    for test in doctest.DocTestFinder(recurse=False).find(value, name):
        said: list[str] = []
        failed, _ = doctest.DocTestRunner().run(test, out=said.append)
        assert not failed, "".join(said)
