"""What holds for every operator on every backend: numbers, memory, gradients, errors.

The body of a test is the same on every backend. `test_torch.py` has what PyTorch expects of an
operator: opcheck, compile, export, autocast, determinism, streams.
"""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from helpers import (
    FORMATS,
    STRIDES,
    Target,
    assert_agrees,
    assert_close,
    cases,
    cotangent_of,
    differentiable,
    enlarged,
    evaluate,
    nan_in_empty_tensors,
    outputs_of,
    representatives,
    restrided,
    tensors,
    truth_of,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from vsegops import _checks
from vsegops._layout import layout_of
from vsegops._spec import Maker, OperatorSpec, tensor_bytes

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
DTYPES = pytest.mark.parametrize("dtypes", FORMATS)


def maker(target: Target, dtypes: str = "float32", **options) -> Maker:
    dtype, flow_dtype = FORMATS[dtypes]
    return Maker(device=target.device, dtype=dtype, flow_dtype=flow_dtype, **options)


def has_flow(spec: OperatorSpec) -> bool:
    return any("flow" in name for name in inspect.signature(spec.function).parameters)


# --- numbers -----------------------------------------------------------------------------------


@DTYPES
@LAYOUTS
def test_agrees_with_the_truth(spec: OperatorSpec, target: Target, dtypes, channels_last):
    if "+" in dtypes and not has_flow(spec):
        pytest.skip(f"{spec.name} has no flow")
    thorough = dtypes == "float32" and not channels_last
    thorough |= dtypes == "bfloat16" and not target.interpreted  # (which knows none)
    for name, make in cases(spec, target, thorough=thorough):
        arguments = make(maker(target, dtypes, channels_last=channels_last))
        first = next(iter(tensors(arguments).values()))
        result = assert_agrees(spec, arguments, what=name)
        assert result.output.device == first.device
        if result.output.dim() == 4 and result.output.is_floating_point():
            assert result.output.dtype == first.dtype
            assert result.output.is_contiguous(memory_format=layout_of(first)), name


def test_eager_baseline_agrees(spec: OperatorSpec, target: Target):
    for name, make in representatives(spec, target):
        arguments = make(maker(target, "float64"))
        expected = outputs_of(spec.eager(**arguments))
        actual = outputs_of(spec.function(**arguments))
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(
                ours.double(), theirs.double(), rtol=1e-9, atol=1e-9, msg=name
            )


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtypes", ["float32", "float16+float32"])
def test_any_strides(spec: OperatorSpec, target: Target, strides, dtypes):
    if target.interpreted and dtypes != "float32":
        pytest.skip("the interpreter takes its time")
    for name, make in representatives(spec, target):
        contiguous = make(maker(target, dtypes))
        arguments = restrided(contiguous, STRIDES[strides])
        cotangent = None
        if spec.differentiable:
            cotangent = cotangent_of(spec.function(**contiguous))
            if cotangent.dim() >= 3:
                cotangent = STRIDES[strides](cotangent)
        assert_agrees(spec, arguments, cotangent=cotangent, what=name)


def test_output_is_laid_out_as_the_fake_says(spec: OperatorSpec, target: Target):
    for name, make in representatives(spec, target):
        for layout in (False, True):
            for change in (lambda x: x, *STRIDES.values()):
                arguments = restrided(make(maker(target, channels_last=layout)), change)
                outputs = outputs_of(spec.function(**arguments))
                with FakeTensorMode() as mode:
                    fakes = {
                        k: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
                        for k, x in arguments.items()
                    }
                    expected = outputs_of(spec.function(**fakes))
                for output, fake in zip(outputs, expected, strict=True):
                    assert (output.shape, output.stride()) == (fake.shape, fake.stride()), name
                    assert (output.dtype, output.device) == (fake.dtype, fake.device), name


@LAYOUTS
def test_every_output_element_is_written(spec: OperatorSpec, target: Target, channels_last):
    for name, make in cases(spec, target, thorough=False):
        arguments = make(maker(target, channels_last=channels_last))
        with nan_in_empty_tensors():
            assert_agrees(spec, arguments, what=name)


def test_an_unwritten_element_is_detected(spec: OperatorSpec):
    """The tests above can fail: an operator that forgets its last element, both ways of filling."""

    def forgetful(**arguments):
        output = spec.function(**arguments)
        filled = torch.empty_like(output).flatten()
        filled[:-1] = output.flatten()[:-1]
        return filled.view_as(output)

    arguments = spec.cases[0].make(Maker())
    with nan_in_empty_tensors(), pytest.raises(AssertionError, match="values are wrong"):
        assert_agrees(spec, arguments, [], function=forgetful)
    with pytest.raises(AssertionError, match="values are wrong"):
        assert_agrees(spec, arguments, [], function=forgetful)


NOT_NUMBERS = (0.0, 1.0, -1.5, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 2.0**31, -(2.0**40))


@pytest.mark.parametrize("dtypes", ["float64", "float32", "float16"])
def test_non_finite_and_huge_flows(spec: OperatorSpec, target: Target, dtypes):
    """Every pair (x, y) of such values, at many places of the image."""
    if not has_flow(spec):
        pytest.skip(f"{spec.name} has no flow")
    strange = torch.cartesian_prod(torch.tensor(NOT_NUMBERS), torch.tensor(NOT_NUMBERS)).T
    for name, make in representatives(spec, target):
        arguments = make(maker(target, dtypes))
        for key, flow in tensors(arguments).items():
            if "flow" in key and flow.numel() > 0:
                pixels = flow[:, 0].numel()
                values = strange.repeat(1, -(-pixels // strange.shape[1]))[:, :pixels]
                values = values.view(2, flow.shape[0], *flow.shape[2:]).transpose(0, 1)
                arguments[key] = values.to(flow).contiguous()
        assert_agrees(spec, arguments, what=name)


# --- gradients ---------------------------------------------------------------------------------


def test_gradcheck(spec: OperatorSpec, target: Target):
    if not spec.differentiable:
        pytest.skip(f"{spec.name} is not differentiable")
    for name, make in representatives(spec, target):
        arguments = make(maker(target, "float64"))
        names = differentiable(spec, arguments)
        leaves = [arguments[k].requires_grad_() for k in names]

        def function(*values, names=names, arguments=arguments):
            return spec.function(**{**arguments, **dict(zip(names, values, strict=True))})

        small = sum(x.numel() for x in leaves) < 200  # every entry of the Jacobian
        nondeterminism = 0.0 if target.repeats else 1e-12
        assert torch.autograd.gradcheck(
            function, leaves, fast_mode=not small, nondet_tol=nondeterminism
        ), name


def test_any_subset_of_the_gradients(spec: OperatorSpec, target: Target):
    for name, make in representatives(spec, target):
        arguments = make(maker(target, "float64"))
        names = differentiable(spec, arguments)
        everything = evaluate(spec.function, arguments, names)
        for bits in range(1, 2 ** len(names)):
            wanted = [k for i, k in enumerate(names) if bits & (1 << i)]
            for k, gradient in evaluate(spec.function, arguments, wanted).gradients.items():
                expected = everything.gradients[k]
                assert_close(gradient, expected, error=0.0, what=f"{name}: d/d{k} of {wanted}")


def test_no_wrong_second_derivative(spec: OperatorSpec, target: Target):
    arguments = spec.cases[0].make(maker(target, "float64"))
    for name in differentiable(spec, arguments):
        leaf = arguments[name].clone().requires_grad_()
        output = spec.function(**{**arguments, name: leaf})
        weights = cotangent_of(output).requires_grad_()
        (gradient,) = torch.autograd.grad(output, leaf, weights, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(gradient.square().sum(), [leaf, weights])


def test_inputs_are_left_alone(spec: OperatorSpec, target: Target):
    arguments = spec.cases[0].make(maker(target))
    before = {name: x.clone() for name, x in tensors(arguments).items()}
    cotangent = cotangent_of(outputs_of(spec.function(**arguments))[0])
    kept = cotangent.clone()
    evaluate(spec.function, arguments, differentiable(spec, arguments), cotangent)
    assert torch.equal(cotangent, kept)
    assert all(torch.equal(x, before[name]) for name, x in tensors(arguments).items())


# --- memory ------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.not_interpreted("it copies every tensor")
@pytest.mark.only("cpu", "cuda", "triton")
def test_forward_allocates_its_output_alone(spec: OperatorSpec, target: Target, channels_last):
    arguments = spec.benchmarks[0].make(maker(target, channels_last=channels_last))
    with torch.no_grad():
        output = spec.function(**arguments)  # what is made once is made here
        peak = peak_memory(partial(spec.function, **arguments), target.device)
    assert peak <= tensor_bytes(*outputs_of(output)) + spec.scratch(arguments) + 4096


def peak_memory(function, device: str) -> int:
    """Most bytes that PyTorch's allocator had handed out at once during the call."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = function()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del kept
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


def test_peak_memory_is_seen():
    x = torch.ones(1 << 20)
    assert 2 * tensor_bytes(x) <= peak_memory(lambda: (x + 1) * 2, "cpu") < 3 * tensor_bytes(x)


# --- errors ------------------------------------------------------------------------------------


def bad_tensors(value: torch.Tensor, first: bool):
    """(what is put in its place, the error it has to raise)."""
    yield [1.0, 2.0], TypeError
    yield "nonsense", TypeError
    if value.dim() != 1:
        yield value.flatten(), ValueError
    yield value[None, None, None], ValueError
    yield value.to(torch.complex64), ValueError
    yield value.int() if value.is_floating_point() else value.float(), ValueError
    yield value.to_sparse(), ValueError
    if not first:  # the first argument's device is what the others are measured by
        yield value.to("meta"), ValueError


def test_bad_arguments_are_refused(spec: OperatorSpec, target: Target):
    """Derived from the signature: errors name the argument, and say what came."""
    arguments = next(
        given
        for given in (case.make(maker(target)) for case in spec.cases)
        if None not in given.values() and all(x.numel() for x in tensors(given).values())
    )
    first = next(iter(tensors(arguments)))
    for name, parameter in inspect.signature(spec.function).parameters.items():
        bad = [(object(), Exception), ("nonsense", Exception)]
        if name in tensors(arguments):
            bad = list(bad_tensors(arguments[name], name == first))
            if parameter.default is not None:
                bad.append((None, TypeError))
        for value, error in bad:
            refused(spec, {**arguments, name: value}, name, error)
    for refusal in spec.refused:
        changed = refusal.change(dict(arguments))
        refused(spec, changed, refusal.argument, refusal.error)


def refused(spec: OperatorSpec, arguments: dict, name: str, error: type[Exception]) -> None:
    expected = (ValueError, TypeError) if error is Exception else error
    what = _checks.describe(arguments[name])
    with pytest.raises(expected) as caught:
        spec.function(**arguments)
    message = str(caught.value)
    assert message.startswith(f"{name}: "), f"{name} = {what} gave {message!r}"
    assert what in message or str(getattr(arguments[name], "layout", None)) in message, message


def test_large_cases_agree(spec: OperatorSpec, target: Target):
    """Several blocks and threads: the first case at six times its height and width."""
    if target.interpreted:
        pytest.skip("Triton's interpreter: too slow for a larger case")
    arguments = enlarged(spec.cases[0].make(maker(target)), 6)
    result = assert_agrees(spec, arguments, what="six times as large")
    assert truth_of(spec, arguments).output.shape == result.output.shape
