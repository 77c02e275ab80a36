"""The dual warp family's conventions: what the contract test cannot know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Target, assert_close, cotangent_of, evaluate, sfnet_warp
from torch import Tensor

from vsegops import channel_pool, flow_warp, gated_dual_warp
from vsegops._spec import Maker

#: (coarse size, fine size): equal, an eighth, and ratios that are odd, of one side, or below 1.
SIZES = [
    ((9, 12), (9, 12)),
    ((3, 5), (24, 40)),
    ((7, 11), (13, 21)),
    ((4, 5), (25, 13)),
    ((1, 6), (5, 17)),
    ((14, 9), (6, 4)),
]


def warp_arguments(
    maker: Maker, coarse: tuple[int, int], fine: tuple[int, int], n: int = 2, c: int = 6
) -> dict[str, Tensor]:
    return {
        "high": maker.features(n, c, *coarse),
        "low": maker.features(n, c, *fine),
        "high_flow": maker.flow(n, *fine),
        "low_flow": maker.flow(n, *fine),
        "gate": maker.unit(n, 1, *fine),
    }


def published(high: Tensor, low: Tensor, high_flow: Tensor, low_flow: Tensor, gate: Tensor):
    return sfnet_warp(high, high_flow) * gate + sfnet_warp(low, low_flow) * (1 - gate)


# --- gated_dual_warp ---------------------------------------------------------------------------


@pytest.mark.parametrize("coarse, fine", SIZES)
def test_defaults_are_the_published_convention(target: Target, coarse, fine):
    """Two calls of grid_sample and the sum, forward and backward."""
    arguments = warp_arguments(Maker(device=target.device, dtype=torch.float64), coarse, fine)
    expected = evaluate(published, arguments, list(arguments))
    result = evaluate(gated_dual_warp, arguments, list(arguments))
    assert_close(result.output, expected.output, error=1e-12)
    for name, gradient in expected.gradients.items():
        assert gradient.abs().max() > 0, name
        assert_close(result.gradients[name], gradient, error=1e-11, what=f"d/d{name}")


@pytest.mark.parametrize("coarse, fine", SIZES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_gate_0_and_1_are_flow_warp(target: Target, align_corners, padding_mode, coarse, fine):
    """Forward and backward, with scales of their own; the other map gets no gradient."""
    arguments = warp_arguments(Maker(device=target.device), coarse, fine)
    gate = arguments.pop("gate")
    options = {"align_corners": align_corners, "padding_mode": padding_mode}
    scales = {"high_scale": (0.5, -1.5), "low_scale": 0.75}
    for share, name, other in ((1, "high", "low"), (0, "low", "high")):
        given = {**arguments, "gate": torch.full_like(gate, share), **scales, **options}
        result = evaluate(gated_dual_warp, given, list(arguments))
        alone = {"input": arguments[name], "flow": arguments[f"{name}_flow"]}
        expected = evaluate(
            flow_warp, {**alone, "scale": scales[f"{name}_scale"], **options}, list(alone)
        )
        assert_close(result.output, expected.output, error=2e-7)
        for ours, theirs in ((name, "input"), (f"{name}_flow", "flow")):
            assert_close(result.gradients[ours], expected.gradients[theirs], error=1e-6, what=ours)
        assert not result.gradients[other].any()
        assert not result.gradients[f"{other}_flow"].any()


@pytest.mark.parametrize("coarse, fine", SIZES)
@pytest.mark.parametrize("align_corners", [True, False])
def test_constants_are_preserved_inside(target: Target, align_corners, coarse, fine):
    """Whatever flows and gate: everywhere with a border, and without where nothing is outside."""
    maker = Maker(device=target.device)
    arguments = warp_arguments(maker, coarse, fine)
    constant = maker.features(1, 6, 1, 1)
    for name in ("high", "low"):
        arguments[name] = constant.expand_as(arguments[name]).contiguous()
    everywhere = constant.expand_as(arguments["low"])
    bordered = gated_dual_warp(**arguments, align_corners=align_corners, padding_mode="border")
    assert_close(bordered, everywhere, error=1e-6)
    zeros = gated_dual_warp(**arguments, align_corners=align_corners)
    ones = {name: torch.ones_like(arguments[name]) for name in ("high", "low")}
    share_inside = gated_dual_warp(**{**arguments, **ones}, align_corners=align_corners)
    assert_close(zeros, constant * share_inside, error=1e-6)
    assert (share_inside <= 1 + 1e-6).all()
    assert (share_inside < 1).any()


def test_no_flow_resizes_and_blends(target: Target):
    maker = Maker(device=target.device)
    arguments = warp_arguments(maker, (7, 11), (13, 21))
    for name in ("high_flow", "low_flow"):
        arguments[name].zero_()
    resized = F.interpolate(arguments["high"], (13, 21), mode="bilinear", align_corners=True)
    expected = arguments["low"].lerp(resized, arguments["gate"])
    assert_close(gated_dual_warp(**arguments), expected, error=1e-6)


def test_flows_that_share_a_tensor(target: Target):
    """As a network makes them: the two halves of four channels, in any layout."""
    arguments = warp_arguments(Maker(device=target.device), (5, 6), (9, 13))
    expected = gated_dual_warp(**arguments)
    names = ("high_flow", "low_flow")
    flows = torch.cat([arguments[name] for name in names], 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        halves = dict(zip(names, flows.contiguous(memory_format=layout).chunk(2, 1), strict=True))
        assert torch.equal(gated_dual_warp(**{**arguments, **halves}), expected)


def test_maps_of_different_layouts(target: Target):
    """The layout of `high` decides about the output's and both gradients'."""
    arguments = warp_arguments(Maker(device=target.device), (5, 6), (9, 13))
    expected = evaluate(gated_dual_warp, arguments, list(arguments))
    for name in ("high", "low"):
        changed = arguments[name].contiguous(memory_format=torch.channels_last)
        result = evaluate(gated_dual_warp, {**arguments, name: changed}, list(arguments))
        layout = torch.channels_last if name == "high" else torch.contiguous_format
        assert result.output.is_contiguous(memory_format=layout)
        assert_close(result.output, expected.output, error=2e-7)
        for key, gradient in expected.gradients.items():
            assert_close(result.gradients[key], gradient, error=1e-6, what=f"d/d{key}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_results_are_float32_results_rounded_once(target: Target, dtype):
    maker = Maker(device=target.device, dtype=dtype, flow_dtype=torch.float32)
    arguments = warp_arguments(maker, (7, 11), (13, 21))
    widened = {name: x.float() for name, x in arguments.items()}
    assert torch.equal(gated_dual_warp(**arguments), gated_dual_warp(**widened).to(dtype))


# --- channel_pool ------------------------------------------------------------------------------


def test_channel_pool_is_mean_and_max(target: Target):
    maker = Maker(device=target.device)
    first, second = maker.features(2, 7, 4, 5), maker.features(2, 20, 4, 5)
    pooled = channel_pool(first, second)
    means, largest = pooled[:, :2], pooled[:, 2:]
    assert_close(means, torch.stack((first.mean(1), second.mean(1)), 1), error=1e-6)
    assert torch.equal(largest, torch.stack((first.amax(1), second.amax(1)), 1))


#: Maxima at more than one place, of a vector's lanes and beyond, and what is not a number.
TIED = [
    [1.0, 3.0, 3.0, 2.0],
    [-1.0, -1.0, -1.0],
    [0.0] * 37,
    [0.0] * 16 + [5.0] + [0.0] * 15 + [5.0],
    [0.0] * 17 + [5.0] + [5.0] + [0.0] * 29,
    [-torch.inf] * 18,
    [1.0, torch.inf, 2.0, torch.inf],
    [1.0, torch.nan, torch.inf, torch.nan],
    [torch.inf] * 19 + [torch.nan],
    [torch.nan] * 20,
    [-torch.inf] * 16 + [torch.nan, 0.0, 1.0],
    [-0.0, 0.0, -1.0],
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_first_maximum_gets_the_gradient(target: Target, dtype, channels_last):
    """As in `torch.max`: of equal ones the first, and NaN before everything."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = torch.arange(33, device=target.device)  # a vector of any width and some more
    for values in TIED:
        column = torch.tensor(values, dtype=dtype, device=target.device).view(1, -1, 1, 1)
        x = column.expand(1, -1, 3, 11).contiguous(memory_format=layout).requires_grad_()
        other = torch.zeros(1, 2, 3, 11, dtype=dtype, device=target.device)
        for which, tensors in ((2, (x, other)), (3, (other, x))):
            pooled = channel_pool(*tensors)
            expected = column.max(1).values.expand(1, 3, 11)
            assert torch.equal(pooled[:, which].nan_to_num(7), expected.nan_to_num(7)), values
            weights = (pixels + 1).view(3, 11).to(dtype)
            (gradient,) = torch.autograd.grad((pooled[:, which] * weights).sum(), x)
            place = torch.zeros_like(gradient)
            place[:, column.max(1).indices.item()] = weights
            assert torch.equal(gradient.nan_to_num(7), place), values


def test_gradients_of_mean_and_max_add(target: Target):
    maker = Maker(device=target.device, dtype=torch.float64)
    given = {"first": maker.features(2, 9, 5, 7), "second": maker.features(2, 33, 5, 7)}
    weights = cotangent_of(channel_pool(**given))
    result = evaluate(channel_pool, given, list(given), weights)
    for i, (name, x) in enumerate(given.items()):
        expected = (weights[:, i : i + 1] / x.shape[1]).expand_as(x).clone()
        expected.scatter_add_(1, x.argmax(1, keepdim=True), weights[:, i + 2 : i + 3])
        assert_close(result.gradients[name], expected, error=1e-14, what=name)


def test_no_map_is_kept_for_the_gradient(target: Target):
    """Of what was pooled only the maxima's places are, and those where a gradient is wanted."""
    maker = Maker(device=target.device)
    first, second = (maker.features(2, c, 5, 7).requires_grad_() for c in (64, 128))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        channel_pool(first, second)
        assert [(tuple(x.shape), x.dtype) for x in kept] == [((2, 2, 5, 7), torch.int32)]
        expected = torch.stack((first.max(1).indices, second.max(1).indices), 1)
        assert torch.equal(kept[0].long(), expected)
        kept.clear()
        channel_pool(first.detach(), second.detach())
        assert not kept


def test_a_pooled_map_may_change_before_its_gradient(target: Target):
    """The gradient is of the map as it was."""
    x = Maker(device=target.device).features(1, 9, 4, 5)
    leaf = x.clone().requires_grad_()
    changed = leaf.clone()
    pooled = channel_pool(changed, changed)[:, 2]
    changed.neg_()
    pooled.sum().backward()
    expected = torch.zeros_like(x).scatter_(1, x.argmax(1, keepdim=True), 1.0)
    assert leaf.grad is not None and torch.equal(leaf.grad, expected)


@pytest.mark.only("cpu", "cuda")
def test_the_compiled_gradient_checks_what_it_is_given(target: Target):
    """Without the public function, too. Places that are not dense are taken as they are meant."""
    grad = Maker(device=target.device).features(2, 4, 5, 6)
    places = torch.randint(3, (2, 2, 6, 5), dtype=torch.int32, device=target.device).mT
    backward = torch.ops.vsegops.channel_pool_backward
    for wrong in (places[..., 1:], places.long()):
        with pytest.raises(RuntimeError, match="places: "):
            backward(grad, wrong, 3, 3, False, 3)
    with pytest.raises(RuntimeError, match="grad: "):
        backward(grad[:, :3], places, 3, 3, False, 3)
    with pytest.raises(RuntimeError, match="channel"):
        backward(grad, places, 3, 0, False, 3)
    for found, as_dense in zip(
        backward(grad, places, 3, 7, True, 3),
        backward(grad, places.contiguous(), 3, 7, False, 3),
        strict=True,
    ):
        assert torch.equal(found, as_dense)


def test_pooled_maps_of_different_layouts(target: Target):
    maker = Maker(device=target.device)
    given = {"first": maker.features(2, 8, 5, 7), "second": maker.features(2, 12, 5, 7)}
    expected = evaluate(channel_pool, given, list(given))
    for name in given:
        changed = given[name].contiguous(memory_format=torch.channels_last)
        result = evaluate(channel_pool, {**given, name: changed}, list(given))
        assert_close(result.output, expected.output, error=2e-7)
        for key, gradient in expected.gradients.items():
            assert_close(result.gradients[key], gradient, error=1e-6, what=f"d/d{key}")
