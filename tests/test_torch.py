"""What PyTorch expects of an operator: opcheck, compile, export, autocast, transforms, streams."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import nullcontext
from functools import partial
from itertools import islice

import pytest
import torch
import torch.fx.experimental._config
from helpers import (
    OperatorCalls,
    Target,
    assert_agrees,
    assert_close,
    cotangent_of,
    differentiable,
    enlarged,
    evaluate,
    outputs_of,
    representatives,
    tensors,
)
from torch._dynamo.testing import CompileCounterWithBackend, EagerAndRecordGraphs
from torch.export import Dim

import vsegops
from vsegops import _register
from vsegops._backends import BACKENDS, refusal
from vsegops._spec import Case, Maker, OperatorSpec

OPERATORS = {operator.name: operator for _, operator in _register._operators}


@pytest.fixture(autouse=True)
def _forget_compilations():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def first_case(spec: OperatorSpec, target: Target, dtype=torch.float32) -> dict:
    return spec.cases[0].make(Maker(device=target.device, dtype=dtype))


def calls_of(spec: OperatorSpec, arguments: dict) -> list:
    """The calls of dispatcher operators, of the forward and then of the backward."""
    with OperatorCalls() as operators:
        evaluate(spec.function, arguments, differentiable(spec, arguments))
    return operators.calls


# --- opcheck -----------------------------------------------------------------------------------


def test_opcheck(spec: OperatorSpec, target: Target):
    for name, make in representatives(spec, target):
        arguments = make(Maker(device=target.device))
        if all(x.numel() > 0 for x in tensors(arguments).values()):
            for operator, given in calls_of(spec, arguments):
                backward = OPERATORS[operator.name().split("::")[1]].backward
                copies = [x.detach().clone() if torch.is_tensor(x) else x for x in given]
                for x in copies:
                    if torch.is_tensor(x) and x.is_floating_point():
                        x.requires_grad_(backward is not None)
                try:
                    torch.library.opcheck(operator, tuple(copies))
                except Exception as error:
                    raise AssertionError(f"{name}: {operator.name()}") from error


# --- compile -----------------------------------------------------------------------------------


def assert_compiled_agrees(spec: OperatorSpec, arguments: dict, compiled, what: str) -> None:
    wanted = differentiable(spec, arguments)
    eager = evaluate(spec.function, arguments, wanted)
    result = evaluate(compiled, arguments, wanted)
    for output, expected in zip(result.outputs, eager.outputs, strict=True):
        assert output.stride() == expected.stride(), what
        assert_close(output, expected, error=0.0, roundings=0, what=what)
    for name in wanted:
        expected = eager.gradients[name]
        assert_close(result.gradients[name], expected, error=1e-6, what=f"{what} d/d{name}")


def test_compiles_to_one_graph(spec: OperatorSpec, target: Target):
    for name, make in representatives(spec, target):
        torch._dynamo.reset()
        compiled = torch.compile(spec.function, fullgraph=True, backend="aot_eager")
        for channels_last in (False, True):
            arguments = make(Maker(device=target.device, channels_last=channels_last))
            assert_compiled_agrees(spec, arguments, compiled, name)


def test_compiles_with_inductor(spec: OperatorSpec, target: Target):
    compiled = torch.compile(
        lambda **arguments: 2 * spec.function(**arguments), fullgraph=True, backend="inductor"
    )
    arguments = first_case(spec, target)
    result = evaluate(compiled, arguments, differentiable(spec, arguments))
    eager = evaluate(spec.function, arguments, differentiable(spec, arguments))
    assert_close(result.output, 2 * eager.output, error=1e-6)
    for name, gradient in eager.gradients.items():
        assert_close(result.gradients[name], 2 * gradient, error=1e-6, what=name)


@torch.fx.experimental._config.patch(use_duck_shape=False)  # equal sizes are so by chance
def test_dynamic_sizes_compile_once(spec: OperatorSpec, target: Target):
    for name, make in islice(representatives(spec, target), 4):
        arguments = make(Maker(device=target.device))
        if any(size < 2 for x in tensors(arguments).values() for size in x.shape[-2:]):
            continue  # 0 and 1 are compiled for themselves, always
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(spec.function, fullgraph=True, dynamic=True, backend=counter)
        assert_compiled_agrees(spec, arguments, compiled, name)
        once = counter.frame_count
        for times in (2, 3):
            assert_compiled_agrees(spec, enlarged(arguments, times), compiled, name)
        assert counter.frame_count == once, f"{name}: compiled again for another size"


def test_compiled_code_follows_use_backend(spec: OperatorSpec, target: Target):
    graphs = EagerAndRecordGraphs()
    compiled = torch.compile(spec.function, fullgraph=True, backend=graphs)
    arguments = first_case(spec, target)
    served = [b for b in BACKENDS.values() if b.missing is None and not refusal(b, target.device)]
    for backend in served:
        with vsegops.use_backend(backend.name):
            compiled(**arguments)
        *_, graph = graphs.graphs
        nodes = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        ours = {name.split(".")[0] for name in nodes if name.startswith("vsegops")}
        assert ours == {backend.namespace}
    assert len(graphs.graphs) == len(served)


# --- export ------------------------------------------------------------------------------------


class _Module(torch.nn.Module):
    def __init__(self, spec: OperatorSpec, options: dict) -> None:
        super().__init__()
        self.spec, self.options = spec, options

    def forward(self, given: dict) -> torch.Tensor:
        return self.spec.function(**given, **self.options)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_exports_with_dynamic_height_and_width(spec: OperatorSpec, target: Target, strict):
    arguments = first_case(spec, target)
    given = tensors(arguments)
    options = {name: x for name, x in arguments.items() if name not in given}
    dynamic = {name: {x.dim() - 2: Dim.AUTO, x.dim() - 1: Dim.AUTO} for name, x in given.items()}
    program = torch.export.export(
        _Module(spec, options), (given,), dynamic_shapes=(dynamic,), strict=strict
    )
    for times in (1, 3):
        larger = enlarged(given, times)
        exported = program.module()(larger)
        assert_close(exported, spec.function(**larger, **options), error=0.0)


# --- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(spec: OperatorSpec, target: Target, dtype, compiled):
    """Features go to the dtype that the user asked for, the rest stays; gradients come back."""
    function = spec.function
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    names = OPERATORS[spec.name].autocast
    for _, make in representatives(spec, target):
        torch._dynamo.reset()
        arguments = make(Maker(device=target.device))
        wanted = differentiable(spec, arguments)
        cast = {k: x.to(dtype) if k in names and x is not None else x for k, x in arguments.items()}
        by_hand = evaluate(spec.function, cast, wanted)
        leaves = {k: x.clone().requires_grad_(k in wanted) for k, x in tensors(arguments).items()}
        operators = OperatorCalls()  # torch.compile gives up under such a mode
        with torch.autocast(target.device, dtype=dtype), nullcontext() if compiled else operators:
            outputs = outputs_of(function(**{**arguments, **leaves}))
        for output, expected in zip(outputs, by_hand.outputs, strict=True):
            assert output.dtype == expected.dtype
            assert torch.equal(output, expected)
        for operator, given in operators.calls:
            for argument, value in zip(operator._schema.arguments, given, strict=True):
                if argument.name in leaves:
                    expected = dtype if argument.name in names else leaves[argument.name].dtype
                    assert value.dtype == expected, argument.name
        if wanted:
            (output,) = outputs
            found = torch.autograd.grad(
                output, [leaves[k] for k in wanted], cotangent_of(output), allow_unused=True
            )
            for name, gradient in zip(wanted, found, strict=True):
                gradient = torch.zeros_like(leaves[name]) if gradient is None else gradient
                assert gradient.dtype == leaves[name].dtype
                expected = by_hand.gradients[name].to(gradient)
                if name in names:  # it was rounded: in another order of summation, elsewhere
                    gradient = gradient.to(dtype)
                roundings = 0 if target.repeats else 2
                assert_close(gradient, expected, error=1e-6, roundings=roundings, what=f"d/d{name}")


def test_autocast_leaves_alone_what_it_should(spec: OperatorSpec, target: Target):
    """A region where it is disabled, and float64."""
    arguments, exact = first_case(spec, target), first_case(spec, target, torch.float64)
    expected, expected_exact = spec.function(**arguments), spec.function(**exact)
    with torch.autocast(target.device, dtype=torch.bfloat16):
        assert torch.equal(spec.function(**exact), expected_exact)
        with torch.autocast(target.device, enabled=False):
            assert torch.equal(spec.function(**arguments), expected)


# --- transforms, threads -----------------------------------------------------------------------


def test_functional_transforms_are_right_or_raise(spec: OperatorSpec, target: Target):
    arguments = first_case(spec, target, torch.float64)
    name, *_ = tensors(arguments)
    rest = {k: x for k, x in arguments.items() if k != name}
    weight = cotangent_of(spec.function(**arguments)).double()

    def loss(x):
        return (spec.function(**{name: x}, **rest) * weight).sum()

    batch = torch.stack([arguments[name], 2 * arguments[name]])
    expected = torch.stack([spec.function(**{name: x}, **rest) for x in batch])
    attempts = [(lambda: torch.vmap(lambda x: spec.function(**{name: x}, **rest))(batch), expected)]
    if name in spec.differentiable:
        gradient = evaluate(spec.function, arguments, [name], weight).gradients[name]
        attempts.append((lambda: torch.func.grad(loss)(arguments[name]), gradient))
        # There is no formula for forward mode, and no silent zero either.
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(loss, (arguments[name],), (arguments[name],))
    for attempt, right in attempts:
        try:
            result = attempt()
        except (RuntimeError, NotImplementedError):
            continue
        assert_close(result, right, error=0.0)


def test_backward_runs_where_forward_ran(spec: OperatorSpec, target: Target):
    """Outside of `use_backend`, inside another one, and on another thread."""
    if not spec.differentiable:
        pytest.skip(f"{spec.name} is not differentiable")
    arguments = first_case(spec, target)
    leaves = {k: arguments[k].requires_grad_() for k in differentiable(spec, arguments)}
    output = spec.function(**arguments)
    seen: list[set[str]] = []

    def backward() -> None:
        with vsegops.use_backend("reference"), OperatorCalls() as operators:
            torch.autograd.grad(output.sum(), list(leaves.values()), retain_graph=True)
        seen.append({operator.split("::")[0] for operator in operators.names})

    backward()
    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert seen == 2 * [{BACKENDS[target.backend].namespace}]


# --- determinism -------------------------------------------------------------------------------


def assert_repeats(function, runs: int = 4) -> None:
    """Every run gives the same bits."""
    first = function()
    for _ in range(runs - 1):
        for name, gradient in function().items():
            assert torch.equal(gradient, first[name]), f"gradient of {name} differs between runs"


def colliding(case: Case, target: Target) -> dict:
    """A call large enough for several threads, where many positions sample the same pixels."""
    times = 1 if target.interpreted else 8
    arguments = enlarged(case.make(Maker(device=target.device)), times)
    return {k: x.round() if "flow" in k else x for k, x in arguments.items()}


def test_deterministic_gradients_or_an_error(spec: OperatorSpec, target: Target):
    torch.use_deterministic_algorithms(True)
    arguments = colliding(spec.cases[0], target)
    names = differentiable(spec, arguments)

    def gradients() -> dict[str, torch.Tensor]:
        return evaluate(spec.function, arguments, names).gradients

    try:
        gradients()
    except RuntimeError as error:
        assert spec.name in str(error) and "deterministic" in str(error), error
        with pytest.warns(UserWarning, match=spec.name):
            torch.use_deterministic_algorithms(True, warn_only=True)
            gradients()
    else:
        assert_repeats(gradients)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the determinism test can fail")
def test_nondeterminism_is_detected():
    generator = torch.Generator().manual_seed(0)

    def gradients() -> dict[str, torch.Tensor]:
        """A sum of the same numbers, in another order each time."""
        order = torch.randperm(10_000, generator=generator)
        numbers = torch.linspace(-1, 1, 10_001)[:-1].exp()
        return {"x": torch.zeros(1).index_add_(0, torch.zeros_like(order), numbers[order])}

    assert_repeats(gradients)


# --- CUDA --------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_cuda_graph(spec: OperatorSpec, target: Target):
    """Forward and backward are captured, and the replay sees new values."""
    arguments = first_case(spec, target)
    names = differentiable(spec, arguments)
    run = partial(evaluate, spec.function, arguments, names)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = run()
        cotangent = cotangent_of(result.output)
        run(cotangent=cotangent)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(cotangent=cotangent)
    for x in tensors(arguments).values():
        if x.is_floating_point():
            x.mul_(0.75)
    graph.replay()
    expected = run(cotangent=cotangent)
    assert torch.equal(result.output, expected.output)
    for name, gradient in result.gradients.items():
        assert_close(gradient, expected.gradients[name], error=1e-5, what=name)


@pytest.mark.cuda
def test_side_stream(spec: OperatorSpec, target: Target):
    """The operator runs on the current stream: behind what was queued there before it."""
    arguments = first_case(spec, target)
    expected = spec.function(**arguments)
    late = {name: torch.zeros_like(x) for name, x in tensors(arguments).items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, x in late.items():
            x.copy_(arguments[name], non_blocking=True)
        output = spec.function(**{**arguments, **late})
    stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.cuda
def test_no_synchronisation(spec: OperatorSpec, target: Target):
    arguments = first_case(spec, target)
    names = differentiable(spec, arguments)
    cotangent = cotangent_of(evaluate(spec.function, arguments, names).output)
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(spec.function, arguments, names, cotangent)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_a_device_that_is_not_current(spec: OperatorSpec, target: Target):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    with torch.cuda.device(0):
        arguments = spec.cases[0].make(Maker(device="cuda:1"))
        result = assert_agrees(spec, arguments)
        assert result.output.device == torch.device("cuda:1")


@pytest.mark.cuda
def test_more_than_2_31_elements_work_or_raise(spec: OperatorSpec, target: Target):
    """A batch that large: its last image comes out as it does alone."""
    needed = 40 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip("needs 40 GiB of free device memory")
    one = {
        k: x[:1] if torch.is_tensor(x) and x.dim() >= 3 else x
        for k, x in enlarged(first_case(spec, target, torch.float16), 16).items()
    }
    largest = max(x.numel() for x in tensors(one).values())
    batch = 2**31 // largest + 2
    many = {
        k: x.repeat(batch, *[1] * (x.dim() - 1)) if torch.is_tensor(x) and x.dim() >= 3 else x
        for k, x in one.items()
    }
    try:
        output = spec.function(**many)
    except (RuntimeError, ValueError) as error:
        assert "2^31" in str(error) or "elements" in str(error), error
    else:
        assert torch.equal(output[-1:], spec.function(**one))


# --- memory ------------------------------------------------------------------------------------


class MallInfo(ctypes.Structure):
    """What glibc's `mallinfo2` gives."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def allocated() -> int:
    """Bytes that this process has allocated and not freed."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


@pytest.mark.only("cpu")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_calls_leave_nothing_behind(spec: OperatorSpec, target: Target):
    """Neither tensors nor a few bytes: those too, between large ones, make the heap grow."""
    torch.set_num_threads(1)
    arguments, calls = first_case(spec, target), 50
    growth = []
    for _ in range(3):
        gc.collect()
        before = allocated()
        for _ in range(calls):
            spec.function(**arguments)
        gc.collect()
        growth.append((allocated() - before) / calls)
    assert min(growth) < 8, f"{growth} bytes a call"
