"""What a call costs before any work is done: microseconds at a tiny size, warm, one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import vsegops
from vsegops._spec import Maker, OperatorSpec

from .cases import DTYPES, Selection, first_line, forward
from .timing import per_call, threads


def overheads(
    specs: Sequence[OperatorSpec], selection: Selection, batches: int
) -> list[dict[str, Any]]:
    """For each operator and candidate (not the compiled one), without and with grad."""
    found = []
    names = [name for name in selection.candidates() if name != "compile"]
    with threads(1):
        for spec in specs:
            arguments = tiny(spec, selection)
            for name in names:
                for grad in (False, True) if spec.differentiable else (False,):
                    found.append(
                        {
                            "operator": spec.name,
                            "candidate": name,
                            "grad": grad,
                            **_measure(spec, arguments, name, grad, selection.device, batches),
                        }
                    )
    return found


def tiny(spec: OperatorSpec, selection: Selection) -> dict[str, Any]:
    """The arguments of the specification's smallest case that is not empty."""
    maker = Maker(device=selection.device, dtype=DTYPES[selection.dtypes[0]])
    made = [case.make(maker) for case in spec.cases] or [spec.benchmarks[0].make(maker)]
    full = [a for a in made if all(x.numel() for x in a.values() if isinstance(x, Tensor))]
    return min(full, key=lambda arguments: spec.bytes_moved(arguments, "forward"))


def _measure(
    spec: OperatorSpec,
    arguments: Mapping[str, Any],
    name: str,
    grad: bool,
    device: str,
    batches: int,
) -> dict[str, Any]:
    own = {
        k: x.clone().requires_grad_(grad and k in spec.differentiable)
        if isinstance(x, Tensor)
        else x
        for k, x in arguments.items()
    }
    function = spec.eager if name == "eager" else spec.function
    nothing = {"median_us": None, "p20_us": None, "p80_us": None}
    serving = nullcontext() if name == "eager" else vsegops.use_backend(name)
    try:
        with serving, torch.set_grad_enabled(grad):
            call = forward(function, own)
            return {"failed": None, **per_call(call, device, batches, batch=40)}
    except Exception as error:  # a backend that does not run here is a finding
        return {"failed": first_line(error), **nothing}
