"""What is measured: the settings that a selection picks from the families' specifications."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

import vsegops
from vsegops._backends import BACKENDS, refusal
from vsegops._spec import Case, Maker, OperatorSpec

from .timing import Candidate

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64)} | {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LAYOUTS = ("contiguous", "channels_last")
DIRECTIONS = ("forward", "backward")
BASELINES = ("eager", "compile")

#: On a GPU cases are also measured with as many samples as move so many bytes, some 60 microseconds
#: of an H200's time: less shows how kernels begin and end.
FILLING = 256 * 2**20

#: In the name of a shape, before how many times the case's samples it has.
REPEATED = ", times "

#: On a GPU the copies of a call's tensors together are so many times the L2 cache.
ROTATED = 4

Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """A case without its backend: ours on every backend and the baselines are timed in turn."""

    spec: OperatorSpec
    case: Case
    dtype: str
    layout: str
    direction: str
    device: str
    threads: int
    batch: int = 1  # how many times the case's samples

    def names(self) -> dict[str, Any]:
        """What identifies the setting in a result file."""
        return {
            "operator": self.spec.name,
            "shape": self.case.name + (f"{REPEATED}{self.batch}" if self.batch > 1 else ""),
            "dtype": self.dtype,
            "layout": self.layout,
            "direction": self.direction,
            "device": self.device,
            "threads": self.threads,
        }

    def maker(self, seed: int = 0) -> Maker:
        return Maker(
            device=self.device,
            dtype=DTYPES[self.dtype],
            channels_last=self.layout == "channels_last",
            seed=seed,
            batch=self.batch,
        )

    def arguments(self) -> dict[str, Any]:
        """Of the setting asked for last they are kept, for every candidate: to draw them takes
        longer than a GPU takes for all samples."""
        if not _drawn or _drawn[0] is not self:
            _drawn[:] = self, self.case.make(self.maker())
        return dict(_drawn[1])

    def grad_output(self, output: Tensor) -> Tensor:
        """The gradient that comes in: random, the same in every layout and for every candidate."""
        shape = list(output.shape)
        if len(shape) >= 3:  # the maker repeats samples
            shape[0] //= self.batch
        return self.maker(seed=1).features(*shape)


#: The latest setting, and its arguments.
_drawn: list[Any] = []


def forward(function: Callable[..., Any], arguments: dict[str, Any]) -> Run:
    return partial(function, **arguments)


def backward(setting: Setting, function: Callable[..., Any], arguments: dict[str, Any]) -> Run:
    """The backward alone, over a graph that is prepared here and kept.

    Every differentiable argument requires a gradient.
    """
    leaves = [
        arguments[name].requires_grad_()
        for name in setting.spec.differentiable
        if isinstance(arguments.get(name), Tensor)
    ]
    output = function(**arguments)
    grad = setting.grad_output(output).to(output.dtype)
    return partial(
        torch.autograd.grad, output, leaves, grad, retain_graph=True, materialize_grads=True
    )


def candidate(setting: Setting, name: str) -> Candidate:
    """A backend of ours, or a baseline; may raise whatever PyTorch raises in preparing it."""
    spec = setting.spec
    context: Callable[[], Any] = nullcontext
    if name == "eager":
        function = spec.eager
    elif name == "compile":
        function = _compiled(spec.eager, setting.threads)
    else:
        function = spec.function
        context = partial(vsegops.use_backend, name)
    arguments = setting.arguments()
    calls: list[Run] = []
    with context():
        for _ in range(_copies(setting, arguments)):
            own = {k: x.clone() if isinstance(x, Tensor) else x for k, x in arguments.items()}
            if setting.direction == "forward":
                calls.append(forward(function, own))
            else:
                calls.append(backward(setting, function, own))
    return Candidate(name, calls, context)


def _compiled(function: Callable[..., Any], threads: int) -> Callable[..., Any]:
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # or the graph could be run backward only once
    torch._inductor.config.cpp.threads = threads  # the number is written into the generated code
    return torch.compile(function, dynamic=False)


def _copies(setting: Setting, arguments: dict[str, Any]) -> int:
    """How many sets of tensors a call rotates over: on a CPU, whose caches are evicted, two."""
    if setting.device == "cpu":
        return 2
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    moved = setting.spec.bytes_moved(arguments, setting.direction)
    return min(max(ROTATED * cache // moved, 2), 32)


@dataclass(frozen=True)
class Selection:
    """What the command line picked; an empty sequence is everything there is."""

    operators: Sequence[str] = ()
    shapes: Sequence[str] = ()
    dtypes: Sequence[str] = ("float32",)
    layouts: Sequence[str] = LAYOUTS
    directions: Sequence[str] = DIRECTIONS
    backends: Sequence[str] = ()
    baselines: Sequence[str] = BASELINES
    device: str = "cpu"
    threads: Sequence[int] = (1,)
    first_shape_only: bool = False
    batches: Sequence[int] = ()

    def candidates(self) -> list[str]:
        return [*self._backends(), *self.baselines]

    def _backends(self) -> list[str]:
        """Those asked for; else those that serve the device, the reference only for want of any."""
        if self.backends:
            return list(self.backends)
        status = vsegops.backends()
        serving = [
            name
            for name, backend in BACKENDS.items()
            if status[name].available
            and refusal(backend, self.device) is None
            and name != "reference"
        ]
        return serving or ["reference"]

    def settings(self, specs: Iterable[OperatorSpec]) -> Iterator[Setting]:
        """The settings, those that share a truth as neighbours, first shapes before others."""
        specs = list(specs)
        _known("backend", self.backends, list(BACKENDS))
        _known("operator", self.operators, [spec.name for spec in specs])
        chosen = [spec for spec in specs if not self.operators or spec.name in self.operators]
        _known("shape", self.shapes, [case.name for spec in chosen for case in spec.benchmarks])
        threads = self.threads if self.device == "cpu" else (1,)
        by_shape = itertools.zip_longest(*(self._shapes(spec) for spec in chosen))
        for cases in by_shape:
            for spec, case in zip(chosen, cases, strict=True):
                if case is not None:
                    yield from self._of(spec, case, threads)

    def _of(self, spec: OperatorSpec, case: Case, threads: Sequence[int]) -> Iterator[Setting]:
        directions = [d for d in self.directions if d == "forward" or spec.differentiable]
        for dtype in self.dtypes:
            for batch in self._batches(spec, case, dtype):
                for direction, layout in itertools.product(directions, self.layouts):
                    for count in dict.fromkeys(threads):
                        yield Setting(
                            spec, case, dtype, layout, direction, self.device, count, batch
                        )

    def _batches(self, spec: OperatorSpec, case: Case, dtype: str) -> Sequence[int]:
        """Those asked for; else, on a GPU, a filling one before the published."""
        if self.batches or self.device == "cpu":
            return self.batches or (1,)
        return tuple(dict.fromkeys((_filling(spec, case, dtype), 1)))

    def _shapes(self, spec: OperatorSpec) -> list[Case]:
        cases = [case for case in spec.benchmarks if not self.shapes or case.name in self.shapes]
        return cases[:1] if self.first_shape_only else cases


def _filling(spec: OperatorSpec, case: Case, dtype: str) -> int:
    """The power of two that moves `FILLING` bytes forward."""
    moved = spec.bytes_moved(case.make(Maker(device="meta", dtype=DTYPES[dtype])), "forward")
    return 1 << max(0, math.ceil(math.log2(FILLING / moved)))


def _known(what: str, asked: Iterable[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"{what}: expected some of {', '.join(map(repr, dict.fromkeys(known)))},"
            f" got {', '.join(map(repr, unknown))}"
        )


def first_line(error: Exception) -> str:
    """What is recorded where a candidate does not run."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
