"""The warp family's conventions: what the contract test cannot know."""

from __future__ import annotations

import itertools
from pathlib import Path

import fill
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FORMATS, Target, assert_close, cotangent_of, evaluate, poison_allocations
from torch import Tensor

from vsegops import flow_warp, warp_correct
from vsegops._spec import Maker, specs

DATA = Path(__file__).parent / "data"
WARP = next(spec for spec in specs() if spec.name == "flow_warp")
OPTIONS = [
    {"align_corners": align_corners, "mode": mode, "padding_mode": padding_mode}
    for align_corners, mode, padding_mode in itertools.product(
        (True, False), ("bilinear", "nearest"), ("zeros", "border")
    )
]
OPTIONS_ID = ["-".join(str(value) for value in options.values()) for options in OPTIONS]


def constant_flow(x: float, y: float, like: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    flow = like.new_empty(like.shape[0], 2, *(size or like.shape[2:]))
    flow[:, 0], flow[:, 1] = x, y
    return flow


# --- conventions -------------------------------------------------------------------------------


def test_flow_points_to_where_a_pixel_is_taken_from(target: Target):
    """x to the right, y down, in pixels; outside 0, or the border."""
    image = torch.arange(12.0, device=target.device).view(1, 1, 3, 4)
    right = flow_warp(image, constant_flow(1, 0, image))
    assert right[0, 0].tolist() == [[1, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0]]
    down = flow_warp(image, constant_flow(0, 1, image), padding_mode="border")
    assert down[0, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]
    left = flow_warp(image, constant_flow(1, 0, image), scale=-1)
    assert left[0, 0].tolist() == [[0, 0, 1, 2], [0, 4, 5, 6], [0, 8, 9, 10]]
    up_half = flow_warp(image, constant_flow(9, 1, image), scale=(0, -0.5))
    assert up_half[0, 0].tolist() == [[0, 0.5, 1, 1.5], [2, 3, 4, 5], [6, 7, 8, 9]]


def test_nearest_rounds_halves_to_even(target: Target):
    image = torch.arange(8.0, device=target.device).view(1, 1, 1, 8)
    moved = flow_warp(image, constant_flow(0.5, 0, image), mode="nearest")
    assert moved.flatten().tolist() == [0, 2, 2, 4, 4, 6, 6, 0]


@pytest.mark.parametrize("options", OPTIONS, ids=OPTIONS_ID)
def test_zero_flow_is_the_identity(target: Target, options):
    for (dtype, flow_dtype), channels_last in itertools.product(FORMATS.values(), (False, True)):
        maker = Maker(device=target.device, dtype=dtype, channels_last=channels_last)
        for h, w in ((5, 7), (1, 33), (16, 1), (9, 64)):
            x = maker.features(2, 3, h, w)
            x.flatten()[: x.numel() // 2] *= 1e4 if dtype == torch.float16 else 1e30
            flow = torch.zeros(2, 2, h, w, dtype=flow_dtype, device=target.device)
            for scale in (1.0, -1, "semantic", (0, 3)):
                assert torch.equal(flow_warp(x, flow, scale=scale, **options), x)
            nothing = torch.zeros_like(x)
            assert torch.equal(warp_correct(x, flow, nothing, **options), x)


@pytest.mark.parametrize("options", OPTIONS, ids=OPTIONS_ID)
def test_equals_grid_sample(target: Target, options):
    """Where the two conventions meet: float64, equal sizes and others."""
    maker = Maker(device=target.device, dtype=torch.float64)
    for source, size in (((9, 13), (9, 13)), ((5, 8), (11, 6)), ((20, 3), (4, 30))):
        x, flow = maker.features(2, 3, *source), maker.flow(2, *size, magnitude=2.0)
        (h, w), (height, width) = source, size
        xs = torch.arange(width, dtype=x.dtype, device=x.device)
        ys = torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
        if options["align_corners"]:
            u = 2 * xs / (width - 1) - 1 + flow[:, 0] * 2 / (w - 1)
            v = 2 * ys / (height - 1) - 1 + flow[:, 1] * 2 / (h - 1)
        else:
            u = (2 * xs + 1) / width - 1 + flow[:, 0] * 2 / w
            v = (2 * ys + 1) / height - 1 + flow[:, 1] * 2 / h
        expected = F.grid_sample(x, torch.stack((u, v), -1), **options)
        torch.testing.assert_close(flow_warp(x, flow, **options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("align_corners", [True, False])
def test_zero_flow_resizes_as_interpolate_does(target: Target, align_corners):
    maker = Maker(device=target.device, dtype=torch.float64)
    for source, size in (((9, 13), (17, 25)), ((7, 5), (6, 12)), ((4, 4), (1, 9))):
        x = maker.features(2, 3, *source)
        resized = flow_warp(
            x, constant_flow(0, 0, x, size), align_corners=align_corners, padding_mode="border"
        )
        expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(resized, expected, rtol=0, atol=1e-12)


def test_one_output_pixel_of_many(target: Target):
    """A 1 x 1 tensor is contiguous and channels_last at once: the source's layout decides."""
    x = torch.tensor([[1.0, 2.0], [10.0, 20.0]], device=target.device).view(1, 2, 1, 2)
    for source in (x, x.contiguous(memory_format=torch.channels_last)):
        given = {"input": source, "flow": constant_flow(0, 0, x, (1, 1))}
        result = evaluate(lambda **a: flow_warp(**a, align_corners=False), given, list(given))
        assert result.output.flatten().tolist() == [1.5, 15]
        weights = cotangent_of(result.output).flatten()
        slope = result.gradients["flow"][0, 0, 0, 0]
        assert_close(slope, weights @ torch.tensor([1.0, 10.0], device=x.device), error=1e-6)
        expected = (weights / 2).view(1, 2, 1, 1).expand_as(x)
        assert_close(result.gradients["input"], expected, error=1e-6)


def test_sfnet_flow_alignment(target: Target):
    """SFNet's flow alignment module, against an output of the published code."""
    low = fill.features("low_odd", 2, 128, 13, 21, bound=1.0)
    high = fill.features("high_odd", 2, 128, 7, 11, bound=1.0)
    down_l, down_h = (fill.weight(f"down_{x}.weight", 64, 128, 1, 1) for x in "lh")
    flow_make = fill.weight("flow_make.weight", 2, 128, 3, 3)
    reduced = F.interpolate(F.conv2d(high, down_h), (13, 21), mode="bilinear", align_corners=True)
    flow = F.conv2d(torch.cat((reduced, F.conv2d(low, down_l)), 1), flow_make, padding=1)
    warped = flow_warp(high.to(target.device), flow.to(target.device), scale="semantic")
    golden = torch.from_numpy(np.load(DATA / "fam.npz")["warped"])
    assert_close(warped, golden, error=1e-5)
    fused = warp_correct(
        *(x.to(target.device) for x in (high, flow, low)), scale="semantic", padding_mode="zeros"
    )
    assert_close(fused, golden + low, error=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_semantic_scale_is_a_pair_of_numbers(target: Target, align_corners):
    maker = Maker(device=target.device)
    for (h, w), (height, width) in (((7, 11), (13, 21)), ((1, 6), (5, 3)), ((16, 16), (32, 32))):
        x, flow = maker.features(1, 4, h, w), maker.flow(1, height, width)
        less = 1 if align_corners else 0
        pair = ((w - less) / (2 * width), (h - less) / (2 * height))
        semantic = flow_warp(x, flow, scale="semantic", align_corners=align_corners)
        explicit = flow_warp(x, flow, scale=pair, align_corners=align_corners)
        assert_close(semantic, explicit, error=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=OPTIONS_ID)
def test_warp_correct_is_warp_and_sum(target: Target, options):
    maker = Maker(device=target.device, dtype=torch.float64)
    x, flow = maker.features(2, 5, 8, 9), maker.flow(2, 6, 11)
    correction, attention = maker.features(2, 5, 6, 11), maker.unit(2, 1, 6, 11)
    warped = flow_warp(x, flow, **options)
    attended = warp_correct(x, flow, correction, attention, **options)
    torch.testing.assert_close(attended, warped + attention * correction, rtol=0, atol=1e-14)
    plain = warp_correct(x, flow, correction, **options)
    torch.testing.assert_close(plain, warped + correction, rtol=0, atol=1e-14)


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source_width", [3840, 1921], ids=["same size", "resized"])
def test_positions_are_exact_at_width_3840(target: Target, align_corners, source_width):
    """A ramp shows positions: its slope is 1 per pixel, its values stay small."""
    if target.rounds_fma_twice:
        pytest.skip("the interpreter of this Triton rounds an fma twice")
    x = torch.arange(source_width, device=target.device).remainder(2).float()
    x = x.view(1, 1, 1, -1).expand(1, 1, 2, -1).contiguous()  # 0 1 0 1 ...
    flow = Maker(device=target.device).flow(1, 2, 3840, magnitude=16.0)
    options = {"align_corners": align_corners, "padding_mode": "border", "scale": (-1.1, 0.3)}
    result = evaluate(lambda **a: flow_warp(**a, **options), {"input": x, "flow": flow})
    truth = WARP.truth({"input": x, "flow": flow, **options})
    assert (result.output.double() - truth).abs().max() < 2e-7  # 1.2e-4 with float32 coordinates


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_results_are_float32_results_rounded_once(target: Target, dtype):
    """Bit for bit, in both layouts."""
    maker = Maker(device=target.device, dtype=dtype, flow_dtype=torch.float32)
    half = {
        "previous": maker.features(2, 9, 12, 18),
        "flow": maker.flow(2, 12, 18),
        "correction": maker.features(2, 9, 12, 18),
        "attention": maker.unit(2, 1, 12, 18),
    }
    for layout in (torch.contiguous_format, torch.channels_last):
        half = {name: x.contiguous(memory_format=layout) for name, x in half.items()}
        single = {name: x.float() for name, x in half.items()}
        assert torch.equal(warp_correct(**half), warp_correct(**single).to(dtype))
        source, flow = half["previous"], half["flow"]
        assert torch.equal(flow_warp(source, flow), flow_warp(source.float(), flow).to(dtype))


# --- gradients ---------------------------------------------------------------------------------


def gradient_of_flow(x: Tensor, flow: Tensor, **options) -> Tensor:
    given = {"input": x, "flow": flow}
    ones = torch.ones(*x.shape[:2], *flow.shape[2:], dtype=x.dtype, device=x.device)
    return evaluate(lambda **a: flow_warp(**a, **options), given, ["flow"], ones).gradients["flow"]


def test_clamped_positions_have_no_slope(target: Target):
    """A ramp of slope 1 along x: the flow's gradient is 1 inside, 0 where a border clamps."""
    ramp = torch.arange(6.0, device=target.device).view(1, 1, 1, 6).expand(1, 1, 4, 6).contiguous()
    for shift, expected in ((0.5, [1, 1, 1, 1, 1, 0]), (-2.5, [0, 0, 0, 1, 1, 1])):
        flow = constant_flow(shift, 0, ramp)
        slope = gradient_of_flow(ramp, flow, padding_mode="border")
        assert slope[0, 0].tolist() == 4 * [expected]
        assert not slope[0, 1].any()
    far = constant_flow(0, 100, ramp)
    assert not gradient_of_flow(ramp, far, padding_mode="border")[0, 1].any()


def test_slope_at_whole_positions_is_to_the_right(target: Target):
    x = torch.tensor([0.0, 1.0, 3.0, 7.0], device=target.device).view(1, 1, 1, 4)
    for padding_mode, beyond in (("border", 0), ("zeros", -7)):
        slope = gradient_of_flow(x, constant_flow(0, 0, x), padding_mode=padding_mode)
        assert slope[0, 0].flatten().tolist() == [1, 2, 4, beyond]
        slope = gradient_of_flow(x, constant_flow(-2, 0, x), padding_mode=padding_mode, scale=-0.5)
        assert slope[0, 0].flatten().tolist() == [-1, -2, -0.5 * beyond, 0]


def test_nearest_has_no_gradient_of_the_flow(target: Target):
    maker = Maker(device=target.device)
    x, flow = maker.features(1, 3, 5, 6), maker.flow(1, 5, 6)
    assert not gradient_of_flow(x, flow, mode="nearest").any()


# --- size --------------------------------------------------------------------------------------


@pytest.mark.only("cpu", "cuda", "triton")
@pytest.mark.not_interpreted("it copies every tensor")
def test_pixels_beyond_2_31_elements(target: Target):
    """The last of 2^31 and some elements is read; on a CPU the others are never touched."""
    poison_allocations(False)  # that would touch them
    try:
        side = 2**15
        x = torch.empty(1, 2, side, side + 1, dtype=torch.float16, device=target.device)
        x[..., -1, :2] = 0
        x[..., -1, -2:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=target.device)
        assert x.numel() > 2**31
        flow = torch.tensor([[0.0, -0.5], [1e9, 1e9]], device=target.device).view(1, 2, 1, 2)
        output = flow_warp(x, flow, padding_mode="border")
        assert output[0, :, 0].tolist() == [[0, 1.5], [0, 3.5]]
    finally:
        poison_allocations()


# --- the operators themselves ------------------------------------------------------------------


@pytest.mark.only("cpu", "cuda")
def test_compiled_operators_check_what_they_are_given(target: Target):
    """Without the public function's checks, too, nothing is read that is not there."""
    options = (1.0, 1.0, False, True, "bilinear", "border")
    make = Maker(device=target.device)
    x, flow = make.features(2, 3, 8, 9), make.flow(2, 8, 9)
    operators = torch.ops.vsegops
    with pytest.raises(RuntimeError, match="flow: "):
        operators.flow_warp(x, flow[:1], *options)
    with pytest.raises(RuntimeError, match="correction: "):
        operators.warp_correct(x, flow, x[..., 1:], None, *options)
    with pytest.raises(RuntimeError, match="attention: "):
        operators.warp_correct(x, flow, x, x, *options)
    with pytest.raises(RuntimeError, match="grad: "):
        operators.flow_warp_backward(x[:, :2], x, flow, *options, 3)
    with pytest.raises(RuntimeError, match="dtype"):
        operators.flow_warp_backward(x.half(), x, flow, *options, 3)
