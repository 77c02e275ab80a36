"""TWNet: the paper's costs and equations, and what it does as a module."""

from __future__ import annotations

from pathlib import Path

import fill
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, assert_close
from torch import Tensor, nn

from vsegops.models import Motion, create_model, load_upstream, summary
from vsegops.models.backbones import ResNet
from vsegops.models.twnet import WIDTHS, State, TWNet

NAMES = ("twnet_mobilenetv1", "twnet_mobilenetv2", "twnet_resnet18")
CORRECTIONS = {
    "warp": {"cfr": False},
    "cfr": {"rga": False},
    "cfr and rga": {},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def twnet(backbone: str = "resnet18", **options) -> TWNet:
    """With weights that are functions of their names; residual branches, and flows, are weak."""
    model = create_model(f"twnet_{backbone}", **options).eval()
    state = {key: fill.parameter(key, *x.shape) for key, x in model.state_dict().items()}
    for key in state:
        if key.endswith("bn2.weight"):
            state[key] *= 0.4
    model.load_state_dict(state)
    return model


def video(count: int, n: int = 1, height: int = 64, width: int = 96) -> Tensor:
    return fill.features("video", count, n, 3, height, width, bound=1.0)


def motion(model: TWNet, n: int = 1, height: int = 64, width: int = 96, name: str = "a") -> Motion:
    size = (-(-height // model.motion_stride), -(-width // model.motion_stride))
    flow = fill.features(f"flow {name}", n, 2, *size, bound=2.0)
    residual = fill.features(f"residual {name}", n, 3, height, width, bound=255.0)
    return Motion(flow, torch.ones(n, *size, dtype=torch.bool), residual)


def still(model: TWNet, height: int, width: int) -> Motion:
    return Motion(*(torch.zeros_like(x) for x in motion(model, 1, height, width)))


# --- the paper ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer, width", [(1, 128), (2, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_corrections_cost_what_the_paper_says(name, layer, width):
    """Table 3: 2.42 G for CFR, 0.0012 G and 0.0029 G (cut, not rounded) for RGA, at 1024 x 2048."""

    def costs(**options) -> tuple[int, int]:
        step = summary(name, (1024, 2048), step=True, layer=layer, **options).total
        return step.multiply_adds, step.parameters

    plain, rectified, attended = (costs(**options) for options in CORRECTIONS.values())
    positions = (1024 >> (5 - layer)) * (2048 >> (5 - layer))
    assert rectified[0] - plain[0] == 9 * 2 * width**2 * positions == 2_415_919_104
    assert rectified[1] - plain[1] == 18 * width**2 + width
    attention = attended[0] - rectified[0] + width * positions  # and the product
    assert attention // 100_000 == {1: 12, 2: 29}[layer]
    assert attended[1] - rectified[1] == 28


@pytest.mark.parametrize("name", NAMES)
def test_fewer_layers_cost_less(name):
    """Tables 1 and 8: speeds rise from the whole network to layer 3."""
    whole = summary(name, (1024, 2048)).total.multiply_adds
    steps = [
        summary(name, (1024, 2048), step=True, layer=layer).total.multiply_adds
        for layer in (1, 2, 3)
    ]
    assert [whole, *steps] == sorted([whole, *steps], reverse=True)
    assert 1.5 < whole / steps[0] < whole / steps[1] < whole / steps[2]


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2", "resnet18"])
@torch.no_grad()
def test_a_still_video_is_segmented_like_its_first_frame(name, layer):
    """Where nothing moves, and heads and tails have the key frames' weights (no second step)."""
    model = create_model(f"twnet_{name}", layer=layer, cfr=False).eval()
    for size in ((64, 96), (37, 83)):
        frame = video(1, 1, *size)[0]
        expected, state = model.start(frame)
        for _ in range(2):
            logits, state = model.step(frame, state, still(model, *size))
            assert_close(logits, expected, error=1e-6)


@pytest.mark.parametrize("options", CORRECTIONS.values(), ids=CORRECTIONS)
@pytest.mark.parametrize("layer", [1, 2, 3])
@torch.no_grad()
def test_steps_follow_the_equations(layer, options):
    if layer == 3 and options != {"cfr": False}:
        pytest.skip("layer 3 has nothing to rectify with")
    model, frames = twnet(layer=layer, **options), video(3)
    encoder, correction = model.keyframe.encoder, model.correction
    logits, state = model.start(frames[0])
    for number in (1, 2):
        came = motion(model, name=str(number))
        # (4): I^[p] = I[p - Mv], Mv being the negative of our flow; borders are repeated.
        h, w = came.flow.shape[2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((x + came.flow[:, 0], y + came.flow[:, 1]), -1)
        grid = 2 * grid / torch.tensor([w - 1, h - 1]) - 1
        warped = F.grid_sample(state.features, grid, padding_mode="border", align_corners=True)
        # The current frame, by layers that are not the key frames'.
        levels, level = [], frames[number]
        assert len(model.head) == len(model.tail) == 3 - layer
        for stage in model.head:
            level = stage(level)
            levels.insert(0, level)
        spatial = [rung.project(x) for rung, x in zip(model.tail, levels, strict=True)]
        features = warped
        if correction is not None:
            # (5), (6), (7).
            near = F.avg_pool2d(spatial[0], 2)
            weights = 1.0
            if correction.attend is not None:
                difference = (
                    came.residual / 255 / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
                )
                difference = F.interpolate(difference, (h, w), mode="bilinear")
                weights = torch.sigmoid(correction.attend(difference))
            features = warped + weights * correction.rectify(torch.cat((warped, near), 1))
        expected = features
        for rung, lateral in zip(model.tail, spatial, strict=True):
            larger = F.interpolate(expected, lateral.shape[2:], mode="bilinear")
            expected = rung.fuse(larger + lateral)
        logits, state = model.step(frames[number], state, came)
        assert_close(state.features, features, error=1e-5)
        assert_close(logits, model.keyframe.classifier(expected), error=1e-4)
    assert isinstance(encoder, ResNet) and state.features.shape == (1, WIDTHS[layer], h, w)


def test_the_second_step_of_training():
    """The key frames' network is trained first; then it is copied, frozen, and compared with."""
    model = create_model("twnet_mobilenetv2", 5)
    model.keyframe(video(2, 2)[0]).square().mean().backward()
    assert all(x.grad is not None for x in model.keyframe.parameters())
    with torch.no_grad():
        for x in model.keyframe.parameters():
            x.add_(0.01)
    model.begin_second_step()
    for ours, theirs in zip(model.head, model.keyframe.encoder.steps(), strict=False):
        for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(x, y)
    model.train()
    assert not model.keyframe.training and model.head.training
    model.zero_grad()
    frames = video(2, 2)
    _, state = model.start(frames[0])
    logits, corrected = model.step(frames[1], state, motion(model, 2))
    _, own = model.start(frames[1])
    consistency = F.mse_loss(corrected.features, own.features)
    (logits.square().mean() + 10 * consistency).backward()
    trained = {name for name, x in model.named_parameters() if x.grad is not None}
    expected = {n for n, _ in model.named_parameters() if n.startswith(("head", "tail", "corr"))}
    assert trained == expected


@torch.no_grad()
def test_with_motion_of_a_codec(tmp_path: Path):
    """A picture that moves to the right by a cell each frame: so do the features."""
    from test_codec import encode  # skips where there is no PyAV

    from vsegops.models.video import CodecReader

    clip = encode(tmp_path / "clip.avi", frames=4, size=(144, 176), shift=(8.0, 0.0))
    model = twnet(layer=2, cfr=False)
    kinds = []
    with CodecReader(clip, stride=model.motion_stride) as reader:
        for coded in reader:
            frame = model.preprocess(coded.image.permute(1, 2, 0)[None])
            kinds.append(coded.is_key)
            if coded.is_key:
                logits, state = model.start(frame)
                continue
            before = state.features
            logits, state = model.step(frame, state, Motion.of(coded))
            inside = state.features[..., 3:-2, 4:-3] - before[..., 3:-2, 3:-4]
            assert (inside.abs().amax(1) < 1e-4).float().mean() > 0.9
    assert kinds == [True, False, False, False] and logits.shape == (1, 19, 36, 44)


# --- as a module -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("size", [(65, 97), (33, 31), (1, 1), (160, 7)])
@torch.no_grad()
def test_any_size(size, layer):
    model, frames = twnet("mobilenetv2", layer=layer), video(2, 1, *size)
    first, state = model.start(frames[0])
    for logits in (first, model.step(frames[1], state, motion(model, 1, *size))[0]):
        assert logits.shape == (1, 19, *(-(-length // 4) for length in size))
        assert logits.isfinite().all()
    assert model.labels(logits, size).shape == (1, *size)


@pytest.mark.parametrize("backbone", ["mobilenetv1", "mobilenetv2", "resnet18"])
@torch.no_grad()
def test_batches_layouts_and_precisions_agree(backbone):
    model, frames = twnet(backbone), video(2, 2)
    came = motion(model, 2)
    _, state = model.start(frames[0])
    expected = model.step(frames[1], state, came)[0]
    for i in range(2):
        one = slice(i, i + 1)
        alone = model.start(frames[0][one])[1]
        assert_close(alone.features, state.features[one], error=1e-5)
        part = Motion(*(x[one] for x in came))
        assert_close(model.step(frames[1][one], alone, part)[0], expected[one], error=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.step(frames[1], model.start(frames[0])[1], came)[0]
    assert rounded.dtype == torch.bfloat16
    assert (rounded - expected).square().mean() < 0.05**2 * expected.square().mean()
    last = model.to(memory_format=torch.channels_last)
    frames = frames.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 2))
    actual, after = last.step(frames[1], last.start(frames[0])[1], came)
    assert after.features.is_contiguous(memory_format=torch.channels_last)
    assert_close(actual, expected, error=1e-4)
    double = twnet(backbone).double()
    frames = video(2, 2).double()
    actual = double.step(frames[1], double.start(frames[0])[1], came)[0]
    assert_close(actual.float(), expected, error=1e-4)


@torch.no_grad()
def test_operators_or_none_compiled_and_exported():
    model, frames = twnet(), video(2)
    came = motion(model)
    _, state = model.start(frames[0])
    with OperatorCalls() as calls:
        expected = model.step(frames[1], state, came)[0]
    assert [name.split("::")[1] for name in calls.names] == ["flow_warp", "warp_correct"]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(frames[1], state, came)[0], expected, error=1e-4)
    model.use_operators(False)
    with OperatorCalls() as calls:
        assert_close(model.step(frames[1], state, came)[0], expected, error=1e-4)
    assert calls.names == []


def test_weights_load(tmp_path: Path):
    model = twnet()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "twnet.pth")
    again = create_model("twnet_resnet18", weights=tmp_path / "twnet.pth")
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in model.state_dict().items())
    classifier = {**ResNet(18).state_dict(), "fc.weight": torch.zeros(1000, 512)}
    started = create_model("twnet_resnet18", backbone_weights=classifier)
    assert torch.equal(started.keyframe.encoder.conv1.weight, classifier["conv1.weight"])
    assert torch.equal(started.head[0][0][0].weight, classifier["conv1.weight"])
    state = model.state_dict() | {"keyframe.encoder.fc.weight": torch.zeros(1000, 512)}
    assert load_upstream(model, state).unused == ("keyframe.encoder.fc.weight",)


def test_what_cannot_work_is_refused():
    model, frame = twnet(), video(1)[0]
    _, state = model.start(frame)
    came = motion(model)
    with pytest.raises(ValueError, match="motion: expected a Motion, got NoneType"):
        model.step(frame, state)
    with pytest.raises(ValueError, match=r"motion.flow: expected a \[1, 2, 4, 6\] tensor"):
        model.step(frame, state, came._replace(flow=torch.zeros(1, 2, 8, 12)))
    with pytest.raises(ValueError, match=r"motion.residual: expected a \[1, 3, 64, 96\] tensor"):
        model.step(frame, state, came._replace(residual=torch.zeros(1, 3, 4, 6)))
    with pytest.raises(ValueError, match=r"state.features: expected a \[1, 128, 4, 6\] tensor"):
        model.step(frame, State(torch.zeros(1, 64, 8, 12)), came)
    with pytest.raises(ValueError, match="layer: expected 1, 2 or 3"):
        create_model("twnet_resnet18", layer=4)
    with pytest.raises(ValueError, match="cfr: expected False with layer=3"):
        create_model("twnet_resnet18", layer=3, cfr=True)
    with pytest.raises(ValueError, match="rga: expected False without cfr"):
        create_model("twnet_resnet18", cfr=False, rga=True)
    with pytest.raises(ValueError, match="backbone: expected one of mobilenetv1"):
        TWNet("resnet34")
    assert isinstance(model.keyframe, nn.Module)
