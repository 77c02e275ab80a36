"""The backend `host`, for tests alone: the CUDA sources, run on the CPU.

`VSEGOPS_CUDA_HOST` chooses the build: plain (the default), checked or asan.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from cuda_host import build

from vsegops import _register
from vsegops._backends import BACKENDS, Backend

NAME = "host"
NAMESPACE = "vsegops_host"
BUILD = os.environ.get("VSEGOPS_CUDA_HOST", "plain")


def missing() -> str | None:
    """Why the backend cannot run here; None if it can."""
    return build.missing()


@contextmanager
def registered() -> Iterator[None]:
    """The backend is one of vsegops' as long as this lasts."""
    if NAME in BACKENDS:
        yield
        return
    BACKENDS[NAME] = Backend(NAME, NAMESPACE, ("cpu",), missing())
    try:
        library()
        yield
    finally:
        del BACKENDS[NAME]


@cache
def library() -> ctypes.CDLL:
    """Every family's kernels, loaded; what the shim exports can be called."""
    path = build.library(BUILD, build.families())
    _register.add_namespace(NAMESPACE)
    torch.ops.load_library(str(path))
    return load(path)


def load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.cuda_host_seed.argtypes = [ctypes.c_uint]
    found.cuda_host_tolerate_returned.argtypes = [ctypes.c_bool]
    found.cuda_host_limit.argtypes = [ctypes.c_double]
    return found
