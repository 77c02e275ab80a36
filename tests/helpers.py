"""What the tests share: where they run, calls with gradients, and comparison with the truth."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from cuda_host import backend as cuda_host
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vsegops
from vsegops._backends import BACKENDS
from vsegops._spec import ROUNDING, Case, Maker, OperatorSpec

Arguments = dict[str, Any]
Make = Callable[[Maker], Arguments]

#: (dtype of the features, dtype of the flow), and names for them.
FORMATS = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float64+float32": (torch.float64, torch.float32),
    "float16+float32": (torch.float16, torch.float32),
    "bfloat16+float32": (torch.bfloat16, torch.float32),
}

FLOAT64_ERROR = 1e-12


@dataclass(frozen=True)
class Target:
    """A backend and a device: what one run of a test is about."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def missing(self) -> str | None:
        """Why nothing can run here, in the backend's own words; None if it can."""
        if self.backend == cuda_host.NAME:
            return cuda_host.missing()
        status = vsegops.backends()[self.backend]
        if not status:
            return status.reason
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device is visible"
        return None

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"

    @property
    def rounds_fma_twice(self) -> bool:
        """Whether a fused multiply-add is not one: so in the interpreters of older Tritons."""
        if not self.interpreted:
            return False
        from triton._C.libtriton import interpreter

        return not hasattr(interpreter, "fma_fp32")

    @property
    def repeats(self) -> bool:
        """Whether two runs give the same bits without being asked to."""
        return self.device == "cpu" and self.backend != cuda_host.NAME


#: Every test of the contract runs on each of these.
TARGETS = (
    Target("cpu", "cpu"),
    Target("cuda", "cuda"),
    Target(cuda_host.NAME, "cpu"),
    Target("triton", "cpu" if "cpu" in BACKENDS["triton"].devices else "cuda"),
    Target("reference", "cpu"),
    Target("reference", "cuda"),
)


# --- arguments ---------------------------------------------------------------------------------


def tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in arguments.items() if isinstance(x, Tensor)}


def differentiable(spec: OperatorSpec, arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments of this call that get a gradient."""
    return [name for name in spec.differentiable if isinstance(arguments.get(name), Tensor)]


def cases(
    spec: OperatorSpec, target: Target, *, thorough: bool = True
) -> Iterator[tuple[str, Make]]:
    """All cases, for Triton's interpreter without the large ones.

    `thorough=False`: representatives, where kernels do not run on the processor they are made for,
    which takes minutes for all.
    """
    if not thorough and (target.interpreted or target.backend == cuda_host.NAME):
        yield from representatives(spec, target)
        return
    for case in spec.cases:
        if not (target.interpreted and _is_large(case)):
            yield case.name, case.make


def representatives(spec: OperatorSpec, target: Target) -> Iterator[tuple[str, Make]]:
    """One case for each choice of code: of words, flags, absent tensors, ranks of tensors.

    When interpreted the first alone.
    """
    seen: set[Any] = set()
    for case in spec.cases:
        choice = tuple(
            (name, value.dim() if isinstance(value, Tensor) else value)
            for name, value in sorted(case.make(Maker()).items())
            if value is None or isinstance(value, (str, bool, Tensor))
        )
        enough = target.interpreted and len(seen) == 1
        if choice not in seen and not enough and not _is_large(case):
            seen.add(choice)
            yield case.name, case.make


def _is_large(case: Case) -> bool:
    return any(x.numel() > 10_000 for x in tensors(case.make(Maker())).values())


def enlarged(arguments: Mapping[str, Any], times: int) -> Arguments:
    """The same call with height and width of every tensor, and any `size`, so many times larger."""

    def enlarge(name: str, x: Any) -> Any:
        if name == "size":
            return tuple(times * length for length in x)
        if not isinstance(x, Tensor) or x.dim() < 3:
            return x
        return x.repeat(*[1] * (x.dim() - 2), times, times)

    return {name: enlarge(name, x) for name, x in arguments.items()}


def _surrounded(x: Tensor, shape: Sequence[int], *where: Any) -> Tensor:
    """`x` as a part of a larger tensor that is NaN elsewhere."""
    poison = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max
    whole = torch.full(shape, poison, dtype=x.dtype, device=x.device)
    part = whole[where]
    part.copy_(x)
    return part


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _stepped(x: Tensor) -> Tensor:
    return _surrounded(x, (*x.shape[:-1], 2 * x.shape[-1]), ..., slice(None, None, 2))


def _sliced(x: Tensor) -> Tensor:
    return _surrounded(x, (x.shape[0], x.shape[1] + 3, *x.shape[2:]), slice(None), slice(1, -2))


def _sliced_channels_last(x: Tensor) -> Tensor:
    if x.dim() != 4:
        return _sliced(x)
    n, c, h, w = x.shape
    return _surrounded(x.permute(0, 2, 3, 1), (n, h, w, c + 3), ..., slice(1, -2)).permute(
        0, 3, 1, 2
    )


def _cropped(x: Tensor) -> Tensor:
    shape = (*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3)
    return _surrounded(x, shape, ..., slice(1, -1), slice(1, -2))


def _shifted(x: Tensor) -> Tensor:
    """One element off every alignment, as x is laid out."""
    flat = _surrounded(x.flatten(), (x.numel() + 8,), slice(1, x.numel() + 1))
    return flat.view(x.shape)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x) if len(x) else x


def _one_row(x: Tensor) -> Tensor:
    return x[..., :1, :].expand_as(x) if x.shape[-2] else x


#: Ways not to be contiguous. Whatever lies between the elements is NaN.
STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "stepped": _stepped,
    "channels of a larger one": _sliced,
    "channels of a larger channels_last one": _sliced_channels_last,
    "cropped": _cropped,
    "shifted": _shifted,
    "expanded": _expanded,
    "one row, expanded": _one_row,
}


def restrided(arguments: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Arguments:
    """The same call with `change` applied to every tensor of three dimensions and more."""
    return {
        name: change(x) if isinstance(x, Tensor) and x.dim() >= 3 else x
        for name, x in arguments.items()
    }


# --- what others publish -----------------------------------------------------------------------


def sfnet_warp(x: Tensor, flow: Tensor, align_corners: bool = True) -> Tensor:
    """The warp of the published SFNet: a grid over the output, and flow over its size."""
    height, width = flow.shape[2:]
    rows = torch.linspace(-1, 1, height, dtype=flow.dtype, device=flow.device).view(1, -1, 1)
    columns = torch.linspace(-1, 1, width, dtype=flow.dtype, device=flow.device)
    grid = torch.stack((columns + flow[:, 0] / width, rows + flow[:, 1] / height), -1)
    return F.grid_sample(x, grid, align_corners=align_corners)


# --- running -----------------------------------------------------------------------------------


@dataclass
class Result:
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]

    @property
    def output(self) -> Tensor:
        """The first; of an operator that is differentiable the only one."""
        return self.outputs[0]


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """What a call returned: one tensor or several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def cotangent_of(output: Tensor, seed: int = 1) -> Tensor:
    """A gradient for `output`: normal values that depend on the seed and the shape."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return values.to(output.device, output.dtype)


def evaluate(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    wanted: Sequence[str] = (),
    cotangent: Tensor | None = None,
) -> Result:
    """Call `function` and, where gradients are wanted, differentiate it."""
    leaves = {
        name: x.detach().requires_grad_(name in wanted) if isinstance(x, Tensor) else x
        for name, x in arguments.items()
    }
    outputs = outputs_of(function(**leaves))
    if not wanted:
        return Result(outputs, {})
    (output,) = outputs
    if cotangent is None:
        cotangent = cotangent_of(output)
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if output.requires_grad:
        gradients = torch.autograd.grad(
            output, [leaves[name] for name in wanted], cotangent.to(output), allow_unused=True
        )
    found = {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(wanted, gradients, strict=True)
    }
    return Result((output.detach(),), found)


def truth_of(
    spec: OperatorSpec,
    arguments: Mapping[str, Any],
    wanted: Sequence[str] = (),
    cotangent: Tensor | None = None,
) -> Result:
    """The same in float64, by autograd of the reference."""
    exact = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    return evaluate(lambda **given: spec.truth(given), exact, wanted, cotangent)


class OperatorCalls(TorchDispatchMode):
    """Collects the calls that reach our operators' kernels: (operator, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("vsegops"):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [func.name() for func, _ in self.calls]


# --- comparing ---------------------------------------------------------------------------------


def assert_close(
    actual: Tensor,
    truth: Tensor,
    *,
    error: float,
    roundings: int = 1,
    rounded_inside: bool = False,
    flips: float = 0.0,
    least: float = 0.0,
    instead: Callable[[], Iterable[Tensor]] = tuple,
    what: str = "",
) -> None:
    """Tight everywhere but at flips.

    Args:
        error: largest difference allowed, over the largest truth: what float32 arithmetic may
            cost. For float64 `FLOAT64_ERROR` takes its place.
        roundings: a float16 or bfloat16 value may be off by so many roundings besides.
        rounded_inside: of the largest truth, not of the value itself.
        flips: share of elements that may differ by anything, because a rounding flipped a choice.
            They must differ both ways: the sum of n random signs stays below 4 sqrt(n).
        least: the largest truth counts as at least this: where it may cancel to nothing.
        instead: truths that will do as well, element by element; asked for if `truth` does not.
    """
    assert actual.shape == truth.shape, f"{what}: {list(actual.shape)}, not {list(truth.shape)}"
    value, exact = actual.detach().double().cpu(), truth.detach().double().cpu()
    bound_of = partial(
        _bound,
        dtype=actual.dtype,
        error=error,
        roundings=roundings,
        rounded_inside=rounded_inside,
        least=least,
    )
    bound = bound_of(exact)
    outside = ~((value - exact).abs() <= bound)  # NaN is outside
    if not outside.any():
        return
    for other in instead():
        other = other.double().cpu()
        outside &= ~((value - other).abs() <= bound_of(other))
    difference = torch.where(outside, value - exact, 0.0)
    share = outside.double().mean().item()
    worst = (difference.abs() / bound.clamp(min=1e-300)).nan_to_num(torch.inf).argmax()
    at = [int(i) for i in torch.unravel_index(worst, exact.shape)]
    assert share <= flips, (
        f"{what}: {share:.2%} of the values are wrong, worst at {at}:"
        f" {value.flatten()[worst]:.9g}, not {exact.flatten()[worst]:.9g}"
        f" (allowed {bound.flatten()[worst]:.2g})"
    )
    assert difference.sum().abs() <= 4 * difference.norm(), f"{what}: the flips are biased"


def _bound(
    exact: Tensor,
    dtype: torch.dtype,
    error: float,
    roundings: int,
    rounded_inside: bool,
    least: float,
) -> Tensor:
    """How far each element may be from the truth."""
    if not dtype.is_floating_point or exact.numel() == 0:
        return torch.zeros_like(exact)
    largest = exact.abs().max().clamp(min=least)
    allowed = (FLOAT64_ERROR if dtype == torch.float64 else error) * largest
    if dtype not in (torch.float16, torch.bfloat16):
        return allowed.expand_as(exact)
    magnitude = largest.expand_as(exact) if rounded_inside else exact.abs()
    rounded = (magnitude + allowed).clamp(min=torch.finfo(dtype).tiny)  # the step's least size
    return allowed + roundings * ROUNDING[dtype] * rounded


def _moved(spec: OperatorSpec, arguments: Mapping[str, Any]) -> Iterator[Arguments]:
    """The same call with flows moved by so little that arithmetic cannot tell.

    Where a position falls on a pixel, the gradient of the flow jumps, and one rounding decides. An
    operator that chooses (`flips`) is also given other features: of equal ones any may win.
    """
    exact = next(iter(tensors(arguments).values())).dtype == torch.float64
    little = 1e-13 if exact else 1e-6
    for seed, signs in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        by = little * torch.tensor(signs, dtype=torch.float64).view(1, 2, 1, 1)

        def move(name: str, x: Any, by: Tensor = by, seed: int = seed) -> Any:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            if "flow" in name:
                return x.double() + x.double().abs().add(1).where(x != 0, 0.0) * by.to(x.device)
            if spec.flips:
                return x.double() * (1 + little * cotangent_of(x.double(), seed))
            return x

        yield {name: move(name, x) for name, x in arguments.items()}


def assert_agrees(
    spec: OperatorSpec,
    arguments: Mapping[str, Any],
    wanted: Sequence[str] | None = None,
    *,
    function: Callable[..., Any] | None = None,
    cotangent: Tensor | None = None,
    least: float = 0.0,
    what: str = "",
) -> Result:
    """The operator's result and gradients are the truth's, within the specification's bounds."""
    if wanted is None:
        wanted = differentiable(spec, arguments)
    result = evaluate(function or spec.function, arguments, wanted, cotangent)
    if wanted and cotangent is None:
        cotangent = cotangent_of(result.output)
    truth = truth_of(spec, arguments, wanted, cotangent)
    others = cache(lambda: [truth_of(spec, a, wanted, cotangent) for a in _moved(spec, arguments)])
    compare = partial(
        assert_close,
        roundings=spec.roundings,
        rounded_inside=spec.rounded_inside,
        flips=spec.flips,
        least=least,
    )
    forward, backward = spec.float32_error
    for i, (output, exact) in enumerate(zip(result.outputs, truth.outputs, strict=True)):
        compare(
            output,
            exact,
            error=forward,
            instead=lambda i=i: [other.outputs[i] for other in others()],
            what=f"{what} output {i}",
        )
    for name, gradient in result.gradients.items():
        assert gradient.dtype == arguments[name].dtype, f"{what} d/d{name}"
        compare(
            gradient,
            truth.gradients[name],
            error=backward,
            instead=lambda name=name: [other.gradients[name] for other in others()],
            what=f"{what} d/d{name}",
        )
    return result


# --- uninitialised memory ----------------------------------------------------------------------


def poison_allocations(poison: bool = True) -> None:
    """Have the C library fill what it hands out with 0xFE: -1.7e38 in float32, NaN in float16."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(-6, int(poison))  # M_PERTURB; memory is filled with the complement


@contextmanager
def nan_in_empty_tensors() -> Iterator[None]:
    """PyTorch fills empty tensors with NaN, those that compiled code allocates as well."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


#: Whether `allocated` can tell.
HAS_MALLINFO = hasattr(ctypes.CDLL(None), "mallinfo2")


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
