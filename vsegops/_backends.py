"""Which implementation serves a call.

One predicate, `refusal`, both selects a backend and explains in words why one cannot serve.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _extension


@dataclass(frozen=True)
class Backend:
    """A named set of kernels: the dispatcher namespace that holds it and the devices it serves."""

    name: str
    namespace: str
    devices: tuple[str, ...]  # empty: any
    missing: str | None  # why it cannot run at all, None if it can


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here and, if not, the reason in words."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


#: In order of preference.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("cpu", "vsegops", ("cpu",), _extension.unavailable["cpu"]),
        Backend("cuda", "vsegops", ("cuda",), _extension.unavailable["cuda"]),
        Backend(
            "triton",
            "vsegops_triton",
            ("cuda", "cpu") if _interpreting() else ("cuda",),
            _triton_missing(),
        ),
        Backend("reference", "vsegops_reference", (), None),
    )
}

_environment: str | None = os.environ.get("VSEGOPS_BACKEND") or None
_requested = _environment  # what `select` reads: a plain global, so that compiled code retraces
_requests: list[tuple[object, str]] = []  # the `use_backend` blocks that are open, in order
_lock = threading.Lock()


def refusal(backend: Backend, device: str) -> str | None:
    """Why `backend` cannot serve tensors on `device`; None if it can."""
    if backend.missing is not None:
        return backend.missing
    if backend.devices and device not in backend.devices:
        return f"it serves {' and '.join(backend.devices)} tensors and came a {device} tensor"
    return None


def select(tensor: Tensor) -> Backend:
    """The backend asked for by name, or else the first that can serve `tensor`."""
    device = tensor.device.type
    if _requested is not None:
        backend = _known(_requested)
        reason = refusal(backend, device)
        if reason is not None:
            raise RuntimeError(f"backend {backend.name!r} was asked for but cannot serve: {reason}")
        return backend
    for backend in BACKENDS.values():
        # Triton's interpreter is a test instrument: on a CPU it serves only who asks for it.
        interpreted = backend.name == "triton" and device == "cpu"
        if not interpreted and refusal(backend, device) is None:
            return backend
    raise AssertionError("the reference serves every tensor")


def _known(name: str) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return BACKENDS[name]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every operator call inside the `with` by the named backend.

    Holds for the whole process, not per thread. A call is differentiated by the backend that ran
    it, also after the `with` has ended. The environment variable `VSEGOPS_BACKEND` does the same
    from outside.

    Args:
        name: `"cpu"`, `"cuda"`, `"triton"` or `"reference"`.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot run here; the message says why. A call on a tensor of a
            device that it does not serve raises as well: only the automatic choice falls back.

    Example:
        >>> import torch, vsegops
        >>> x, flow = torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 8, 8)
        >>> with vsegops.use_backend("reference"):
        ...     y = vsegops.flow_warp(x, flow)
    """
    global _requested
    status = backends()[_known(name).name]
    if not status.available:
        raise RuntimeError(f"backend {name!r} is not available: {status.reason}")
    request = (object(), name)
    with _lock:
        _requests.append(request)
        _requested = name
    try:
        yield
    finally:
        with _lock:  # blocks of several threads may end in any order
            _requests.remove(request)
            _requested = _requests[-1][1] if _requests else _environment


def _device_missing(backend: Backend) -> str | None:
    """A backend whose kernels are there may still lack a device to run them on."""
    if "cuda" in backend.devices and "cpu" not in backend.devices and not torch.cuda.is_available():
        return "no CUDA device is visible"
    return None


def backends() -> dict[str, BackendStatus]:
    """For each backend whether it is available here and, if not, the reason in words.

    Example:
        >>> import vsegops
        >>> vsegops.backends()["reference"].available
        True
    """
    report = {}
    for backend in BACKENDS.values():
        reason = backend.missing or _device_missing(backend)
        report[backend.name] = BackendStatus(reason is None, reason or "available")
    return report
