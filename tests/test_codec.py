"""Reading videos with their motion: sound ones, strange ones and broken ones."""

from __future__ import annotations

import io
import itertools
import warnings
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

av = pytest.importorskip("av", reason="PyAV is not installed")

from vsegops.models.video import CodecError, CodecReader, transcode  # noqa: E402
from vsegops.models.video.h264 import reference_frames  # noqa: E402


def texture(height: int, width: int, shift: tuple[float, float], seed: int = 0) -> Any:
    """A sum of sines, so that a shift by a fraction of a pixel is exact; uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = x - shift[0], y - shift[1]
    total = np.zeros((height, width))
    for _ in range(40):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(7, 50)
        total += np.sin(
            2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + rng.uniform(0, 6)
        )
    grey = np.clip(128 + 14 * total, 0, 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def encode(
    path: Path,
    *,
    codec: str = "mpeg4",
    frames: int = 30,
    size: tuple[int, int] = (144, 176),
    shift: tuple[float, float] = (1.0, 0.5),
    **options: str | int,
) -> Path:
    """A texture that moves by `shift` pixels a frame (to the right and down)."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    defaults = {"g": 12, "bf": 0, "threads": 1}
    if codec == "mpeg4":
        defaults |= {"qmin": 3, "qmax": 3, "b": 8000000, "sc_threshold": 1000000000}
    merged = {name: str(value) for name, value in {**defaults, **options}.items()}
    raw = "m4v" if path.suffix == ".m4v" else None  # or PyAV takes it for an MP4
    with av.open(str(path), "w", format=raw) as output:
        stream = output.add_stream(codec, rate=25, options=merged)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(frames):
            picture = texture(*size, (index * shift[0], index * shift[1]))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("codec", "options", "shift"),
    [
        ("mpeg4", {}, (3.0, -2.0)),
        ("mpeg4", {}, (2.5, 1.5)),
        ("mpeg4", {"flags": "+qpel"}, (-1.25, 2.75)),
        ("mpeg4", {"flags": "+mv4"}, (-2.5, -1.0)),
        ("mpeg2video", {"qmin": 3, "qmax": 3, "b": 8000000}, (2.5, 1.0)),
        ("libx264", {"refs": 1, "crf": 18}, (1.75, -2.25)),
    ],
)
def test_a_known_translation_is_recovered(
    tmp_path: Path, codec: str, options: dict[str, Any], shift: tuple[float, float]
) -> None:
    name = "clip.mp4" if codec != "mpeg2video" else "clip.mpg"
    path = encode(tmp_path / name, codec=codec, frames=8, shift=shift, **options)
    frames = list(CodecReader(path))
    assert [frame.is_key for frame in frames] == [True] + [False] * 7
    for frame in frames[1 : -1 if codec == "mpeg2video" else None]:
        inside = frame.flow[:, 16:-16, 16:-16][:, frame.mask[16:-16, 16:-16]]
        assert inside.shape[1] > 0.9 * 112 * 144
        # It moved by `shift`, so it came from where -shift points.
        error = (inside + torch.tensor(shift)[:, None]).abs()
        assert (error.median(dim=1).values <= 0.25).all()
        assert (error <= 0.25).float().mean() > 0.8


@pytest.mark.parametrize("size", [(144, 176), (97, 131)])
@pytest.mark.parametrize("stride", [1, 8])
def test_prediction_plus_residual_is_the_frame(
    tmp_path: Path, size: tuple[int, int], stride: int
) -> None:
    path = encode(tmp_path / "clip.mp4", frames=14, size=size)
    with CodecReader(path, stride=stride) as reader:
        assert (reader.codec, reader.height, reader.width) == ("mpeg4", *size)
        assert (reader.rate, reader.length) == (25, 14)
        before = None
        for index, frame in enumerate(reader):
            assert (frame.index, frame.time, frame.damaged) == (index, index / 25, False)
            assert frame.is_key == (index % 12 == 0)
            assert frame.image.dtype == frame.luma.dtype == torch.uint8
            assert frame.image.shape == (3, *size) and frame.luma.shape == size
            assert frame.mask.shape == tuple(-(-side // stride) for side in size)
            assert frame.full_flow.shape == (2, *size)
            assert torch.equal(frame.prediction + frame.residual, frame.image.float())
            if frame.is_key:
                assert frame.previous is None and not frame.flow.any() and not frame.mask.any()
            else:
                assert frame.previous is before
                assert frame.residual.abs().mean() < 8
            before = frame.image
        assert index == 13


def test_sources(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", frames=3)
    frames = list(CodecReader(path))
    for source in (str(path), io.BytesIO(path.read_bytes())):
        for got, expected in zip(CodecReader(source), frames, strict=True):
            assert torch.equal(got.image, expected.image) and torch.equal(got.flow, expected.flow)
    with CodecReader(path) as reader:
        next(reader)
    assert list(reader) == []  # closed


def test_b_frames_are_refused_where_they_stand(tmp_path: Path) -> None:
    reader = CodecReader(encode(tmp_path / "clip.mp4", bf=2))
    assert next(reader).is_key
    with pytest.raises(CodecError, match=r"clip.mp4, frame 1: a B-frame.*transcode"):
        next(reader)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "h264", "mkv"])
@pytest.mark.parametrize("profile", ["baseline", "high"])
def test_h264_needs_a_single_reference_frame(tmp_path: Path, suffix: str, profile: str) -> None:
    for refs in (1, 3):
        path = tmp_path / f"{refs}.{suffix}"
        encode(path, codec="libx264", frames=3, refs=refs, profile=profile)
        with av.open(str(path)) as container:
            extradata = container.streams.video[0].codec_context.extradata
        assert reference_frames(extradata) == refs
        for end in range(len(extradata)):  # cut anywhere: no crash
            assert reference_frames(extradata[:end]) in (None, refs)
    assert sum(1 for _ in CodecReader(tmp_path / f"1.{suffix}")) == 3
    with pytest.raises(CodecError, match=r"any of 3 earlier frames.*expected 1.*transcode"):
        CodecReader(tmp_path / f"3.{suffix}")


@pytest.mark.parametrize(("codec", "suffix"), [("mjpeg", "avi"), ("libvpx-vp9", "webm")])
def test_codecs_without_vectors_are_refused(tmp_path: Path, codec: str, suffix: str) -> None:
    path = encode(tmp_path / f"clip.{suffix}", codec=codec, frames=2)
    with pytest.raises(CodecError, match=r"exports no motion vectors.*transcode"):
        CodecReader(path)
    assert transcode(path, tmp_path / "clip.mp4") == 2
    assert len(list(CodecReader(tmp_path / "clip.mp4"))) == 2


def test_what_is_not_a_video(tmp_path: Path) -> None:
    sound, text = tmp_path / "sound.wav", tmp_path / "notes.txt"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    text.write_text("no video at all\n" * 20)
    openers: list[Callable[[Path], object]] = [
        CodecReader,
        lambda path: transcode(path, tmp_path / "out.mp4"),
    ]
    for opener in openers:
        with pytest.raises(CodecError, match="expected video that can be decoded, found audio"):
            opener(sound)
        with pytest.raises(CodecError, match=r"notes.txt"):
            opener(text)
        with pytest.raises(FileNotFoundError, match=r"missing.mp4"):
            opener(tmp_path / "missing.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "sound.wav"]


def test_a_change_of_size_ends_the_video(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / "1.m4v", frames=5),
        encode(tmp_path / "2.m4v", frames=5, size=(96, 128)),
    ]
    joined = tmp_path / "joined.m4v"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = []
    with pytest.raises(CodecError, match="frame 5: the size changes from 176x144 to 128x96"):
        frames.extend(CodecReader(joined))
    assert len(frames) == 5
    assert transcode(joined, tmp_path / "even.mp4") == 10


# -- damage ----------------------------------------------------------------------------------------


def packets(path: Path) -> list[tuple[int, int]]:
    """Where each packet of a file lies: position and size."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def flip(path: Path, start: int, count: int) -> None:
    data = bytearray(path.read_bytes())
    for position in range(start, start + count):
        data[position] ^= 0xA5
    path.write_bytes(data)


def test_after_damage_there_is_no_motion_until_the_next_key_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.avi")
    sound = list(CodecReader(path))
    start, size = packets(path)[15]
    flip(path, start + size // 2, 30)
    frames = list(CodecReader(path))
    assert len(frames) == 30
    assert [frame.index for frame in frames if frame.damaged] == list(range(15, 24))
    for got, expected in zip(frames, sound, strict=True):
        if got.damaged:
            assert not got.mask.any() and not got.flow.any()
            assert torch.equal(got.prediction + got.residual, got.image.float())
        else:
            assert torch.equal(got.image, expected.image) and torch.equal(got.flow, expected.flow)


def test_a_packet_beyond_decoding_is_skipped(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", codec="libx264", refs=1, sc_threshold=0)
    start, size = packets(path)[15]
    flip(path, start, size)  # with the lengths in it
    with pytest.warns(RuntimeWarning, match="packet 15 is skipped"):
        frames = list(CodecReader(path))
    assert len(frames) == 29
    assert [frame.index for frame in frames if frame.damaged] == list(range(15, 23))
    with pytest.warns(RuntimeWarning, match="packet 15 is skipped"):
        assert transcode(path, tmp_path / "out.mp4") == 29


@pytest.mark.parametrize("suffix", ["avi", "m4v", "ts", "mkv"])
def test_a_file_cut_short_gives_what_it_has(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"clip.{suffix}")
    sound = list(CodecReader(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        frames = list(CodecReader(path))
    assert 10 < len(frames) < 25
    for got, expected in itertools.islice(zip(frames, sound, strict=False), len(frames) - 1):
        assert torch.equal(got.image, expected.image) and torch.equal(got.flow, expected.flow)


def test_an_mp4_without_its_index_cannot_be_opened(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CodecError, match=r"cannot open .*clip.mp4"):
        CodecReader(path)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_any_damage_ends_in_frames_or_a_codec_error(
    short_clip: bytes, position: int, count: int
) -> None:
    data = bytearray(short_clip)
    rng = np.random.default_rng(position)
    for offset in range(count):
        data[(position + offset) % len(data)] = rng.integers(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            for frame in CodecReader(io.BytesIO(bytes(data)), stride=16):
                assert frame.flow.isfinite().all()
        except CodecError:
            pass


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    return encode(path, frames=6, size=(48, 64)).read_bytes()


def test_joining_midway_waits_for_a_key_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.m4v")
    data, places = path.read_bytes(), packets(path)
    header = data[: data.index(b"\x00\x00\x01\xb3")]  # all before the first picture
    frames = list(CodecReader(io.BytesIO(header + data[places[5][0] :])))
    first_key = next(frame.index for frame in frames if frame.is_key)
    assert [frame.index for frame in frames if frame.damaged] == list(range(first_key))


# -- transcode -------------------------------------------------------------------------------------


def test_transcode_sets_the_gop(tmp_path: Path) -> None:
    source = encode(tmp_path / "source.mp4", bf=2, g=7, frames=26)
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "target.mp4"
    count = transcode(source, target, frames=25, progress=lambda *now: seen.append(now))
    assert count == 25 and seen == [(done + 1, 25) for done in range(25)]
    frames = list(CodecReader(target))
    assert [frame.index for frame in frames if frame.is_key] == [0, 12, 24]
    assert frames[24].time == pytest.approx(24 / 25)
    buffer = io.BytesIO()
    assert transcode(io.BytesIO(source.read_bytes()), buffer, gop=5, quantizer=10) == 26
    buffer.seek(0)
    assert [f.index for f in CodecReader(buffer) if f.is_key] == [0, 5, 10, 15, 20, 25]


def test_transcode_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = encode(tmp_path / "source.mp4", frames=2)
    target = tmp_path / "out.mp4"
    for name, value in (("gop", 0), ("gop", 601), ("quantizer", 0), ("quantizer", 32)):
        with pytest.raises(ValueError, match=f"{name}: expected 1 to .*got {value}"):
            transcode(source, target, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames: expected at least 1"):
        transcode(source, target, frames=0)
    with pytest.raises(FileNotFoundError):
        transcode(source, tmp_path / "no folder" / "out.mp4")
    with pytest.raises(ValueError, match=r"out\.unknown"):
        transcode(source, tmp_path / "out.unknown")

    def give_up(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode(source, target, progress=give_up)
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]
