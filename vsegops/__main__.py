"""What is installed, what was compiled and what can run here: `python -m vsegops`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from . import __version__, _extension, backends


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name where the system tells it, and the instruction sets in use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    capability = torch.backends.cpu.get_cpu_capability().lower()
    used = ""
    if _extension.unavailable["cpu"] is None:
        used = f", vsegops uses {_extension.cpu_capability}"
    return f"{name} (PyTorch uses {capability}{used})"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    found = []
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        found.append(f"{torch.cuda.get_device_name(i)} ({major}.{minor})")
    return ", ".join(found)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:<11}{text}" for name, text in rows)])


def report() -> str:
    """Versions, machine, what was compiled, and each backend with the reason if it is missing."""
    cuda = torch.version.cuda
    versions = [
        ("vsegops", __version__),
        ("torch", f"{torch.__version__} ({f'CUDA {cuda}' if cuda else 'CPU'} build)"),
        ("triton", _triton()),
        ("python", platform.python_version()),
    ]
    machine = [
        ("platform", platform.platform()),
        ("processor", _processor()),
        ("devices", _devices()),
    ]
    record = _extension.build or {"kernels": "nothing (setup.py was not run)"}
    built = [("with torch" if name == "torch" else name, text) for name, text in record.items()]
    asked = os.environ.get("VSEGOPS_BACKEND")
    title = f"Backends (VSEGOPS_BACKEND={asked} asks for one)" if asked else "Backends"
    sections = [
        _section("Versions", versions),
        _section("Machine", machine),
        _section("Compiled", built),
        _section(title, [(name, status.reason) for name, status in backends().items()]),
    ]
    return "\n\n".join(sections)


if __name__ == "__main__":
    print(report())
