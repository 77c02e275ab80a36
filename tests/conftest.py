"""Options, and the two things that tests are parametrised by: `spec` and `target`."""

from __future__ import annotations

import os

# Several processes share the processors: threads that wait for each other have to give way. (Read
# when torch is imported.)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cuda_host import backend as cuda_host
from helpers import TARGETS, Target, poison_allocations

import vsegops
from vsegops._backends import BACKENDS
from vsegops._spec import specs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        choices=[*BACKENDS, cuda_host.NAME],
        help="run the tests of this backend only (may be given several times)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "cuda: needs CUDA tensors",
        "cuda_build: compiles the CUDA kernels with nvcc, for minutes",
        "thorough: says the same of one more model, in minutes for all",
        "only(*backends): says something about these backends alone",
        "not_interpreted(reason): cannot run in Triton's interpreter, because of `reason`",
    ):
        config.addinivalue_line("markers", marker)
    poison_allocations()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`target`: each backend on its device, `spec`: each operator of each family."""
    if "target" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--backend")
        targets = [t for t in TARGETS if not asked or t.backend in asked]
        if metafunc.definition.get_closest_marker("cuda"):
            targets = [t for t in targets if t.device == "cuda"]
        if only := metafunc.definition.get_closest_marker("only"):
            targets = [t for t in targets if t.backend in only.args]
        metafunc.parametrize("target", targets, ids=str, indirect=True)
    if "spec" in metafunc.fixturenames:
        metafunc.parametrize("spec", specs(), ids=lambda spec: spec.name)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Runs the test on one backend; skips it, with the backend's reason, where that is missing."""
    chosen: Target = request.param
    if chosen.missing is not None:
        pytest.skip(f"{chosen}: {chosen.missing}")
    marker = request.node.get_closest_marker("not_interpreted")
    if marker is not None and chosen.interpreted:
        pytest.skip(f"Triton's interpreter: {marker.args[0]}")
    registered = cuda_host.registered() if chosen.backend == cuda_host.NAME else nullcontext()
    with registered, vsegops.use_backend(chosen.backend):
        yield chosen


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Whatever a test sets in PyTorch does not outlive it."""
    threads = torch.get_num_threads()
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        *(
            f"vsegops backend {name}: {status.reason}"
            for name, status in vsegops.backends().items()
        ),
        f"CUDA sources on the host: {cuda_host.missing() or f'the {cuda_host.BUILD} build'}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None
