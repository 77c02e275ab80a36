"""Every reference model leaves PyTorch: as a `torch.export` program and as an ONNX file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vsegops.models import Model, VideoModel, create_model, export_onnx, list_models
from vsegops.models.untrained import calibrate

#: The same modules as others in the list, only more of them.
LARGER = {"sfnet_resnet101", "sfnet_lite_resnet101", "sfnet_lite_stdc2", "sfnet_stdc2"}
LARGER |= {"nonlocal_resnet50", "pspnet_resnet50"}

MODELS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in list_models() if name not in LARGER),
    ("sfnet_df1", {"pooling": "sum"}),
    ("sfnet_lite_stdc1", {"gate": "conv"}),
    ("gsvnet_swiftnet_resnet18", {"variant": "paper", "flow_network": "flownets"}),
    ("twnet_mobilenetv1", {"layer": 2}),
    ("twnet_resnet18", {"layer": 3}),
    ("tmanet_resnet18", {"attention": "apnb", "afnb": True}),
    ("tmanet_resnet18", {"attention": "criss_cross"}),
    ("tmanet_resnet18", {"attention": "dual", "include_current": True, "memory": 2}),
]
#: One of each kind of head, backbone and step.
KINDS = {"sfnet_shufflenetv2", "sfnet_lite_stdc1", "bisenet_resnet18", "pspnet_resnet18"}
KINDS |= {"gsvnet_swiftnet_resnet18", "twnet_mobilenetv1", "tmanet_resnet18", "tmanet_resnet50"}
IDS = ["-".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in MODELS]
SIZE = (90, 130)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def arguments(model: Model) -> tuple[Any, ...]:
    """Of a call; of a video model's step, with the state of a first frame."""
    frame, *rest = model.example_inputs(SIZE)
    if not isinstance(model, VideoModel):
        return (frame,)
    with torch.no_grad():
        return frame, model.start(torch.randn_like(frame))[1], *rest[1:]


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param(*model, marks=() if model[0] in KINDS else pytest.mark.thorough, id=name)
        for model, name in zip(MODELS, IDS, strict=True)
    ],
)
@torch.no_grad()
def test_every_model_exports(name, options, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = calibrate(create_model(name, **options))
    inputs = arguments(model)
    expected = tree_leaves(model(*inputs))
    assert expected[0].std() > 1e-2 * expected[0].abs().max()

    program = torch.export.export(model, inputs)
    assert (
        [n for n in program.graph.nodes if "vsegops" in str(n.target)]
        or "swift" in name
        or (name.startswith(("bisenet", "pspnet", "nonlocal")))
    )
    for actual, x in zip(tree_leaves(program.module()(*inputs)), expected, strict=True):
        assert_close(actual, x, error=1e-5)

    export_onnx(model, tmp_path / "model.onnx", SIZE)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    assert names[0] == ("frame" if isinstance(model, VideoModel) else "image")
    feeds = {n: x.numpy() for n, x in zip(names, tree_leaves(inputs), strict=True)}
    results = [torch.from_numpy(x) for x in session.run(None, feeds)]
    for actual, x in zip(results, expected, strict=True):
        assert_close(actual, x, error=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["preprocess"])["channels"] == model.preprocess.channels
    assert int(metadata["stride"]) == model.stride


def test_files_hold_standard_operators_alone(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = create_model("sfnet_lite_stdc1").train()
    export_onnx(model, tmp_path / "model.onnx", (64, 96), batch=2)
    assert model.training and model._instead is None
    content = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(content, full_check=True)
    assert [(x.domain, x.version) for x in content.opset_import] == [("", 18)]
    assert "GridSample" in {node.op_type for node in content.graph.node}
    sizes = content.graph.input[0].type.tensor_type.shape.dim
    assert [x.dim_value for x in sizes] == [2, 3, 64, 96]


def test_what_is_missing_is_named(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'vsegops\[onnx\]'"):
        export_onnx(create_model("sfnet_df1"), tmp_path / "model.onnx")


def test_example_inputs_fit():
    for name in ("sfnet_df1", "twnet_mobilenetv2", "gsvnet_swiftnet_resnet18"):
        model = create_model(name).eval().double()
        inputs = model.example_inputs((65, 97), batch=2)
        assert all(x.dtype in (torch.float64, torch.bool) for x in tree_leaves(inputs))
        with torch.no_grad():
            logits: Tensor = tree_leaves(model(*inputs))[0]
        assert logits.dtype == torch.float64 and len(logits) == 2
