"""The modules: published names and outputs, and what they do as parts of other networks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import OperatorCalls, Target, assert_close
from torch import Tensor

from vsegops import flow_warp, label_edges, nn
from vsegops._spec import Maker
from vsegops.nn import GuidedSpatiallyVaryingConv

DATA = Path(__file__).parent / "data"

# --- GSVNet ------------------------------------------------------------------------------------


def convolution(name: str, index: int, out: int, channels: int, normalized: bool = True) -> dict:
    """The entries of a convolution of 3 x 3 and of the normalisation behind it."""
    entries = {
        f"{name}.{index}.weight": (out, channels, 3, 3),
        f"{name}.{index}.bias": (out,),
    }
    if normalized:
        prefix = f"{name}.{index + 1}"
        entries |= {f"{prefix}.{entry}": (out,) for entry in ("weight", "bias")}
        entries |= {f"{prefix}.running_{entry}": (out,) for entry in ("mean", "var")}
        entries[f"{prefix}.num_batches_tracked"] = ()
    return entries


#: The published checkpoint's, without their prefix "grm.".
GSVNET = {
    "ideal_dk.filter_copy_s": (9, 1, 1, 3, 3),
    **convolution("intra_net.intra_net", 0, 32, 3),
    **convolution("intra_net.intra_net", 3, 32, 32),
    **convolution("intra_net.intra_net", 6, 19, 32, normalized=False),
    **convolution("guide.guide_conv", 0, 32, 20),
    **convolution("guide.guide_conv_feat", 0, 64, 32),
    **convolution("guide.guide_conv_feat", 3, 128, 64),
    **convolution("guide.guide_deconv", 1, 64, 128),
    **convolution("guide.guide_deconv", 5, 32, 64),
    **convolution("guide.guide_decoder", 0, 11, 32),
}


def published_layer(
    layer: GuidedSpatiallyVaryingConv, logits: Tensor, image: Tensor, flow: Tensor
) -> Tensor:
    """The published layer after its motion compensation, step by step."""
    warped = flow_warp(logits, flow, scale=layer.scale)
    label = warped.argmax(1, keepdim=True).to(warped)
    laplacian = F.conv2d(label, torch.ones(1, 1, 3, 3).to(warped), padding=1) - 9 * label
    edges = (laplacian != 0).to(warped)
    intra = [] if layer.intra_net is None else [layer.intra_net(image)]
    guide = layer.guide(*intra, edges)
    guide = guide / (guide.sum(1, keepdim=True) + 1e-9)
    kernels = layer.ideal_dk.filter_copy_s
    delayed = F.conv3d(warped[:, None], kernels, padding=(0, *(n // 2 for n in kernels.shape[3:])))
    candidates = torch.cat((warped[:, None], delayed, *(x[:, None] for x in intra)), 1)
    return (guide[:, :, None] * candidates).sum(1)


def example(target: Target, classes: int = 19, size: tuple[int, int] = (16, 24)) -> dict:
    maker = Maker(device=target.device)
    return {
        "logits": maker.regions(2, classes, *size),
        "image": maker.features(2, 3, *size),
        "flow": maker.flow(2, *size),
    }


def filled(target: Target, **options) -> GuidedSpatiallyVaryingConv:
    layer = GuidedSpatiallyVaryingConv(scale=0.25, **options)
    if layer.intra_net is not None:
        fill.fill(layer.intra_net, "intra_net")
    fill.fill(layer.guide, "guide")
    return layer.to(target.device).eval()


def test_gsvnet_names():
    state = GuidedSpatiallyVaryingConv().state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == GSVNET
    assert list(state) == list(GSVNET)


def test_gsvnet_networks(target: Target):
    """Intra and guiding network, against outputs of the published code."""
    layer = filled(target)
    image = fill.features("intraguide.image", 2, 3, 16, 24, bound=1.0).to(target.device)
    laplacian = (3 * fill.features("intraguide.edge", 2, 1, 16, 24, bound=1.0)).trunc()
    golden = np.load(DATA / "intra_guide.npz")
    with torch.no_grad():
        intra = layer.intra_net(image)
        guide = layer.guide(intra, (laplacian != 0).to(image))
    assert_close(intra, torch.from_numpy(golden["intra"]), error=1e-5)
    assert_close(guide, torch.from_numpy(golden["guide"]), error=1e-5)


@pytest.mark.parametrize("kernels", ["as stored", "a checkpoint's", "trained"])
@pytest.mark.parametrize(("window", "intra"), [(3, True), (5, True), (3, False), (5, False)])
def test_gsvnet_layer(target: Target, kernels, window, intra):
    """One-hot kernels and any others give what the published layer gives."""
    layer, given = filled(target, window=window, intra=intra), example(target)
    shape = (17 if window == 5 else 9, 1, 1, window, window)
    assert layer.ideal_dk.filter_copy_s.shape == shape
    delays = layer.ideal_dk.filter_copy_s
    if kernels != "as stored":
        noise = torch.randn(delays.shape, generator=torch.Generator().manual_seed(0))
        state = layer.state_dict()
        state["ideal_dk.filter_copy_s"] = delays.cpu() + 0.1 * noise
        layer.load_state_dict(state)
    delays.requires_grad_(kernels == "trained")
    with torch.set_grad_enabled(kernels == "trained"):
        output, expected = layer(**given), published_layer(layer, **given)
    assert_close(output, expected, error=1e-5)
    if kernels == "trained":
        cotangent = torch.randn_like(output)
        (gradient,) = torch.autograd.grad(output, delays, cotangent)
        (truth,) = torch.autograd.grad(expected, delays, cotangent)
        assert_close(gradient, truth, error=1e-4)


def test_one_hot_kernels_are_found_whatever_becomes_of_them(target: Target):
    layer, given = filled(target), example(target)
    delays = layer.ideal_dk.filter_copy_s

    @torch.no_grad()
    def taps() -> int:
        """Offsets that the filter is called with, and that the result is right."""
        with OperatorCalls() as operators:
            output = layer(**given)
        assert_close(output, published_layer(layer, **given), error=1e-5)
        (offsets,) = (x[4] for op, x in operators.calls if "guided_filter" in op.name())
        return len(offsets) // 2

    general = 10  # the copy and the window
    assert taps() == 10 and layer.ideal_dk.offsets()[-1] is None
    delays[8, 0, 0, 1, 1] = 1  # the empty ninth becomes another copy
    assert taps() == 10 and layer.ideal_dk.offsets()[-1] == (0, 0)
    for wrong in (0.5, -1.0):
        delays[8, 0, 0, 1, 1] = wrong
        assert layer.ideal_dk.offsets() is None
        assert taps() == general
    delays[8] = 0
    assert layer.ideal_dk.offsets() is not None
    delays.requires_grad_()
    assert layer.ideal_dk.offsets() is None
    delays.requires_grad_(False)
    state = layer.state_dict() | {"ideal_dk.filter_copy_s": torch.ones(9, 1, 1, 3, 3)}
    layer.load_state_dict(state, assign=True)
    assert layer.ideal_dk.offsets() is None
    assert taps() == general


@pytest.mark.parametrize("normalize", ["sum", "softmax"])
def test_gsvnet_as_the_paper_has_it(target: Target, normalize):
    layer = GuidedSpatiallyVaryingConv(5, "paper", normalize=normalize).to(target.device).eval()
    given = example(target, classes=5)
    with torch.no_grad():
        output = layer(**given)
        warped = flow_warp(given["logits"], given["flow"])
        intra = layer.intra_net(given["image"])
        guide = layer.guide(intra, label_edges(warped, response="sigmoid"))
        assert guide.shape[1] == 10
        assert (guide.min() < 0) == (normalize == "softmax")
        guide = guide.softmax(1) if normalize == "softmax" else F.normalize(guide, p=1, dim=1)
        window = F.unfold(warped, 3, padding=1).view(2, 5, 9, 16, 24)
        candidates = torch.cat((window, intra[:, :, None]), 2)
        expected = (guide[:, None] * candidates).sum(2)
    assert_close(output, expected, error=1e-5)


@pytest.mark.parametrize("variant", ["published", "paper"])
def test_gsvnet_trains_at_any_size(target: Target, variant):
    """Sizes that are no multiples of 4 as well; every parameter and the flow get a gradient."""
    layer = GuidedSpatiallyVaryingConv(4, variant).to(target.device)
    given = example(target, classes=4, size=(9, 14))
    given["flow"].requires_grad_()
    layer(**given).square().mean().backward()
    assert given["flow"].grad.any()
    for name, parameter in layer.named_parameters():
        if name == "ideal_dk.filter_copy_s":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
    without_flow = layer(given["logits"], given["image"])
    assert without_flow.shape == given["logits"].shape


def test_gsvnet_compiles_exports_and_is_copied(target: Target):
    layer, given = filled(target), example(target)
    with torch.no_grad():
        expected = layer(**given)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(compiled(**given), expected, error=1e-6)
        exported = torch.export.export(layer, (), given).module()
        assert_close(exported(**given), expected, error=1e-6)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(**given), expected)
        with torch.autocast(target.device, dtype=torch.bfloat16):
            half = layer(**given)
        assert half.dtype == torch.bfloat16
        assert_close(half.float(), expected, error=0.1)


@pytest.mark.parametrize(
    "make, given",
    [
        (lambda: GuidedSpatiallyVaryingConv(4), lambda t: example(t, classes=4)),
        (lambda: nn.FlowAlign(4), lambda t: levels(t)),
        (lambda: nn.FlowAlign(4), lambda t: levels(t) | {"add_low": True}),
        (lambda: nn.GatedDualFlowAlign(4), lambda t: levels(t)),
    ],
)
def test_modules_do_without_operators(target: Target, make, given):
    layer, given = make().to(target.device).eval(), given(target)
    with torch.no_grad():
        expected = layer(**given)
        layer.use_operators(False)
        with OperatorCalls() as operators:
            output = layer(**given)
        assert not operators.calls
        assert_close(output, expected, error=1e-4)
        layer.use_operators()
        assert torch.equal(layer(**given), expected)
    with pytest.raises(ValueError, match="use: expected True or False, got"):
        layer.use_operators(0)


def levels(target: Target) -> dict:
    maker = Maker(device=target.device)
    return {"low": maker.features(2, 4, 13, 21), "high": maker.features(2, 4, 4, 7)}


def test_gsvnet_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="variant: expected 'published' or 'paper', got"):
        GuidedSpatiallyVaryingConv(variant="ours")
    with pytest.raises(ValueError, match="normalize: "):
        GuidedSpatiallyVaryingConv(normalize="none")
    layer = GuidedSpatiallyVaryingConv(4)
    with pytest.raises(ValueError, match=r"logits: expected a \[N, 4, H, W\] tensor"):
        layer(torch.zeros(1, 5, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"image: expected a \[1, 3, 8, 8\] tensor"):
        layer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 64, 64))
