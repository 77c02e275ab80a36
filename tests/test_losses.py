"""Losses against the papers' formulas, and what evaluation counts."""

from __future__ import annotations

import doctest
from typing import Any, NamedTuple

import pytest

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("vsegops.models.training", reason="the models are not installed")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsegops.models import Motion, VideoModel, create_model
from vsegops.models.training import evaluate, losses
from vsegops.models.training.classes import CATEGORIES
from vsegops.models.training.datasets import Sample
from vsegops.models.training.evaluate import Clip, coded, evaluate_images, evaluate_video
from vsegops.models.training.streets import Streets
from vsegops.nn import ConfusionMatrix

SIZE = (24, 40)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def logits(height: int = 6, width: int = 10, classes: int = 19) -> Tensor:
    return (3 * torch.randn(2, classes, height, width)).requires_grad_()


def targets(classes: int = 19) -> Tensor:
    labels = torch.randint(classes, (2, *SIZE))
    return labels.masked_fill(torch.rand(labels.shape) < 0.1, 255)


def enlarged(x: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, SIZE, mode="bilinear", align_corners=align_corners)


def close(a: Tensor, b: Tensor, *inputs: Tensor) -> None:
    """The same value, and the same gradients."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(a, inputs), torch.autograd.grad(b, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


# --- SFNet, TMANet ----------------------------------------------------------------------------


def hardest(x: Tensor, labels: Tensor, kept: int) -> Tensor:
    """Step by step as published: threshold 0.7, `kept` at least, over the whole batch."""
    x = enlarged(x, True)
    valid = labels != 255
    safe = labels.where(valid, 0)
    p = x.softmax(1).gather(1, safe[:, None])[:, 0].where(valid, 1.0)
    losses_ = F.cross_entropy(x, labels, ignore_index=255, reduction="none")
    if kept <= valid.sum():
        t = max(0.7, p.flatten().sort().values[kept - 1].item())
        valid = valid & (p <= t)
    return losses_[valid].mean()


@pytest.mark.parametrize("kept", [300, 1700, 10_000])
def test_sfnet(kept):
    main, first, second = logits(), logits(3, 5), logits(12, 20)
    labels = targets()
    loss = losses.sfnet(min_kept=kept)
    close(loss(main, labels), hardest(main, labels, kept), main)
    expected = sum(hardest(x, labels, kept) for x in (main, first, second))
    close(loss((main, [first, second]), labels), expected, main, first, second)
    half = losses.sfnet(min_kept=kept, auxiliary=0.5)((main, [first]), labels)
    close(half, hardest(main, labels, kept) + 0.5 * hardest(first, labels, kept), main, first)


def test_sfnets_paper_keeps_a_tenth():
    main, labels = logits(), targets()
    each = F.cross_entropy(enlarged(main, True), labels, ignore_index=255, reduction="none")
    count = -(-int((labels != 255).sum()) // 10)
    close(
        losses.sfnet(published=False)(main, labels), each.flatten().topk(count).values.mean(), main
    )


@pytest.mark.parametrize("align_corners", [False, True])
def test_tmanet_counts_ignored_pixels(align_corners):
    main, other, labels = logits(), logits(), targets()

    def mean(x: Tensor) -> Tensor:
        x = enlarged(x, align_corners)
        return F.cross_entropy(x, labels, ignore_index=255, reduction="none").mean()

    loss = losses.tmanet(align_corners=align_corners)
    close(loss((main, [other]), labels), mean(main) + 0.4 * mean(other), main, other)


# --- TWNet ------------------------------------------------------------------------------------


class Carried(NamedTuple):
    features: Tensor


def test_twnet():
    main, labels = logits(), targets()
    features, wanted = (torch.randn(2, 8, 3, 5, requires_grad=True) for _ in range(2))
    classified = F.cross_entropy(enlarged(main, False), labels, ignore_index=255)
    expected = classified + 7 * (features - wanted.detach()).square().mean()
    result = losses.TWNetLoss(7)(main, Carried(features), labels, Carried(wanted))
    close(result, expected, main, features)
    assert torch.autograd.grad(result, wanted, allow_unused=True) == (None,)
    assert losses.TWNetLoss().consistency == 10


def test_twnet_learns_to_be_consistent():
    """The second step on a moving frame: both parts of the loss fall, the key frames' network
    stays as it is."""
    model = create_model("twnet_mobilenetv1")
    model.keyframe.eval()
    model.begin_second_step()
    before, frame = torch.randn(1, 3, 64, 96), torch.randn(1, 3, 64, 96)
    motion = Motion(
        torch.randn(1, 2, 4, 6),
        torch.ones(1, 4, 6, dtype=torch.bool),
        50 * torch.randn(1, 3, 64, 96),
    )
    labels = torch.randint(19, (1, 64, 96))
    frozen = {name: x.clone() for name, x in model.keyframe.state_dict().items()}
    trained = [x for x in model.parameters() if x.requires_grad]
    optimiser = torch.optim.Adam(trained, 1e-3)
    loss, values = losses.TWNetLoss(), []
    with torch.no_grad():
        _, state = model.start(before)
        _, wanted = model.start(frame)
    for _ in range(6):
        optimiser.zero_grad()
        output, carried = model.step(frame, state, motion)
        value = loss(output, carried, labels, wanted)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert all(torch.equal(x, frozen[name]) for name, x in model.keyframe.state_dict().items())


# --- GSVNet, distillation ---------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, losses.CITYSCAPES_WEIGHTS])
def test_gsvnet(weight):
    main, teacher, labels = logits(), logits(), targets()
    weights = None if weight is None else torch.tensor(weight)
    x, y = enlarged(main, True), enlarged(teacher, True).detach()
    entropy = F.cross_entropy(x, labels, weights, ignore_index=255)
    p = y.softmax(1)
    divergence = (p * (p.log() - x.log_softmax(1))).mean()  # of all elements
    loss = losses.GSVNetLoss(weight=weight)
    close(loss(main, labels, teacher), 10 * (entropy + 10 * divergence), main)
    plain = F.cross_entropy(x, labels, ignore_index=255)
    close(losses.GSVNetLoss("paper")(main, labels), plain, main)
    with pytest.raises(ValueError, match="teacher: expected its logits"):
        loss(main, labels)


def test_weights_are_of_all_classes():
    assert len(losses.CITYSCAPES_WEIGHTS) == 19 and len(losses.CAMVID_WEIGHTS) == 11


def batches(module: nn.Module) -> int:
    """How often the statistics of its first normalisation were updated."""
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.num_batches_tracked is not None
    return int(norm.num_batches_tracked)


def test_unrolled_interval():
    model = create_model("gsvnet_swiftnet_resnet18").train()
    frames = list(torch.randn(4, 1, 3, 64, 128).unbind())
    output, teacher = losses.unrolled(model, frames)
    assert output.shape == teacher.shape == (1, 19, 8, 16)
    assert batches(model.grm) == 2 and batches(model.flow) == 3 and batches(model.keyframe) == 0
    assert model.grm.training
    output.square().mean().backward()
    assert next(model.flow.parameters()).grad is not None
    assert all(x.grad is None for x in model.keyframe.parameters())
    # Without statistics of batches, unrolling is what the model does frame after frame.
    model.eval()
    output, _ = losses.unrolled(model, frames)
    with torch.no_grad():
        expected, state = model.start(frames[0])
        for frame in frames[1:]:
            expected, state = model.step(frame, state)
    torch.testing.assert_close(output.detach(), expected)
    with pytest.raises(ValueError, match="frames: expected at least two"):
        losses.unrolled(model, frames[:1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature):
    student, teacher = logits(), logits(12, 20)
    x, y = (enlarged(v, False) / temperature for v in (student, teacher))
    p = y.softmax(1).detach()
    expected = (p * (p.log() - x.log_softmax(1))).sum(1).mean() * temperature**2
    result = losses.distillation(student, teacher, SIZE, temperature=temperature)
    close(result, expected, student)
    assert not losses.distillation(student, student, SIZE).item() > 1e-6


def test_an_onnx_file_teaches(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shape = ["N", 3, "H", "W"]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"
    ]
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "teacher", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "teacher.onnx"
    )
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(losses.OnnxTeacher(tmp_path / "teacher.onnx")(images), -images)
    halved = losses.OnnxTeacher(tmp_path / "teacher.onnx", lambda x: x / 2)
    assert torch.equal(halved(images), -images / 2)


# --- evaluation -------------------------------------------------------------------------------


def test_categories_are_counted_as_merged_labels():
    truth, prediction = targets(), torch.randint(19, (2, *SIZE))
    matrix = ConfusionMatrix(19)
    matrix.update(prediction, truth)
    table = torch.full((256,), 255)
    for number, members in enumerate(CATEGORIES.values()):
        table[list(members)] = number
    merged = ConfusionMatrix(7)
    merged.update(table[prediction], table[truth])
    assert list(evaluate.category_iou(matrix).values()) == pytest.approx(merged.iou().tolist())
    with pytest.raises(ValueError, match="categories: expected each class in one of them"):
        evaluate.category_iou(matrix, {"flat": (0, 1)})


def test_images():
    model = create_model("sfnet_lite_stdc1").eval()
    streets = Streets([1, 2], (64, 128), labelled=(0,))
    matrix = evaluate_images(model, streets)
    expected = ConfusionMatrix(19)
    for frames, labels in streets:
        expected.update(model.predict(model.preprocess(frames)), labels[None])
    assert torch.equal(matrix.counts, expected.counts)
    assert matrix.counts.sum() == sum((labels != 255).sum() for _, labels in streets)


class Ageing(VideoModel):
    """Right on key frames; with each step one more row of its labels is wrong."""

    num_classes, stride, align_corners = 2, 1, False

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.motions: list[Any] = []

    def start(self, frame: Tensor) -> tuple[Tensor, Any]:
        return self._said(frame, 0), Carried(torch.zeros(1))

    def step(self, frame: Tensor, state: Any, motion: Any = None) -> tuple[Tensor, Any]:
        self.motions.append(motion)
        age = state.features + 1
        return self._said(frame, int(age)), Carried(age)

    def _said(self, frame: Tensor, wrong: int) -> Tensor:
        right = torch.ones(frame.shape[2:])
        right[:wrong] = 0
        return torch.stack([1 - right, right])[None]


def ageing_clip(frames: int, motions: Any = None) -> Clip:
    images = torch.zeros(frames, 8, 4, 3, dtype=torch.uint8)
    return Clip(images, torch.ones(8, 4, dtype=torch.uint8), motions)


def test_distances():
    result = evaluate_video(Ageing(), [ageing_clip(5), ageing_clip(7)], 5)
    # One class occurs in the labels, of which (8 - d) / 8 is found; the other is never right.
    expected = [1.0, *((8 - d) / 8 / 2 for d in range(1, 5))]
    assert result.curve() == pytest.approx(expected)
    assert result.minimum() == result.curve()[4] and result.minimum(3) == result.curve()[2]
    assert result.average() == pytest.approx(30 / 40 / 2)
    assert result.average(1) == 1.0 and result.average(2) == pytest.approx(15 / 16 / 2)
    assert [m.counts.sum().item() for m in result.matrices] == [64] * 5
    with pytest.raises(ValueError, match="clips: expected at least 5 frames, got int 4"):
        evaluate_video(Ageing(), [ageing_clip(4)], 5)


def test_one_distance_is_drawn_for_each_clip():
    clips = [ageing_clip(4)] * 40
    counts = [m.counts.sum().item() for m in evaluate_video(Ageing(), clips, 4, draw=1).matrices]
    assert sum(counts) == 40 * 32 and all(count > 3 * 32 for count in counts)
    again = [m.counts.sum().item() for m in evaluate_video(Ageing(), clips, 4, draw=1).matrices]
    assert again == counts


def test_each_step_gets_its_own_motion():
    motions = [Motion(*(torch.full((1,), float(number)) for _ in range(3))) for number in range(4)]
    model = Ageing()
    evaluate_video(model, [ageing_clip(4, motions)], 3)
    assert [motion.flow.item() for motion in model.motions] == [3, 2, 3]


@pytest.mark.parametrize("name", ["gsvnet_swiftnet_resnet18", "twnet_mobilenetv1"])
def test_video_models_on_the_generated_world(name):
    model = create_model(name).eval()
    (sample,) = Streets([1], (64, 128), labelled=(3,), before=(3, 2, 1))
    if model.motion_stride is None:
        clip = Clip(sample.frames, sample.labels)
    else:
        clip = coded(sample, model.motion_stride)
        assert clip.frames.shape == sample.frames.shape and len(clip.motions) == 4
        assert (clip.frames.float() - sample.frames.float()).abs().mean() < 12
        assert [bool(motion.mask.any()) for motion in clip.motions] == [False, True, True, True]
    result = evaluate_video(model, [clip], 3)
    valid = (sample.labels != 255).sum()
    assert [matrix.counts.sum() for matrix in result.matrices] == [valid] * 3


def test_a_sample_of_one_frame_is_a_key_frame():
    frames = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    clip = coded(Sample(frames, frames[0, ..., 0]), 8)
    assert clip.frames.shape == frames.shape and not clip.motions[0].mask.any()


@pytest.mark.parametrize("module", [losses, evaluate])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and not result.failed
