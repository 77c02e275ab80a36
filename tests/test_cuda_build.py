"""What holds of the CUDA kernels without a GPU: they compile, do not spill, and are all bound."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vsegops import _extension
from vsegops._register import _operators

TOOL = Path(__file__).parent.parent / "tools" / "cuda_resources.py"


def resources() -> Any:
    """The tool as a module."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        return importlib.import_module("cuda_resources")
    finally:
        sys.path.remove(str(TOOL.parent))


@pytest.mark.cuda_build
def test_kernels_take_no_more_than_is_recorded(record_property):
    """The table goes to the report; a growth is a decision, taken by `--record`."""
    if resources().find_nvcc() is None:
        pytest.skip("nvcc was not found (looked at CUDA_HOME, CUDA_PATH, PATH)")
    result = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True)
    record_property("resources", result.stdout)
    assert result.returncode == 0, result.stderr + result.stdout
    print(result.stdout)


PTXAS = """\
ptxas info    : Compiling entry function '_Z6kernelIfEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z6kernelIfEvPT_
    16 bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_90'
ptxas info    : Function properties for _Z5otherv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


@pytest.mark.parametrize(
    ("spill", "record", "expected"),
    [
        (0, [40, 2048, 16], []),
        (0, [48, 2048, 16], []),
        (0, None, []),
        (8, [40, 2048, 16], ["spills 8 bytes"]),
        (8, None, ["spills 8 bytes"]),
        (0, [32, 1024, 16], ["takes 40 registers, recorded are 32", "takes 2048 bytes of shared"]),
        (0, [40, 2048, 0], ["takes 16 bytes of stack"]),
    ],
)
def test_faults_are_found(spill, record, expected):
    tool = resources()
    table = {}
    for entry in tool._ENTRY.finditer(PTXAS.format(spill=spill)):
        (name, architecture, taken) = tool.resources_of(entry)
        table["warp", name] = {architecture: taken}
    assert list(table) == [("warp", "_Z6kernelIfEvPT_"), ("warp", "_Z5otherv")]
    assert table["warp", "_Z5otherv"]["sm_90"] == (8, 0, 0, 0, 0)
    records = record and {
        "warp": {"_Z6kernelIfEvPT_": {"sm_90": record}, "_Z5otherv": {"sm_90": [8, 0, 0]}}
    }
    found = tool.faults(table, records)
    assert len(found) == len(expected)
    assert all(part in fault for part, fault in zip(expected, found, strict=True))


def test_a_kernel_has_to_be_recorded():
    tool = resources()
    table = {("warp", "new"): {"sm_90": tool.Resources(8, 0, 0, 0, 0)}}
    found = tool.faults(table, {"warp": {"old": {"sm_90": [8, 0, 0]}}})
    assert ["not recorded" in found[0], "is no more" in found[1]] == [True, True]


@pytest.mark.skipif(
    _extension.unavailable["cuda"] is not None, reason=str(_extension.unavailable["cuda"])
)
def test_every_operator_has_a_cuda_kernel():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [f"vsegops::{operator.name}" for _, operator in _operators]
    assert names
    assert [name for name in names if not has_kernel(name, "CUDA")] == []
