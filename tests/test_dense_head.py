"""The dense head's conventions: what the contract test cannot know."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import fill
import pytest
import torch
import torch.nn.functional as F
from helpers import FORMATS, Target, assert_close, cotangent_of, evaluate, truth_of
from torch import Tensor, nn

from vsegops import confusion_matrix, ohem, upsample_argmax, upsample_cross_entropy
from vsegops._spec import Maker, specs
from vsegops.nn import ConfusionMatrix, OhemUpsampleCrossEntropyLoss, UpsampleCrossEntropyLoss
from vsegops.ops.dense_head import INTEGERS, reference

LOSS = next(spec for spec in specs() if spec.name == "upsample_cross_entropy")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CORNERS = pytest.mark.parametrize("align_corners", [False, True], ids=["apart", "corners"])


def interpolated(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


# --- the definition ----------------------------------------------------------------------------


@CORNERS
def test_the_reference_interpolates_as_pytorch_does(align_corners):
    """Every pair of lengths, along y and along x, and the adjoint."""
    lengths = (1, 2, 3, 5, 8, 13, 97)
    maker = Maker(dtype=torch.float64)
    for source, full in itertools.product(lengths, (*lengths, 256, 769)):
        x = maker.features(1, 2, source, 5).requires_grad_()
        for logits, size in ((x, (full, 7)), (x.mT, (7, full))):
            expected = interpolated(logits, size, align_corners)
            z = reference.upsampled(logits, *size, align_corners)
            assert_close(z, expected, error=1e-12, what=f"{source} to {full}")
            cotangent = cotangent_of(z)
            (gradient,) = torch.autograd.grad(expected, logits, cotangent)
            adjoint = reference._gathered(cotangent, *logits.shape[2:], align_corners)
            assert_close(adjoint, gradient, error=1e-12, what=f"{full} to {source}")


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", ["float64", "float32", "float16", "bfloat16"])
def test_the_lowest_class_wins_ties(target: Target, dtypes):
    """Everywhere: all equal, a best that comes thrice, and a tie in a part of the image."""
    dtype, _ = FORMATS[dtypes]
    for layout, align_corners in itertools.product(LAYOUTS, (False, True)):
        logits = torch.full((1, 19, 5, 7), -0.3, dtype=dtype, device=target.device)
        logits = logits.contiguous(memory_format=layout)
        for size in ((40, 56), (5, 7), (3, 2)):
            labels = upsample_argmax(logits, size, align_corners=align_corners)
            assert not labels.any(), "all are equal"
        logits[:, 7] = logits[:, 12] = logits[:, 18] = Maker(dtype=dtype).unit(1, 5, 7)
        labels, sure = upsample_argmax(
            logits, (17, 23), align_corners=align_corners, return_confidence=True
        )
        assert (labels == 7).all()
        assert (sure < 1 / 3).all() and (sure >= 1 / 19 - 1e-6).all()
        logits[:, 12, :, 3:] += 1  # no tie on the right, where 12 is better
        labels = upsample_argmax(logits, (40, 56), align_corners=align_corners)
        assert (labels[..., :16] == 7).all() and (labels[..., 28:] == 12).all()


def test_labels_are_as_narrow_as_they_can_be(target: Target):
    for classes, dtype in ((2, torch.uint8), (256, torch.uint8), (257, torch.int32)):
        logits = torch.zeros(1, classes, 1, 2, device=target.device)
        logits[:, classes - 1] = 1
        labels = upsample_argmax(logits, (2, 5))
        assert labels.dtype == dtype and (labels == classes - 1).all()


@CORNERS
@pytest.mark.parametrize("smooth", [False, True], ids=["noise", "smooth"])
@pytest.mark.parametrize("dtypes", ["float32", "float16", "bfloat16"])
def test_flips_are_near_ties_few_and_unbiased(
    target: Target, record_property, dtypes, smooth, align_corners
):
    """Against interpolation and argmax in float64: what differs is as good as equal, and neither
    lower nor higher classes are favoured. pytest's report has the rates (`--junit-xml`)."""
    dtype, _ = FORMATS[dtypes]
    maker = Maker(device=target.device, dtype=dtype)
    make = maker.smooth if smooth else maker.features
    source, sizes = (32, 48), ((256, 384), (105, 161), (128, 192))
    if target.interpreted:
        source, sizes = (4, 6), ((32, 48), (13, 20))
    flips, pixels, up = 0, 0, 0
    for size in sizes:
        logits = make(1, 19, *source)
        labels = upsample_argmax(logits, size, align_corners=align_corners).long()
        full = interpolated(logits.double(), size, align_corners)
        best, expected = full.max(1)
        differ = labels != expected
        margin = (best - full.gather(1, labels.unsqueeze(1)).squeeze(1))[differ]
        assert (margin <= 2e-6 * full.abs().max()).all(), margin.max()
        flips, pixels = flips + int(differ.sum()), pixels + labels.numel()
        up += int((labels > expected).sum())
    record_property("flips", f"{flips} of {pixels}, {up} of them to a higher class")
    assert flips <= 2e-5 * pixels + 1
    assert abs(2 * up - flips) <= 4 * math.sqrt(flips)


def test_confidence_is_the_softmax_of_the_label(target: Target):
    maker = Maker(device=target.device)
    logits = 5 * maker.features(2, 11, 6, 7)
    labels, sure = upsample_argmax(logits, (23, 31), return_confidence=True)
    assert torch.equal(labels, upsample_argmax(logits, (23, 31)))
    softmax = interpolated(logits.double(), (23, 31), False).softmax(1)
    assert_close(sure, softmax.gather(1, labels.long().unsqueeze(1)).squeeze(1), error=2e-6)


def test_labels_have_no_gradient(target: Target):
    logits = Maker(device=target.device).features(1, 3, 5, 6).requires_grad_()
    labels, sure = upsample_argmax(logits, (10, 12), return_confidence=True)
    assert not labels.requires_grad and not sure.requires_grad


# --- the loss ----------------------------------------------------------------------------------


@CORNERS
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_every_option_is_as_in_pytorch(target: Target, reduction, align_corners):
    maker = Maker(device=target.device, dtype=torch.float64)
    logits = maker.features(2, 6, 5, 7)
    every = list(itertools.product((None, maker.unit(6)), (0.0, 0.1, 1.0), (255, -100, 3)))
    for weight, smoothing, ignore_index in every[:: 5 if target.interpreted else 1]:
        classes = maker.labels(2, 14, 17, classes=6, ignored=0.2, ignore_index=ignore_index)
        options: dict[str, Any] = {
            "weight": weight,
            "ignore_index": ignore_index,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }

        def eager(logits: Tensor, classes=classes, options=options) -> Tensor:
            full = interpolated(logits, (14, 17), align_corners)
            return F.cross_entropy(full, classes, **options)

        def fused(logits: Tensor, classes=classes, options=options) -> Tensor:
            return upsample_cross_entropy(logits, classes, align_corners=align_corners, **options)

        expected, result = (evaluate(f, {"logits": logits}, ["logits"]) for f in (eager, fused))
        assert_close(result.output, expected.output, error=1e-12, what=str(options))
        gradients = (x.gradients["logits"] for x in (result, expected))
        assert_close(*gradients, error=1e-12, what=f"gradient, {options}")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_targets_of_any_width(target: Target, dtype):
    maker = Maker(device=target.device)
    logits = maker.features(1, 5, 4, 6)
    ignored = -1 if dtype == torch.int8 else 255
    classes = maker.labels(1, 16, 24, classes=5, ignored=0.2, ignore_index=ignored)
    options: dict[str, Any] = {"ignore_index": ignored}
    expected = upsample_cross_entropy(logits, classes, **options)
    assert torch.equal(upsample_cross_entropy(logits, classes.to(dtype), **options), expected)


def test_the_mean_over_nothing_is_nan(target: Target):
    logits = Maker(device=target.device).features(1, 5, 4, 6)
    nothing = torch.full((1, 8, 12), 255, device=target.device)
    assert upsample_cross_entropy(logits, nothing).isnan()
    assert upsample_cross_entropy(logits, nothing, reduction="sum") == 0
    assert upsample_cross_entropy(logits[:0], nothing[:0]).isnan()
    assert upsample_cross_entropy(logits[:0], nothing[:0], reduction="sum") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_loss_is_float32(target: Target, dtype):
    """Of half logits and under autocast too; the gradient is the logits'."""
    maker = Maker(device=target.device, dtype=dtype)
    logits = maker.features(1, 5, 4, 6).requires_grad_()
    classes = maker.labels(1, 16, 24, classes=5)
    for weight in (None, maker.unit(5), maker.unit(5).float()):
        assert upsample_cross_entropy(logits, classes, weight=weight).dtype == torch.float32
        with torch.autocast(target.device, dtype=torch.bfloat16):
            loss = upsample_cross_entropy(logits, classes, weight=weight)
        assert loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.dtype == dtype


@pytest.mark.parametrize("value", [-7.0, 30.0, 1e4, -1e4])
def test_large_logits_do_not_overflow(target: Target, value):
    maker = Maker(device=target.device)
    logits = maker.features(1, 5, 4, 6)
    logits[:, 2:4] = (logits[:, 2:4] + value).round()
    classes = maker.labels(1, 16, 24, classes=5)
    for options in ({}, {"label_smoothing": 0.3}):
        given = {"logits": logits, "target": classes, "reduction": "none", **options}
        result = evaluate(upsample_cross_entropy, given, ["logits"])
        truth = truth_of(LOSS, given, ["logits"])
        assert_close(result.output, truth.output, error=2e-6)
        assert result.gradients["logits"].isfinite().all()


BAD = [(7, torch.int64), (-1, torch.int64), (2**40, torch.int64), (200, torch.uint8)]


@pytest.mark.parametrize("value, dtype", BAD)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_target_that_is_no_class(target: Target, reduction, value, dtype):
    """Raises on a CPU; where that would mean waiting for the device, the loss is NaN."""
    maker = Maker(device=target.device)
    logits = maker.features(2, 7, 4, 6).requires_grad_()
    classes = maker.labels(2, 16, 24, classes=7, ignored=0.3).to(dtype)
    classes[1, 15, 23] = value
    raises = target.device == "cpu" and target.backend in ("cpu", "reference")
    for weight in (None, maker.unit(7)):
        options = {"weight": weight, "reduction": reduction}
        if raises:
            with pytest.raises(RuntimeError, match=r"target: expected classes from 0 to 6"):
                upsample_cross_entropy(logits, classes, **options)
            continue
        loss = upsample_cross_entropy(logits, classes, **options)
        if reduction == "none":
            assert loss[1, 15, 23].isnan() and loss.isnan().sum() == 1
        else:
            assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient[1, :, -1, -1].isnan().all()


def test_weights_that_would_need_a_gradient_are_refused(target: Target):
    logits = Maker(device=target.device).features(1, 3, 2, 2)
    classes = torch.zeros(1, 4, 4, dtype=torch.int64, device=target.device)
    weight = torch.ones(3, device=target.device, requires_grad=True)
    with pytest.raises(ValueError, match="^weight: expected a tensor that needs no gradient"):
        upsample_cross_entropy(logits, classes, weight=weight)


def test_a_loss_of_many_pixels(target: Target):
    """Summed over threads and tiles without losing digits; gradients the same each time."""
    if target.interpreted:
        pytest.skip("Triton's interpreter: too slow for a larger case")
    maker = Maker(device=target.device)
    logits = maker.features(2, 11, 33, 67)
    classes = maker.labels(2, 263, 531, classes=11, ignored=0.1)
    for reduction in ("none", "mean"):
        given = {"logits": logits, "target": classes, "reduction": reduction}
        result = evaluate(upsample_cross_entropy, given, ["logits"])
        truth = truth_of(LOSS, given, ["logits"])
        assert_close(result.output, truth.output, error=1e-6 if reduction == "none" else 5e-7)
        assert_close(result.gradients["logits"], truth.gradients["logits"], error=2e-5)
        again = evaluate(upsample_cross_entropy, given, ["logits"])
        assert torch.equal(again.output, result.output)
        assert torch.equal(again.gradients["logits"], result.gradients["logits"])


# --- hard examples -----------------------------------------------------------------------------


def published_ohem(losses: Tensor, target: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Step by step, in terms of probabilities: (the mean, which pixels)."""
    valid = target != 255
    p = (-losses.double()).exp().where(valid, 1.0)
    t = 1.0
    if min_kept <= valid.sum():
        t = threshold
        if min_kept > 0:
            t = max(t, p.flatten().sort().values[min_kept - 1].item())
    return losses[valid & (p <= t)].mean()


def golden(target: Target) -> tuple[Tensor, Tensor]:
    """Logits [2, 19, 64, 96] and their target, a tenth of it ignored."""
    n, h, w = shape = (2, 64, 96)
    classes = fill.uniform("target", *shape, low=0, high=19).floor().long()
    boost = fill.uniform("boost", *shape, low=0, high=12)
    logits = fill.features("logits", n, 19, h, w, bound=3)
    logits.scatter_add_(1, classes.unsqueeze(1), boost.unsqueeze(1))
    classes[fill.uniform("ignore", *shape, low=0, high=1) < 0.1] = 255
    return logits.to(target.device), classes.to(target.device)


@pytest.mark.parametrize("min_kept, loss", [(3000, 2.239376), (10000, 1.051204)])
def test_ohem_check_values(target: Target, min_kept, loss):
    """SFNet's published loss on made-up logits."""
    logits, classes = golden(target)
    assert (classes != 255).sum() == 11038
    for align_corners in (False, True):  # at the target's size nothing is interpolated
        module = OhemUpsampleCrossEntropyLoss(min_kept=min_kept, align_corners=align_corners)
        # (One more pixel is kept where two losses at the threshold round to the same number.)
        one = loss / min_kept if target.backend != "cpu" else 1e-6
        assert module(logits, classes).item() == pytest.approx(loss, abs=one)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [0, 1, 50, 79, 80, 81, 99, 100, 101, 10**9])
def test_ohem_is_the_published_rule(threshold, min_kept):
    """80 of 100 pixels are valid."""
    generator = torch.Generator().manual_seed(min_kept)
    losses = torch.rand(2, 5, 10, generator=generator).mul(4).requires_grad_()
    classes = torch.zeros(2, 5, 10, dtype=torch.uint8)
    classes.view(-1)[torch.randperm(100, generator=generator)[:20]] = 255
    expected = published_ohem(losses, classes, threshold, min_kept)
    result = ohem(losses, classes, threshold=threshold, min_kept=min_kept)
    torch.testing.assert_close(result, expected, equal_nan=True)
    if not expected.isnan():
        gradients = (torch.autograd.grad(x, losses)[0] for x in (result, expected))
        torch.testing.assert_close(*gradients)


def test_ohem_keeps_all_ties():
    losses = torch.tensor([[[3.0, 2.0, 2.0, 2.0, 0.1]]])
    classes = torch.zeros(1, 1, 5, dtype=torch.int64)
    assert ohem(losses, classes, min_kept=2, threshold=0.05).item() == pytest.approx(9 / 4)
    assert ohem(losses, classes, min_kept=1, threshold=0.05).item() == 3
    assert ohem(losses, classes, fraction=0.4).item() == pytest.approx(9 / 4)


def test_ohem_counts_ignored_pixels_as_certain():
    """The third smallest p is that of an ignored pixel, 1: all valid ones are kept."""
    losses = torch.tensor([[[2.0, 0.5, 9.0, 9.0]]])
    classes = torch.tensor([[[0, 0, 255, 255]]])
    assert ohem(losses, classes, min_kept=3).item() == 1.25
    assert ohem(losses, classes, min_kept=2).item() == 1.25
    assert ohem(losses, classes, min_kept=1).item() == 1.25  # both are below 0.7
    assert ohem(losses, classes, min_kept=1, threshold=0.5).item() == 2


def test_ohem_of_nothing_is_nan_and_shows_nan():
    losses = torch.rand(1, 4, 4)
    nothing = torch.full((1, 4, 4), 255)
    for options in ({"min_kept": 0}, {"min_kept": 5}, {"min_kept": 99}, {"fraction": 0.1}):
        assert ohem(losses, nothing, **options).isnan()
        assert ohem(losses[:0], nothing[:0], **options).isnan()
        spoilt = losses.clone()
        spoilt[0, 1, 2] = torch.nan  # a target that is no class, on a GPU
        assert ohem(spoilt, torch.zeros_like(nothing), **options).isnan()
        ignoring = torch.zeros_like(nothing)
        ignoring[0, 1, 2] = 255
        assert not ohem(spoilt, ignoring, **options).isnan()


@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 1.0])
def test_the_hardest_fraction(fraction):
    losses = torch.rand(2, 10, 11, generator=torch.Generator().manual_seed(3))
    classes = Maker().labels(2, 10, 11, classes=2, ignored=0.3)
    valid = losses[classes != 255].sort(descending=True).values
    kept = max(1, math.ceil(fraction * len(valid)))
    result = ohem(losses, classes, fraction=fraction, threshold=0.0, min_kept=10**9)
    torch.testing.assert_close(result, valid[:kept].mean())


# --- counting ----------------------------------------------------------------------------------


def counted(prediction: Tensor, target: Tensor, classes: int) -> list[list[int]]:
    counts = [[0] * classes for _ in range(classes)]
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != 255:
            counts[t][p] += 1
    return counts


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_confusion_matrix_counts(target: Target, dtype):
    maker = Maker(device=target.device)
    prediction = maker.labels(2, 9, 11, classes=5, dtype=dtype)
    classes = maker.labels(2, 9, 11, classes=5, ignored=0.2, dtype=torch.int16)
    counts = confusion_matrix(prediction, classes, 5)
    assert counts.dtype == torch.int64 and counts.device.type == target.device
    assert counts.tolist() == counted(prediction, classes, 5)


@CORNERS
def test_a_confusion_matrix_of_logits(target: Target, align_corners):
    maker = Maker(device=target.device)
    logits = maker.features(2, 4, 5, 6)
    classes = maker.labels(2, 17, 23, classes=4, ignored=0.2)
    labels = upsample_argmax(logits, (17, 23), align_corners=align_corners)
    counts = confusion_matrix(logits, classes, 4, align_corners=align_corners)
    assert counts.tolist() == counted(labels, classes, 4)


def test_what_is_no_class_is_not_counted_silently(target: Target):
    good = torch.tensor([[[0, 1, 2, 1]]], device=target.device)
    ignored = torch.tensor([[[0, 1, 2, 255]]], device=target.device)
    for bad in (-1, 3, 2**40):
        wrong = good.clone()
        wrong[..., 3] = bad
        assert confusion_matrix(wrong, ignored, 3).trace() == 3  # nobody looks at it
        for name, pair in (("prediction", (wrong, good)), ("target", (good, wrong))):
            if target.device == "cpu":
                with pytest.raises(ValueError, match=f"^{name}: expected classes from 0 to 2"):
                    confusion_matrix(*pair, 3)
            else:
                assert confusion_matrix(*pair, 3).sum() == 3


def test_a_stream_of_images(target: Target):
    maker = Maker(device=target.device)
    matrix = ConfusionMatrix(4)
    assert matrix.mean_iou().isnan() and matrix.accuracy().isnan()
    pairs = [
        (maker.labels(1, h, 9, classes=3), maker.labels(1, h, 9, classes=3, ignored=0.1))
        for h in (5, 8)
    ]
    for prediction, classes in pairs:
        matrix.update(prediction, classes)
    prediction, classes = (torch.cat([x.flatten() for x in xs]) for xs in zip(*pairs, strict=True))
    valid = classes != 255
    iou = []
    for c in range(3):
        either = ((prediction == c) | (classes == c)) & valid
        iou.append(((prediction == classes) & either).sum() / either.sum())
    assert matrix.iou()[:3].tolist() == pytest.approx([x.item() for x in iou])
    assert matrix.iou()[3].isnan(), "a class that never occurs"
    assert matrix.mean_iou().item() == pytest.approx(sum(x.item() for x in iou) / 3)
    right = (prediction == classes)[valid].double().mean()
    assert matrix.accuracy().item() == pytest.approx(right.item())
    matrix.reset()
    assert not matrix.counts.any()


def test_a_class_that_is_only_predicted_counts(target: Target):
    matrix = ConfusionMatrix(3)
    matrix.update(
        torch.tensor([[[0, 1]]], device=target.device),
        torch.tensor([[[0, 0]]], device=target.device),
    )
    assert matrix.iou().tolist()[:2] == [0.5, 0]
    assert matrix.mean_iou() == 0.25


# --- errors ------------------------------------------------------------------------------------


def test_bad_options_are_refused():
    losses, classes = torch.rand(1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.int64)
    calls = [
        ("losses", lambda: ohem(losses[0], classes)),
        ("losses", lambda: ohem(classes, classes)),
        ("target", lambda: ohem(losses, classes[:, 1:])),
        ("target", lambda: ohem(losses, losses)),
        ("threshold", lambda: ohem(losses, classes, threshold=70)),
        ("min_kept", lambda: ohem(losses, classes, min_kept=-1)),
        ("min_kept", lambda: ohem(losses, classes, min_kept=0.5)),
        ("fraction", lambda: ohem(losses, classes, fraction=0)),
        ("fraction", lambda: ohem(losses, classes, fraction=10)),
        ("ignore_index", lambda: ohem(losses, classes, ignore_index=None)),
        ("min_kept", lambda: OhemUpsampleCrossEntropyLoss(min_kept=True)),
        ("align_corners", lambda: OhemUpsampleCrossEntropyLoss(align_corners=1)),
        ("reduction", lambda: UpsampleCrossEntropyLoss(reduction="max")),
        ("label_smoothing", lambda: UpsampleCrossEntropyLoss(label_smoothing=2)),
        ("weight", lambda: UpsampleCrossEntropyLoss(torch.ones(3, 3))),
        ("num_classes", lambda: ConfusionMatrix(0)),
        ("num_classes", lambda: confusion_matrix(classes, classes, 2.0)),
        ("prediction", lambda: confusion_matrix(losses, classes, 3)),
        ("prediction", lambda: confusion_matrix(losses[None].expand(1, 4, 3, 4), classes, 3)),
        ("prediction", lambda: confusion_matrix(classes[0], classes, 3)),
        ("target", lambda: confusion_matrix(classes, classes[:, 1:], 3)),
        ("target", lambda: confusion_matrix(classes, losses, 3)),
        ("align_corners", lambda: confusion_matrix(classes, classes, 3, align_corners=None)),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            call()
    for name, call in (
        ("losses", lambda: ohem(None, classes)),
        ("prediction", lambda: confusion_matrix([0], classes, 3)),
        ("weight", lambda: UpsampleCrossEntropyLoss([1.0, 2.0])),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected a tensor"):
            call()


# --- modules -----------------------------------------------------------------------------------


def test_modules_are_their_functions(target: Target):
    maker = Maker(device=target.device)
    logits = maker.features(2, 5, 4, 6)
    classes = maker.labels(2, 16, 24, classes=5, ignored=0.2, ignore_index=9)
    weight = torch.linspace(0.5, 2, 5)
    options: dict[str, Any] = {
        "ignore_index": 9,
        "align_corners": True,
        "label_smoothing": 0.1,
        "reduction": "sum",
    }
    module = UpsampleCrossEntropyLoss(weight, **options).to(target.device)
    weight = weight.to(target.device)
    expected = upsample_cross_entropy(logits, classes, weight=weight, **options)
    assert torch.equal(module(logits, classes), expected)
    assert "reduction='sum'" in repr(module) and "weight=[5]" in repr(module)
    assert list(module.state_dict()) == ["weight"] and not list(
        UpsampleCrossEntropyLoss().state_dict()
    )
    for chosen in ({"threshold": 0.3, "min_kept": 40}, {"fraction": 0.1}):
        hard = OhemUpsampleCrossEntropyLoss(**chosen, ignore_index=9, align_corners=True)
        losses = upsample_cross_entropy(
            logits, classes, ignore_index=9, align_corners=True, reduction="none"
        )
        assert torch.equal(hard(logits, classes), ohem(losses, classes, **chosen, ignore_index=9))
        assert all(f"{name}={value}" in repr(hard) for name, value in chosen.items())


# --- a network ---------------------------------------------------------------------------------


def network() -> nn.Module:
    """A small one of stride 8."""
    layers: list[nn.Module] = []
    widths = (3, 12, 16, 24)
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 5, 1))


def scenes(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Images of coloured regions, and which colour is where; a frame is ignored."""
    maker = Maker(seed=7)
    classes = maker.smooth(n, 5, size, size, side=24).argmax(1)
    colours = maker.features(5, 3)
    images = colours[classes].permute(0, 3, 1, 2) + 0.5 * maker.features(n, 3, size, size)
    classes[:, :3] = classes[:, -3:] = 255
    return images, classes


def curve(loss: Any, device: str, steps: int = 32) -> Tensor:
    """The loss of each step."""
    torch.set_num_threads(1)  # small layers: threads would wait for each other
    torch.manual_seed(0)
    model = network().to(device)
    images, classes = (x.to(device) for x in scenes(8, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = slice(2 * (step % 4), 2 * (step % 4) + 2)
        optimizer.zero_grad()
        value = loss(model(images[batch]), classes[batch])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return torch.tensor(losses)


@CORNERS
@pytest.mark.not_interpreted("it takes minutes")
def test_a_network_trains_to_the_same_curve(target: Target, align_corners):
    def eager(logits: Tensor, classes: Tensor) -> Tensor:
        full = interpolated(logits, classes.shape[1:], align_corners)
        return F.cross_entropy(full, classes, ignore_index=255)

    expected = curve(eager, target.device)
    assert expected[-4:].mean() < 0.4 * expected[0], "it learns"
    fused = curve(UpsampleCrossEntropyLoss(align_corners=align_corners), target.device)
    torch.testing.assert_close(fused, expected, rtol=2e-3, atol=2e-3)


# --- memory ------------------------------------------------------------------------------------

PEAK = """
import sys, torch, vsegops
from vsegops._spec import Maker, specs
spec = next(spec for spec in specs() if spec.name == "upsample_cross_entropy")
function = {"fused": spec.function, "eager": spec.eager}[sys.argv[1]]

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what + ":"))

def run(arguments):
    arguments["logits"].requires_grad_()
    function(**arguments).backward()

run(spec.cases[0].make(Maker()))  # what is made once is made here
arguments = spec.benchmarks[0].make(Maker())
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the peak so far is forgotten
run(arguments)
print(resident("VmHWM") - before)
"""


@pytest.mark.only("cpu")
def test_peak_memory_is_a_tenth_of_eagers(target: Target, record_property):
    """Of forward and backward, 19 x 128 x 256 to 1024 x 2048: pages of the process, those that a
    kernel allocates by itself among them."""

    def peak(which: str) -> int:
        command = [sys.executable, "-c", PEAK, which]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    fused, eager = peak("fused"), peak("eager")
    record_property("peak", f"{fused} kB, eager {eager} kB")
    assert eager > 2 * 19 * 1024 * 2048 * 4 / 1024, "it holds the upsampled logits, and more"
    assert fused <= eager / 10, (fused, eager)
