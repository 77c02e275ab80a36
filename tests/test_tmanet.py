"""TMANet and its variants, and the image models beside it: names, counts, outputs, states."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, assert_close
from torch import Tensor, nn

from vsegops.models import create_model, load_upstream, summary
from vsegops.models.backbones import ResNet
from vsegops.models.tmanet import Anchors, Features, TMANet
from vsegops.nn import AFNB

DATA = Path(__file__).parent / "data"

#: The report's networks: options, and the operators that a step runs.
ATTEND, POOL, CROSS = "asymmetric_attention", "pyramid_pool", "criss_cross_attention"
_FUSION = [POOL, POOL, ATTEND]  # of AFNB, which pools key and value
_FRAME, _TIME = [POOL] * 2, [POOL] * 2 * 4  # four levels
VARIANTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "full": ({}, [ATTEND]),
    "apnb": ({"attention": "apnb"}, [*_FRAME, *_TIME, ATTEND]),
    "asymmetric": (
        {"attention": "apnb", "afnb": True},
        [*_FRAME, *_FUSION, *_TIME, ATTEND],
    ),
    "criss-cross": ({"attention": "criss_cross"}, [CROSS, CROSS]),
    "dual": ({"attention": "dual"}, [ATTEND]),
    "dual, asymmetric": (
        {"attention": "dual_apnb", "afnb": True},
        [*_FRAME, *_FUSION, *_TIME, ATTEND],
    ),
    "full, fused": ({"afnb": True}, [*_FUSION, ATTEND]),
}
IMAGE_MODELS = {"nonlocal_resnet18": [ATTEND], "pspnet_resnet18": [POOL]}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published() -> dict:
    return json.loads(lzma.decompress((DATA / "tmanet_state.json.xz").read_bytes()))


@cache
def parameter(name: str, *shape: int) -> Tensor:
    """A weight as a function of its name; residual branches are weaker than their shortcuts."""
    x = fill.parameter(name, *shape)
    return 0.4 * x if name.endswith("bn2.weight") else x


def build(name: str = "tmanet_resnet18", **options: Any) -> Any:
    with torch.device("meta"):
        model = create_model(name, **options).eval()
    state = {key: parameter(key, *x.shape).clone() for key, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def clip(frames: int, n: int = 1, height: int = 33, width: int = 47) -> list[Tensor]:
    return list(fill.features("clip", frames, n, 3, height, width, bound=1.0))


def run(model: TMANet, frames: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Logits and states, one after the other."""
    logits, state = model.start(frames[0])
    results = [(logits, state)]
    for frame in frames[1:]:
        results.append(model.step(frame, results[-1][1]))
    return [x for x, _ in results], [x for _, x in results]


# --- published names, counts, outputs ----------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, sizes",
    [
        ("camvid", {"num_classes": 12, "memory": 4}, [(640, 640), (720, 960)]),
        ("cityscapes", {"num_classes": 19, "memory": 2}, [(769, 769), (1024, 2048)]),
    ],
)
def test_names_shapes_and_counts_are_the_published_ones(published, name, options, sizes):
    expected = published[f"TMANet_R50_{name}"]
    with torch.device("meta"):
        model = create_model("tmanet_resnet50", deep_supervision=True, **options)
    assert [[key, list(x.shape)] for key, x in model.state_dict().items()] == expected["entries"]
    assert model.align_corners == expected["align_corners"]
    for part, count in expected["parameters_parts"].items():
        assert sum(x.numel() for x in getattr(model, part).parameters()) == count
    for size in sizes:
        stages = summary(model, size).stages
        macs = expected["macs"]["x".join(map(str, size))]

        def of(part: str, stages: Any = stages) -> int:
            return sum(
                stage.multiply_adds + stage.operator_multiply_adds
                for stage in stages
                if stage.name.startswith(part)
            )

        assert of("backbone") == macs["backbone_one_frame"]
        assert of("decode_head") == macs["decode_head"]
        assert of("decode_head.attention") == macs["of_which_memory_attention"]
        assert of("") == macs["backbone_one_frame"] + macs["decode_head"]


def test_counts_over_resnet18(published):
    with torch.device("meta"):
        model = create_model("tmanet_resnet18", 12, deep_supervision=True)
        fusion = AFNB(256, 512, 512, 256, 256)
    parts = published["TMANet_R18_camvid_parameters"]
    ours = [model.backbone, model.decode_head, model.auxiliary_head]
    assert [sum(x.numel() for x in part.parameters()) for part in ours] == list(parts.values())
    entries = published["ResNet18_V1c_D8"]["entries"]
    assert [[key, list(x.shape)] for key, x in model.backbone.state_dict().items()] == entries
    for size, macs in published["ResNet18_V1c_D8"]["macs"].items():
        stages = summary(model, [int(length) for length in size.split("x")]).stages
        assert sum(x.multiply_adds for x in stages if x.name.startswith("backbone")) == macs
    expected = published["AFNB_256_512_for_ResNet18"]["parameters"]
    assert sum(x.numel() for x in fusion.parameters()) == expected
    with torch.device("meta"):
        fused = create_model("tmanet_resnet18", afnb=True).decode_head.fusion
    assert {k: x.shape for k, x in fused.state_dict().items()} == {
        k: x.shape for k, x in fusion.state_dict().items()
    }


@pytest.mark.parametrize("operators", [True, False], ids=["operators", "without operators"])
def test_memory_is_read_as_published(operators):
    shapes = {"keys": (4, 2, 16, 6, 5), "values": (4, 2, 24, 6, 5)}
    shapes |= {"query_key": (2, 16, 6, 5), "query_value": (2, 24, 6, 5)}
    given = [fill.features(f"memory.{name}", *x, bound=1.0) for name, x in shapes.items()]
    model = create_model("tmanet_resnet18")
    model.use_operators(operators)
    golden = torch.from_numpy(np.load(DATA / "memory_module.npz")["out"])
    assert_close(model.decode_head.attention(*given), golden, error=1e-5)


def unit(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A convolution, its normalisation and ReLU, by their entries."""
    weight = state[f"{name}.conv.weight"]
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    entries = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(y, *(state[f"{name}.bn.{entry}"] for entry in entries)).relu()


def test_head_step_by_step():
    """TMANet's head, written down from its entries; weak noise spreads the attention."""
    head = create_model("tmanet_resnet18", 12, memory=3).decode_head.eval()
    fill.fill(head, "decode_head")
    state = head.state_dict()
    past = fill.features("past", 1, 512, 3, 7, 9, bound=0.5)
    now = fill.features("now", 1, 512, 7, 9, bound=0.5)

    def embedded(name: str, x: Tensor, place: str = "") -> Tensor:
        return unit(state, f"{name}.1{place}", unit(state, f"{name}.0{place}", x))

    keys, values = (
        torch.stack([embedded(f"memory_{kind}_conv", past[:, :, t], f".{t}") for t in range(3)], 2)
        for kind in ("key", "value")
    )
    similarity = torch.einsum("nchw,nctij->nhwtij", embedded("query_key_conv", now), keys)
    weights = similarity.flatten(3).softmax(3).view_as(similarity)
    assert weights.flatten(3).amax(3).median() < 0.5
    read = torch.einsum("nhwtij,nctij->nchw", weights, values)
    x = torch.cat((embedded("query_value_conv", now), read), 1)
    expected = F.conv2d(
        unit(state, "bottleneck", x), state["conv_seg.weight"], state["conv_seg.bias"]
    )
    with torch.no_grad():
        levels = [torch.empty(0), torch.empty(0), torch.empty(0), now]
        assert_close(head(levels, Features(past)), expected, error=1e-5)
        reversed_ = head(levels, Features(past.flip(2)))
    assert (reversed_ - expected).std() > 0.1 * expected.std(), "each place has its weights"


def test_pooled_memory_is_a_volume():
    """Frames that are pooled one by one, and all at once: cubes of 1, 3, 6 and 8."""
    model = build(attention="apnb")
    frames = clip(5)
    with torch.no_grad():
        logits, states = run(model, frames)
        levels = [model.backbone(frame) for frame in frames]
        volume = torch.stack([level[3] for level in levels[:4]], 2)
        head = model.decode_head
        context = head.apnb(levels[4][3], volume)
        expected = head.classify(head.bottleneck(context))
    assert_close(logits[-1], expected, error=1e-5)
    assert [tuple(x.shape) for x in states[-1]] == [(1, 64, 4, 110), (1, 256, 4, 110)]
    assert head.apnb.sizes == ((1,) * 3, (3,) * 3, (6,) * 3, (8,) * 3)


def test_criss_cross_and_its_past_step_by_step():
    model = build(attention="criss_cross", memory=2)
    frames = clip(3)
    with torch.no_grad():
        logits, _ = run(model, frames)
        features = [model.backbone(frame)[3] for frame in frames]
        head, time = model.decode_head, model.decode_head.time
        space = head.cca(head.conva(features[2]))
        query = time.query_conv(space)
        products = torch.stack([(query * time.key_conv(x)).sum(1) for x in features[:2]])
        first, second = products.softmax(0).unsqueeze(2)
        read = first * time.value_conv(features[0]) + second * time.value_conv(features[1])
        x = head.convb(space + time.gamma * read)
        expected = head.classify(head.bottleneck(torch.cat((features[2], x), 1)))
        assert_close(logits[-1], expected, error=1e-5)
        nn.init.zeros_(time.gamma)  # as it starts: the memory only supports
        assert_close(
            model.step(frames[2], model.start(frames[0])[1])[0], run(model, frames)[0][2], error=0.0
        )


def test_dual_attention_is_a_sum():
    model, plain = build(attention="dual"), build()
    frames = clip(2)
    with torch.no_grad():
        plain.load_state_dict({k: model.state_dict()[k] for k in plain.state_dict()})
        head, levels = model.decode_head, model.backbone(frames[1])
        state = model.remember(frames[0])
        position = plain.decode_head.read(levels[3], state)
        expected = head.classify(head.bottleneck(position + head.channel(levels[3])))
        assert_close(model.step(frames[1], state)[0], expected, error=0.0)


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_current", [False, True], ids=["", "include current"])
@pytest.mark.parametrize("memory", [1, 2, 3, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_streams(name, memory, include_current):
    """A step depends on the frames in its memory, and equals the one that starts from them."""
    model = build(memory=memory, include_current=include_current, **VARIANTS[name][0])
    frames = clip(memory + 3, height=17, width=23)
    with torch.no_grad():
        logits, states = run(model, frames)
        assert all(x.shape == (1, 19, 3, 3) and x.isfinite().all() for x in logits)
        assert all(x.shape[2] == memory for state in states for x in state)
        state = None
        for frame in frames[2:-1]:
            state = model.remember(frame, state)
        again, state = model.step(frames[-1], state)
        other = model.step(frames[-1], model.remember(frames[0]))[0]
    assert_close(again, logits[-1], error=1e-5)
    for x, y in zip(state, states[-1], strict=True):
        assert_close(x, y, error=1e-5)
    assert not torch.allclose(other, logits[-1], rtol=1e-3), "the memory is not read"


@pytest.mark.parametrize("name", ["full", "asymmetric", "criss-cross"])
def test_before_the_first_frame_there_is_the_first_frame(name):
    model = build(memory=3, **VARIANTS[name][0])
    (frame,) = clip(1)
    with torch.no_grad():
        logits, state = model.start(frame)
        again, _ = model.step(frame, state)
        assert_close(again, logits, error=1e-6)
        for kept in state:
            assert all(torch.equal(kept[:, :, t], kept[:, :, 0]) for t in range(3))
            assert kept.is_contiguous()


@pytest.mark.parametrize("name", VARIANTS)
def test_batches_layouts_precisions_and_operators_agree(name):
    options, operators = VARIANTS[name]
    model, frames = build(**options), clip(3, 2, 40, 25)
    with torch.no_grad():
        expected, states = run(model, frames)
        for i in (0, 1):
            single = run(model, [frame[i : i + 1] for frame in frames])[0]
            assert_close(single[-1], expected[-1][i : i + 1], error=1e-4)
            part = type(states[1])(*(x[i : i + 1] for x in states[1]))
            assert_close(
                model.step(frames[2][i : i + 1], part)[0], expected[-1][i : i + 1], error=1e-4
            )
        with OperatorCalls() as calls:
            model.step(frames[2], states[1])
        assert [call.split("::")[1] for call in calls.names] == operators
        model.use_operators(False)
        with OperatorCalls() as calls:
            assert_close(run(model, frames)[0][-1], expected[-1], error=1e-4)
        assert calls.names == []
        model.use_operators(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = run(model, frames)[0][-1]
        assert half.dtype == torch.bfloat16
        assert (half - expected[-1]).square().mean() < 0.1**2 * expected[-1].square().mean()
        model = model.to(memory_format=torch.channels_last)
        last = [frame.to(memory_format=torch.channels_last) for frame in frames]
        assert_close(run(model, last)[0][-1], expected[-1], error=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_trained(name):
    """On a clip: gradients flow through the frames that are remembered."""
    options = {"deep_supervision": True, "memory": 2, "include_current": True}
    model = create_model("tmanet_resnet18", 5, **options, **VARIANTS[name][0])
    for key, x in model.named_parameters():
        if key.endswith(("gamma", "W.weight")):
            nn.init.normal_(x)  # away from zero, where what is before it gets no gradient
    first, *middle, last = (frame.requires_grad_() for frame in clip(3, 2, 25, 33))
    state = model.remember(first)
    for frame in middle:
        state = model.remember(frame, state)
    (logits, (auxiliary,)), _ = model.step(last, state)
    assert logits.shape == auxiliary.shape == (2, 5, 4, 5)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    for key, x in model.named_parameters():
        assert x.grad is not None and x.grad.isfinite().all(), key
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["full", "asymmetric", "criss-cross"])
def test_heads_compile(name):
    model, frames = build(memory=2, **VARIANTS[name][0]), clip(2, height=17, width=23)
    with torch.no_grad():
        given = model.backbone(frames[1]), model.remember(frames[0])
        torch._dynamo.reset()
        compiled = torch.compile(model.decode_head, fullgraph=True, backend="aot_eager")
        assert_close(compiled(*given), model.decode_head(*given), error=1e-4)


def test_steps_compile_and_export():
    model, frames = build(memory=2, attention="apnb"), clip(2, height=17, width=23)
    with torch.no_grad():
        state = model.remember(frames[0])
        expected, after = model.step(frames[1], state)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(frames[1], state)[0], expected, error=1e-4)
        model.use_operators(False)
        exported = torch.export.export(model, (frames[1], state))
        assert not [node for node in exported.graph.nodes if "vsegops" in str(node.target)]
        logits, moved_on = exported.module()(frames[1], state)
    assert_close(logits, expected, error=1e-4)
    assert type(moved_on) is type(after)


def test_labels_and_saved_states(tmp_path):
    model, frames = build(attention="apnb"), clip(2)
    with torch.no_grad():
        logits, state = model.start(frames[0])
        torch.save(tuple(state), tmp_path / "state.pt")
        saved = Anchors(*torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(model.step(frames[1], saved)[0], model.step(frames[1], state)[0])
    labels = model.labels(logits, (33, 47))
    resized = F.interpolate(logits, (33, 47), mode="bilinear", align_corners=True)
    assert (labels != resized.argmax(1)).float().mean() < 1e-3 and len(labels.unique()) > 1


def test_what_does_not_fit_is_refused():
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            create_model("tmanet_resnet18", **options)

    refused("attention: expected 'full' or 'apnb' or .*, got str 'none'", attention="none")
    refused("memory: expected a whole number from 1 on, got int 0", memory=0)
    refused("memory: expected a whole number from 1 on, got str '4'", memory="4")
    refused("afnb: expected True or False, got int 1", afnb=1)
    refused("include_current: expected True or False", include_current="yes")
    refused("align_corners: expected True or False", align_corners=1)
    refused("recurrence: expected a whole number from 1 on", attention="criss_cross", recurrence=0)
    refused("sizes: expected 1 to 16 levels", attention="apnb", sizes=())
    with pytest.raises(ValueError, match="backbone: expected 'resnet18' or 'resnet50'"):
        TMANet("resnet101")
    model, (frame,) = create_model("tmanet_resnet18", memory=2).eval(), clip(1)
    state = model.remember(frame)
    with pytest.raises(ValueError, match=r"state.features: expected a \[1, 512, 2, 3, 3\] tensor"):
        model.step(frame[:, :, :24, :24], state)
    with pytest.raises(ValueError, match="state: expected Features, as start gives it, got tuple"):
        model.step(frame, tuple(state))


# --- checkpoints -------------------------------------------------------------------------------


def test_published_files_load(tmp_path, published):
    """As TMANet's training writes them."""
    entries = published["TMANet_R50_cityscapes"]["entries"]
    state = {key: torch.zeros(shape) for key, shape in entries}
    state["decode_head.conv_seg.bias"] += 3
    meta = {"epoch": 1, "CLASSES": ["road"], "PALETTE": [[128, 64, 128]], "config": "text"}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {}}, tmp_path / "latest.pth")
    model = create_model("tmanet_resnet50", memory=2, weights=tmp_path / "latest.pth")
    assert (model.decode_head.conv_seg.bias == 3).all()
    loaded = load_upstream(model, {f"module.{key}": x for key, x in state.items()})
    assert loaded.initial == () and set(loaded.unused) == {
        key for key in state if key.startswith("auxiliary_head.")
    }
    without = {key: x for key, x in state.items() if key not in loaded.unused}
    with torch.device("meta"):
        supervised = create_model("tmanet_resnet50", memory=2, deep_supervision=True)
    supervised = supervised.to_empty(device="cpu")
    assert set(load_upstream(supervised, without).initial) == set(loaded.unused)
    for wrong, message in [
        ({"memory": 3}, r"missing: decode_head.memory_key_conv.0.2.conv.weight"),
        ({"memory": 1}, r"unexpected: decode_head.memory_value_conv.1.1.conv.weight"),
        ({"memory": 2, "attention": "apnb"}, r"missing: decode_head.apnb.stages.0.W.bias"),
        ({"memory": 2, "num_classes": 12}, r"conv_seg.bias, expected \[12\], got \[19\]"),
    ]:
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            create_model("tmanet_resnet50", weights=state, **wrong)


def test_starts_from_imagenet():
    state = ResNet(18, "v1c", "stride_8").state_dict()
    file = {"state_dict": {**state, "fc.weight": torch.zeros(1000, 512)}}
    for name in ("tmanet_resnet18", "pspnet_resnet18"):
        model = create_model(name, backbone_weights=file)
        assert torch.equal(model.backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


# --- image models ------------------------------------------------------------------------------


def test_nonlocal_head_step_by_step():
    model = build("nonlocal_resnet18")
    head, x = model.decode_head, clip(1)[0]
    state = head.state_dict()

    def project(name: str, x: Tensor) -> Tensor:
        name = f"nl_block.{name}.conv"
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).flatten(2)

    with torch.no_grad():
        features = model.backbone(x)[3]
        y = unit(state, "convs.0", features)
        similarity = project("theta", y).mT @ project("phi", y) / 256**0.5
        read = (project("g", y) @ similarity.softmax(-1).mT).view(1, 256, 5, 6)
        out = head.nl_block.conv_out
        y = unit(state, "convs.1", y + out.bn(out.conv(read)))
        y = unit(state, "conv_cat", torch.cat((features, y), 1))
        assert_close(model(x), head.conv_seg(y), error=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_psp_head_step_by_step(align_corners):
    model = build("pspnet_resnet18", align_corners=align_corners)
    head, x = model.decode_head, clip(1)[0]
    state = head.state_dict()
    with torch.no_grad():
        features = model.backbone(x)[3]
        maps = [features]
        for i, size in enumerate((1, 2, 3, 6)):
            cells = unit(state, f"psp_modules.{i}.1", F.adaptive_avg_pool2d(features, size))
            maps.append(F.interpolate(cells, (5, 6), mode="bilinear", align_corners=align_corners))
        y = unit(state, "bottleneck", torch.cat(maps, 1))
        assert_close(model(x), head.conv_seg(y), error=1e-5)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models(name):
    model, x = build(name), clip(1, 2)[0]
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (2, 19, 5, 6)
        assert_close(torch.cat([model(x[:1]), model(x[1:])]), expected, error=1e-4)
        assert model.predict(x).shape == (2, 33, 47)
        with OperatorCalls() as calls:
            model(x)
        assert [call.split("::")[1] for call in calls.names] == IMAGE_MODELS[name]
        model.use_operators(False)
        with OperatorCalls() as calls:
            assert_close(model(x), expected, error=1e-4)
        assert calls.names == []
    model = create_model(name, 5, deep_supervision=True)
    logits, (auxiliary,) = model(x)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert all(x.grad is not None for x in model.parameters())
