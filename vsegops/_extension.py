"""Loads the compiled kernels, once, and keeps the reason where a library cannot be loaded.

The CPU kernels are built once per instruction set (`vsegops/lib/cpu_<capability>.so`); the one that
PyTorch itself chose for this processor is loaded, so `ATEN_CPU_CAPABILITY` governs both.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

_LIBRARIES = Path(__file__).parent / "lib"
_CAPABILITIES = ("avx512", "avx2", "default")


def _build_record() -> dict[str, str]:
    """What `setup.py` wrote about the build: why a library is missing, which architectures."""
    path = _LIBRARIES / "build.json"
    if not path.exists():
        return {}
    record: dict[str, str] = json.loads(path.read_text())
    return record


def _load(name: str, kernels: str) -> str | None:
    """Load `lib/<name>.so`; None when that worked, else the reason in words."""
    path = _LIBRARIES / f"{name}.so"
    if not path.exists():
        reason = build.get(kernels, "the package was installed without running setup.py")
        return f"its kernels were not compiled: {reason}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {str(error).splitlines()[0]}"
    return None


def _cpu_capability() -> str:
    """`avx512`, `avx2` or `default`: the widest that this processor runs, of those built."""
    widest = torch.backends.cpu.get_cpu_capability().lower()
    runs = _CAPABILITIES[_CAPABILITIES.index(widest) :] if widest in _CAPABILITIES else ("default",)
    built = (name for name in runs if (_LIBRARIES / f"cpu_{name}.so").exists())
    return next(built, "default")


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    return _load("cuda", "cuda")


build = _build_record()
cpu_capability = _cpu_capability()

#: For each library of compiled kernels: None if it is loaded, else why not.
unavailable: dict[str, str | None] = {
    "cpu": _load(f"cpu_{cpu_capability}", "cpu"),
    "cuda": _load_cuda(),
}
