"""The one mechanism that registers an operator.

A dispatcher key holds one kernel, so each backend has a namespace of its own (`NAMESPACES`), and
the same schema, fake, autograd and autocast are registered in each. A family describes its
operators as `Operator` values; everything that PyTorch wants to know is derived from them here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _after_autograd_keyset,
    _any_requires_grad,
    _AutoDispatchBelowAutograd,
    _ExcludeDispatchKeyGuard,
)

from ._backends import BACKENDS, select, use_backend

#: namespace -> the module of a family that implements it in Python (None: compiled code does).
NAMESPACES: dict[str, str | None] = {
    "vsegops": None,
    "vsegops_triton": "triton",
    "vsegops_reference": "reference",
}


@dataclass(frozen=True)
class Operator:
    """One operator, in terms that hold for every backend.

    Attributes:
        name: the dispatcher's name, also the name of the function in `reference` and `triton`.
        schema: arguments and results in the dispatcher's language, without a name and without
            defaults (PyTorch drops trailing defaults from `needs_input_grad`).
        fake: computes empty outputs of the right shape, dtype and strides.
        backward: `(ops, needs, inputs, *grads) -> one gradient for each argument`. `ops` is the
            namespace of the forward, so that the backward runs on the same backend; `needs` says
            which gradients are wanted. None: not differentiable, and loud about it.
        saved: what the backward gets of the inputs: those that it reads, or what it has to know.
        recorded: the operator, defined before, that runs instead where gradients will be wanted: it
            has the same arguments, and results beside the first. These come after the inputs in
            the backward.
        autocast: names of the arguments that go to autocast's dtype; empty: autocast is ignored.
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    saved: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    recorded: str = ""
    autocast: Sequence[str] = ()


_libraries: list[torch.library.Library] = []  # a registration lives as long as its Library
_operators: list[tuple[str, Operator]] = []  # (family, operator), for namespaces that come later


def register(family: str, *operators: Operator) -> None:
    """Register `operators`, which the package `vsegops.ops.<family>` implements."""
    for operator in operators:
        _operators.append((family, operator))
        for namespace, module in NAMESPACES.items():
            _register_in(namespace, module, family, operator)


def add_namespace(namespace: str) -> None:
    """Define every operator in one more namespace, whose kernels a loaded library implements."""
    NAMESPACES[namespace] = None
    for family, operator in _operators:
        _register_in(namespace, None, family, operator)


def overload(namespace: str, name: str) -> torch._ops.OpOverload:
    """The operator `namespace::name`, without the cost of resolving overloads at each call."""
    return getattr(getattr(torch.ops, namespace), name).default  # type: ignore[no-any-return]


def call(name: str, tensor: torch.Tensor, *arguments: Any) -> Any:
    """Run operator `name` on the backend that serves `tensor`."""
    return _overloads[select(tensor).name, name](*arguments)


def wanted_bits(needs: Sequence[bool]) -> int:
    """What a backward's `wanted` says: a bit for each argument that needs a gradient."""
    return sum(1 << i for i, need in enumerate(needs) if need)


def only_wanted(wanted: int, gradients: Sequence[Any]) -> tuple[Any, ...]:
    """The gradients, None in place of those that were not computed."""
    return tuple(x if wanted & (1 << i) else None for i, x in enumerate(gradients))


@contextmanager
def undispatched() -> Iterator[None]:
    """Call the reference's functions themselves, so that autograd sees the PyTorch inside."""
    before = dict(_overloads)
    for family, operator in _operators:
        module = importlib.import_module(f"vsegops.ops.{family}.reference")
        _overloads["reference", operator.name] = getattr(module, operator.name)
    try:
        with use_backend("reference"):
            yield
    finally:
        _overloads.update(before)


_overloads: dict[tuple[str, str], Callable[..., Any]] = {}  # (backend, operator) -> its overload


def _register_in(namespace: str, module: str | None, family: str, operator: Operator) -> None:
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)
    library.define(
        operator.name + operator.schema,
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
    )
    qualified = f"{namespace}::{operator.name}"
    torch.library.register_fake(qualified, operator.fake, lib=library)
    function = overload(namespace, operator.name)
    _register_autograd(library, namespace, operator)
    if operator.autocast:
        _register_autocast(library, function, operator)
    if module is not None:
        _register_python(library, module, family, operator.name)
    for backend in BACKENDS.values():
        if backend.namespace == namespace:
            _overloads[backend.name, operator.name] = function


def _register_python(library: torch.library.Library, module: str, family: str, name: str) -> None:
    """Implement the operator by a function of the family's module, imported at the first call."""

    def kernel(*arguments: Any) -> Any:
        implementation = importlib.import_module(f"vsegops.ops.{family}.{module}")
        return getattr(implementation, name)(*arguments)

    if module == "reference":
        library.impl(name, kernel, "CompositeExplicitAutograd")
    else:
        for device in BACKENDS[module].devices:
            library.impl(name, kernel, device.upper())


def _register_autograd(library: torch.library.Library, namespace: str, operator: Operator) -> None:
    """Register an autograd function at the dispatcher's autograd key.

    `torch.library.register_autograd` does the same, but looks defaults up in the schema at every
    call, which costs more than a small kernel.
    """
    function = overload(namespace, operator.name)
    recorded = overload(namespace, operator.recorded or operator.name)
    ops = getattr(torch.ops, namespace)

    def forward(ctx: Any, keyset: DispatchKeySet, *inputs: Any) -> Any:
        with _AutoDispatchBelowAutograd():
            result = recorded.redispatch(keyset & _after_autograd_keyset, *inputs)
        beside: Sequence[Any] = ()
        if operator.recorded:
            result, *beside = result
        if operator.backward is not None:
            saved = (*operator.saved(inputs), *beside)
            tensors = {i: x for i, x in enumerate(saved) if isinstance(x, torch.Tensor)}
            ctx.save_for_backward(*tensors.values())
            ctx.positions = list(tensors)
            ctx.rest = [None if i in tensors else x for i, x in enumerate(saved)]
        return result

    def backward(ctx: Any, *grads: Any) -> Any:
        if operator.backward is None:
            raise RuntimeError(
                f"{namespace}::{operator.name} is not differentiable"
                + ": vsegops operators have no second derivative" * ("_backward" in operator.name)
            )
        inputs = list(ctx.rest)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors, strict=True):
            inputs[position] = tensor
        return None, *operator.backward(ops, ctx.needs_input_grad[1:], inputs, *grads)

    # Made by type(), as autograd reads the name, which a graph shows, when the class is made.
    differentiable = type(
        f"{namespace}_{operator.name}",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )

    def kernel(keyset: DispatchKeySet, *inputs: Any) -> Any:
        # Forward-mode differentiation has no formula: apply() raises where it is asked for.
        forward_mode = torch.autograd.forward_ad._current_level >= 0
        if forward_mode or (torch.is_grad_enabled() and _any_requires_grad(*inputs)):
            return differentiable.apply(keyset, *inputs)  # type: ignore[attr-defined]
        with _AutoDispatchBelowAutograd():
            return function.redispatch(keyset & _after_autograd_keyset, *inputs)

    library.impl(operator.name, kernel, "Autograd", with_keyset=True)


def _register_autocast(
    library: torch.library.Library, function: torch._ops.OpOverload, operator: Operator
) -> None:
    """Cast the named arguments to the dtype that the user's autocast asks for, then go on.

    `torch.library.register_autocast` would cast every floating argument, and to a fixed dtype.
    """
    arguments = function._schema.arguments
    positions = [i for i, argument in enumerate(arguments) if argument.name in operator.autocast]

    def make_kernel(device: str, key: DispatchKey) -> Callable[..., Any]:
        def kernel(_: DispatchKeySet, *inputs: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            cast = list(inputs)
            for i in positions:
                x = inputs[i]
                if x is not None and x.is_floating_point() and x.dtype != torch.float64:
                    cast[i] = x.to(dtype)
            with _ExcludeDispatchKeyGuard(DispatchKeySet(key)):
                return function(*cast)

        return kernel

    for device, key in (("cpu", DispatchKey.AutocastCPU), ("cuda", DispatchKey.AutocastCUDA)):
        library.impl(operator.name, make_kernel(device, key), key.name, with_keyset=True)
