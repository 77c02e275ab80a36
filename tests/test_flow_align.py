"""SFNet's modules: published names and outputs, and what they do as parts of other networks."""

from __future__ import annotations

from pathlib import Path

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Target, assert_close, sfnet_warp
from torch import Tensor

from vsegops._spec import Maker
from vsegops.nn import FlowAlign, GatedDualFlowAlign, PyramidPooling

DATA = Path(__file__).parent / "data"

#: Entries of the published checkpoints behind the prefixes "head.fpn_out_align.0." and
#: "head.flow_align_module." (ResNet-18, and STDC-1 with a gate convolution), both of 128 channels.
REDUCTIONS = {"down_h.weight": (64, 128, 1, 1), "down_l.weight": (64, 128, 1, 1)}
FAM = {**REDUCTIONS, "flow_make.weight": (2, 128, 3, 3)}
GD_FAM = {**REDUCTIONS, "flow_make.weight": (4, 128, 3, 3)}
ALIGNMENTS = [
    (lambda: FlowAlign(128), FAM),
    (lambda: GatedDualFlowAlign(128), {**GD_FAM, "flow_gate.0.weight": (1, 4, 3, 3)}),
    (
        lambda: GatedDualFlowAlign(128, gate="conv"),
        {**GD_FAM, "flow_gate.0.weight": (1, 128, 3, 3)},
    ),
]


def normalization(name: str, channels: int) -> dict:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{entry}": (channels,) for entry in entries} | {
        f"{name}.num_batches_tracked": ()
    }


#: Behind "head.ppm." of ResNet-18's.
PPM = {"bottleneck.0.weight": (128, 512 + 4 * 128, 1, 1), **normalization("bottleneck.1", 128)}
for number in range(4):
    PPM[f"stages.{number}.1.weight"] = (128, 512, 1, 1)
    PPM |= normalization(f"stages.{number}.2", 128)


def entries(module: torch.nn.Module) -> dict:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


@pytest.mark.parametrize("make, published", [*ALIGNMENTS, (lambda: PyramidPooling(512, 128), PPM)])
def test_entries_are_the_published_ones(make, published):
    assert entries(make()) == published


def published_parts(layer, low: Tensor, high: Tensor, mode: str = "bilinear") -> tuple:
    """(reduced coarse map, both, flows), step by step."""
    corners = True if mode == "bilinear" else None
    coarse = F.interpolate(layer.down_h(high), low.shape[2:], mode=mode, align_corners=corners)
    both = torch.cat((coarse, layer.down_l(low)), 1)
    return coarse, both, layer.flow_make(both)


def levels(target: Target, channels: int, n: int = 2) -> tuple[Tensor, Tensor]:
    maker = Maker(device=target.device)
    return maker.features(n, channels, 13, 21), maker.features(n, channels, 4, 7)


def test_flow_align_is_the_published_one(target: Target):
    layer = FlowAlign(128).to(target.device)
    layer.load_state_dict({name: fill.weight(name, *shape) for name, shape in FAM.items()})
    low = fill.features("low_odd", 2, 128, 13, 21, bound=1.0).to(target.device)
    high = fill.features("high_odd", 2, 128, 7, 11, bound=1.0).to(target.device)
    golden = torch.from_numpy(np.load(DATA / "fam.npz")["warped"])
    with torch.no_grad():
        assert_close(layer(low, high), golden, error=1e-5)
        assert_close(layer(low, high, add_low=True), golden + low.cpu(), error=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_flow_align_step_by_step(target: Target, kernel_size, mode):
    layer = FlowAlign(12, kernel_size, mode).to(target.device)
    low, high = levels(target, 12)
    with torch.no_grad():
        flow = published_parts(layer, low, high, mode)[2]
        warped = sfnet_warp(high, flow)
        assert_close(layer(low, high), warped, error=1e-5)
        assert_close(layer(low, high, add_low=True), warped + low, error=1e-5)


def test_flow_align_of_before_july_2022(target: Target):
    layer = FlowAlign(12, align_corners=False).to(target.device)
    low, high = levels(target, 12)
    with torch.no_grad():
        flow = published_parts(layer, low, high)[2]
        warped = sfnet_warp(high, flow, align_corners=False)
        assert_close(layer(low, high), warped, error=1e-5)
        assert_close(layer(low, high, add_low=True), warped + low, error=1e-5)


@pytest.mark.parametrize("kernel_size, mode", [(3, "bilinear"), (5, "nearest")])
@pytest.mark.parametrize("gate", ["pool", "conv"])
def test_gated_dual_flow_align_step_by_step(target: Target, gate, kernel_size, mode):
    layer = GatedDualFlowAlign(12, gate, kernel_size, mode).to(target.device)
    low, high = levels(target, 12)
    with torch.no_grad():
        coarse, both, flows = published_parts(layer, low, high, mode)
        means = [x.mean(1, keepdim=True) for x in (coarse, low)]
        largest = [x.amax(1, keepdim=True) for x in (coarse, low)]
        pooled = torch.cat((*means, *largest), 1)
        share = F.conv2d(pooled if gate == "pool" else both, layer.flow_gate[0].weight, padding=1)
        share = share.sigmoid()
        expected = sfnet_warp(high, flows[:, :2]) * share
        expected += sfnet_warp(low, flows[:, 2:]) * (1 - share)
        assert_close(layer(low, high), expected, error=1e-5)


def test_pyramid_pooling_step_by_step(target: Target):
    layer = PyramidPooling(6, 4, sizes=(1, 3, 5)).to(target.device)
    fill.fill(layer, "ppm")
    layer.eval()
    x = Maker(device=target.device).features(2, 6, 4, 9)

    def normalized(x: Tensor, by: torch.nn.BatchNorm2d) -> Tensor:
        mean, variance, weight, bias = (
            v.view(1, -1, 1, 1) for v in (by.running_mean, by.running_var, by.weight, by.bias)
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    with torch.no_grad():
        parts = []
        for size, stage in zip((1, 3, 5), layer.stages, strict=True):
            projected = F.conv2d(F.adaptive_avg_pool2d(x, size), stage[1].weight)
            projected = normalized(projected, stage[2])  # no ReLU
            parts.append(F.interpolate(projected, (4, 9), mode="bilinear", align_corners=True))
        parts.append(x)
        projected = F.conv2d(torch.cat(parts, 1), layer.bottleneck[0].weight)
        expected = normalized(projected, layer.bottleneck[1]).relu()
        assert_close(layer(x), expected, error=1e-5)


MODULES = {
    "FlowAlign": (lambda: FlowAlign(8), {}),
    "FlowAlign with the sum": (lambda: FlowAlign(8), {"add_low": True}),
    "GatedDualFlowAlign": (lambda: GatedDualFlowAlign(8), {}),
    "with a gate convolution": (lambda: GatedDualFlowAlign(8, gate="conv"), {}),
}


@pytest.mark.parametrize("name", MODULES)
def test_alignments_train_compile_export_and_autocast(target: Target, name):
    make, options = MODULES[name]
    layer = make().to(target.device)
    low, high = (x.requires_grad_() for x in levels(target, 8))
    layer(low, high, **options).square().mean().backward()
    for key, parameter in (*layer.named_parameters(), ("low", low), ("high", high)):
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key
    with torch.no_grad():
        expected = layer(low, high, **options)
        assert expected.shape == low.shape
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(compiled(low, high, **options), expected, error=1e-6)
        exported = torch.export.export(layer, (low, high), options).module()
        assert_close(exported(low, high, **options), expected, error=1e-6)
        with torch.autocast(target.device, dtype=torch.bfloat16):
            half = layer(low, high, **options)
        assert half.dtype == torch.bfloat16
        assert_close(half.float(), expected, error=0.1)


def test_pyramid_pooling_trains(target: Target):
    layer = PyramidPooling(6, 4).to(target.device)
    x = Maker(device=target.device).features(2, 6, 4, 9).requires_grad_()
    layer(x).square().mean().backward()
    for name, parameter in (*layer.named_parameters(), ("x", x)):
        assert parameter.grad is not None, name


def test_what_does_not_fit_is_refused():
    for make in (FlowAlign, GatedDualFlowAlign):
        for bad in (1, True, 64.0):
            with pytest.raises(ValueError, match="channels: expected a whole number from 2 on"):
                make(bad)
        with pytest.raises(ValueError, match="kernel_size: expected 1, 3, 5 or 7, got int 2"):
            make(8, kernel_size=2)
        with pytest.raises(ValueError, match="mode: expected 'bilinear' or 'nearest'"):
            make(8, mode="bicubic")
        layer = make(8)
        with pytest.raises(ValueError, match=r"low: expected a \[N, 8, H, W\] tensor"):
            layer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4))
        with pytest.raises(ValueError, match=r"high: expected a \[1, 8, h, w\] tensor"):
            layer(torch.zeros(1, 8, 8, 8), torch.zeros(2, 8, 4, 4))
    with pytest.raises(ValueError, match="gate: expected 'pool' or 'conv'"):
        GatedDualFlowAlign(8, gate="both")
    with pytest.raises(ValueError, match=r"x: expected a \[N, 6, H, W\] tensor"):
        PyramidPooling(6, 4)(torch.zeros(1, 4, 8, 8))
