"""Modules over operators, which can do without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import nn

from .. import _checks, _spec

P = ParamSpec("P")
R = TypeVar("R")


class OperatorModule(nn.Module):
    """A module that calls operators by `run`, so that `use_operators` can take them away."""

    _instead: Mapping[Callable[..., Any], Callable[..., Any]] | None = None

    def run(self, operator: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """What `operator(*arguments, **options)` gives, by whichever code is in use."""
        if self._instead is not None:
            operator = self._instead[operator]
        return operator(*arguments, **options)

    def use_operators(self, use: bool = True) -> None:
        """Run this module and those inside by the operators, or by PyTorch's own calls alone.

        The latter is what one writes without this library, the baseline of the benchmarks: it shows
        what the operators bring, checks them, and holds nothing but what any exporter knows.
        Weights and results are the same (up to rounding).

        Args:
            use: False takes the operators away, True brings them back.
        """
        _checks.check_bool("use", use)
        instead = None if use else {spec.function: spec.eager for spec in _spec.specs()}
        for module in self.modules():
            if isinstance(module, OperatorModule):
                module._instead = instead
