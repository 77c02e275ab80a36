"""The CUDA sources on the host: faults in kernels are found, and named by file and line.

`cuda_host/faults` has kernels with one fault each, beside themselves without it.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cuda_host import backend, build

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

FAULTS = build.SHIM / "faults"
SOURCES = sorted(FAULTS.glob("*.cu"))
N = 256
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
    "unguarded_tail": "out of bounds: write of 4 bytes, .* bytes behind the buffer out",
    "uninitialised_accumulator": "atomic access of shared array 'total' that nobody has written",
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
    "unguarded_tail": "heap-buffer-overflow",
}


def compiled(kind: str) -> Path:
    return build.library(kind, [build.together(FAULTS)])


@cache
def library(kind: str) -> ctypes.CDLL:
    return backend.load(compiled(kind))


def run(kind: str, name: str, fault: bool, seed: int) -> tuple[np.ndarray, str | None]:
    """(the output, what was reported)."""
    kernels = library(kind)
    kernels.cuda_host_seed(seed)
    kernels.cuda_host_limit(0.2 if name == "spin" else 60)
    function = getattr(kernels, name)
    function.restype = ctypes.c_char_p
    given = np.arange(1, N + 1, dtype=np.float32)
    output = np.zeros(N, dtype=np.float32)
    pointers = (ctypes.c_void_p(x.ctypes.data) for x in (given, output))
    report = function(ctypes.c_bool(fault), *pointers, N)
    return output, report and report.decode()


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


if __name__ == "__main__":
    print(run("asan", sys.argv[1], sys.argv[2] == "1", 0))
