"""Which backend serves, and what is said when none can."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers import OperatorCalls

import vsegops
from vsegops import _backends
from vsegops._backends import BACKENDS

AVAILABLE = [name for name, status in vsegops.backends().items() if status]
MISSING = [name for name, status in vsegops.backends().items() if not status]


def warp(device: str = "cpu") -> torch.Tensor:
    return vsegops.flow_warp(
        torch.ones(1, 1, 2, 2, device=device), torch.zeros(1, 2, 2, 2, device=device)
    )


def namespaces(device: str = "cpu") -> list[str]:
    """Where the operators of one call ran."""
    with OperatorCalls() as operators:
        warp(device)
    return [name.split("::")[0] for name in operators.names]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that imports the same vsegops."""
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(code: str, **environment: str) -> str:
    process = python(code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


# --- report ------------------------------------------------------------------------------------


def test_every_backend_is_reported():
    report = vsegops.backends()
    assert list(report) == ["cpu", "cuda", "triton", "reference"]
    assert report["reference"].available
    for status in report.values():
        assert bool(status) == status.available
        assert (status.reason == "available") == status.available
        assert len(status.reason) > 3 and "\n" not in status.reason


def test_command_line_report():
    process = subprocess.run(
        [sys.executable, "-m", "vsegops"], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert vsegops.__version__ in process.stdout and torch.__version__ in process.stdout
    for name, status in vsegops.backends().items():
        assert name in process.stdout and status.reason in process.stdout


# --- use_backend -------------------------------------------------------------------------------


def test_automatic_choice_prefers_compiled_kernels():
    expected = "vsegops" if "cpu" in AVAILABLE else "vsegops_reference"
    assert namespaces() == [expected]


def test_blocks_nest():
    for outer in AVAILABLE:
        if "cpu" not in (BACKENDS[outer].devices or ("cpu",)):
            continue
        with vsegops.use_backend(outer):
            with vsegops.use_backend("reference"):
                assert namespaces() == ["vsegops_reference"]
            assert namespaces() == [BACKENDS[outer].namespace]


def test_an_exception_ends_the_block():
    before = namespaces()
    with pytest.raises(KeyError), vsegops.use_backend("reference"):
        raise KeyError
    assert namespaces() == before


def test_unknown_name():
    with pytest.raises(ValueError, match="backend: .* cpu, .*'fastest'"):
        with vsegops.use_backend("fastest"):
            pass


@pytest.mark.parametrize("name", MISSING)
def test_missing_backend_raises_with_its_reason(name):
    with pytest.raises(RuntimeError) as caught, vsegops.use_backend(name):
        pass
    assert repr(name) in str(caught.value)
    assert vsegops.backends()[name].reason in str(caught.value)


def test_no_fallback_for_a_device_that_is_not_served():
    """A meta tensor stands for a device without kernels."""
    if "cpu" not in AVAILABLE:
        pytest.skip(vsegops.backends()["cpu"].reason)
    with vsegops.use_backend("cpu"), pytest.raises(RuntimeError, match="cpu tensors .* meta"):
        warp("meta")
    assert warp("meta").shape == (1, 1, 2, 2)


# --- environment -------------------------------------------------------------------------------

CALL = """
import torch, vsegops
x = torch.ones(1, 1, 2, 2, requires_grad=True)
y = vsegops.flow_warp(x, torch.zeros(1, 2, 2, 2))
print(y.grad_fn.name())
"""


def test_environment_variable_chooses():
    assert "vsegops_reference" in output_of(CALL, VSEGOPS_BACKEND="reference")


def test_empty_environment_variable_is_none():
    expected = "vsegops_reference" if "cpu" not in AVAILABLE else "vsegops"
    assert expected in output_of(CALL, VSEGOPS_BACKEND="")


def test_use_backend_overrules_the_environment():
    inside = CALL.replace("y = ", "with vsegops.use_backend('reference'): y = ")
    assert "vsegops_reference" in output_of(inside, VSEGOPS_BACKEND="fastest")


@pytest.mark.parametrize("name", ["fastest", *MISSING])
def test_wrong_environment_variable_raises_at_the_first_call(name):
    output_of("import vsegops; vsegops.backends()", VSEGOPS_BACKEND=name)
    process = python(CALL, VSEGOPS_BACKEND=name)
    assert process.returncode != 0
    assert repr(name) in process.stderr.strip().splitlines()[-1]


# --- import ------------------------------------------------------------------------------------


def test_import_is_light():
    """Neither Triton nor the models, and no compiler, before somebody asks for them."""
    code = """
import sys, subprocess
import torch
def refuse(*_, **__): raise AssertionError("a process was started")
subprocess.Popen = refuse
before = set(sys.modules)
import vsegops
loaded = set(sys.modules) - before
print(sorted(m for m in loaded if m.split(".")[0] in ("triton", "numpy", "ninja")))
print(sorted(m for m in loaded if m.startswith(("vsegops.models", "torch.utils.cpp_extension"))))
"""
    assert output_of(code).splitlines() == ["[]", "[]"]


def test_import_adds_little_to_torchs():
    code = """
import torch, torch.library, time
start = time.perf_counter()
import vsegops
print(time.perf_counter() - start)
"""
    assert min(float(output_of(code)) for _ in range(3)) < 1.0


def test_works_without_compiled_libraries():
    code = f"""
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **k: self.suffix != ".so" and exists(self, **k)
import vsegops
status = vsegops.backends()["cpu"]
assert not status and "not compiled" in status.reason, status
{CALL}"""
    assert "vsegops_reference" in output_of(code)


def test_works_with_a_library_that_does_not_load():
    code = f"""
import pathlib, torch
pathlib.Path.exists = lambda self, **k: True
pathlib.Path.read_text = lambda self, **k: "{{}}"
def fail(path): raise OSError("undefined symbol: aoti_torch_something\\nand more")
torch.ops.load_library = fail
import vsegops
status = vsegops.backends()["cpu"]
assert not status and "undefined symbol" in status.reason, status
assert "\\n" not in status.reason
{CALL}"""
    assert "vsegops_reference" in output_of(code)


def test_works_without_triton():
    code = """
import importlib.util as u
find = u.find_spec
u.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
import vsegops
assert vsegops.backends()["triton"].reason == "the package triton is not installed"
"""
    output_of(code)


def test_use_backend_blocks_may_end_in_any_order():
    first, second = vsegops.use_backend("reference"), vsegops.use_backend("cpu")
    if not vsegops.backends()["cpu"]:
        pytest.skip(vsegops.backends()["cpu"].reason)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _backends._requested == "cpu"
    second.__exit__(None, None, None)
    assert _backends._requested == _backends._environment
