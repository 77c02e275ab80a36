"""No ratio without agreement: ours against the truth in float64, the baselines against ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vsegops._spec import ROUNDING, OperatorSpec

from .cases import DTYPES, Setting, backward

#: A baseline computes the same function if no more than `SHARE` of its elements are farther off
#: than this, relative to the largest. Loose, because `grid_sample` takes its position in the
#: features' dtype in [-1, 1]: in float16 that is a hundredth of a pixel at width 64 and a half at
#: 2048, and where a position crosses a pixel's edge the flow's gradient is another one altogether.
LOOSE = {"float64": 1e-6, "float32": 0.01, "float16": 0.1, "bfloat16": 0.3}
SHARE = 0.01


@dataclass(frozen=True)
class Agreement:
    """The largest error over the largest value, and whether it is within `tolerance`."""

    error: float
    tolerance: float
    passed: bool

    def json(self) -> dict[str, Any]:
        """JSON has no infinity: None is an error without bound, as NaN or another shape is."""
        return asdict(self) | {"error": self.error if math.isfinite(self.error) else None}


def truth(setting: Setting) -> tuple[Tensor, ...]:
    """The output in float64, or the gradients, by autograd of the reference.

    The same for every layout and backend.
    """
    arguments = {
        name: x.to(torch.float64, copy=True) if _is_floating(x) else x
        for name, x in setting.arguments().items()
    }
    if setting.direction == "forward":
        return tensors(setting.spec.truth(arguments))

    def reference(**exact: Any) -> Any:
        return setting.spec.truth(exact)

    return tensors(backward(setting, reference, arguments)())


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def with_truth(setting: Setting, result: Any, exact: Sequence[Tensor]) -> Agreement:
    """Ours: within the specification's tolerance."""
    return compare(result, exact, tolerance(setting.spec, setting), setting.spec.flips)


def with_ours(setting: Setting, result: Any, ours: Any) -> Agreement:
    """A baseline: the same function, however inexact."""
    return compare(result, tensors(ours), LOOSE[setting.dtype], SHARE)


def tolerance(spec: OperatorSpec, setting: Setting) -> float:
    """float32's error and, in half precision, the roundings of the output."""
    if setting.dtype == "float64":
        return 1e-10
    error = spec.float32_error[setting.direction == "backward"]
    if setting.dtype == "float32":
        return error
    return error + spec.roundings * ROUNDING[DTYPES[setting.dtype]]


def compare(
    result: Any, expected: Sequence[Tensor], tolerance: float, share: float = 0.0
) -> Agreement:
    """Whether all but a `share` of the elements are within `tolerance` of the largest expected.

    Whole numbers (labels) have to be equal. NaN never passes.
    """
    outs = tensors(result)
    if [out.shape for out in outs] != [exact.shape for exact in expected]:
        return Agreement(math.inf, tolerance, False)
    worst, passed = 0.0, True
    for out, exact in zip(outs, expected, strict=True):
        if out.numel() == 0:
            continue
        if exact.is_floating_point():
            exact = exact.detach().double()
            scale = exact.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            error = (out.detach().double() - exact).abs() / scale
        else:
            error = (out != exact).double()
        within = error <= tolerance
        passed &= float((~within).double().mean()) <= share
        worst = max(worst, float(error.nan_to_num(nan=math.inf, posinf=math.inf).max()))
    return Agreement(worst, tolerance, passed)
