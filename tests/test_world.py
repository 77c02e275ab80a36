"""The generated world: its labels and its motion are what the pictures show."""

from __future__ import annotations

import pytest

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("vsegops.models.training", reason="the models are not installed")

import torch
from torch import Tensor

import vsegops
from vsegops.models.training.classes import CITYSCAPES as CLASSES
from vsegops.models.training.world import World, WorldFrame, write_clip
from vsegops.models.training.world.street import block
from vsegops.models.video.codec import CodecReader

SIZE = (128, 256)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def share(world: World, index: int, name: str) -> float:
    return (world[index].labels == CLASSES.index(name)).float().mean().item()


def source(frame: WorldFrame) -> tuple[Tensor, Tensor]:
    """Where each pixel came from, x and y."""
    height, width = frame.labels.shape
    return torch.arange(width) + frame.flow[0], torch.arange(height)[:, None] + frame.flow[1]


def taken(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    height, width = image.shape
    return image[y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)]


def smooth(before: WorldFrame, frame: WorldFrame) -> Tensor:
    """Where all four pixels that a bilinear sample reads show the same flat part."""
    x, y = source(frame)
    inside = frame.valid.clone()
    for dy in (0, 1):
        for dx in (0, 1):
            inside &= taken(before.surface, y.floor() + dy, x.floor() + dx) == frame.surface
    return inside


def psnr(a: Tensor, b: Tensor) -> float:
    return (-10 * ((a - b) / 255).square().mean().log10()).item()


# --- frames -----------------------------------------------------------------------------------


def test_a_frame_is_a_function_of_seed_size_and_index():
    first, other = World(3, SIZE), World(3, SIZE)
    for index in (4, 5, 2):  # in any order
        for a, b in zip(first[index], other[index], strict=True):
            assert torch.equal(a, b)
    for a, b in zip(first[5], World(3, SIZE)[5], strict=True):
        assert torch.equal(a, b)


def test_seeds_are_streets():
    labels = [World(seed, SIZE)[0].labels for seed in range(4)]
    for number, one in enumerate(labels):
        for other in labels[:number]:
            assert (one != other).float().mean() > 0.1


@pytest.mark.parametrize("size", [(64, 128), (97, 131)])
def test_shapes_and_types(size):
    frame = World(1, size, length=2)[1]
    assert (frame.image.shape, frame.image.dtype) == ((*size, 3), torch.uint8)
    assert (frame.labels.shape, frame.labels.dtype) == (size, torch.uint8)
    assert (frame.flow.shape, frame.flow.dtype) == ((2, *size), torch.float32)
    assert (frame.valid.shape, frame.valid.dtype) == (size, torch.bool)
    assert (frame.surface.shape, frame.surface.dtype) == (size, torch.int64)
    assert frame.flow.isfinite().all()


def test_a_world_is_a_sequence():
    world = World(2, (32, 64), length=3)
    assert len(world) == 3 and len(list(world)) == 3
    with pytest.raises(IndexError, match="index: expected 0 to 2, got 3"):
        world[3]


@pytest.mark.parametrize(
    "arguments, said",
    [({"size": (8, 64)}, "size: expected a height"), ({"length": 0}, "length: expected at least")],
)
def test_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        World(0, **arguments)


def test_every_class_occurs():
    seen = torch.zeros(256, dtype=torch.int64)
    for seed in range(6):
        world = World(seed, SIZE, length=46)
        for index in (0, 15, 45):
            seen += torch.bincount(world[index].labels.flatten().long(), minlength=256)
    assert seen.nonzero().flatten().tolist() == [*range(19), 255]
    parts = seen / seen.sum()
    for name, least in (("road", 0.2), ("building", 0.1), ("sky", 0.05), ("car", 0.03)):
        assert parts[CLASSES.index(name)] > least, name
    for name in ("pole", "person", "rider", "bicycle", "traffic_sign", "traffic_light"):
        assert parts[CLASSES.index(name)] > 0.001, name


def test_poles_are_thin():
    labels = World(0, SIZE)[0].labels == CLASSES.index("pole")
    runs = labels[:, 1:] & ~labels[:, :-1]
    assert labels.sum() / runs.sum() < 4  # pixels across


def test_light_changes():
    world = World(0, SIZE, length=60)
    sky = [frame.image[:12][frame.labels[:12] == 10] for frame in (world[0], world[20], world[40])]
    levels = [part.float().mean().item() for part in sky]
    assert max(levels) - min(levels) > 5


def test_a_block_of_the_street_does_not_depend_on_where_one_stands():
    a, b = block(5, 3), block(5, 3)
    assert (a.frame == b.frame).all() and (a.key == b.key).all()
    assert len(set(a.key.tolist())) == len(a)
    assert not set(a.key.tolist()) & set(block(5, 4).key.tolist())


# --- motion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_flow_leads_to_the_same_picture(seed):
    world = World(seed, (192, 384), length=12)
    before, frame = world[10], world[11]
    here = smooth(before, frame)
    assert here.float().mean() > 0.75
    images = [f.image.permute(2, 0, 1).float() for f in (before, frame)]
    warped = vsegops.flow_warp(images[0][None], frame.flow[None], padding_mode="border")[0]
    right = psnr(warped[:, here], images[1][:, here])
    wrong = vsegops.flow_warp(images[0][None], -frame.flow[None], padding_mode="border")[0]
    assert right > 37
    assert right > psnr(images[0][:, here], images[1][:, here]) + 12
    assert right > psnr(wrong[:, here], images[1][:, here]) + 12


@pytest.mark.parametrize("seed", range(3))
def test_the_flow_leads_to_the_same_labels(seed):
    world = World(seed, SIZE, length=12)
    before, frame = world[10], world[11]
    x, y = source(frame)
    former = taken(before.labels, y.round(), x.round())
    assert frame.valid.float().mean() > 0.85
    assert (former == frame.labels)[frame.valid].float().mean() > 0.999
    # What is not valid has come into sight: there the frame before mostly shows something else.
    hidden = ~frame.valid & (x >= 0) & (x < SIZE[1] - 1) & (y >= 0) & (y < SIZE[0] - 1)
    assert hidden.any()
    assert (taken(before.surface, y.round(), x.round()) == frame.surface)[
        hidden
    ].float().mean() < 0.1


def test_vehicles_move_on_their_own():
    """One ahead keeps its place, while the street passes by."""
    frame = World(5, (192, 384), length=30)[20]
    assert (frame.flow[1][(frame.labels == 0) & frame.valid] < 0.5).float().mean() > 0.9
    ahead = frame.flow[:, frame.labels == CLASSES.index("truck")].norm(dim=0)
    near = frame.flow[:, 150:][:, frame.labels[150:] == 0].norm(dim=0)
    assert ahead.median() < 0.5 * near.median()


def test_figures_deform():
    """No affine motion explains a rider's flow, as one explains that of the back of a truck."""
    frame = World(5, (192, 384), length=30)[20]
    left = {}
    for name, columns in (("truck", slice(172, 216)), ("rider", slice(230, 270))):
        part = torch.zeros_like(frame.valid)
        part[:, columns] = frame.labels[:, columns] == CLASSES.index(name)
        y, x = part.nonzero().double().T
        assert len(y) > 300
        place = torch.stack([x, y, torch.ones_like(x)], 1)
        flow = frame.flow[:, part].double().T
        fit = torch.linalg.lstsq(place, flow).solution
        left[name] = (flow - place @ fit).square().mean().sqrt().item()
    assert left["rider"] > 0.15 > 5 * left["truck"]


def test_limbs_swing():
    from vsegops.models.training.world.actors import figure, posed, ride, stride

    phases = torch.linspace(0, 6, 25).numpy()
    for limbs in (stride(phases), ride(phases)):
        lengths = ((limbs[:, :, 1] - limbs[:, :, 0]) ** 2).sum(-1) ** 0.5
        assert limbs.shape == (25, 10, 2, 3)
        assert (lengths.std(0) < 0.005).all()  # bones keep their lengths
        assert limbs[:, 4:6, 1].std(0).max() > 0.1  # feet do not keep their place
    parts = posed(figure("walker", 1), stride(phases)[3])
    assert len(parts) == 10 and (parts.width > 0).all()


def test_the_first_frame_has_a_past_too():
    frame = World(0, SIZE)[0]
    assert frame.valid.float().mean() > 0.85
    assert frame.flow.norm(dim=0).mean() > 0.5


# --- a video of it ----------------------------------------------------------------------------


def test_an_encoder_finds_the_motion(tmp_path):
    size, count = (160, 320), 5
    world = World(2, size, length=count)
    write_clip(world, tmp_path / "street.mp4")
    with CodecReader(tmp_path / "street.mp4") as reader:
        frames = list(reader)
    assert [frame.is_key for frame in frames] == [True, False, False, False, False]
    for coded, truth in zip(frames, world, strict=True):
        picture = coded.image.permute(1, 2, 0)
        assert psnr(picture.float(), truth.image.float()) > 28
        if coded.is_key:
            continue
        known = coded.mask & truth.valid
        assert known.float().mean() > 0.85
        off = (coded.flow - truth.flow).norm(dim=0)[known]
        length = truth.flow.norm(dim=0)[known]
        assert (off < 2).float().mean() > 0.75
        assert off.median() < 0.5 * length.median()


def test_a_clip_begins_with_the_frames_asked_for(tmp_path):
    world = World(1, (64, 96), length=9)
    write_clip(world, tmp_path / "street.mp4", 4, gop=2)
    with CodecReader(tmp_path / "street.mp4") as reader:
        assert [frame.is_key for frame in reader] == [True, False, True, False]
