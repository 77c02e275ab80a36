"""The CUDA sources on the host: faults in kernels are found, and named by file and line.

`cuda_host/faults` has kernels with one fault each, beside themselves without it.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import backend, build
from helpers import Target, differentiable, evaluate, representatives

import vsegops
from vsegops._spec import Maker, OperatorSpec, specs

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

FAULTS = build.SHIM / "faults"
SOURCES = sorted(FAULTS.glob("*.cu"))
KERNELS = build.SHIM / "kernels"
SEEDS = range(5)

#: What each build has to say of a fault.
CHECKED = {
    "divergent_barrier": "divergent barrier",
    "divergent_shuffle": "divergent barrier",
    "dynamic_tail": "out of bounds: write of 4 bytes, 0 bytes behind dynamic shared memory",
    "early_return": "divergent barrier",
    "index_overflow": "integer overflow of a product",
    "misaligned_vector": "misaligned",
    "missing_async_barrier": "race on shared array 'tile'|'tile' that nobody has written",
    "missing_async_wait": "'tile' that nobody has written",
    "missing_syncthreads": "race on shared array 'tile'|'tile' that nobody has written",
    "missing_syncwarp": "race on shared array 'tile'|'tile' that nobody has written",
    "off_by_one_tile": "out of bounds: index 65",
    "out_of_bounds_tap": "out of bounds: read of 4 bytes, 0 bytes behind the buffer in",
    "plain_against_atomic": "race on the buffer out",
    "race_between_blocks": "race on the buffer out.* of another block",
    "shuffle_as_barrier": "race on shared array 'tile'",
    "spin": "no end in sight",
    "unguarded_halves": "out of bounds: write of 2 bytes, .* bytes behind the buffer out",
    "unguarded_tail": "out of bounds: write of 4 bytes, .* bytes behind the buffer out",
    "uninitialised_accumulator": "atomic access of shared array 'total' that nobody has written",
    "unordered_structs": "race on shared array 'points'|'points' that nobody has written",
    "write_after_read": "race on shared array 'tile'",
}
PLAIN = {name: CHECKED[name] for name in CHECKED if "divergent" in CHECKED[name] or name == "spin"}
#: Found in the results, because shared memory is NaN at first and threads come in any order.
SHOWN = [
    "missing_async_barrier",
    "missing_async_wait",
    "missing_syncthreads",
    "missing_syncwarp",
    "uninitialised_accumulator",
]
ASAN = {
    "dynamic_tail": "heap-buffer-overflow",
    "neighbouring_array": "global-buffer-overflow",
    "off_by_one_tile": "global-buffer-overflow",
    "out_of_bounds_tap": "heap-buffer-overflow",
    "unguarded_halves": "heap-buffer-overflow",
    "unguarded_tail": "heap-buffer-overflow",
}


def compiled(kind: str, folder: Path = FAULTS) -> Path:
    return build.library(kind, [build.together(folder)])


@cache
def library(kind: str, folder: Path = FAULTS) -> ctypes.CDLL:
    return backend.load(compiled(kind, folder))


def call(kernels: ctypes.CDLL, name: str, choice: bool, given: np.ndarray):
    """(the output, what was reported)."""
    function = getattr(kernels, name)
    function.restype = ctypes.c_char_p
    output = np.zeros(256, dtype=np.float32)
    pointers = (ctypes.c_void_p(x.ctypes.data) for x in (given, output))
    report = function(ctypes.c_bool(choice), *pointers, len(given))
    return output, report and report.decode()


def run(kind: str, name: str, fault: bool, seed: int) -> tuple[np.ndarray, str | None]:
    kernels = library(kind)
    kernels.cuda_host_seed(seed)
    kernels.cuda_host_limit(0.2 if name == "spin" else 60)
    return call(kernels, name, fault, np.arange(1, 257, dtype=np.float32))


def reported_lines(name: str) -> list[str]:
    """file:line of what a report has to name."""
    lines = (FAULTS / f"{name}.cu").read_text().splitlines()
    return [f"{name}.cu:{i}" for i, line in enumerate(lines, 1) if line.endswith("// reported")]


def assert_named(name: str, pattern: str, report: str | None) -> None:
    assert report is not None, "nothing was reported"
    assert re.search(pattern, report), report
    ends = "(?![0-9])"
    assert any(re.search(re.escape(line) + ends, report) for line in reported_lines(name)), report


def test_every_fault_is_expected_of_a_build():
    assert {source.stem for source in SOURCES} == set(CHECKED) | set(ASAN)


@pytest.mark.parametrize("name", CHECKED)
def test_the_checked_build_reports(name):
    for seed in SEEDS:
        _, report = run("checked", name, True, seed)
        assert_named(name, CHECKED[name], report)


@pytest.mark.parametrize("kind", ["plain", "portable"])
@pytest.mark.parametrize("name", PLAIN)
def test_any_build_reports(name, kind):
    _, report = run(kind, name, True, 1)
    assert_named(name, PLAIN[name], report)


@pytest.mark.parametrize("name", SHOWN)
def test_the_plain_build_shows_it_in_the_results(name):
    expected, _ = run("plain", name, False, 0)
    found = [run("plain", name, True, seed)[0] for seed in SEEDS]
    assert not all(np.array_equal(x, expected) for x in found)


@pytest.mark.parametrize("name", [source.stem for source in SOURCES])
def test_nothing_is_reported_without_the_fault(name):
    expected, _ = run("plain", name, False, 0)
    assert np.isfinite(expected).all() and expected.any()
    for kind in ("plain", "portable", "checked"):
        for seed in SEEDS:
            output, report = run(kind, name, False, seed)
            assert report is None
            assert np.array_equal(output, expected), f"{kind}, seed {seed}"


@pytest.mark.parametrize("name", ASAN)
def test_address_sanitizer_reports(name):
    """In a process of its own, which the report ends."""
    compiler = os.environ.get("CXX", "c++")
    preload = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not Path(preload[0]).exists():
        pytest.skip(f"{compiler} has no libasan.so")
    compiled("asan")
    for fault in (True, False):
        done = subprocess.run(
            [sys.executable, __file__, name, str(int(fault))],
            env={
                **os.environ,
                "LD_PRELOAD": " ".join(preload),
                "ASAN_OPTIONS": "detect_leaks=0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
        )
        if fault:
            assert_named(name, ASAN[name], done.stderr)
        else:
            assert done.returncode == 0, done.stderr


def test_returned_threads_may_be_tolerated():
    kernels = library("checked")
    kernels.cuda_host_tolerate_returned(True)
    try:
        _, report = run("checked", "early_return", True, 0)
    finally:
        kernels.cuda_host_tolerate_returned(False)
    assert report is None


# --- what kernels are made of ------------------------------------------------------------------

EVERY_BUILD = pytest.mark.parametrize("kind", ["plain", "portable", "checked"])


@EVERY_BUILD
@pytest.mark.parametrize("rows", [32, 25])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_matrix_product(kind, bfloat16, rows):
    """Integers, which half precision holds; rows that are not given count as zeros."""
    given = np.random.default_rng(0).integers(-8, 9, (rows, 16)).astype(np.float32)
    output, report = call(library(kind, KERNELS), "matrix_product", bfloat16, given.ravel())
    assert report is None
    a, b = np.split(np.pad(given, ((0, 32 - rows), (0, 0))), 2)
    assert np.array_equal(output.reshape(16, 16), a @ b)


@EVERY_BUILD
def test_exchanges(kind):
    given = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    lanes = np.arange(32)
    kernels = library(kind, KERNELS)
    output, report = call(kernels, "exchanges", False, given)
    assert report is None
    expected = [
        given[lanes // 2],
        given[np.where(lanes < 3, lanes, lanes - 3)],
        given[np.where(lanes % 16 < 11, lanes + 5, lanes)],
        given[lanes ^ 9],
        np.full(32, 11),
        np.full(32, 2),
        np.full(32, 11),
        np.full(32, 1),
    ]
    assert np.array_equal(output.reshape(8, 32), expected)
    output, report = call(kernels, "exchanges", True, given)
    assert report is None
    assert np.array_equal(output[:32], given[np.where(lanes < 16, 3, lanes ^ 1)])


@EVERY_BUILD
def test_atomics(kind):
    output, report = call(library(kind, KERNELS), "atomics", False, np.zeros(1, np.float32))
    assert report is None
    total = 63 * 64 // 2
    assert output[128:134].tolist() == [64, 128, 192, total, 256, total]
    sums = [32, 64, 16, total - 64, -63, 63, 31, 0, -8, 9, 7]
    assert output[:17].tolist() == [*sums, 64, 128, 192, 256, 320, 128]


@pytest.mark.parametrize(
    ("folder", "architecture"),
    [(FAULTS, "sm_80"), (KERNELS, "sm_80"), (KERNELS, "sm_90")],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_nvcc_takes_the_same_sources(folder, architecture, tmp_path):
    """These kernels are CUDA, and what stands for __CUDACC__ alone assembles."""
    sys.path.insert(0, str(build.ROOT / "tools"))
    try:
        import cuda_resources as tool
    finally:
        sys.path.pop(0)
    nvcc = tool.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found (looked at CUDA_HOME, CUDA_PATH, PATH)")
    command = [nvcc, *tool.FLAGS, f"-isystem={tool.torch_headers()}", f"-arch={architecture}"]
    source = tmp_path / f"{folder.name}.cu"
    source.write_text("".join(f'#include "{path}"\n' for path in sorted(folder.glob("*.cu"))))
    done = subprocess.run(
        [*command, "-cubin", str(source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- our kernels -------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[ctypes.CDLL]:
    with backend.registered(), vsegops.use_backend(backend.NAME):
        yield backend.library()


HOST = Target(backend.NAME, "cpu")


def results(spec: OperatorSpec, arguments: dict, names: list[str], kernels: ctypes.CDLL):
    """The output and gradients, for several orders of threads."""
    for seed in SEEDS:
        kernels.cuda_host_seed(seed)
        result = evaluate(spec.function, arguments, names)
        yield [result.output, *result.gradients.values()]


def test_what_is_deterministic_does_not_depend_on_the_order_of_threads(spec, host):
    """All but the gradients that `torch.use_deterministic_algorithms` has an operator refuse."""
    for name, make in representatives(spec, HOST):
        for channels_last in (False, True):
            arguments = make(Maker(channels_last=channels_last))
            promised = []
            for argument in differentiable(spec, arguments):
                torch.use_deterministic_algorithms(True)
                with suppress(RuntimeError):
                    evaluate(spec.function, arguments, [argument])
                    promised.append(argument)
                torch.use_deterministic_algorithms(False)
            first, *others = results(spec, arguments, promised, host)
            for other in others:
                assert all(map(torch.equal, first, other)), f"{name}: {promised}"


def test_the_order_of_threads_shows_where_it_may(host):
    """The test above can fail: sums by atomic additions differ."""
    flow = torch.full((1, 2, 16, 16), torch.inf)  # all to the last pixel
    arguments = {"input": torch.rand(1, 1, 16, 16), "flow": flow, "padding_mode": "border"}
    spec = next(spec for spec in specs() if spec.function is vsegops.flow_warp)
    first, *others = results(spec, arguments, ["input"], host)
    assert not all(torch.equal(first[1], other[1]) for other in others)


if __name__ == "__main__":
    print(run("asan", sys.argv[1], sys.argv[2] == "1", 0))
