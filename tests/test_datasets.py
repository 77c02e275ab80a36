"""The data sets' folders, made small; augmentations; what an epoch consists of."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("vsegops.models.training", reason="the models are not installed")

import colorsys

import torch
from PIL import Image
from torch.utils.data import DataLoader

from vsegops.models import create_model
from vsegops.models.training import augment, classes, datasets, sampling
from vsegops.models.training.augment import Augmentation, ColourJitter
from vsegops.models.training.datasets import Missing, Sample, camvid, read, uds
from vsegops.models.training.sampling import Augmented, Draw, Draws, centroids, find_centroids
from vsegops.models.training.streets import Stored, Streets
from vsegops.models.training.world import World

SIZE = (12, 20)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def save(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def plain(path, value: int, size=SIZE) -> None:
    save(path, np.full((*size, 3), value))


def values(*numbers: int, size=SIZE) -> np.ndarray:
    """These values, in columns from the left."""
    columns = np.arange(size[1]) * len(numbers) // size[1]
    return np.broadcast_to(np.array(numbers)[columns], size)


def present(labels) -> list[int]:
    return labels.unique().tolist()


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("bonn",))):
        for city in cities:
            name = f"{city}_000001_000019"
            plain(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", 19)
            save(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", values(7, 8, 33, 4))
            for number in range(30):
                name = f"{city}_000001_{number:06d}_leftImg8bit.png"
                plain(root / f"leftImg8bit_sequence/{split}/{city}/{name}", number)
    return root


@pytest.fixture
def roots(tmp_path, cityscapes):
    bdd, vistas, idd = tmp_path / "bdd", tmp_path / "mapillary", tmp_path / "idd"
    for split in ("train", "val"):
        plain(bdd / f"seg/images/{split}/0a1b.jpg", 50)
        save(bdd / f"seg/labels/{split}/0a1b_train_id.png", values(0, 18, 255))
        folder = {"train": "training", "val": "validation"}[split]
        plain(vistas / f"{folder}/images/xyz.jpg", 60)
        save(vistas / f"{folder}/labels/xyz.png", values(13, 41, 2, 20, 47, 8, 65))
        for suffix, name in (("png", "frame1"), ("jpg", "frame2")):
            plain(idd / f"leftImg8bit/{split}/7/{name}_leftImg8bit.{suffix}", 70)
            save(idd / f"gtFine/{split}/7/{name}_gtFine_labelids.png", values(0, 5, 10, 19, 11))
    return {"bdd": bdd, "mapillary": vistas, "idd": idd, "cityscapes": cityscapes}


# --- folders ----------------------------------------------------------------------------------


def test_cityscapes(cityscapes):
    train = read("cityscapes", cityscapes, "train")
    assert len(train) == 2 and len(read("cityscapes", cityscapes, "val")) == 1
    frames, labels = train[1]
    assert (frames.shape, frames.dtype) == ((1, *SIZE, 3), torch.uint8)
    assert "ulm" in str(train.entries[1].labels)
    assert labels[0, ::5].tolist() == [0, 1, 18, 255]


def test_train_ids_come_before_label_ids(cityscapes):
    for path in cityscapes.glob("gtFine/train/*/*_labelIds.png"):
        name = path.name.replace("labelIds", "labelTrainIds")
        save(path.with_name(name), values(3, 255))
    assert present(read("cityscapes", cityscapes)[0].labels) == [3, 255]


def test_snippets(cityscapes):
    sample = read("cityscapes", cityscapes, before=(11, 2, 1))[0]
    assert sample.frames[:, 0, 0, 0].tolist() == [8, 17, 18, 19]
    with pytest.raises(Missing, match="aachen_000001_000019: expected a frame 20 frames before"):
        read("cityscapes", cityscapes, before=(20,))
    with pytest.raises(ValueError, match="before: expected numbers of frames"):
        read("cityscapes", cityscapes, before=(1, 2))
    with pytest.raises(ValueError, match="before: expected nothing, as bdd"):
        read("bdd", cityscapes, before=(1,))


def test_uds_is_the_union_in_merged_classes(roots):
    for split, count in (("train", 6), ("val", 5)):
        union = uds(roots, split)
        assert len(union) == count
        labels = [present(union[index].labels) for index in range(4)]
        assert labels[0] == [0, 18, 255]
        assert labels[1] == [0, 1, 5, 12, 255]
        assert labels[2] == labels[3] == [0, 9, 18, 255]
        assert [union[index].frames[0, 0, 0, 0].item() for index in range(5)] == [
            50,
            60,
            70,
            70,
            19,
        ]
        for index in range(count):
            assert torch.equal(union.labels(index), union[index].labels)
    with pytest.raises(
        ValueError, match="roots: expected a folder for each of bdd, mapillary, idd"
    ):
        uds({"bdd": roots["bdd"]})


def test_mapillary_on_its_own_has_65_classes(roots):
    assert present(datasets.mapillary65(roots["mapillary"])[0].labels) == [
        2,
        8,
        13,
        20,
        41,
        47,
        255,
    ]


@pytest.mark.parametrize(
    "name, pairs",
    [
        ("MAPILLARY_IDS", {24: 0, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 48: 6, 50: 7, 30: 8, 29: 9}),
        ("MAPILLARY_IDS", {27: 10, 19: 11, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18}),
        ("IDD_IDS", {0: 0, 3: 1, 29: 2, 20: 3, 21: 4, 26: 5, 25: 6, 24: 7, 32: 8, 5: 9, 33: 10}),
        ("IDD_IDS", {6: 11, 8: 12, 12: 13, 13: 14, 14: 15, 17: 16, 9: 17, 10: 18}),
        ("CITYSCAPES_IDS", {7: 0, 11: 2, 17: 5, 23: 10, 24: 11, 28: 15, 31: 16, 33: 18}),
    ],
)
def test_merged_classes(name, pairs):
    table = getattr(classes, name)
    assert {label: table[label] for label in pairs} == pairs
    assert set(table.values()) == set(range(19))


def test_categories_hold_each_class_once():
    assert sorted(sum(classes.CATEGORIES.values(), ())) == list(range(19))
    assert list(classes.CATEGORIES) == "flat construction object nature sky human vehicle".split()


@pytest.fixture
def camvid_root(tmp_path):
    root = tmp_path / "camvid"
    colours = [[(128, 128, 128), (0, 0, 64), (192, 0, 192), (0, 0, 0), (128, 128, 129)]] * 3
    for number in (30, 60):
        name = f"0006R0_f{number:05d}"
        plain(root / f"701_StillsRaw_full/{name}.png", number, (3, 5))
        save(root / f"LabeledApproved_full/{name}_L.png", colours)
        for before in (1, 2):
            frame = f"0006R0_f{number - before:05d}.png"
            plain(root / f"sequence/{frame}", number - before, (3, 5))
    (root / "train.txt").write_text("0006R0_f00030.png\n0006R0_f00060\n")
    return root


def test_camvid(camvid_root):
    assert camvid(camvid_root)[0].labels[0].tolist() == [0, 2, 10, 255, 255]
    sample = camvid(camvid_root, classes=12, before=(2, 1))[1]
    assert sample.labels[0].tolist() == [1, 3, 11, 0, 0]
    assert sample.frames[:, 0, 0, 0].tolist() == [58, 59, 60]
    with pytest.raises(ValueError, match="classes: expected 11 or 12, got int 13"):
        camvid(camvid_root, classes=13)


def test_camvid_merges_all_of_its_colours():
    colours = sum(classes.CAMVID.values(), ())
    assert len(classes.CAMVID) == 11 and len(colours) == len(set(colours)) == 31  # and void
    assert all(value in (0, 64, 128, 192) for colour in colours for value in colour)


def test_what_is_missing_is_said_in_one_line(roots, tmp_path, camvid_root):
    def said(call) -> str:
        with pytest.raises(Missing) as caught:
            call()
        (line,) = str(caught.value).splitlines()
        return line

    nowhere = tmp_path / "nowhere"
    line = said(lambda: read("cityscapes", nowhere))
    assert line.startswith(f"cityscapes: expected a folder {nowhere}") and "dataset.com" in line
    line = said(lambda: read("idd", roots["bdd"]))
    assert f"{roots['bdd']}/leftImg8bit/train/*/*_leftImg8bit.*, found no such file" in line
    label = roots["bdd"] / "seg/labels/train/0a1b_train_id.png"
    label.unlink()
    assert said(lambda: read("bdd", roots["bdd"])) == f"bdd: expected {label}, which does not exist"
    frame = roots["cityscapes"] / "leftImg8bit_sequence/train/ulm/ulm_000001_000018_leftImg8bit.png"
    frame.unlink()
    assert str(frame) in said(lambda: read("cityscapes", roots["cityscapes"], before=(1,)))
    assert "train.txt" in said(lambda: camvid(nowhere.parent))
    (camvid_root / "LabeledApproved_full/0006R0_f00030_L.png").unlink()
    assert "0006R0_f00030_L.png" in said(lambda: camvid(camvid_root))


def test_labels_of_another_size_are_refused(roots):
    save(roots["bdd"] / "seg/labels/train/0a1b_train_id.png", values(0, size=(4, 4)))
    with pytest.raises(ValueError, match=r"labels of the image's size \(12, 20\), got \(4, 4\)"):
        read("bdd", roots["bdd"])[0]


def test_samples_go_through_a_models_preprocessing(cityscapes):
    model = create_model("sfnet_lite_stdc1")
    batch = next(iter(DataLoader(read("cityscapes", cityscapes, before=(1,)), batch_size=2)))
    assert isinstance(batch, Sample) and batch.frames.shape == (2, 2, *SIZE, 3)
    assert model.preprocess(batch.frames[:, -1]).shape == (2, 3, *SIZE)


def test_streets():
    streets = Streets([3, 8], (32, 64), labelled=(4, 6), before=(4, 1))
    assert len(streets) == 4
    frames, labels = streets[3]
    world = World(8, (32, 64))
    assert torch.equal(frames, torch.stack([world[index].image for index in (2, 5, 6)]))
    assert torch.equal(labels, world[6].labels) and torch.equal(streets.labels(3), labels)
    with pytest.raises(ValueError, match="labelled: expected 4 or more"):
        Streets([1], labelled=(3,), before=(4,))
    with pytest.raises(IndexError):
        streets[4]


def test_samples_are_stored_once(tmp_path, monkeypatch):
    streets = Streets([3, 8], (32, 64), labelled=(2,), before=(1,))
    first = Stored(streets, tmp_path / "streets")
    monkeypatch.setattr(Streets, "__getitem__", None)
    second = Stored(streets, tmp_path / "streets")
    monkeypatch.undo()
    assert len(first) == len(second) == 2
    for index, sample in enumerate(streets):
        for stored in (first, second):
            assert all(torch.equal(a, b) for a, b in zip(sample, stored[index], strict=True))
            assert torch.equal(stored.labels(index), sample.labels)
    with pytest.raises(ValueError, match="folder: expected .* remove it, or take another"):
        Stored(Streets([3, 9], (32, 64), labelled=(2,)), tmp_path / "streets")
    with pytest.raises(IndexError):
        first[2]


# --- augmentation -----------------------------------------------------------------------------


def picture(height: int = 40, width: int = 60, frames: int = 1) -> Sample:
    """Each pixel has its own colour, and a label that follows from it."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([4 * x, 4 * y, x + y], -1).to(torch.uint8)
    return Sample(image.expand(frames, -1, -1, -1), (x // 8).to(torch.uint8))


@pytest.mark.parametrize(
    "augmentation",
    [
        augment.sfnet((32, 32)),
        augment.gsvnet((32, 48)),
        augment.twnet((24, 24)),
        augment.tmanet((30, 31)),
    ],
)
def test_the_papers_augmentations(augmentation):
    sample = picture(frames=2)
    results = [augmentation(sample, np.random.default_rng(seed)) for seed in range(8)]
    for frames, labels in results:
        assert frames.shape == (2, *augmentation.crop, 3) and frames.dtype == torch.uint8
        assert labels.shape == augmentation.crop and labels.dtype == torch.uint8
        assert frames.is_contiguous() and labels.is_contiguous()
        same = torch.equal(frames[0], frames[1])
        assert same or augmentation.each_frame
    again = augmentation(sample, np.random.default_rng(3))
    assert torch.equal(again.frames, results[3].frames)
    assert len({tuple(labels.flatten().tolist()) for _, labels in results}) > 4


def test_image_and_labels_stay_together():
    augmentation = Augmentation((20, 20), (1.0, 2.0))
    for seed in range(10):
        frames, labels = augmentation(picture(), np.random.default_rng(seed))
        x = (frames[0, ..., 0].float() / 4 + 0.01).long()
        inner = labels != 255
        near = (x // 8 == labels) | ((x + 1) // 8 == labels) | ((x - 1) // 8 == labels)
        assert near[inner].float().mean() > 0.98


def test_what_is_too_small_is_padded():
    frames, labels = Augmentation((50, 50), flip=0)(picture(), np.random.default_rng(0))
    assert labels.shape == (50, 50)
    around = labels == 255
    assert 0.15 < around.float().mean() < 0.25 and (frames[0][around] == 0).all()


def test_a_crop_contains_the_centre():
    sample = picture()
    sample.labels[:] = 0
    sample.labels[6:9, 48:51] = 1
    for seed in range(20):
        augmentation = Augmentation((16, 16), (0.5, 2.0))
        assert (augmentation(sample, np.random.default_rng(seed), (49, 7)).labels == 1).any()
    padded = Augmentation((64, 64), flip=0)(sample, np.random.default_rng(0), (49, 7))
    assert (padded.labels == 1).sum() == 9


def test_no_class_fills_a_crop():
    sample = picture()
    sample.labels[:] = 0
    sample.labels[:, 40:] = 1
    shares = []
    for most in (1.0, 0.75):
        augmentation = Augmentation((16, 16), most=most)
        parts = [augmentation(sample, np.random.default_rng(s)).labels for s in range(40)]
        shares.append(np.mean([max(p.flatten().bincount()) > 0.75 * 256 for p in parts]))
    assert shares[0] > 0.5 and shares[1] < 0.1


def test_scales():
    for scales, widths in (((0.5, 2.0), range(30, 121)), ((0.75, 1.0, 1.5), (45, 60, 90))):
        seen = {
            Augmentation(None, scales)(picture(), np.random.default_rng(seed)).labels.shape[1]
            for seed in range(20)
        }
        assert seen <= set(widths) and len(seen) > 2
    frames, labels = Augmentation(None, (1.5, 1.5), multiple=32)(
        picture(), np.random.default_rng(0)
    )
    assert labels.shape == (32, 64) and frames.shape[1:3] == (32, 64)


def test_scaling_is_pillows():
    sample = Sample(torch.randint(256, (1, 40, 60, 3), dtype=torch.uint8), picture().labels)
    for size in ((20, 31), (64, 99)):
        frames, labels = augment.resized(sample, size)
        image = Image.fromarray(sample.frames[0].numpy())
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        off = np.abs(frames[0].numpy() - expected)
        assert off.max() <= 2 and off.mean() < 0.1
        image = Image.fromarray(sample.labels.numpy())
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
        assert (labels.numpy() == expected).mean() > 0.97


def test_middle_square():
    frames, labels = augment.middle_square(picture(40, 60), 20)
    assert frames.shape == (1, 20, 20, 3) and labels.shape == (20, 20)
    assert labels[0, 0] == picture().labels[0, 10] and labels[0, -1] == picture().labels[0, 49]


def test_hue_is_that_of_hsv():
    colours = torch.rand(1, 3, 5, 7)
    colours[..., 0] = 0.3  # grey
    for share in (0.0, 0.2, -0.25, 0.5):
        turned = augment.turn_hue(colours, share)
        for y in range(5):
            for x in range(7):
                h, s, v = colorsys.rgb_to_hsv(*colours[0, :, y, x].tolist())
                expected = colorsys.hsv_to_rgb((h + share) % 1, s, v)
                assert turned[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_colours():
    images = torch.rand(2, 3, 8, 8) * 0.4 + 0.3
    rng = np.random.default_rng(0)
    assert torch.equal(ColourJitter()(images, rng), images)
    lighter = ColourJitter(brightness=0.5)(images, rng)
    torch.testing.assert_close(lighter / images, (lighter / images)[0, 0, 0, 0].expand_as(images))
    flatter = ColourJitter(contrast=0.5)(images, rng)
    means = augment.grey(images).mean((1, 2, 3)), augment.grey(flatter).mean((1, 2, 3))
    torch.testing.assert_close(*means)
    paler = ColourJitter(saturation=0.5)(images, rng)
    torch.testing.assert_close(augment.grey(paler), augment.grey(images))
    shifted = ColourJitter(offset=0.1)(images, rng) - images
    torch.testing.assert_close(shifted, shifted[0, 0, 0, 0].expand_as(images))
    seldom = ColourJitter(offset=0.1, probability=0.5)
    kept = [torch.equal(seldom(images, rng), images) for _ in range(20)]
    assert 3 < sum(kept) < 17


def test_blur_is_a_gaussian():
    images = torch.zeros(1, 3, 21, 21)
    images[..., 10, 10] = 1
    result = augment.blurred(images, 1.3)
    axis = torch.arange(-10, 11).float()
    expected = torch.exp(-0.5 * (axis / 1.3) ** 2)
    expected = torch.outer(expected, expected)
    torch.testing.assert_close(result[0, 0], expected / expected.sum(), atol=2e-4, rtol=0)
    torch.testing.assert_close(
        augment.blurred(torch.ones(1, 3, 5, 5), 0.15), torch.ones(1, 3, 5, 5)
    )


# --- sampling ---------------------------------------------------------------------------------


def test_an_epoch_is_every_sample_once_in_another_order():
    draws = Draws(20, seed=1)
    first = list(draws)
    assert sorted(draw.sample for draw in first) == list(range(20)) and first == list(draws)
    draws.epoch = 1
    assert [draw.sample for draw in draws] != [draw.sample for draw in first]
    assert len({draw.seed for draw in first}) == 20


def test_processes_share_an_epoch():
    parts = [list(Draws(11, seed=2, rank=rank, world=2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [5, 5]
    together = list(Draws(11, seed=2))
    assert [draw for pair in zip(*parts, strict=True) for draw in pair] == together[:10]


def test_classes_are_sampled_alike():
    places = {0: [(5, 1, 1), (6, 2, 2)], 1: [(7, k, k) for k in range(50)], 2: []}
    draws = list(Draws(60, seed=0, centroids=places, share=0.5))
    assert len(draws) == 60
    centred = [draw for draw in draws if draw.centre is not None]
    assert sum(draw.sample in (5, 6) for draw in centred) == 10
    assert sum(draw.sample == 7 for draw in centred) == 10
    assert len({draw.centre for draw in centred if draw.sample == 7}) == 10
    assert len({draw.sample for draw in draws if draw.centre is None}) == 40


def test_centroids():
    labels = torch.zeros(5, 9, dtype=torch.uint8)
    labels[1:4, 5:8] = 3
    labels[0, 8] = 4  # in no whole tile
    labels[4] = 255
    assert centroids(labels, 4, 19) == {0: [(1, 1), (4, 0)], 3: [(6, 2)]}


def test_centroids_are_cached(roots, tmp_path):
    union = uds(roots)
    found = find_centroids(union, tile=4, cache=tmp_path / "centroids.json")
    assert {place[0] for place in found[12]} == {1} and not found[2]
    union.labels = None  # type: ignore[method-assign]
    assert find_centroids(union, tile=4, cache=tmp_path / "centroids.json") == found
    with pytest.raises(ValueError, match="cache: expected .* remove it"):
        find_centroids(union, tile=8, cache=tmp_path / "centroids.json")


def test_loading_does_not_depend_on_the_number_of_processes():
    streets = Streets([1, 2, 3], (32, 64), labelled=(2,), before=(1,))
    found = find_centroids(streets, tile=32)
    batches = []
    for workers in (0, 2):
        draws = Draws(len(streets), 4, centroids=found)
        loader = DataLoader(
            Augmented(streets, augment.sfnet((32, 32))),
            batch_size=2,
            sampler=draws,
            num_workers=workers,
        )
        batches.append([batch for batch in loader])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.labels, other.labels)
    assert Augmented(streets, augment.twnet(None))[Draw(0, 1)].frames.shape[0] == 2


@pytest.mark.parametrize("module", [classes, sampling])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and not result.failed


# --- clips of one's own ---------------------------------------------------------------------------


def test_clips_of_ones_own(tmp_path) -> None:
    for clip, labelled in (("a", (2, 3)), ("b", None)):
        for number in range(4):  # 8 to 11: in the order of numbers, not of letters
            plain(tmp_path / "train" / clip / "frames" / f"{number + 8}.png", number)
        for number in labelled or ():
            save(tmp_path / "train" / clip / "labels" / f"{number + 8}.png", np.full(SIZE, number))
    found = datasets.clips(tmp_path, "train", before=(2, 1))
    assert len(found) == 4  # the labelled ones of a; of b those with two before them
    frames, labels = found[1]
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 3] and labels.unique().tolist() == [3]
    frames, labels = found[3]
    assert frames[:, 0, 0, 0].tolist() == [1, 2, 3] and labels.unique().tolist() == [255]
    assert len(datasets.clips(tmp_path)) == 6
    with pytest.raises(Missing, match="clips: expected .*val"):
        datasets.clips(tmp_path, "val")
    with pytest.raises(Missing, match="found none that is used"):
        datasets.clips(tmp_path, before=(4,))
