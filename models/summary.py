"""What a model costs: parameters, multiply-adds, activations and time, stage by stage."""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vsegops._spec import OperatorSpec, specs
from vsegops.nn import OperatorModule

from .base import Model, VideoModel
from .registry import create_model


@dataclass
class Stage:
    """One part of a model, and what it costs, without the parts inside it that are listed.

    Attributes:
        parameters: learnable numbers, those that are used twice counted once.
        multiply_adds: of convolutions and matrix products.
        operator_multiply_adds: of the operators of `vsegops`, half of their operations.
        activation_bytes: of all results that are newly allocated, whatever becomes of them.
        seconds: None where it was not measured.
    """

    name: str
    parameters: int = 0
    multiply_adds: int = 0
    operator_multiply_adds: int = 0
    activation_bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """The stages of a model in the order in which they run; `str()` is the printed table."""

    model: str
    size: tuple[int, ...]
    stages: tuple[Stage, ...]

    @property
    def total(self) -> Stage:
        def add(attribute: str) -> Any:
            values = [getattr(stage, attribute) for stage in self.stages]
            return None if None in values else sum(values)

        names = [name for name in Stage.__dataclass_fields__ if name != "name"]
        return Stage("total", **{name: add(name) for name in names})

    def __str__(self) -> str:
        rows = [("stage", "parameters", "G multiply-adds", "of operators", "activations", "time")]
        for stage in (*self.stages, self.total):
            took = "" if stage.seconds is None else f"{stage.seconds * 1e3:.2f} ms"
            rows.append(
                (
                    stage.name,
                    f"{stage.parameters:,}",
                    f"{stage.multiply_adds / 1e9:.3f}",
                    f"{stage.operator_multiply_adds / 1e9:.3f}",
                    f"{stage.activation_bytes / 1e6:.1f} MB",
                    took,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.model}, {' x '.join(map(str, self.size))}"]
        for name, *cells in rows:
            aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join((name.ljust(widths[0]), *aligned)).rstrip())
        return "\n".join(lines)


def summary(
    model: str | Model,
    size: Sequence[int] = (1024, 2048),
    *,
    step: bool = False,
    repeats: int = 0,
    **options: Any,
) -> Summary:
    """Print and return what a model costs on one image, in evaluation mode.

    Counting computes nothing, whatever the size.

    Args:
        model: a name for `create_model`, or a model.
        size: height and width of the image.
        step: count the second frame of a video, not the first.
        repeats: runs on the model's device of which the median time is taken, after one more; 0: no
            time is measured. The stages are separated by synchronising, so that their sum is more
            than the time of the whole.
        options: for `create_model`.

    Example:
        >>> from vsegops.models import summary
        >>> costs = summary("sfnet_df1", (512, 1024))  # doctest: +ELLIPSIS
        sfnet_df1, 512 x 1024
        stage...
        >>> costs.total.multiply_adds
        8182824960
    """
    name = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str):
        with torch.device("cpu" if repeats else "meta"):
            model = create_model(model, **options)
    if step and not isinstance(model, VideoModel):
        raise ValueError(f"step: {name} has no steps, it is not a video model")
    seconds = _measure(copy.deepcopy(model).eval(), size, step, repeats) if repeats else {}
    stages = _count(copy.deepcopy(model).eval().to("meta"), size, step)
    for stage in stages if repeats else ():
        stage.seconds = seconds.get(stage.name, 0.0)
    result = Summary(name, tuple(size), tuple(stages))
    print(result)
    return result


#: Names of modules are cut after so many parts, and before the first number.
_DEPTH = 2


def _cut(name: str) -> str:
    parts = name.split(".")[:_DEPTH]
    return ".".join(takewhile(lambda part: not part.isdigit(), parts)) or "model"


class _Stages:
    """Which stage runs, by hooks on every module.

    A module belongs to the stage that its name is cut to; all that runs inside one which is cut, or
    might be, belongs to it as well, under whatever name (STDC's blocks have two).
    """

    def __init__(self, model: nn.Module, changing: Callable[[], None] = lambda: None) -> None:
        self._stack = [("model", False)]
        self._changing = changing
        self.parameters: dict[str, dict[int, int]] = defaultdict(dict)
        self._seen: set[int] = set()
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    @property
    def current(self) -> str:
        return self._stack[-1][0]

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._changing()
        stage, closed = self._stack[-1]
        if not closed:
            stage = _cut(name)
            closed = stage != (name or "model") or name.count(".") + 1 == _DEPTH
        self._stack.append((stage, closed))
        for x in module.parameters(recurse=False):
            if id(x) not in self._seen:
                self._seen.add(id(x))
                self.parameters[stage][id(x)] = x.numel()

    def _leave(self, *_: Any) -> None:
        self._changing()
        self._stack.pop()


class _Counter(TorchDispatchMode):
    """Counts what PyTorch's operators multiply and allocate."""

    def __init__(self, costs: Callable[[], Stage]) -> None:
        super().__init__()
        self._costs = costs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        costs = self._costs()
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            costs.multiply_adds += count(*args, **kwargs, out_val=result) // 2
        results = result if isinstance(result, (tuple, list)) else (result,)
        for x, returned in zip(results, func._schema.returns, strict=False):
            if returned.alias_info is None:
                costs.activation_bytes += sum(
                    leaf.nbytes for leaf in tree_leaves(x) if isinstance(leaf, Tensor)
                )
        return result


def _arguments(model: Model, size: Sequence[int], step: bool) -> tuple[Any, ...]:
    return model.example_inputs(size) if step else Model.example_inputs(model, size)


def _count(model: Model, size: Sequence[int], step: bool) -> list[Stage]:
    """The costs of each stage, in the order in which they come to run."""
    found: dict[str, Stage] = {}
    arguments = _arguments(model, size, step)

    def costs() -> Stage:
        return found.setdefault(stages.current, Stage(stages.current))

    def counted(spec: OperatorSpec) -> Callable[..., Any]:
        signature = inspect.signature(spec.function)

        def operator(*arguments: Any, **options: Any) -> Any:
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            costs().operator_multiply_adds += spec.operations(bound.arguments, "forward") // 2
            return spec.function(*arguments, **options)

        return operator

    instead = {spec.function: counted(spec) for spec in specs()}
    for module in model.modules():
        if isinstance(module, OperatorModule):
            module._instead = instead
    stages = _Stages(model)
    with torch.no_grad(), _Counter(costs):
        model(*arguments)
    for stage, parameters in stages.parameters.items():
        found.setdefault(stage, Stage(stage)).parameters = sum(parameters.values())
    for name, x in model.named_parameters():  # those that did not run
        if not any(id(x) in parameters for parameters in stages.parameters.values()):
            found.setdefault(_cut(name), Stage(_cut(name))).parameters += x.numel()
    return list(found.values())


def _measure(model: Model, size: Sequence[int], step: bool, repeats: int) -> dict[str, float]:
    """Median seconds of each stage."""
    device = next(model.parameters()).device
    took: dict[str, float] = {}
    last = 0.0

    def changing() -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        took[stages.current] = took.get(stages.current, 0.0) + now - last
        last = now

    arguments = _arguments(model, size, step)
    stages = _Stages(model, changing)
    runs = []
    with torch.no_grad():
        for _ in range(1 + repeats):
            took.clear()
            last = time.perf_counter()
            model(*arguments)
            runs.append(dict(took))
    return {stage: statistics.median(run[stage] for run in runs[1:]) for stage in runs[0]}
