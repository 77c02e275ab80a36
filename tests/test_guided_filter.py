"""The guided filter family's conventions: what the contract test cannot know."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import FORMATS, Target, assert_close, cotangent_of, evaluate, truth_of
from torch import Tensor

from vsegops import DELAYS_3X3, DELAYS_5X5, flow_warp, guided_filter, label_edges
from vsegops._spec import Maker, specs

FILTER, EDGES = (
    next(spec for spec in specs() if spec.name == name) for name in ("guided_filter", "label_edges")
)
NORMALIZATIONS = ("sum", "softmax", "none")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def one_hot(labels: list[list[int]], classes: int, target: Target) -> Tensor:
    """Logits [1, C, H, W] of a label map."""
    map = torch.tensor(labels, device=target.device)
    return torch.nn.functional.one_hot(map, classes).permute(2, 0, 1)[None].float()


def select(like: Tensor, channels: int, chosen: int) -> Tensor:
    """A guide that gives all weight to one channel."""
    guide = like.new_zeros(like.shape[0], channels, *like.shape[2:])
    guide[:, chosen] = 1
    return guide


# --- conventions -------------------------------------------------------------------------------


def test_delays():
    inner = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
    outer = [(-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)]
    assert list(DELAYS_3X3) == inner
    assert list(DELAYS_5X5) == inner + outer


def test_an_offset_is_where_a_pixel_is_taken_from(target: Target):
    """(dy, dx), y down, x to the right; outside 0, and an empty tap is 0 everywhere."""
    image = torch.arange(1.0, 13.0, device=target.device).view(1, 1, 3, 4)
    intra = torch.full_like(image, -1)
    offsets = [(0, 1), (1, 0), (-1, -2), None, (3, 0), (0, -4), (2**30, 0)]

    def through(channel: int) -> list[list[float]]:
        guide = select(image, len(offsets) + 1, channel)
        out = guided_filter(image, intra, guide, offsets=offsets, normalize="none")
        return out[0, 0].tolist()

    assert through(0) == [[2, 3, 4, 0], [6, 7, 8, 0], [10, 11, 12, 0]]
    assert through(1) == [[5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 0]]
    assert through(2) == [[0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 5, 6]]
    for outside in (3, 4, 5, 6):
        assert through(outside) == 3 * [4 * [0]]
    assert through(7) == intra[0, 0].tolist()


def test_a_shift_repairs_a_displaced_edge(target: Target):
    """The object came one pixel too far to the right: its first column is taken from beside it."""
    right = one_hot(6 * [[0, 0, 0, 2, 2, 2, 2, 2]], 3, target)
    displaced = one_hot(6 * [[0, 0, 0, 0, 2, 2, 2, 2]], 3, target)
    wrong = displaced.argmax(1) != right.argmax(1)
    assert wrong.any()
    edges = label_edges(displaced)[:, 0].bool()
    assert edges[wrong].all()  # the edges tell where to look
    guide = select(displaced, 10, DELAYS_3X3.index((0, 0)))
    for channel in range(10):
        guide[:, channel][wrong] = float(channel == DELAYS_3X3.index((0, 1)))
    nothing = torch.zeros_like(right)
    repaired = guided_filter(displaced, nothing, guide)
    assert torch.equal(repaired.argmax(1), right.argmax(1))
    assert_close(repaired, right, error=1e-6)
    # Nor does it depend on the flow's hitting the pixel: the same with the displacement as a flow.
    flow = torch.zeros(1, 2, 6, 8, device=target.device)
    flow[:, 0] = -1
    warped = guided_filter(right, nothing, guide, flow=flow)
    assert torch.equal(warped.argmax(1), right.argmax(1))


def test_weights(target: Target):
    """A pixel whose candidates are 1, 10, 100 (the neighbours and intra); an empty tap beside."""
    image = torch.tensor([1.0, 0.0, 10.0], device=target.device).view(1, 1, 1, 3)
    intra = torch.full_like(image, 100)
    guide = (
        torch.tensor([1.0, 2.0, 4.0, 1.0], device=target.device).view(1, 4, 1, 1).expand(1, 4, 1, 3)
    )
    offsets = [(0, -1), (0, 1), None]

    def at_centre(**options) -> float:
        return guided_filter(image, intra, guide, offsets=offsets, **options)[0, 0, 0, 1].item()

    assert at_centre(normalize="none") == 1 + 20 + 100
    assert at_centre() == pytest.approx((1 + 20 + 100) / 8)
    assert at_centre(eps=8) == pytest.approx((1 + 20 + 100) / 16)
    e = [torch.tensor(x).exp().item() for x in (1.0, 2.0, 4.0, 1.0)]
    softmax = (e[0] * 1 + e[1] * 10 + e[3] * 100) / sum(e)
    assert at_centre(normalize="softmax") == pytest.approx(softmax)


@pytest.mark.parametrize("value", [0.0, 88.0, -1e4, 1e4])
def test_softmax_does_not_overflow(target: Target, value):
    maker = Maker(device=target.device)
    logits, intra = maker.features(1, 3, 5, 6), maker.features(1, 3, 5, 6)
    guide = maker.features(1, 10, 5, 6)
    given = {"logits": logits, "intra": intra, "guide": guide + value, "normalize": "softmax"}
    result = evaluate(guided_filter, given, ["logits", "guide"])
    truth = truth_of(FILTER, given, ["logits", "guide"])
    assert_close(result.output, truth.output, error=2e-6)
    for name, gradient in result.gradients.items():
        assert_close(gradient, truth.gradients[name], error=2e-5, what=name)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("scale", [1.0, (-0.5, 2.0), "semantic"])
def test_a_flow_warps_first(target: Target, scale, padding_mode):
    """`flow=` is `flow_warp` before it, forward and backward."""
    maker = Maker(device=target.device, dtype=torch.float64)
    tensors = {
        "logits": maker.features(2, 4, 9, 11),
        "intra": maker.features(2, 4, 9, 11),
        "guide": maker.unit(2, 18, 9, 11),
        "flow": maker.flow(2, 9, 11),
    }
    sampling = {"scale": scale, "padding_mode": padding_mode}

    def separately(logits, intra, guide, flow):
        warped = flow_warp(logits, flow, **sampling)
        return guided_filter(warped, intra, guide, offsets=DELAYS_5X5)

    def fused(**given):
        return guided_filter(**given, offsets=DELAYS_5X5, **sampling)

    expected, result = (evaluate(f, tensors, list(tensors)) for f in (separately, fused))
    assert_close(result.output, expected.output, error=1e-12)
    for name, gradient in expected.gradients.items():
        assert_close(result.gradients[name], gradient, error=1e-12, what=f"d/d{name}")
    logits, flow = tensors["logits"], tensors["flow"]
    edges = label_edges(flow_warp(logits, flow, **sampling), response="sigmoid")
    assert_close(label_edges(logits, flow=flow, response="sigmoid", **sampling), edges, error=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_results_are_float32_results_rounded_once(target: Target, dtype):
    """Bit for bit, in both layouts, with and without a flow."""
    maker = Maker(device=target.device, dtype=dtype, flow_dtype=torch.float32)
    half = {
        "logits": maker.features(2, 9, 7, 18),
        "intra": maker.features(2, 9, 7, 18),
        "guide": maker.unit(2, 10, 7, 18),
    }
    flow = maker.flow(2, 7, 18)
    for layout, along in itertools.product(LAYOUTS, (None, flow)):
        half = {name: x.contiguous(memory_format=layout) for name, x in half.items()}
        single = {name: x.float() for name, x in half.items()}
        for normalize in NORMALIZATIONS:
            options = {"normalize": normalize, "flow": along}
            rounded = guided_filter(**single, **options).to(dtype)
            assert torch.equal(guided_filter(**half, **options), rounded)


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_of_a_guide_of_zeros(target: Target, dtype, normalize):
    """By hand: with r_k = sum_c grad * candidate_k, it is r_k / eps, (r_k - mean) / K or r_k."""
    maker = Maker(device=target.device, dtype=dtype)
    logits, intra = maker.features(2, 3, 4, 5), maker.features(2, 3, 4, 5)
    offsets = ((0, 0), (0, 1), None)
    guide = torch.zeros(2, 4, 4, 5, dtype=dtype, device=target.device)
    shifted = torch.zeros_like(logits)
    shifted[..., :-1] = logits[..., 1:]
    candidates = (logits, shifted, torch.zeros_like(logits), intra)
    given = {"logits": logits, "intra": intra, "guide": guide}
    result = evaluate(
        lambda **a: guided_filter(**a, offsets=offsets, normalize=normalize), given, list(given)
    )
    cotangent = cotangent_of(result.output)
    r = torch.stack([(cotangent * candidate).sum(1) for candidate in candidates], 1)
    weight = 0.0
    expected = r
    if normalize == "sum":
        expected = r / 1e-9
    elif normalize == "softmax":
        weight = 0.25
        expected = (r - r.mean(1, keepdim=True)) / 4
    assert_close(result.gradients["guide"], expected, error=1e-6)
    assert_close(result.output, weight * sum(candidates), error=1e-6)
    assert_close(result.gradients["intra"], weight * cotangent, error=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_takes_part_in_no_output_has_no_gradient(target: Target, normalize):
    """Logits that every offset shifts out of the image, and the guide of an empty tap."""
    maker = Maker(device=target.device, dtype=torch.float64)
    given = {
        "logits": maker.features(1, 2, 1, 4),
        "intra": maker.features(1, 2, 1, 4),
        "guide": maker.unit(1, 3, 1, 4),
    }
    result = evaluate(
        lambda **a: guided_filter(**a, offsets=[(0, 2), None], normalize=normalize),
        given,
        list(given),
    )
    assert not result.gradients["logits"][..., :2].any()
    assert result.gradients["logits"][..., 2:].all()
    assert result.gradients["guide"][:, 1].any() == (normalize != "none")


def test_gradients_without_a_flow_are_deterministic(target: Target):
    """They are gathered, so that nothing has to raise."""
    maker = Maker(device=target.device)
    size = (9, 20) if target.interpreted else (90, 120)
    given = {
        "logits": maker.features(2, 5, *size),
        "intra": maker.features(2, 5, *size),
        "guide": maker.unit(2, 10, *size),
    }
    torch.use_deterministic_algorithms(True)
    first, *others = (evaluate(guided_filter, given, list(given)).gradients for _ in range(3))
    for other in others:
        assert all(torch.equal(gradient, first[name]) for name, gradient in other.items())


# --- edges -------------------------------------------------------------------------------------


def test_edges_of_a_map(target: Target):
    """The border of the image counts as class 0; neighbours that balance make no edge."""
    labels = [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 2],
        [1, 1, 0, 0, 0, 1, 2],
        [1, 1, 0, 0, 0, 1, 2],
    ]
    expected = [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 0, 1, 0, 1],  # 0 1 2 around a 1
        [1, 1, 1, 0, 1, 1, 1],
    ]
    logits = one_hot(labels, 3, target)
    assert label_edges(logits)[0, 0].tolist() == expected
    laplacian = torch.nn.functional.pad(torch.tensor(labels).double(), (1, 1, 1, 1))
    window = laplacian.unfold(0, 3, 1).unfold(1, 3, 1).sum((2, 3))
    response = (window - 9 * torch.tensor(labels)).sigmoid()
    assert_close(label_edges(logits, response="sigmoid")[0, 0], response, error=2e-6)


@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
def test_the_lowest_class_wins_ties(target: Target, formats):
    dtype, flow_dtype = formats
    for layout in LAYOUTS:
        logits = torch.full((1, 19, 6, 40), -1.0, dtype=dtype, device=target.device)
        logits = logits.contiguous(memory_format=layout)
        assert not label_edges(logits).any()  # all tie: class 0, also beside the border
        flow = torch.full((1, 2, 6, 40), 0.3, dtype=flow_dtype, device=target.device)
        assert not label_edges(logits, flow=flow, padding_mode="border").any()
        # Left 7, right a tie of 7, 12 and 18: one region, and its rim.
        logits[:, 7] = logits[:, 12, :, 20:] = logits[:, 18, :, 20:] = 0.7
        for along in (None, 0 * flow, flow):
            edges = label_edges(logits, flow=along, padding_mode="border")
            assert not edges[..., 1:-1, 1:-1].any()
            assert edges[..., 0, :].all() and edges[..., -1, :].all()


def test_outside_is_class_0(target: Target):
    """A flow that leaves the image samples zeros: as far as the labels go, class 0."""
    logits = one_hot(5 * [5 * [1]], 3, target)
    flow = torch.full((1, 2, 5, 5), 100.0, device=target.device)
    assert not label_edges(logits, flow=flow).any()
    assert label_edges(logits, flow=flow, padding_mode="border")[0, 0, 0].all()
    half_outside = torch.zeros(1, 2, 5, 5, device=target.device)
    half_outside[:, 0, :, 3:] = 3  # the last columns see 0 beside the 1 of the others
    columns = label_edges(logits, flow=half_outside)[0, 0, 2].tolist()
    assert columns == [1, 0, 1, 1, 0]


def test_edges_have_no_gradient(target: Target):
    maker = Maker(device=target.device)
    logits, flow = maker.features(1, 3, 5, 6), maker.flow(1, 5, 6)
    edges = label_edges(logits.requires_grad_(), flow=flow.requires_grad_())
    assert not edges.requires_grad


@pytest.mark.parametrize("dtypes", ["float32", "float16+float32"])
def test_flips_are_few_and_unbiased(target: Target, dtypes):
    """Where two classes are as good as equal a rounding may decide, and no more than that."""
    dtype, flow_dtype = FORMATS[dtypes]
    maker = Maker(device=target.device, dtype=dtype, flow_dtype=flow_dtype)
    size = (24, 40) if target.interpreted else (128, 256)
    flow = maker.flow(1, *size, magnitude=0.2)
    given = {"logits": maker.regions(1, 19, *size, side=8), "flow": flow}
    truth = truth_of(EDGES, given).output
    assert 0.1 < truth.mean() < 0.9
    assert_close(label_edges(**given), truth, error=0.0, flips=1e-3)
