"""The build's decisions, without building; what the package says of itself; the README's code.

That wheels build, install and work is checked by `.ci/run wheel`, which takes minutes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools
import torch

import vsegops
from vsegops import _extension

ROOT = Path(__file__).parent.parent
CUDA_TORCH = {
    "version": "2.14.1",
    "cuda": "13.0",
    "architectures": "sm_80 sm_90 compute_90",
}


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module: nothing is built."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("TORCH_CUDA_ARCH_LIST", "VSEGOPS_CUDA", "VSEGOPS_NATIVE", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("vsegops_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- finding torch ------------------------------------------------------------------------------


def test_torch_is_found_under_build_isolation(build, monkeypatch, tmp_path):
    """pip isolates by a `sitecustomize` on PYTHONPATH that hides the environment's packages."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.path = [p for p in sys.path if not p.endswith('-packages')]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    hidden = [sys.executable, "-c", "import torch"]
    assert subprocess.run(hidden, cwd="/", capture_output=True).returncode != 0
    found = build.find_torch()
    assert found["version"] == torch.__version__
    assert found["path"] == str(Path(torch.__file__).parent)
    assert found["cuda"] == torch.version.cuda


def test_torch_is_found_in_the_active_environment(build, monkeypatch, tmp_path):
    """A front end that builds in an environment of its own leaves VIRTUAL_ENV."""
    monkeypatch.setattr(sys, "executable", script(tmp_path / "isolated", "exit 1"))
    environment = tmp_path / "environment"
    found = json.dumps({"path": "/t", "version": "2.12.0", "cuda": None, "architectures": ""})
    script(environment / "bin" / "python", f"echo '{found}'")
    monkeypatch.setenv("VIRTUAL_ENV", str(environment))
    assert build.find_torch()["version"] == "2.12.0"


def test_without_torch_the_build_says_what_to_do(build, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", "exit 1"))
    with pytest.raises(SystemExit, match="pip install torch") as error:
        build.find_torch()
    assert "VSEGOPS_NATIVE=0" in str(error.value)


@pytest.mark.parametrize(
    ("version", "fine"),
    [
        ("2.10.1", False),
        ("1.13.0", False),
        ("2.11.0", True),
        ("2.11.0a0+git1", True),
        ("3.0", True),
    ],
)
def test_versions_of_torch(build, monkeypatch, tmp_path, version, fine):
    found = json.dumps({"path": "/t", "version": version, "cuda": None, "architectures": ""})
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", f"echo '{found}'"))
    if fine:
        assert build.find_torch()["version"] == version
    else:
        with pytest.raises(SystemExit, match=f"2.11 or later, found {re.escape(version)}"):
            build.find_torch()


# --- CUDA ---------------------------------------------------------------------------------------


@pytest.fixture
def nvcc(build, monkeypatch, tmp_path) -> str:
    """An nvcc that knows a few architectures."""
    known = "compute_80\\ncompute_90\\ncompute_100\\ncompute_120"
    path = script(tmp_path / "bin" / "nvcc", f"printf '{known}\\n'")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return path


def test_cuda_is_built_where_it_can_be(build, nvcc):
    assert build.find_nvcc() == nvcc
    assert build.cuda_refusal(CUDA_TORCH) is None


def test_why_cuda_is_not_built(build, nvcc, monkeypatch, tmp_path):
    without = {"version": "2.13.0+cpu", "cuda": None, "architectures": ""}
    assert build.cuda_refusal(without) == "torch 2.13.0+cpu is not a CUDA build"
    old = {**CUDA_TORCH, "architectures": "sm_37 sm_50"}
    assert "knows none of torch's architectures (sm_37 sm_50)" in build.cuda_refusal(old)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert build.cuda_refusal(CUDA_TORCH).startswith("nvcc was not found")
    monkeypatch.setenv("VSEGOPS_CUDA", "0")
    assert build.cuda_refusal(CUDA_TORCH) == "VSEGOPS_CUDA=0"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("", ["sm_80", "sm_90", "compute_90"]),
        ("9.0", ["sm_90"]),
        ("8.0;9.0+PTX", ["sm_80", "sm_90", "compute_90"]),
        ("8.0 9.0", ["sm_80", "sm_90"]),
        ("8.0, 12.0;", ["sm_80", "sm_120"]),
        ("9.0a", ["sm_90a"]),
    ],
)
def test_architectures(build, nvcc, monkeypatch, asked, code):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    flags = build.cuda_architectures(CUDA_TORCH)
    assert [flag.partition(",code=")[2] for flag in flags] == code
    for flag, target in zip(flags, code, strict=True):
        assert flag.startswith(f"-gencode=arch=compute_{target.partition('_')[2]},")


def test_torchs_architectures_that_nvcc_does_not_know_are_left_out(build, nvcc):
    flags = build.cuda_architectures({**CUDA_TORCH, "architectures": "sm_50 sm_90"})
    assert [flag.partition(",code=")[2] for flag in flags] == ["sm_90"]


@pytest.mark.parametrize(
    ("asked", "said"), [("Hopper", "'Hopper'"), ("90", "'90'"), ("5.0", "does not know sm_50")]
)
def test_architectures_that_cannot_be_built_are_named(build, nvcc, monkeypatch, asked, said):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST: .*{said}"):
        build.cuda_architectures(CUDA_TORCH)


# --- what is built ------------------------------------------------------------------------------


def test_every_family_is_in_every_library(build, nvcc, monkeypatch):
    pytest.importorskip("pybind11")
    found = {lib.output: lib for lib in build.libraries({**CUDA_TORCH, "path": "/torch"})}
    families = {path.parent.name for path in ROOT.glob("csrc/*/cpu.cpp")}
    assert families
    for name in build.INSTRUCTION_SETS:
        library = found[f"vsegops/lib/cpu_{name}.so"]
        assert {source.parent.name for source in library.sources} == families
        assert not any("torch_python" in flag for flag in library.link)
    assert {source.name for source in found["vsegops/lib/cuda.so"].sources} == {"cuda.cu"}
    assert "vsegops/lib/cuda.so" not in {
        lib.output for lib in build.libraries({**CUDA_TORCH, "cuda": None, "path": "/torch"})
    }


def test_instruction_sets_are_chosen(build, nvcc, monkeypatch):
    pytest.importorskip("pybind11")
    if "avx2" not in build.INSTRUCTION_SETS:
        pytest.skip("this processor has no instruction sets to choose from")
    monkeypatch.setenv("VSEGOPS_INSTRUCTION_SETS", "default; avx2")
    found = {lib.output for lib in build.libraries({**CUDA_TORCH, "path": "/torch"})}
    assert {"vsegops/lib/cpu_default.so", "vsegops/lib/cpu_avx2.so"} <= found
    assert "vsegops/lib/cpu_avx512.so" not in found
    monkeypatch.setenv("VSEGOPS_INSTRUCTION_SETS", "avx3")
    with pytest.raises(SystemExit, match="VSEGOPS_INSTRUCTION_SETS: expected .* got 'avx3'"):
        build.instruction_sets()


@pytest.mark.parametrize(
    ("processor", "built", "loaded"),
    [
        ("AVX512", ["default", "avx2", "avx512"], "avx512"),
        ("AVX512", ["default", "avx2"], "avx2"),
        ("AVX2", ["default", "avx512"], "default"),
        ("DEFAULT", ["default", "avx2"], "default"),
        ("NEON", ["default"], "default"),
    ],
)
def test_the_widest_that_was_built_is_loaded(monkeypatch, tmp_path, processor, built, loaded):
    for name in built:
        (tmp_path / f"cpu_{name}.so").touch()
    monkeypatch.setattr(_extension, "_LIBRARIES", tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    assert _extension._cpu_capability() == loaded


def test_the_record_names_what_was_compiled(build, nvcc, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    record = build.build_record(CUDA_TORCH)
    assert record["torch"] == "2.14.1"
    assert record["cuda"] == "compiled for sm_90, compute_90"
    assert all(name in record["cpu"] for name in build.INSTRUCTION_SETS)
    assert build.build_record({**CUDA_TORCH, "cuda": None})["cuda"].endswith("not a CUDA build")


def test_a_record_is_what_the_package_reads(build, tmp_path, monkeypatch):
    record = {"torch": "2.13.0", "cpu": "compiled for default", "cuda": "VSEGOPS_CUDA=0"}
    build.write_record(tmp_path, record)
    monkeypatch.setattr(_extension, "_LIBRARIES", tmp_path / "vsegops/lib")
    assert _extension._build_record() == record
    monkeypatch.setattr(_extension, "build", record)
    reason = _extension._load("cuda", "cuda")
    assert reason == "its kernels were not compiled: VSEGOPS_CUDA=0"


def test_the_record_of_this_build():
    if not _extension.build:
        pytest.skip("setup.py was not run")
    assert {"cpu", "cuda"} <= set(_extension.build)
    if _extension.unavailable["cpu"] is None:
        assert _extension.cpu_capability in _extension.build["cpu"]


# --- the installed package ----------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_agree():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", vsegops.__version__)
    try:
        assert importlib.metadata.version("vsegops") == vsegops.__version__
    except importlib.metadata.PackageNotFoundError:
        pass  # built in place
    assert f"## [{vsegops.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_report():
    report = run("-m", "vsegops")
    lines = {line.split()[0]: line for line in report.splitlines() if line.startswith("  ")}
    for name in ("vsegops", "torch", "triton", "python", "platform", "processor", "devices"):
        assert name in lines, report
    assert torch.__version__ in lines["torch"]
    capability = torch.backends.cpu.get_cpu_capability().lower()
    assert f"PyTorch uses {capability}" in lines["processor"]
    for name, status in vsegops.backends().items():
        assert re.search(rf"^  {name} +{re.escape(status.reason)}$", report, re.MULTILINE)
    for text in _extension.build.values():
        assert text in report
    assert {line[12] for line in lines.values()} == {" "}, "the columns are not aligned"
    assert not any(line[13] == " " for line in lines.values())


def test_report_names_the_instruction_set_and_the_backend_that_was_asked_for():
    report = run("-m", "vsegops", ATEN_CPU_CAPABILITY="default", VSEGOPS_BACKEND="reference")
    assert "PyTorch uses default" in report and "VSEGOPS_BACKEND=reference" in report
    if _extension.unavailable["cpu"] is None:
        assert "vsegops uses default" in report


def test_public_names():
    def order(name: str) -> tuple[bool, bool, str]:  # constants, classes, the rest
        return not name.isupper(), not name[0].isupper(), name

    assert sorted(set(vsegops.__all__), key=order) == list(vsegops.__all__)
    for name in vsegops.__all__:
        value: Any = getattr(vsegops, name)
        if callable(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
            assert value.__module__.startswith("vsegops")


def test_the_package_is_typed():
    assert (Path(vsegops.__file__).parent / "py.typed").exists()


def test_import_reads_neither_triton_nor_models():
    code = "import sys, vsegops; print([m for m in sys.modules if m.startswith(%r)])"
    for prefix in ("triton", "vsegops.models", "matplotlib", "av"):
        assert run("-c", code % f"{prefix}") in ("[]\n", "[]")


# --- the README's code --------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_readme_code(number, tmp_path):
    """Every Python block runs as it is pasted; `clip.mp4` is a video of the reader's own."""
    code = PYTHON_BLOCKS[number]
    if "vsegops.models" in code:
        pytest.importorskip("av", reason="PyAV is not installed")
        clips = pytest.importorskip("vsegops.models.video.clips", reason="not installed")
        clips.generate(tmp_path / "clip.mp4", frames=14, height=96, width=128)
    (tmp_path / "pasted.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "pasted.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"print\(.*\)  # (.*)", code):
        assert expected in done.stdout


#: The script runs elsewhere: where the package is not installed it is found as it is found here.
_PATHS = [os.environ.get("PYTHONPATH", ""), str(Path(vsegops.__file__).parent.parent)]


def test_readme_has_code_and_its_files_exist():
    assert len(PYTHON_BLOCKS) >= 2
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)|src=\"((?!https?:)[^\"]+)\"", README)
    for link in (a or b for a, b in links):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_readme_names_every_operator():
    from vsegops._spec import specs

    for spec in specs():
        assert f"`{spec.name}`" in README, spec.name
