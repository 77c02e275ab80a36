"""Random calls against the truth: shapes, strides, dtypes, options, strange flows, gradients.

Reproducible unless VSEGOPS_FUZZ_EXAMPLES asks for a number of examples of its own, which are then
new ones each time. Also meant to be run under AddressSanitizer.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from helpers import FORMATS, STRIDES, Target, assert_agrees, cotangent_of, differentiable, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsegops import (
    channel_pool,
    flow_warp,
    gated_dual_warp,
    guided_filter,
    label_edges,
    upsample_argmax,
    upsample_cross_entropy,
    warp_correct,
)
from vsegops._spec import Maker, OperatorSpec, specs
from vsegops.ops.dense_head import INTEGERS

EXAMPLES = os.environ.get("VSEGOPS_FUZZ_EXAMPLES")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # slow
fuzz = settings(
    max_examples=int(EXAMPLES or (10 if INTERPRETED else 80)),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

SPECS = {spec.name: spec for spec in specs()}
#: Small ones, and those around the widths of vectors and tiles.
SIDES = st.one_of(st.integers(1, 6), st.sampled_from([7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]))
CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33]))
STRANGE = (0.0, -0.5, 3.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 2.0**31, -(2.0**40))
LAYOUTS = st.sampled_from([None, *STRIDES])


@st.composite
def makers(draw: st.DrawFn, device: str) -> Maker:
    dtype, flow_dtype = FORMATS[draw(st.sampled_from(list(FORMATS)))]
    return Maker(
        device=device,
        dtype=dtype,
        flow_dtype=flow_dtype,
        channels_last=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def scatter(draw: st.DrawFn, flow: torch.Tensor) -> None:
    """Put strange values in some places of a flow."""
    if flow.numel() == 0:
        return
    places = st.tuples(*[st.integers(0, size - 1) for size in flow.shape])
    for place, value in draw(st.lists(st.tuples(places, st.sampled_from(STRANGE)), max_size=6)):
        flow[place] = value


def disturbed(draw: st.DrawFn, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call with strange flows, and every tensor in strides of its own."""
    result = dict(arguments)
    for name, x in tensors(arguments).items():
        if "flow" in name and draw(st.booleans()):
            scatter(draw, x)
        layout = draw(LAYOUTS)
        if layout is not None and x.dim() >= 3:
            result[name] = STRIDES[layout](x)
    return result


def check(draw: st.DrawFn, spec: OperatorSpec, arguments: dict[str, Any]) -> None:
    arguments = disturbed(draw, arguments)
    names = differentiable(spec, arguments)
    wanted = [name for name in names if draw(st.booleans())]
    cotangent = None
    layout = draw(LAYOUTS)
    if wanted and layout is not None:
        cotangent = cotangent_of(spec.function(**arguments))
        if cotangent.dim() >= 3:
            cotangent = STRIDES[layout](cotangent)
    assert_agrees(spec, arguments, wanted, cotangent=cotangent, least=1.0)


@fuzz
@given(data=st.data())
def test_specified_cases(spec: OperatorSpec, target: Target, data: st.DataObject):
    """Any family: a case of the specification, disturbed."""
    small = [
        case
        for case in spec.cases
        if all(x.numel() < 4000 for x in tensors(case.make(Maker())).values())
    ]
    case = data.draw(st.sampled_from(small))
    check(data.draw, spec, case.make(data.draw(makers(target.device))))


@st.composite
def warp_options(draw: st.DrawFn) -> dict[str, Any]:
    # A scale of next to nothing cannot move a position off a tie, and float32 cannot see it.
    scales = st.one_of(st.just(0.0), st.floats(0.125, 4), st.floats(-4, -0.125))
    return {
        "scale": draw(st.one_of(st.just("semantic"), scales, st.tuples(scales, scales))),
        "align_corners": draw(st.booleans()),
        "mode": draw(st.sampled_from(["bilinear", "nearest"])),
        "padding_mode": draw(st.sampled_from(["zeros", "border"])),
    }


@fuzz
@given(data=st.data())
def test_warps(target: Target, data: st.DataObject):
    """Any source and output size, any options."""
    draw = data.draw
    maker = draw(makers(target.device))
    n, c = draw(st.integers(0, 3)), draw(st.one_of(st.just(0), CHANNELS))
    source = draw(SIDES), draw(SIDES)
    size = draw(st.one_of(st.just(source), st.tuples(SIDES, SIDES)))
    x = maker.features(n, c, *source)
    flow = maker.flow(n, *size, magnitude=draw(st.sampled_from([0.0, 0.3, 2.0, 50.0])))
    arguments = {"flow": flow, **draw(warp_options())}
    if draw(st.booleans()):
        check(draw, SPECS[flow_warp.__name__], {"input": x, **arguments})
        return
    attention = maker.unit(n, 1, *size) if draw(st.booleans()) else None
    correction = maker.features(n, c, *size)
    given = {"previous": x, **arguments, "correction": correction, "attention": attention}
    check(draw, SPECS[warp_correct.__name__], given)


@fuzz
@given(data=st.data())
def test_dual_warps(target: Target, data: st.DataObject):
    """Any sizes and any options, and pooled channels of any number."""
    draw = data.draw
    maker = draw(makers(target.device))
    n, c = draw(st.integers(0, 2)), draw(CHANNELS)
    coarse, fine = ((draw(SIDES), draw(SIDES)) for _ in range(2))
    low = maker.features(n, c, *fine)
    if draw(st.booleans()):
        second = maker.features(n, draw(CHANNELS), *fine)
        check(draw, SPECS[channel_pool.__name__], {"first": low, "second": second})
        return
    options, low_options = draw(warp_options()), draw(warp_options())
    magnitudes = st.sampled_from([0.0, 0.3, 2.0, 50.0])
    given = {
        "high": maker.features(n, c, *coarse),
        "low": low,
        "high_flow": maker.flow(n, *fine, magnitude=draw(magnitudes)),
        "low_flow": maker.flow(n, *fine, magnitude=draw(magnitudes)),
        "gate": maker.unit(n, 1, *fine),
        "high_scale": options["scale"],
        "low_scale": low_options["scale"],
        **{name: options[name] for name in ("align_corners", "padding_mode")},
    }
    check(draw, SPECS[gated_dual_warp.__name__], given)


@fuzz
@given(data=st.data())
def test_guided_filters(target: Target, data: st.DataObject):
    """Any size and any offsets, and the edges of the same logits."""
    draw = data.draw
    maker = draw(makers(target.device))
    n, c, size = draw(st.integers(0, 2)), draw(CHANNELS), (draw(SIDES), draw(SIDES))
    shift = st.one_of(st.integers(-2, 2), st.sampled_from([-(2**30), -9, 7, 64, 2**30]))
    offset = st.one_of(st.none(), st.tuples(shift, shift))
    offsets = draw(st.lists(offset, min_size=1, max_size=12))
    normalize = draw(st.sampled_from(["sum", "softmax", "none"]))
    guide = maker.unit if normalize == "sum" else maker.features
    sampling = {}
    if draw(st.booleans()):
        options = draw(warp_options())
        magnitude = draw(st.sampled_from([0.0, 0.3, 2.0, 50.0]))
        sampling = {"flow": maker.flow(n, *size, magnitude=magnitude)}
        sampling |= {name: options[name] for name in ("scale", "padding_mode")}
    logits = maker.features(n, c, *size)
    if draw(st.booleans()):
        response = draw(st.sampled_from(["binary", "sigmoid"]))
        given = {"logits": logits, **sampling, "response": response}
        check(draw, SPECS[label_edges.__name__], given)
        return
    tensors = {"intra": maker.features(n, c, *size), "guide": guide(n, len(offsets) + 1, *size)}
    given = {"logits": logits, **tensors, **sampling, "offsets": offsets, "normalize": normalize}
    check(draw, SPECS[guided_filter.__name__], given)


@fuzz
@given(data=st.data())
def test_dense_heads(target: Target, data: st.DataObject):
    """Any two sizes, up and down: labels, or the loss with any target, weights and options."""
    draw = data.draw
    maker = draw(makers(target.device))
    n, c = draw(st.integers(0, 2)), draw(CHANNELS)
    logits = maker.features(n, c, draw(SIDES), draw(SIDES))
    size, align_corners = (draw(SIDES), draw(SIDES)), draw(st.booleans())
    if draw(st.booleans()):
        given = {
            "size": size,
            "align_corners": align_corners,
            "return_confidence": draw(st.booleans()),
        }
        check(draw, SPECS[upsample_argmax.__name__], {"logits": logits, **given})
        return
    options = {
        "ignored": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "ignore_index": draw(st.integers(0, 127)),
        "dtype": draw(st.sampled_from(INTEGERS)),
    }
    classes = maker.labels(n, *size, classes=c, **options)
    classes[:, :1, :1] = (options["ignore_index"] + 1) % c if c > 1 else 0
    reductions = ["none", "sum", "mean"]
    if n == 0 or c == 1:  # a mean may be over nothing
        reductions.remove("mean")
    given = {
        "target": classes,
        "weight": maker.unit(c) if draw(st.booleans()) else None,
        "ignore_index": options["ignore_index"],
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(reductions)),
        "align_corners": align_corners,
    }
    check(draw, SPECS[upsample_cross_entropy.__name__], {"logits": logits, **given})
