"""GSVNet, SwiftNet, BiSeNet and the flow networks: published names, counts, outputs; video."""

from __future__ import annotations

import json
import lzma
from argparse import Namespace
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, assert_close
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vsegops.models import Motion, create_model, load_upstream, summary
from vsegops.models.flow_networks import FlowLight, FlowNetS
from vsegops.models.gsvnet import GSVNet, State

DATA = Path(__file__).parent / "data"

#: By their names in the state file.
PUBLISHED = {
    "SwiftNet_R18": lambda: create_model("swiftnet_resnet18"),
    "BiSeNet_R18": lambda: create_model("bisenet_resnet18", deep_supervision=True),
    "FlowLight": FlowLight,
    "FlowNetS_alternative": FlowNetS,
}

KEYFRAMES = ("swiftnet_resnet18", "bisenet_resnet18", "sfnet_lite_resnet18")

IMAGE_MODELS = ("swiftnet_resnet18", "bisenet_resnet18")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Images this small are not worth a second one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published() -> dict:
    return json.loads(lzma.decompress((DATA / "gsvnet_state.json.xz").read_bytes()))


def filled(module: nn.Module) -> nn.Module:
    """With weights that are functions of their published names, but for what is a constant."""
    state = module.state_dict()
    for key, x in state.items():
        name = key.removeprefix("keyframe.").removeprefix("grm.").removeprefix("flow.")
        if not name.endswith(("filter_copy_s", "img_mean", "img_std")):
            state[key] = fill.parameter(name, *x.shape)
    module.load_state_dict(state)
    return module.eval()


class TinyNetwork(nn.Module):
    """Any network that gives logits."""

    def __init__(self, num_classes: int = 19) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 5, 4, 2)
        self.norm = nn.BatchNorm2d(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


def gsvnet(**options) -> GSVNet:
    return filled(GSVNet(TinyNetwork(), **options))


def frames(count: int, n: int = 1, height: int = 64, width: int = 96) -> Tensor:
    """Of a video that moves to the right by two pixels a frame."""
    wide = fill.features("video", n, 3, height // 4, width // 2, bound=1.0)
    wide = F.interpolate(wide, (height, 2 * width), mode="bilinear", align_corners=True)
    return torch.stack([wide[..., width - 2 * i : 2 * width - 2 * i] for i in range(count)])


def propagate(model: GSVNet, video: Tensor) -> list[Tensor]:
    logits, state = model.start(video[0])
    results = [logits]
    for frame in video[1:]:
        logits, state = model.step(frame, state)
        results.append(logits)
    return results


# --- published names, counts, outputs ----------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(published, name):
    expected = published[name]
    with torch.device("meta"):
        model = PUBLISHED[name]().eval()
    entries = [(key, list(x.shape)) for key, x in model.state_dict().items()]
    assert entries == [tuple(entry) for entry in expected["entries"]]
    assert sum(x.numel() for x in model.parameters()) == expected["parameters"]
    for size, macs in list(expected["macs"].items())[-2:]:
        image = torch.empty(1, 3, *map(int, size.split("x")), device="meta")
        arguments = (image, image) if name.startswith("Flow") else (image,)
        with FlopCounterMode(display=False) as counter:
            model(*arguments)
        assert counter.get_total_flops() == 2 * macs


def test_counts_of_inference(published):
    expected = published["BiSeNet_R18"]
    total = summary("bisenet_resnet18").total
    assert total.parameters == expected["parameters_used_at_inference"]
    assert total.multiply_adds == expected["macs"]["1024x2048"]


@pytest.mark.parametrize(
    "keyframe, macs",
    [("swiftnet_resnet18", 58_256_345_088), ("bisenet_resnet18", 58_344_439_808)],
)
def test_counts_of_gsvnet(keyframe, macs):
    """The published frames at 0.75; a step without what operators do (shifts and edges)."""
    with torch.device("meta"):
        model = create_model(f"gsvnet_{keyframe}")
    assert summary(model).total.multiply_adds == macs
    added = [x.numel() for part in (model.grm, model.flow) for x in part.parameters()]
    assert sum(added) == 396_487
    costs = summary(model, step=True)
    assert costs.total.multiply_adds == 2_752_643_072 - 50_429_952 - 294_912
    assert next(x for x in costs.stages if x.name == "grm").operator_multiply_adds > 0
    with pytest.raises(ValueError, match="step: .*Net has no steps"):
        summary(model.keyframe, step=True)


def test_flow_is_the_published_one():
    pair = fill.features("flowlight.image_pair", 2, 6, 32, 48, bound=1.0)
    golden = torch.from_numpy(np.load(DATA / "flowlight.npz")["flow"])
    with torch.no_grad():
        assert_close(filled(FlowLight())(pair[:, :3], pair[:, 3:]), golden, error=1e-4)


def published_step(model: GSVNet, frame: Tensor, previous: Tensor, logits: Tensor) -> Tensor:
    """A step as the publication composes it: grid_sample, and a 3-D convolution that shifts."""

    def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    n, _, h, w = logits.shape
    image, before = resize(frame, (h, w)), resize(previous, (h, w))
    flow = resize(model.flow(image, before), (h, w)) / 4
    x, y = torch.linspace(-1, 1, w), torch.linspace(-1, 1, h).view(-1, 1)
    grid = torch.stack((x + 2 * flow[:, 0] / (w - 1), y + 2 * flow[:, 1] / (h - 1)), -1)
    warped = F.grid_sample(logits, grid, align_corners=True)
    laplacian = torch.ones(1, 1, 3, 3)
    laplacian[0, 0, 1, 1] = -8
    edges = F.conv2d(warped.argmax(1, keepdim=True).float(), laplacian, padding=1) != 0
    intra = model.grm.intra_net(image)
    guide = model.grm.guide(intra, edges.float())
    guide = guide / (guide.sum(1, keepdim=True) + 1e-9)
    kernels = model.grm.ideal_dk.filter_copy_s
    shifted = F.conv3d(warped[:, None], kernels, padding=(0, 1, 1))
    candidates = torch.cat((warped[:, None], shifted, intra[:, None]), 1)
    return (candidates * guide[:, :, None]).sum(1)


@pytest.mark.parametrize("keyframe", KEYFRAMES)
@torch.no_grad()
def test_frames_are_propagated_as_published(keyframe):
    model, video = filled(create_model(f"gsvnet_{keyframe}")), frames(3)
    key = F.interpolate(video[0], (48, 72), mode="bilinear", align_corners=True)
    key = model.keyframe(key.flip(1))  # BGR to RGB
    expected = [F.interpolate(key, (8, 12), mode="bilinear", align_corners=True)]
    for previous, frame in zip(video, video[1:], strict=False):
        expected.append(published_step(model, frame, previous, expected[-1]))
    for actual, logits in zip(propagate(model, video), expected, strict=True):
        assert_close(actual, logits, error=1e-4)
    assert model.stride == 8 and model.labels(actual, (64, 96)).shape == (1, 64, 96)


# --- variants and options ----------------------------------------------------------------------


def test_variants():
    published, paper = gsvnet(), gsvnet(variant="paper")
    assert published.grm.guide.guide_decoder[0].out_channels == 11
    assert paper.grm.guide.guide_decoder[0].out_channels == 10
    video = frames(2)
    with torch.no_grad():
        first, second = (propagate(model, video) for model in (published, paper))
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1], rtol=0.01)


def test_flownets():
    """The previous frame comes first, the flow at 1/8; any size from 5 x 5."""
    model, video = GSVNet(TinyNetwork(), flow_network="flownets").eval(), frames(2, 1, 40, 48)
    network = model.flow
    seen = []
    network.conv1.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        assert network(video[1], video[0]).shape == (1, 2, 5, 6)
        assert torch.equal(seen[0], torch.cat((video[0], video[1]), 1))
        assert network(video[1, ..., :5, :7], video[0, ..., :5, :7]).shape == (1, 2, 1, 1)
        assert propagate(model, video)[1].isfinite().all()
        with pytest.raises(ValueError, match="current: expected at least 5 x 5 pixels"):
            network(video[1, ..., :4, :], video[0, ..., :4, :])


def test_the_codecs_motion_takes_the_place_of_the_flow_network():
    """In units of 8 pixels; a border that makes no whole cell is left out."""
    model = GSVNet(TinyNetwork(), flow_network="codec").eval()
    network = GSVNet(TinyNetwork()).eval()
    network.load_state_dict(model.state_dict(), strict=False)
    assert (model.motion_stride, network.motion_stride, model.flow) == (8, None, None)
    video = frames(2, 1, 43, 49)
    flow = fill.features("flow", 1, 2, 6, 7, bound=1.5)
    motion = Motion(flow, torch.ones(1, 6, 7, dtype=torch.bool), torch.zeros_like(video[0]))
    network.flow.forward = lambda image, before: 4 * flow[:, :, :5, :6]  # quarters of a pixel
    with torch.no_grad():
        _, state = model.start(video[0])
        logits, _ = model.step(video[1], state, motion)
        assert torch.equal(logits, network.step(video[1], state)[0])
        assert not torch.equal(logits, model.step(video[1], state, motion._replace(flow=-flow))[0])
    with pytest.raises(ValueError, match="motion: expected a Motion"):
        model.step(video[1], state)
    content, _ = files(network)
    loaded = load_upstream(model, content)
    assert loaded.unused and all(name.startswith("flow.") for name in loaded.unused)


def test_keyframes_are_reduced_and_reordered():
    seen = []
    model = gsvnet(keyframe_scale=0.5)
    model.keyframe.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    frame = frames(1, height=65, width=99)[0]
    model.start(frame)
    assert seen[-1].shape == (1, 3, 32, 48)
    model.train()
    model.start(frame)  # in training as it is
    assert torch.equal(seen[-1], frame.flip(1))
    for keyframe in KEYFRAMES:
        with torch.device("meta"):
            video, image = create_model(f"gsvnet_{keyframe}"), create_model(keyframe)
        assert video.preprocess.channels == "BGR" and image.preprocess.channels == "RGB"
        assert video.preprocess.mean == image.preprocess.mean[::-1]
        assert video.preprocess.std == image.preprocess.std[::-1]
        assert video.preprocess.value_range == image.preprocess.value_range
    assert create_model("swiftnet_resnet18").preprocess.mean == (73.15, 82.90, 72.3)


def test_what_cannot_work_is_refused():
    model, frame = gsvnet(), frames(1)[0]
    with pytest.raises(ValueError, match="frame: expected at least 8 x 8 pixels"):
        model.start(frame[..., :7])
    with pytest.raises(ValueError, match=r"state.image: expected a \[1, 3, 4, 12\] tensor"):
        model.step(frame[..., :32, :], model.start(frame)[1])
    with pytest.raises(ValueError, match="flow_network: expected 'light' or 'flownets' or 'codec'"):
        GSVNet(TinyNetwork(), flow_network="fast")
    with pytest.raises(ValueError, match="keyframe_scale: expected more than 0 and up to 1"):
        GSVNet(TinyNetwork(), keyframe_scale=1.5)
    with pytest.raises(ValueError, match="variant: expected 'published' or 'paper'"):
        GSVNet(TinyNetwork(), variant="other")


# --- what a model does as a module -------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_MODELS)
@torch.no_grad()
def test_image_models_agree_with_themselves(name):
    model, x = filled(create_model(name)), frames(1, 2)[0]
    expected = model(x)
    assert expected.shape == (2, 19, 64 // model.stride, 96 // model.stride)
    assert_close(torch.cat([model(x[:1]), model(x[1:])]), expected, error=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    assert (half - expected).square().mean() < 0.05**2 * expected.square().mean()
    model.to(memory_format=torch.channels_last)
    assert_close(model(x.to(memory_format=torch.channels_last)), expected, error=1e-4)
    for size in ((65, 97), (33, 31), (1, 1), (160, 7)):
        logits = model(x[:, :, : size[0], : size[1]])
        sizes = [min(a, b) for a, b in zip(size, (64, 96), strict=True)]
        assert logits.shape == (2, 19, *(-(-length // model.stride) for length in sizes))
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    "name, options, auxiliary",
    [
        ("swiftnet_resnet18", {}, None),
        ("bisenet_resnet18", {}, None),
        ("bisenet_resnet18", {"deep_supervision": True}, [(4, 6), (8, 12)]),
    ],
)
def test_every_parameter_of_image_models_is_trained(name, options, auxiliary):
    model = create_model(name, 5, **options)
    outputs = model(frames(1, 2)[0])
    if auxiliary is not None:
        outputs, others = outputs
        assert [tuple(x.shape[2:]) for x in others] == auxiliary
        outputs = torch.cat([x.flatten() for x in (outputs, *others)])
    outputs.square().mean().backward()
    assert all(x.grad is not None for x in model.parameters())
    assert model.predict(frames(1, 2)[0]).shape == (2, 64, 96)


@torch.no_grad()
def test_videos_of_a_batch_layouts_and_precisions_agree():
    model, video = gsvnet(), frames(3, 2)
    expected = propagate(model, video)
    alone = [propagate(model, video[:, i : i + 1]) for i in range(2)]
    for both, pair in zip(expected, zip(*alone, strict=True), strict=True):
        assert_close(torch.cat(pair), both, error=1e-5)
    _, state = model.start(video[0])
    halves = [State(*(x[i : i + 1] for x in state)) for i in range(2)]
    assert_close(model.step(video[1, 1:], halves[1])[0], expected[1][1:], error=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = propagate(model, video)
    assert rounded[2].dtype == torch.bfloat16
    difference = (rounded[1] - expected[1]).square().mean()
    assert difference < 0.1**2 * expected[1].square().mean()
    double = propagate(gsvnet().double(), video.double())
    assert_close(double[2].float(), expected[2], error=1e-4)
    model.to(memory_format=torch.channels_last)
    last = propagate(model, [frame.to(memory_format=torch.channels_last) for frame in video])
    assert_close(last[2], expected[2], error=1e-4)


@pytest.mark.parametrize("size", [(65, 99), (8, 8), (90, 17)])
@torch.no_grad()
def test_any_size(size):
    video = frames(2, 1, 96, 100)[..., : size[0], : size[1]]
    for logits in propagate(gsvnet(), video):
        assert logits.shape == (1, 19, size[0] // 8, size[1] // 8) and logits.isfinite().all()


@pytest.mark.parametrize("flow_network", ["light", "flownets"])
def test_all_but_the_keyframes_network_is_trained(flow_network):
    model = GSVNet(TinyNetwork(5), 5, flow_network=flow_network).train()
    mean = model.keyframe.norm.running_mean.clone()
    logits = propagate(model, frames(2, 2))[1]
    logits.square().mean().backward()
    assert not model.keyframe.training and torch.equal(model.keyframe.norm.running_mean, mean)
    frozen = {"grm.ideal_dk.filter_copy_s", "keyframe.conv.weight", "keyframe.conv.bias"}
    frozen |= {"keyframe.norm.weight", "keyframe.norm.bias"}
    assert {key for key, x in model.named_parameters() if x.grad is None} == frozen


def test_without_the_current_frame():
    """The paper's table 4: what the frame shows does not matter, but for its flow."""
    model = GSVNet(TinyNetwork(5), 5, flow_network="codec", intra=False).eval()
    assert not any("intra_net" in name for name in model.state_dict())
    video = frames(2)
    flow = torch.zeros(1, 2, *(length // 8 for length in video[0].shape[2:]))
    motion = Motion(flow, flow[:, 0] == 0, torch.zeros_like(video[0]))
    with torch.no_grad():
        _, state = model.start(video[0])
        results = [model.step(frame, state, motion) for frame in (video[1], 0 * video[1])]
    assert torch.equal(results[0][0], results[1][0])
    with pytest.raises(NotImplementedError, match="no intra prediction"):
        model.disagreement(*results[0])


def test_delays_are_learned_where_asked_for():
    for learned in (False, True):
        model = GSVNet(TinyNetwork(5), 5, learn_delays=learned, window=5).train()
        propagate(model, frames(2, 2))[1].square().mean().backward()
        assert (model.grm.ideal_dk.filter_copy_s.grad is not None) is learned


@torch.no_grad()
def test_operators_or_none():
    model, video = gsvnet(), frames(2)
    with OperatorCalls() as calls:
        expected = propagate(model, video)
    assert [name.split("::")[1] for name in calls.names] == ["label_edges", "guided_filter"]
    model.use_operators(False)
    with OperatorCalls() as calls:
        actual = propagate(model, video)
    assert calls.names == []
    assert_close(actual[1], expected[1], error=1e-4)


@torch.no_grad()
def test_compiles_and_exports():
    model, video = gsvnet(), frames(2)
    _, state = model.start(video[0])
    expected = model(video[1], state)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(video[1], state)[0], expected, error=1e-4)
    model.use_operators(False)
    exported = torch.export.export(model, (video[1], state))
    assert not [node for node in exported.graph.nodes if "vsegops" in str(node.target)]
    assert_close(exported.module()(video[1], state)[0], expected, error=1e-4)


# --- checkpoints -------------------------------------------------------------------------------


def files(model: GSVNet) -> tuple[dict, dict]:
    """What GSVNet publishes: propagation, and the network of the key frames."""
    state = {name: torch.rand(x.shape).to(x.dtype) for name, x in model.state_dict().items()}

    def part(prefix: str) -> dict[str, Tensor]:
        length = len(prefix)
        return {name[length:]: x for name, x in state.items() if name.startswith(prefix)}

    filters = {f"grm.{name}": x for name, x in part("grm.").items()}
    content = {
        "epoch": 100,
        "state_dict": filters,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "best_pred": np.float64(0.7),
        "current_pred": np.float64(0.7),
        "args": Namespace(lr=0.01, gpu_ids=[0]),
        "state_dict_of": part("flow."),
    }
    return content, part("keyframe.")


def test_published_files_load(tmp_path):
    model = GSVNet(TinyNetwork())
    content, keyframe = files(model)
    torch.save(content, tmp_path / "gsvnet.pth")
    torch.save({"model": keyframe}, tmp_path / "keyframe.pth")
    before = model.keyframe.conv.weight.clone()
    loaded = load_upstream(model, tmp_path / "gsvnet.pth")
    assert loaded.unused == () and set(loaded.initial) == {f"keyframe.{x}" for x in keyframe}
    assert torch.equal(model.keyframe.conv.weight, before)
    loaded = load_upstream(model, tmp_path / "keyframe.pth")
    assert {name.split(".")[0] for name in loaded.initial} == {"grm", "flow"}
    state = model.state_dict()
    expected = content["state_dict"] | {f"flow.{x}": y for x, y in content["state_dict_of"].items()}
    expected |= {f"keyframe.{name}": x for name, x in keyframe.items()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], x) for name, x in expected.items())
    assert load_upstream(GSVNet(TinyNetwork()), {"state_dict": state}) == ((), ())


def test_published_files_load_by_name(tmp_path):
    swiftnet = create_model("swiftnet_resnet18")
    torch.save(swiftnet.state_dict(), tmp_path / "swiftnet.pth")
    content, _ = files(GSVNet(TinyNetwork()))
    model = create_model(
        "gsvnet_swiftnet_resnet18", weights=content, keyframe_weights=tmp_path / "swiftnet.pth"
    )
    assert torch.equal(model.flow.toflow.bias, content["state_dict_of"]["toflow.bias"])
    for name, x in swiftnet.state_dict().items():
        assert torch.equal(model.keyframe.state_dict()[name], x), name
    bisenet = create_model("bisenet_resnet18", deep_supervision=True).state_dict()
    video = create_model("gsvnet_bisenet_resnet18")
    loaded = load_upstream(video, {"state_dict": bisenet})
    assert loaded.unused and all(x.startswith("keyframe.heads.") for x in loaded.unused)
    resnet = {k.removeprefix("context_path."): x for k, x in bisenet.items() if "context" in k}
    resnet = {k: x for k, x in resnet.items() if not k.startswith("global_context")}
    started = create_model("bisenet_resnet18", backbone_weights=resnet)
    assert torch.equal(started.context_path.conv1.weight, resnet["conv1.weight"])
    started = create_model("swiftnet_resnet18", backbone_weights=resnet)
    assert torch.equal(started.backbone.conv1.weight, resnet["conv1.weight"])


def test_what_does_not_fit_is_named():
    model = GSVNet(TinyNetwork())
    content, keyframe = files(model)
    bare = {name.removeprefix("grm."): x for name, x in content["state_dict"].items()}
    with pytest.raises(ValueError, match=r"missing: grm\.guide\.(.|\n)*unexpected: guide\."):
        load_upstream(model, content | {"state_dict": bare})
    with pytest.raises(ValueError, match=r"missing: flow\.conv1\.0\.bias"):
        load_upstream(model, content["state_dict"])
    with pytest.raises(ValueError, match=r"missing: keyframe\.conv\.bias") as raised:
        load_upstream(model, {name: x for name, x in keyframe.items() if name != "conv.bias"})
    assert "grm." not in str(raised.value)
    with pytest.raises(ValueError, match=r"missing: grm\.(.|\n)*missing: keyframe\."):
        load_upstream(model, {})
    with pytest.raises(ValueError, match=r"expected \[10, 32, 3, 3\], got \[11, 32, 3, 3\]"):
        load_upstream(GSVNet(TinyNetwork(), variant="paper"), content)
