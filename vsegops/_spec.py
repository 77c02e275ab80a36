"""What a family tells the tests and the benchmarks about its operators.

`vsegops.ops.<family>.spec.OPERATORS` holds one `OperatorSpec` for each public operator. The
contract test and `bench/` read nothing else, so that a new family is tested and measured the
moment it exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._register import undispatched
from .ops import families

#: Relative error of one rounding to the dtype (half a unit in the last place).
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


class Maker:
    """Makes the tensors of a case: device, dtype, layout and randomness are decided here.

    The values depend on the seed and the sizes only: they are drawn in float64 and then rounded.
    Each sample is repeated `batch` times. On the device `"meta"` nothing is drawn.
    """

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        flow_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.flow_dtype = flow_dtype or dtype
        self.channels_last = channels_last
        self.batch = batch
        self._generator = torch.Generator().manual_seed(seed)

    def features(self, *shape: int) -> Tensor:
        """Standard normal, in the maker's layout where there are four or five dimensions."""
        return self._place(self._normal(shape), self.dtype)

    def regions(self, n: int, c: int, h: int, w: int, side: int = 4) -> Tensor:
        """Logits of a map with regions: standard normal, constant in squares of `side` pixels."""
        values = self._normal((n, c, -(-h // side), -(-w // side)))
        values = values.repeat_interleave(side, 2).repeat_interleave(side, 3)
        return self._place(values[..., :h, :w], self.dtype)

    def smooth(self, n: int, c: int, h: int, w: int, side: int = 8) -> Tensor:
        """Logits as a network's: normal at every `side` pixels, and interpolated in between."""
        coarse = self._normal((n, c, -(-h // side) + 1, -(-w // side) + 1))
        values = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)
        return self._place(values, self.dtype)

    def unit(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): gates, attention."""
        return self._place(self._uniform(shape), self.dtype)

    def flow(self, n: int, h: int, w: int, magnitude: float = 3.0) -> Tensor:
        """[n, 2, h, w], each component normal with deviation `magnitude`."""
        return self._place(magnitude * self._normal((n, 2, h, w)), self.flow_dtype)

    def labels(
        self,
        *shape: int,
        classes: int,
        ignored: float = 0.0,
        ignore_index: int = 255,
        dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """Uniform among the classes; a share `ignored` of them is `ignore_index`."""
        values = self._drawn(torch.randint, classes, shape, dtype=torch.int64)
        values = values.where(self._uniform(shape) >= ignored, ignore_index)
        return self._repeated(values.to(self.device, dtype))

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return self._drawn(torch.rand, shape, dtype=torch.float64)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return self._drawn(torch.randn, shape, dtype=torch.float64)

    def _drawn(self, draw: Callable[..., Tensor], *arguments: Any, dtype: torch.dtype) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(arguments[-1], dtype=dtype, device="meta")
        return draw(*arguments, generator=self._generator, dtype=dtype)

    def _place(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        values = values.to(dtype)
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d} if self.channels_last else {}
        layout = layouts.get(values.dim(), torch.contiguous_format)
        values = self._repeated(values.contiguous(memory_format=layout).to(self.device))
        return values.contiguous(memory_format=layout)

    def _repeated(self, values: Tensor) -> Tensor:
        if self.batch == 1 or values.dim() < 3:  # what has no samples
            return values
        return values.repeat(self.batch, *[1] * (values.dim() - 1))


@dataclass(frozen=True)
class Case:
    """One call: `make(maker)` gives the operator's arguments by name (tensors and options)."""

    name: str
    make: Callable[[Maker], dict[str, Any]]


@dataclass(frozen=True)
class Refused:
    """A call that has to raise: the case's arguments after `change`, naming `argument`."""

    argument: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class OperatorSpec:
    """One public operator.

    Attributes:
        name: its name in `vsegops`, and in the dispatcher.
        function: the public function.
        cases: calls that the contract test makes, of awkward sizes, every option among them.
        benchmarks: calls that are measured: the papers' shapes.
        eager: what one writes without this library; same arguments as `function`. The benchmark's
            baseline (also compiled), and it has to agree with the operator.
        bytes_moved: `(arguments, "forward" | "backward") -> the fewest bytes that must move`: each
            input read once, each output written once.
        operations: likewise the floating point operations to be done.
        differentiable: names of the tensor arguments that get a gradient.
        refused: bad calls beyond what the contract test derives from the signature.
        roundings: a float16 or bfloat16 output may differ by so many roundings of its own.
        rounded_inside: what such an output is summed of was rounded as well: the roundings are of
            the largest output then, of which another may be a small rest.
        float32_error: largest error over largest truth, (forward, backward).
        flips: share of outputs that may differ, where a rounding may flip a choice (floor, argmax).
        scratch: bytes that a forward may allocate beside its output.
    """

    name: str
    function: Callable[..., Any]
    cases: Sequence[Case]
    benchmarks: Sequence[Case]
    eager: Callable[..., Any]
    bytes_moved: Callable[[Mapping[str, Any], str], int]
    operations: Callable[[Mapping[str, Any], str], int]
    differentiable: Sequence[str]
    refused: Sequence[Refused] = ()
    roundings: int = 1
    rounded_inside: bool = False
    float32_error: tuple[float, float] = (2e-6, 2e-5)
    flips: float = 0.0
    scratch: Callable[[Mapping[str, Any]], int] = lambda _: 0

    def truth(self, arguments: Mapping[str, Any]) -> Any:
        """The result in float64, by the reference outside the dispatcher: differentiable."""
        exact = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in arguments.items()
        }
        with undispatched():
            return self.function(**exact)


def specs() -> list[OperatorSpec]:
    """The operators of every family."""
    found: list[OperatorSpec] = []
    for family in families():
        found.extend(importlib.import_module(f"vsegops.ops.{family}.spec").OPERATORS)
    return found


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of some tensors."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
