"""Pictures of labels: colours, legend, marks, strips, and the files they become."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from PIL import Image  # noqa: E402

from vsegops.models.palette import CITYSCAPES, palette  # noqa: E402
from vsegops.models.video import CodecError, pictures  # noqa: E402
from vsegops.models.video.overlay import (  # noqa: E402
    KEY,
    add_legend,
    add_mark,
    colour_picture,
    overlay,
    present,
)
from vsegops.models.video.writer import VideoWriter, save_labels, save_png  # noqa: E402


def sample(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return frame, torch.randint(19, (height, width), dtype=torch.uint8, generator=generator)


def test_palettes() -> None:
    assert len(CITYSCAPES.names) == len(set(CITYSCAPES.colours)) == 19
    assert dict(zip(*CITYSCAPES, strict=True))["car"] == (0, 0, 142)
    assert palette(19) is CITYSCAPES
    for count in (2, 12, 256):
        assert len(palette(count).names) == len(set(palette(count).colours)) == count


@pytest.mark.parametrize("size", [(1, 1), (8, 10), (7, 9), (96, 131)])
@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
def test_overlay_is_the_formula(size: tuple[int, int], opacity: float) -> None:
    frame, labels = sample(*size)
    labels[0, 0] = 255  # void
    colours = torch.zeros(256, 3)
    colours[:19] = torch.tensor(CITYSCAPES.colours).float()
    exact = frame * (1 - opacity) + colours[labels.long()] * opacity
    picture = overlay(frame, labels, CITYSCAPES, opacity=opacity)
    assert picture.dtype == torch.uint8 and picture.shape == frame.shape
    assert (picture.float() - exact).abs().max() <= 1
    if opacity == 1:
        assert torch.equal(picture, colour_picture(labels, CITYSCAPES))
    if opacity == 0:
        assert torch.equal(picture, frame)


def test_overlay_of_views() -> None:
    frame, labels = sample(12, 14)
    expected = overlay(frame[2:, 3:].contiguous(), labels[2:, 3:].contiguous(), CITYSCAPES)
    assert torch.equal(overlay(frame[2:, 3:], labels[2:, 3:], CITYSCAPES), expected)


def test_overlay_says_what_is_wrong() -> None:
    frame, labels = sample(4, 6)
    with pytest.raises(ValueError, match="frame: expected uint8 .4, 6, 3., as the labels"):
        overlay(frame[1:], labels, CITYSCAPES)
    with pytest.raises(ValueError, match="frame"):
        overlay(frame.float(), labels, CITYSCAPES)
    with pytest.raises(ValueError, match="opacity: expected 0 to 1, got 2"):
        overlay(frame, labels, CITYSCAPES, opacity=2)


def test_the_legend_names_what_is_there() -> None:
    labels = torch.zeros(200, 300, dtype=torch.uint8)
    labels[:, 100:] = 13
    labels[0, 0] = 11  # too little
    labels[:40] = 255
    assert present(labels, CITYSCAPES) == (13, 0)
    frame = torch.full((200, 300, 3), 200, dtype=torch.uint8)
    picture = add_legend(frame.clone(), labels, CITYSCAPES)
    changed = (picture != frame).any(2)
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    assert rows.max() == 199 and columns.min() == 0 and changed.float().mean() < 0.2
    corner = {tuple(x) for x in picture[changed].tolist()}
    assert {CITYSCAPES.colours[0], CITYSCAPES.colours[13]} <= corner
    assert CITYSCAPES.colours[11] not in corner
    void = torch.full((200, 300), 255, dtype=torch.uint8)
    assert torch.equal(add_legend(frame.clone(), void, CITYSCAPES), frame)


def test_marks_tell_key_frames_and_numbers() -> None:
    blank = torch.zeros(100, 400, 3, dtype=torch.uint8)
    key, other, next_one = (
        add_mark(blank.clone(), *arguments) for arguments in [(7, True), (7, False), (8, False)]
    )
    yellow = torch.tensor(KEY, dtype=torch.uint8)
    assert (key == yellow).all(2).sum() > 400 and not (other == yellow).all(2).any()
    assert not torch.equal(other, next_one)
    titled = add_mark(blank.clone(), 7, True, "swiftnet_resnet18")
    assert titled[:20].float().mean() > key[:20].float().mean()
    assert (key[30:] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (40, 12), (30, 30)])
def test_pictures_without_room_are_still_pictures(size: tuple[int, int]) -> None:
    frame, labels = sample(*size)
    picture = overlay(frame, labels, CITYSCAPES)
    add_mark(add_legend(picture, labels, CITYSCAPES), 123456, True, "a long title")
    pictures.add_wheel(picture, "6 px")
    assert picture.shape == (*size, 3)


def test_a_wheel_in_the_corner() -> None:
    flow = pictures.flow_picture(torch.zeros(2, 120, 160), largest=1.0)
    picture = pictures.add_wheel(flow.clone())
    changed = (picture != flow).any(2).nonzero()
    assert changed[:, 0].min() >= 85 and changed[:, 1].min() >= 125
    wheel = pictures.wheel_picture(30)
    assert torch.equal(picture[86 + 15, 126 + 25], wheel[15, 25, :3])
    assert not torch.equal(pictures.add_wheel(flow.clone(), "6 px"), picture)


def test_a_strip_of_frames() -> None:
    frames = [torch.full((60, 90, 3), value, dtype=torch.uint8) for value in (10, 200)]
    strip = pictures.strip(frames, height=30, gap=4)
    assert strip.shape == (30, 45 + 4 + 45, 3)
    assert (strip[:, :45] == 10).all() and (strip[:, 49:] == 200).all()
    assert (strip[:, 45:49] == 255).all()
    with pytest.raises(ValueError, match="pictures"):
        pictures.strip([])


def test_label_files_hold_labels_and_show_colours(tmp_path: Path) -> None:
    frame, labels = sample(9, 11)
    save_labels(labels, tmp_path / "labels.png", CITYSCAPES)
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), labels.numpy())
        shown = torch.from_numpy(np.array(image.convert("RGB")))
    assert torch.equal(shown, colour_picture(labels, CITYSCAPES))
    save_png(frame, tmp_path / "frame.png")
    with Image.open(tmp_path / "frame.png") as image:
        assert np.array_equal(np.asarray(image), frame.numpy())


def test_videos_of_odd_and_changing_sizes(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with VideoWriter(path, Fraction(10)) as video:
        for size in ((33, 47), (33, 47), (20, 64), (33, 47)):
            video.write(torch.full((*size, 3), 120, dtype=torch.uint8))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 10
        sizes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert sizes == [(32, 46)] * 4


def test_a_video_that_is_left_early_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, None) as video:
        for _ in range(3):
            video.write(torch.zeros(32, 48, 3, dtype=torch.uint8))
        raise KeyboardInterrupt
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 3
    with VideoWriter(path, None):
        pass
    assert not path.exists()
    with pytest.raises(CodecError, match="cannot write this kind of file"):
        VideoWriter(tmp_path / "video.xyz", None)
