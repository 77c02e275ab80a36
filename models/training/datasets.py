"""The papers' data sets, read from the folders that their publishers hand out.

Nothing is downloaded. Where something is missing, one line says what was expected where.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from vsegops._checks import check_option, error

from ..video.frames import by_number
from .classes import CAMVID, CITYSCAPES_IDS, IDD_IDS, IGNORED, MAPILLARY_IDS, merging

Root = str | os.PathLike[str]


class Sample(NamedTuple):
    """Consecutive frames (or some of them), the last of which is labelled.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, RGB, the oldest first, as `Preprocess` takes them; T is 1
            where single images were asked for.
        labels: uint8 `[H, W]`, of the last frame; 255 is ignored.
    """

    frames: Tensor
    labels: Tensor


class Missing(FileNotFoundError):
    """Files are not where they were expected; the message says in one line what was, and where."""


class Entry(NamedTuple):
    """The files of a sample: frames, the oldest first, and the labels of the last one, if any."""

    frames: tuple[Path, ...]
    labels: Path | None


class Images(Dataset[Sample]):
    """Samples that lie in files.

    Args:
        name: of the data set, for messages.
        entries: their files.
        table: `[256]` or `[64]`, uint8: from the values in a label file to classes, or from its
            colours (see `read_labels`).
    """

    def __init__(self, name: str, entries: Sequence[Entry], table: Tensor) -> None:
        self.name, self.entries, self.table = name, list(entries), table
        for entry in self.entries:
            for path in (*entry.frames, entry.labels):
                if path is not None and not path.exists():
                    raise Missing(f"{name}: expected {path}, which does not exist")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        frames = torch.stack([read_image(path) for path in entry.frames])
        labels = self.labels(index)
        if frames.shape[1:3] != labels.shape:
            raise ValueError(
                f"{self.name}: {entry.labels}: expected labels of the image's size "
                f"{tuple(frames.shape[1:3])}, got {tuple(labels.shape)}"
            )
        return Sample(frames, labels)

    def labels(self, index: int) -> Tensor:
        """The labels alone: uint8 `[H, W]`; without a file of them, all ignored."""
        frames, file = self.entries[index]
        if file is not None:
            return read_labels(file, self.table)
        return torch.full(read_image(frames[-1]).shape[:2], IGNORED, dtype=torch.uint8)


def read_image(path: Path) -> Tensor:
    """uint8 `[H, W, 3]`, RGB."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def read_labels(path: Path, table: Tensor) -> Tensor:
    """Labels, uint8 `[H, W]`.

    Args:
        table: uint8. With 256 entries: of the file's values. With 64: of its colours, whose red,
            green and blue are 0, 64, 128 or 192 each; any other colour is as black.
    """
    with Image.open(path) as image:
        if len(table) == 256:
            return table[torch.from_numpy(np.array(image)).long()]
        colour = torch.from_numpy(np.array(image.convert("RGB"))).long()
    known = (colour % 64 == 0).all(-1)
    number = (colour // 64 * torch.tensor([16, 4, 1])).sum(-1)
    return table[number.where(known, 0)]


@dataclass(frozen=True)
class Layout:
    """Where a data set has its files, below its root.

    Attributes:
        images: the images, with `{split}`; what stands for the last `*` is an image's `{id}`, the
            folder that it lies in its `{folder}`.
        labels: patterns of its labels' files, each with the classes of the values in it (None: they
            are train ids already). The first of them that exists is used.
        sequence: the frames of snippets, whose ids end in their numbers; None: there are none.
        splits: the names of the folders of `"train"` and `"val"`.
        source: where it can be had.
    """

    images: str
    labels: tuple[tuple[str, Mapping[int, int] | None], ...]
    source: str
    sequence: str | None = None
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "val": "val", "test": "test"}
    )


LAYOUTS: Mapping[str, Layout] = {
    "cityscapes": Layout(
        images="leftImg8bit/{split}/*/*_leftImg8bit.png",
        labels=(
            ("gtFine/{split}/{folder}/{id}_gtFine_labelTrainIds.png", None),
            ("gtFine/{split}/{folder}/{id}_gtFine_labelIds.png", CITYSCAPES_IDS),
        ),
        sequence="leftImg8bit_sequence/{split}/{folder}/{id}_leftImg8bit.png",
        source="cityscapes-dataset.com (leftImg8bit, gtFine; leftImg8bit_sequence for snippets)",
    ),
    "idd": Layout(
        images="leftImg8bit/{split}/*/*_leftImg8bit.*",
        labels=(
            ("gtFine/{split}/{folder}/{id}_gtFine_labelids_19labelTrainIds.png", None),
            ("gtFine/{split}/{folder}/{id}_gtFine_labelids.png", IDD_IDS),
        ),
        source="idd.insaan.iiit.ac.in (IDD Segmentation; label ids by its own script)",
    ),
    "bdd": Layout(
        images="seg/images/{split}/*.jpg",
        labels=(("seg/labels/{split}/{id}_train_id.png", None),),
        source="bdd-data.berkeley.edu (segmentation of BDD100K)",
    ),
    "mapillary": Layout(
        images="{split}/images/*.jpg",
        labels=(("{split}/labels/{id}.png", MAPILLARY_IDS),),
        source="mapillary.com/dataset/vistas (version 1)",
        splits={"train": "training", "val": "validation", "test": "testing"},
    ),
}

#: What UDS is the union of, in its order.
UDS = ("bdd", "mapillary", "idd", "cityscapes")


def read(name: str, root: Root, split: str = "train", *, before: Sequence[int] = ()) -> Images:
    """Cityscapes, IDD, BDD or Mapillary, in Cityscapes' 19 classes.

    Args:
        name: `"cityscapes"`, `"idd"`, `"bdd"` or `"mapillary"`; `LAYOUTS` tells the files.
        root: the folder with these files.
        split: `"train"`, `"val"` or `"test"`.
        before: of Cityscapes' 30-frame snippets, which frames come with the labelled one: how many
            frames before it they lie, the oldest first; `(2, 1)` are the two before it. Its 20th
            frame is labelled, so that up to 19 precede it.

    Raises:
        Missing: files are not there.
    """
    check_option("name", name, tuple(LAYOUTS))
    layout = LAYOUTS[name]
    check_option("split", split, tuple(layout.splits))
    if list(before) != sorted(set(before), reverse=True) or any(x < 1 for x in before):
        raise error("before", "numbers of frames, from the largest to 1 or more", tuple(before))
    if before and layout.sequence is None:
        raise error("before", f"nothing, as {name} has single images", tuple(before))
    root, folder = Path(root), layout.splits[split]
    pattern = layout.images.format(split=folder)
    images = _found(name, root, pattern, layout.source)
    ending = Path(pattern).stem.removeprefix("*")
    places = [
        {"split": folder, "folder": image.parent.name, "id": image.stem.removesuffix(ending)}
        for image in images
    ]
    # One kind of label files for all: the first that the first image has.
    form, ids = next(
        (kind for kind in layout.labels if (root / kind[0].format(**places[0])).exists()),
        layout.labels[-1],
    )
    entries = []
    for image, place in zip(images, places, strict=True):
        frames = [_earlier(root, layout, place, count) for count in before]
        entries.append(Entry((*frames, image), root / form.format(**place)))
    return Images(name, entries, _identity() if ids is None else merging(ids))


def mapillary65(root: Root, split: str = "train") -> Images:
    """Mapillary with its own 65 classes; the 66th, 65, is what is not labelled, and ignored."""
    whole = read("mapillary", root, split)
    table = _identity()
    table[65] = IGNORED
    return Images("mapillary", whole.entries, table)


class Union(ConcatDataset[Sample]):
    """Several data sets, one after the other."""

    datasets: list[Images]  # type: ignore[assignment]

    def labels(self, index: int) -> Tensor:
        """The labels alone: uint8 `[H, W]`."""
        number = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[number].labels(index - ([0, *self.cumulative_sizes])[number])


def uds(roots: Mapping[str, Root], split: str = "train") -> Union:
    """The union of BDD, Mapillary, IDD and Cityscapes, in this order, in Cityscapes' classes.

    Args:
        roots: of each of `UDS`.
        split: `"train"` or `"val"`.
    """
    missing = [name for name in UDS if name not in roots]
    if missing:
        raise error("roots", f"a folder for each of {', '.join(UDS)}", dict(roots))
    return Union([read(name, roots[name], split) for name in UDS])


def camvid(
    root: Root, split: str = "train", *, classes: int = 11, before: Sequence[int] = ()
) -> Images:
    """CamVid, with 11 classes (void is ignored), or with 12, of which void is the first (TMANet).

    Expected are `701_StillsRaw_full/*.png`, `LabeledApproved_full/*_L.png` (in colours) and, for
    each split, `train.txt` and so on: a list of names of images, one on a line. For `before`,
    `sequence/*.png` has all frames, named like the images.

    Args:
        root: the folder with all that.
        split: `"train"`, `"val"` or `"test"`.
        classes: 11 or 12.
        before: as for `read`.
    """
    check_option("split", split, ("train", "val", "test"))
    if classes not in (11, 12):
        raise error("classes", "11 or 12", classes)
    root = Path(root)
    source = "mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid, and the papers' lists"
    (listed,) = _found("camvid", root, f"{split}.txt", source)
    entries = []
    for name in listed.read_text().split():
        stem = Path(name).stem
        frames = [root / "sequence" / f"{_numbered(stem, count)}.png" for count in before]
        image = root / "701_StillsRaw_full" / f"{stem}.png"
        entries.append(Entry((*frames, image), root / "LabeledApproved_full" / f"{stem}_L.png"))
    void, first = (IGNORED, 0) if classes == 11 else (0, 1)
    table = torch.full((64,), void, dtype=torch.uint8)
    for number, colours in enumerate(CAMVID.values(), first):
        for red, green, blue in colours:
            table[red // 64 * 16 + green // 64 * 4 + blue // 64] = number
    return Images("camvid", entries, table)


def clips(root: Root, split: str = "train", *, before: Sequence[int] = ()) -> Images:
    """Videos of your own: of each its frames, in the order of their numbers, and some labels.

    Expected are `{split}/CLIP/frames/*.png` (or `.jpg`), and for labelled frames files of the same
    name in `{split}/CLIP/labels/*.png`, whose values are the classes. A clip without labels gives
    all of its frames, as a student of a teacher needs them (`tasks.Distilled`).

    Args:
        root: the folder with all that.
        split: `"train"`, `"val"` or any other.
        before: as for `read`; frames with too few before them are left out.
    """
    root, entries = Path(root), []
    source = "your own videos, e.g. by ffmpeg -i VIDEO frames/%06d.png"
    for folder in _found("clips", root, f"{split}/*/frames", source):
        frames = sorted([*folder.glob("*.png"), *folder.glob("*.jpg")], key=by_number)
        labels = folder.parent / "labels"
        for number in range(max(before, default=0), len(frames)):
            file = labels / f"{frames[number].stem}.png"
            if labels.is_dir() and not file.exists():
                continue
            chosen = tuple(frames[number - count] for count in (*before, 0))
            entries.append(Entry(chosen, file if labels.is_dir() else None))
    if not entries:
        raise Missing(f"clips: expected frames in {root / split}/*/frames, found none that is used")
    return Images("clips", entries, _identity())


def _found(name: str, root: Path, pattern: str, source: str) -> list[Path]:
    """The files of a pattern, in order."""
    if not root.is_dir():
        raise Missing(f"{name}: expected a folder {root}, with {pattern} in it; from {source}")
    found = sorted(root.glob(pattern))
    if not found:
        raise Missing(f"{name}: expected {root / pattern}, found no such file; from {source}")
    return found


def _earlier(root: Path, layout: Layout, place: Mapping[str, str], count: int) -> Path:
    assert layout.sequence is not None
    return root / layout.sequence.format(**{**place, "id": _numbered(place["id"], count)})


def _numbered(name: str, count: int) -> str:
    """The name of the frame `count` frames before: names end in numbers."""
    match = re.fullmatch(r"(.*?)(\d+)", name)
    if match is None:
        raise error("name", "a name that ends in its frame's number", name)
    stem, number = match.groups()
    if int(number) < count:
        raise Missing(f"{name}: expected a frame {count} frames before it, which cannot exist")
    return f"{stem}{int(number) - count:0{len(number)}d}"


def _identity() -> Tensor:
    return torch.arange(256, dtype=torch.uint8)
